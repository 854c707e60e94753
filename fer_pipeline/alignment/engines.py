"""Run the three networks with torch, or on a CPU with OpenVINO or ONNX Runtime, as functions that are called alike.

Engines sum in different orders: landmarks agree to a hundredth of a pixel, not to the bit. So the engine is part of
what a result depends on, and `auto`, which means torch, does not look at what happens to be installed.
"""

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor, nn

from fer_pipeline.alignment.networks import CropNet, MaxPool2x2, Mtcnn, ProposalNet, face_logit, load_mtcnn
from fer_pipeline.core.errors import ConfigError

Engine = Literal["auto", "torch", "openvino", "onnxruntime"]

EXTRAS = {"openvino": "openvino", "onnxruntime": "onnx"}
OPSET = 17  # of ONNX

Run = Callable[[Float32[np.ndarray, "n h w 3"]], list[np.ndarray]]


def resolve_engine(engine: Engine) -> Literal["torch", "openvino", "onnxruntime"]:
    """Returns the engine that is meant; one that is not installed is a ConfigError."""
    if engine in ("auto", "torch"):
        return "torch"
    for package in (engine, "onnx"):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"align.engine is {engine}, but the package {package} is not installed; "
                f"run: pip install 'fer_pipeline[{EXTRAS[engine]}]', or set align.engine: torch"
            )
    return engine


class CompiledNet:
    """A network that runs without torch on the CPU, called like the torch module."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        faces, *rest = self._run(x)
        return faces[:, 0], *rest

    def propose(self, x: Tensor, *, threshold: float) -> tuple[Tensor, ...]:
        """Returns what `ProposalNet.propose` returns."""
        faces, offsets = self._run(x)
        cells = (faces[:, 0] > threshold).nonzero()
        picture, row, column = cells.unbind(dim=1)
        return cells, faces[picture, 0, row, column], offsets[picture, :, row, column]

    def _run(self, x: Tensor) -> Iterator[Tensor]:
        return map(torch.from_numpy, self.run(x.permute(0, 2, 3, 1).contiguous().numpy()))


def load_networks(engine: Engine = "auto", *, device: str | torch.device = "cpu") -> Mtcnn:
    """Loads the networks with the published weights. Engines other than torch work on the CPU, with torch's threads."""
    name = resolve_engine(engine)
    if name == "torch":
        return load_mtcnn(device=device)
    return Mtcnn(*(CompiledNet(_compile(export_onnx(network), name)) for network in load_mtcnn()))


def export_onnx(net: ProposalNet | CropNet) -> bytes:
    """Returns the network as a serialised ONNX model.

    Its outputs are `face` [n, 1] ([n, 1, y, x] for P-Net), `box` [n, 4] ([n, 4, y, x]) and O-Net's `landmarks` [n, 10].
    Differences from the torch module: pixels come as [n, height, width, 3], and the face probability is the logistic
    function of one product, with the difference of the two weights, instead of the difference of two.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def add(operator: str, value: str, *tensors: Tensor, out: str | None = None, **attributes: Any) -> str:
        """Puts a value through an operator, whose other inputs are weights, and returns the name of its output."""
        names = [f"weight{len(weights) + number}" for number in range(len(tensors))]
        arrays = (np.ascontiguousarray(tensor.detach().cpu().numpy()) for tensor in tensors)
        weights.extend(map(numpy_helper.from_array, arrays, names))
        nodes.append(helper.make_node(operator, [value, *names], [out or f"value{len(nodes)}"], **attributes))
        return nodes[-1].output[0]

    def add_layer(layer: nn.Module, value: str, *, out: str | None = None) -> str:
        if isinstance(layer, nn.Conv2d):
            return add("Conv", value, *layer.parameters(), out=out)
        if isinstance(layer, nn.Linear):
            return add("Gemm", value, *layer.parameters(), out=out, transB=1)
        if isinstance(layer, nn.PReLU):
            flat = nodes[-1].op_type == "Gemm"
            return add("PRelu", value, layer.weight if flat else layer.weight[:, None, None])
        assert isinstance(layer, nn.MaxPool2d | MaxPool2x2), f"no operator for {layer}"
        side = layer.kernel_size if isinstance(layer, nn.MaxPool2d) else 2
        return add("MaxPool", value, kernel_shape=[side, side], strides=[2, 2], ceil_mode=1)

    value = add("Transpose", "pixels", perm=[0, 3, 1, 2])
    for layer in net.trunk:
        value = add_layer(layer, value)
    if isinstance(net, ProposalNet):
        face, regressions, size, rank = add("Conv", value, *face_logit(net.face)), [net.box], None, 4
    else:
        value = add("Flatten", add("Transpose", value, perm=[0, 3, 2, 1]))
        for layer in net.dense:
            value = add_layer(layer, value)
        face, regressions = add("Gemm", value, *face_logit(net.face), transB=1), [*net.regressions]
        size, rank = net.size, 2
    add("Sigmoid", face, out="face")
    names = ["box", "landmarks"][: len(regressions)]
    for name, head in zip(names, regressions, strict=True):
        add_layer(head, value, out=name)
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [None, size, size, 3])
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * rank) for name in ("face", *names)]
    graph = helper.make_graph(nodes, type(net).__name__, [pixels], outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def _compile(graph: bytes, engine: str) -> Run:
    if engine == "openvino":
        import openvino

        core = openvino.Core()
        # It would take bfloat16 where the CPU has it.
        options = {
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        request = core.compile_model(core.read_model(model=graph), "CPU", options).create_infer_request()
        return lambda pixels: [np.array(output) for output in request.infer([pixels], share_inputs=True).values()]
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return lambda pixels: [np.asarray(output) for output in session.run(None, {"pixels": pixels})]
