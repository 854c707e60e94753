"""A network of the cascade in, the same network as an ONNX graph out, for engines other than torch.

Differences from the torch module: pixels come as [n, height, width, 3], and the face probability is the logistic
function of one product, with the difference of the two weights, instead of the difference of two.
"""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from fer_pipeline.alignment.networks import OutputNet, PairPool, ProposalNet, RefinementNet, face_direction

OPSET = 17


class _Graph:
    """Nodes and weights in the order in which they are added; `last` is the name of the value that flows on."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.last = "pixels"

    def add(self, operator: str, *weights: Tensor | None, out: str | None = None, **attributes: Any) -> None:
        """Puts the value through an operator, whose other inputs are weights."""
        names = [self.last]
        for weight in weights:
            assert weight is not None
            names.append(f"weight{len(self.weights)}")
            array = np.ascontiguousarray(weight.detach().cpu().numpy())
            self.weights.append(numpy_helper.from_array(array, names[-1]))
        self.last = out or f"value{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, names, [self.last], **attributes))

    def add_layer(self, layer: nn.Module) -> None:
        """Puts the value through a layer of a trunk or a dense part."""
        if isinstance(layer, nn.Conv2d):
            self.add("Conv", layer.weight, layer.bias)
        elif isinstance(layer, nn.Linear):
            self.add("Gemm", layer.weight, layer.bias, transB=1)
        elif isinstance(layer, nn.PReLU):
            self.add("PRelu", layer.weight if self.nodes[-1].op_type == "Gemm" else layer.weight[:, None, None])
        elif isinstance(layer, nn.MaxPool2d | PairPool):
            side = layer.kernel_size if isinstance(layer, nn.MaxPool2d) else 2
            self.add("MaxPool", kernel_shape=[side, side], strides=[2, 2], ceil_mode=1)
        else:
            raise AssertionError(f"no operator for {layer}")


def onnx_graph(net: ProposalNet | RefinementNet | OutputNet) -> bytes:
    """The network as a serialised ONNX model.

    Its outputs are `face` [n] ([n, 1, y, x] for P-Net), `box` [n, 4] ([n, 4, y, x]) and O-Net's `landmarks` [n, 10].
    """
    graph = _Graph()
    graph.add("Transpose", perm=[0, 3, 1, 2])
    for layer in net.trunk:
        graph.add_layer(layer)
    if not isinstance(net, ProposalNet):
        graph.add("Transpose", perm=[0, 3, 2, 1])
        graph.add("Flatten")
        for layer in net.dense:
            graph.add_layer(layer)
    operator = "Conv" if isinstance(net, ProposalNet) else "Gemm"
    attributes: dict[str, Any] = {} if operator == "Conv" else {"transB": 1}
    features = graph.last
    graph.add(operator, *face_direction(net.face), **attributes)
    graph.add("Sigmoid", out="face")
    heads = {"box": net.box, **({"landmarks": net.landmarks} if isinstance(net, OutputNet) else {})}
    for name, head in heads.items():
        graph.last = features
        graph.add(operator, head.weight, head.bias, out=name, **attributes)
    size = {ProposalNet: None, RefinementNet: 24, OutputNet: 48}[type(net)]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [None, size, size, 3])
    rank = 4 if isinstance(net, ProposalNet) else 2
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * rank) for name in ("face", *heads)]
    whole = helper.make_graph(graph.nodes, type(net).__name__, [pixels], outputs, graph.weights)
    model = helper.make_model(whole, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()
