"""What runs the three networks: torch, or on a CPU OpenVINO or ONNX Runtime.

In: the name of an engine. Out: the networks as functions that are called alike. Engines sum in different orders:
landmarks agree to a hundredth of a pixel, not to the bit. So the engine is part of what a result depends on, and
`auto`, which means torch, does not look at what happens to be installed.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from fer_pipeline.alignment.networks import load_weights
from fer_pipeline.core.errors import ConfigError

Engine = Literal["auto", "torch", "openvino", "onnxruntime"]

EXTRAS = {"openvino": "openvino", "onnxruntime": "onnx"}

Run = Callable[[Float32[np.ndarray, "n h w 3"]], list[np.ndarray]]


@dataclass(frozen=True)
class Networks:
    """The cascade's three networks with their weights.

    `propose` has the signature and outputs of `ProposalNet.proposals`; `refine` and `output` are called like
    `RefinementNet` and `OutputNet`.
    """

    propose: Callable[..., tuple[Tensor, ...]]
    refine: Callable[..., tuple[Tensor, ...]]
    output: Callable[..., tuple[Tensor, ...]]


def resolved(engine: Engine) -> Literal["torch", "openvino", "onnxruntime"]:
    """The engine that is meant; one that is not installed is a `ConfigError`."""
    if engine in ("auto", "torch"):
        return "torch"
    for package in (engine, "onnx"):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"align.engine is {engine}, but the package {package} is not installed; "
                f"run: pip install 'fer_pipeline[{EXTRAS[engine]}]', or set align.engine: torch"
            )
    return engine


def load_networks(engine: Engine = "auto", *, device: str | torch.device = "cpu") -> Networks:
    """The networks with the published weights. Engines other than torch work on the CPU, with torch's threads."""
    name = resolved(engine)
    nets = load_weights(device=device if name == "torch" else "cpu")
    if name == "torch":
        return Networks(nets.pnet.proposals, nets.rnet, nets.onet)
    from fer_pipeline.alignment.graphs import onnx_graph

    begin = _openvino if name == "openvino" else _onnxruntime
    pnet, rnet, onet = (begin(onnx_graph(net)) for net in (nets.pnet, nets.rnet, nets.onet))
    return Networks(_proposing(pnet), _judging(rnet), _judging(onet))


def _proposing(run: Run) -> Callable[..., tuple[Tensor, ...]]:
    def propose(x: Tensor, *, threshold: float) -> tuple[Tensor, ...]:
        faces, offsets = map(torch.from_numpy, run(_pixels(x)))
        found = (faces[:, 0] > threshold).nonzero()
        picture, row, column = found.unbind(dim=1)
        return found, faces[picture, 0, row, column], offsets[picture, :, row, column]

    return propose


def _judging(run: Run) -> Callable[..., tuple[Tensor, ...]]:
    def judge(x: Tensor) -> tuple[Tensor, ...]:
        faces, *rest = map(torch.from_numpy, run(_pixels(x)))
        return faces[:, 0], *rest

    return judge


def _pixels(x: Tensor) -> Float32[np.ndarray, "n h w 3"]:
    return x.permute(0, 2, 3, 1).contiguous().numpy()


def _openvino(graph: bytes) -> Run:
    import openvino

    core = openvino.Core()
    options = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32",  # it would take bfloat16 where the CPU has it
    }
    request = core.compile_model(core.read_model(model=graph), "CPU", options).create_infer_request()

    def run(pixels: np.ndarray) -> list[np.ndarray]:
        return [np.array(output) for output in request.infer([pixels], share_inputs=True).values()]

    return run


def _onnxruntime(graph: bytes) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def run(pixels: np.ndarray) -> list[np.ndarray]:
        return [np.asarray(output) for output in session.run(None, {"pixels": pixels})]

    return run
