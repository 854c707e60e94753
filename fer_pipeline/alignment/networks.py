"""Define the three MTCNN networks in torch, load their published weights, and run them on a CPU with other engines.

Source: Zhang et al., arXiv:1604.02878, figure 2, in the layout of the `mtcnn` 1.0.0 package, whose weights they carry:
convolutions without padding, pools whose last window may be partial. Input is RGB, `(x - 127.5) / 128`; outputs are a
face probability, a box regression and, of O-Net, landmarks. The parameters are declared in the order of the weight
files, which are joblib pickles in an lz4 frame, checked against pinned hashes before they are unpickled; nothing of the
package is imported, since it needs TensorFlow. Difference: the face probability is the logistic function of the
difference of the two logits, which is the soft-max of two classes. P-Net takes most of the time on a CPU, and torch is
slow on its ten channels: its first PReLU and pool are written so that vectors are long, and `propose` runs the heads
where they matter.

OpenVINO and ONNX Runtime are called like the torch modules. Engines sum in different orders: landmarks agree to a
hundredth of a pixel, not to the bit. So the engine is part of what a result depends on, and `auto`, which means torch,
does not look at what happens to be installed.
"""

import hashlib
import importlib.metadata
import importlib.util
import io
import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from fer_pipeline.core.errors import ConfigError, DataError

Network = Literal["pnet", "rnet", "onet"]
Engine = Literal["auto", "torch", "openvino", "onnxruntime"]

ROUNDING = 1e-3  # far more than the logits of two ways to sum them differ
EXTRAS = {"openvino": "openvino", "onnxruntime": "onnx"}
OPSET = 17  # of ONNX
SHA256: dict[Network, str] = {
    "pnet": "ea6b0c3e685ebee3165326ad6484acc95f2ef78f1c94fbf40a55704fa989f7b5",
    "rnet": "cb00e6460f3c98b0bfafaba3c0a0ded4bdf6e62cee7174d969e8670d7e757fee",
    "onet": "94f6ea2f4cf985275ee958cdd762d17b6009348a4fb9d8c6be39ba73ffd22ca3",
}

Run = Callable[[Float32[np.ndarray, "n h w 3"]], list[np.ndarray]]


def _trunk(*stages: tuple[int, int, int, int]) -> nn.Sequential:
    """Builds stages of (channels in, channels out, kernel, pool or 0)."""
    layers: list[nn.Module] = []
    for inner, outer, kernel, pool in stages:
        layers += [nn.Conv2d(inner, outer, kernel), nn.PReLU(outer)]
        if pool:
            layers.append(nn.MaxPool2d(pool, stride=2, ceil_mode=True))
    return nn.Sequential(*layers)


def face_logit(head: nn.Conv2d | nn.Linear) -> tuple[Tensor, Tensor]:
    """Returns weight [1 …] and bias [1] of the one product whose logistic function is the face probability."""
    assert head.bias is not None
    return head.weight.diff(dim=0), head.bias.diff()


def _face_probability(logits: Float[Tensor, "*n 2"]) -> Float[Tensor, "*n"]:
    return torch.sigmoid(logits[..., 1] - logits[..., 0])


class _RowPReLU(nn.PReLU):
    """A PReLU over whole rows of pixels at a time: 5 times as fast as torch's with few channels, last in memory."""

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        n, c, h, w = x.shape
        rows = F.prelu(x.permute(0, 2, 3, 1).reshape(n * h, w * c), self.weight.repeat(w))
        return rows.view(n, h, w, c).permute(0, 3, 1, 2)


class MaxPool2x2(nn.Module):
    """A 2 x 2 max-pool with partial last windows, as maxima of slices: 3 times as fast with few channels."""

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c y x"]:
        x = x.permute(0, 2, 3, 1)
        return _pair_maxima(_pair_maxima(x, dim=1), dim=2).permute(0, 3, 1, 2)


def _pair_maxima(x: Float[Tensor, "n h w c"], *, dim: int) -> Float[Tensor, "n y x c"]:
    size = x.shape[dim]
    out = x.new_empty([*x.shape[:dim], (size + 1) // 2, *x.shape[dim + 1 :]])
    even, odd = x[(slice(None),) * dim + (slice(0, None, 2),)], x[(slice(None),) * dim + (slice(1, None, 2),)]
    pairs = size // 2
    torch.maximum(even.narrow(dim, 0, pairs), odd, out=out.narrow(dim, 0, pairs))
    if size % 2:
        out.select(dim, -1).copy_(even.select(dim, -1))
    return out


class ProposalNet(nn.Module):
    """P-Net: a face probability and a box regression for every 12 x 12 cell at a stride of 2."""

    STRIDE = 2

    def __init__(self) -> None:
        super().__init__()
        first = (nn.Conv2d(3, 10, 3), _RowPReLU(10), MaxPool2x2())
        self.trunk = nn.Sequential(*first, *_trunk((10, 16, 3, 0), (16, 32, 3, 0)))
        self.box = nn.Conv2d(32, 4, 1)
        self.face = nn.Conv2d(32, 2, 1)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> tuple[Float[Tensor, "n y x"], Float[Tensor, "n y x 4"]]:
        return self._heads(self.trunk(x).permute(0, 2, 3, 1))

    def propose(
        self, x: Float[Tensor, "n 3 h w"], *, threshold: float
    ) -> tuple[Int64[Tensor, "k 3"], Float[Tensor, " k"], Float[Tensor, "k 4"]]:
        """Returns the cells (picture, y, x) that pass the threshold, or are a rounding error below it, as in `forward`.

        One product judges a cell; the two heads, whose few columns make them slow, run on what is left.
        """
        x = self.trunk(x).permute(0, 2, 3, 1)
        weight, bias = face_logit(self.face)
        cells = (x.matmul(weight.flatten()) + bias > math.log(threshold / (1 - threshold)) - ROUNDING).nonzero()
        rows = x[tuple(cells.T)]
        if len(rows) == 1:  # one row alone would be summed in another order
            rows = rows.repeat(2, 1)
        faces, offsets = self._heads(rows)
        return cells, faces[: len(cells)], offsets[: len(cells)]

    def _heads(self, x: Float[Tensor, "*n 32"]) -> tuple[Float[Tensor, "*n"], Float[Tensor, "*n 4"]]:
        logits = F.linear(x, self.face.weight.flatten(1), self.face.bias)
        return _face_probability(logits), F.linear(x, self.box.weight.flatten(1), self.box.bias)


class CropNet(nn.Module):
    """R-Net and O-Net: a face probability, a box regression (and landmarks x1..x5, y1..y5) for every square crop."""

    def __init__(self, trunk: nn.Sequential, *, size: int, inputs: int, hidden: int, outputs: tuple[int, ...]) -> None:
        super().__init__()
        self.size = size
        self.trunk = trunk
        self.dense = nn.Sequential(nn.Linear(inputs, hidden), nn.PReLU(hidden))
        self.regressions = nn.ModuleList(nn.Linear(hidden, output) for output in outputs)
        self.face = nn.Linear(hidden, 2)

    def forward(self, x: Float[Tensor, "n 3 s s"]) -> tuple[Float[Tensor, "n ..."], ...]:
        # The dense weights were trained on (width, height, channel).
        x = self.dense(self.trunk(x).permute(0, 3, 2, 1).flatten(1))
        return _face_probability(self.face(x)), *(head(x) for head in self.regressions)


class Mtcnn(NamedTuple):
    """The cascade's three networks, as torch modules or as what another engine runs in the same way."""

    pnet: Any
    rnet: Any
    onet: Any


def load_networks(engine: Engine = "auto", *, device: str | torch.device = "cpu") -> Mtcnn:
    """Loads the networks with the published weights, ready for inference; only torch works on a GPU."""
    name = resolve_engine(engine)
    small = _trunk((3, 28, 3, 3), (28, 48, 3, 3), (48, 64, 2, 0))
    large = _trunk((3, 32, 3, 3), (32, 64, 3, 3), (64, 64, 3, 2), (64, 128, 2, 0))
    networks: dict[Network, ProposalNet | CropNet] = {
        "pnet": ProposalNet(),
        "rnet": CropNet(small, size=24, inputs=576, hidden=128, outputs=(4,)),
        "onet": CropNet(large, size=48, inputs=1152, hidden=256, outputs=(4, 10)),
    }
    for title, network in networks.items():
        with torch.no_grad():
            for parameter, array in zip(network.parameters(), read_weights(title), strict=True):
                # Convolutions are HWIO in the file, dense weights (in, out).
                ordered = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
                parameter.copy_(torch.from_numpy(np.array(ordered, order="C")).view_as(parameter))
        network.requires_grad_(False).eval().to(device if name == "torch" else "cpu")
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # 1.2 to 2 times as fast on a CPU
    if name == "torch":
        return Mtcnn(**networks)
    return Mtcnn(*(CompiledNet(_compile(export_onnx(network), name)) for network in networks.values()))


def read_weights(network: Network) -> list[np.ndarray]:
    """Reads the float32 arrays of one network in the order of the file."""
    import joblib  # health checks the files without unpickling them

    return joblib.load(io.BytesIO(verify_checksum(read_package_file(network), network)))


def read_package_file(network: Network) -> bytes:
    """Reads a weight file as the `mtcnn` package ships it; DataError where the package is not installed."""
    name = f"mtcnn/assets/weights/{network}.lz4"
    with suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("mtcnn") or ():
            if str(file) == name:
                return file.read_binary()
    raise DataError(f"the package mtcnn with {name} is not installed; run: pip install mtcnn==1.0.0")


def verify_checksum(data: bytes, network: Network) -> bytes:
    """Returns the bytes of a weight file if they are the published ones; DataError otherwise."""
    digest = hashlib.sha256(data).hexdigest()
    if digest != SHA256[network]:
        raise DataError(
            f"the {network} weights of the package mtcnn have sha256 {digest[:16]}…, "
            f"expected {SHA256[network][:16]}…; run: pip install --force-reinstall mtcnn==1.0.0"
        )
    return data


def resolve_engine(engine: Engine) -> Literal["torch", "openvino", "onnxruntime"]:
    """Returns the engine that is meant; one that is not installed is a ConfigError."""
    if engine in ("auto", "torch"):
        return "torch"
    for package in (engine, "onnx"):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"align.engine is {engine}, but the package {package} is not installed; "
                f"run: pip install -e '.[{EXTRAS[engine]}]', or set align.engine: torch"
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
