"""Export a network of the cascade as an ONNX graph, for engines other than torch.

Differences from the torch module: pixels come as [n, height, width, 3], and the face probability is the logistic
function of one product, with the difference of the two weights, instead of the difference of two.
"""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from fer_pipeline.alignment.networks import CropNet, MaxPool2x2, ProposalNet, face_logit

OPSET = 17


class _Graph:
    """Nodes and weights in the order in which they are added; `last` is the name of the value that flows on."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.last = "pixels"

    def add(self, operator: str, *weights: Tensor, out: str | None = None, **attributes: Any) -> None:
        """Puts the value through an operator, whose other inputs are weights."""
        names = [self.last]
        for weight in weights:
            names.append(f"weight{len(self.weights)}")
            array = np.ascontiguousarray(weight.detach().cpu().numpy())
            self.weights.append(numpy_helper.from_array(array, names[-1]))
        self.last = out or f"value{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, names, [self.last], **attributes))

    def add_layer(self, layer: nn.Module, *, out: str | None = None) -> None:
        """Puts the value through a layer of a network."""
        if isinstance(layer, nn.Conv2d):
            self.add("Conv", *layer.parameters(), out=out)
        elif isinstance(layer, nn.Linear):
            self.add("Gemm", *layer.parameters(), out=out, transB=1)
        elif isinstance(layer, nn.PReLU):
            self.add("PRelu", layer.weight if self.nodes[-1].op_type == "Gemm" else layer.weight[:, None, None])
        elif isinstance(layer, nn.MaxPool2d | MaxPool2x2):
            side = layer.kernel_size if isinstance(layer, nn.MaxPool2d) else 2
            self.add("MaxPool", kernel_shape=[side, side], strides=[2, 2], ceil_mode=1)
        else:
            raise AssertionError(f"no operator for {layer}")


def export_onnx(net: ProposalNet | CropNet) -> bytes:
    """Returns the network as a serialised ONNX model.

    Its outputs are `face` [n, 1] ([n, 1, y, x] for P-Net), `box` [n, 4] ([n, 4, y, x]) and O-Net's `landmarks` [n, 10].
    """
    graph = _Graph()
    graph.add("Transpose", perm=[0, 3, 1, 2])
    for layer in net.trunk:
        graph.add_layer(layer)
    regressions = [net.box] if isinstance(net, ProposalNet) else [*net.regressions]
    if isinstance(net, CropNet):
        graph.add("Transpose", perm=[0, 3, 2, 1])
        graph.add("Flatten")
        for layer in net.dense:
            graph.add_layer(layer)
    features = graph.last
    if isinstance(net, ProposalNet):
        graph.add("Conv", *face_logit(net.face))
    else:
        graph.add("Gemm", *face_logit(net.face), transB=1)
    graph.add("Sigmoid", out="face")
    names = ["box", "landmarks"][: len(regressions)]
    for name, head in zip(names, regressions, strict=True):
        graph.last = features
        graph.add_layer(head, out=name)
    size, rank = (None, 4) if isinstance(net, ProposalNet) else (net.size, 2)
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [None, size, size, 3])
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * rank) for name in ("face", *names)]
    whole = helper.make_graph(graph.nodes, type(net).__name__, [pixels], outputs, graph.weights)
    model = helper.make_model(whole, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()
