"""Run the three networks with torch, or on a CPU with OpenVINO or ONNX Runtime, as functions that are called alike.

Engines sum in different orders: landmarks agree to a hundredth of a pixel, not to the bit. So the engine is part of
what a result depends on, and `auto`, which means torch, does not look at what happens to be installed.
"""

import importlib.util
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from fer_pipeline.alignment.networks import Mtcnn, load_mtcnn
from fer_pipeline.core.errors import ConfigError

Engine = Literal["auto", "torch", "openvino", "onnxruntime"]

EXTRAS = {"openvino": "openvino", "onnxruntime": "onnx"}

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
    from fer_pipeline.alignment.onnx_export import export_onnx

    start = _start_openvino if name == "openvino" else _start_onnxruntime
    return Mtcnn(*(CompiledNet(start(export_onnx(network))) for network in load_mtcnn()))


def _start_openvino(graph: bytes) -> Run:
    import openvino

    core = openvino.Core()
    options = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32",  # it would take bfloat16 where the CPU has it
    }
    request = core.compile_model(core.read_model(model=graph), "CPU", options).create_infer_request()
    return lambda pixels: [np.array(output) for output in request.infer([pixels], share_inputs=True).values()]


def _start_onnxruntime(graph: bytes) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return lambda pixels: [np.asarray(output) for output in session.run(None, {"pixels": pixels})]
