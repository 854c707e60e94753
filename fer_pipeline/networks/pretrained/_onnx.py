"""Run a classifier in an ONNX file, by ONNX Runtime on the CPU, as a module that gives logits."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from fer_pipeline.core.documents import one_line
from fer_pipeline.core.errors import DataError


class OnnxNet(nn.Module):
    """The graph of an ONNX file with one input [n 3 s s] and, first among its outputs, a row of scores a picture.

    `probabilities` says that the scores are such already. The weights cannot be trained; no gradient passes. They are
    no part of the `state_dict`: `read` gets the bytes when the network is opened, at the latest when it is used.
    """

    def __init__(self, read: Callable[[], bytes], *, file: str, num_classes: int, probabilities: bool = False) -> None:
        super().__init__()
        self.read, self.file = read, file
        self.session: Any = None
        self.num_classes, self.probabilities = num_classes, probabilities

    def __deepcopy__(self, memo: dict[int, Any]) -> "OnnxNet":
        return self  # nothing in it changes

    def open(self) -> "OnnxNet":
        """Reads the bytes and makes them ready to run; DataError where that cannot be."""
        file, data = self.file, self.read()
        try:
            import onnxruntime
        except ModuleNotFoundError:
            raise DataError(f"{file} needs the package onnxruntime; run: pip install -e '.[onnx]'") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
        options.log_severity_level = 4  # its complaints come as errors
        try:
            session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
            inputs, outputs = session.get_inputs(), session.get_outputs()
        except Exception as error:  # of its own kinds, which have no common parent
            raise DataError(f"{file} cannot be run by ONNX Runtime ({one_line(error, 160)}); get it again") from None
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].shape[1] != 3:
            shapes = ", ".join(str(one.shape) for one in inputs)
            raise DataError(f"{file} takes {shapes}, expected one input [n 3 height width]; name another network")
        self.session, self.input, self.output = session, inputs[0].name, outputs[0].name
        self.one_by_one = isinstance(inputs[0].shape[0], int)  # exported with a fixed batch
        return self

    def forward(self, x: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "n c"]:
        session = self.session or self.open().session
        pixels = x.detach().cpu().contiguous().numpy()
        batches = np.split(pixels, len(pixels)) if self.one_by_one and len(pixels) > 1 else [pixels]
        try:
            rows = [np.asarray(session.run([self.output], {self.input: batch})[0]) for batch in batches]
            scores = np.concatenate(rows).astype(np.float32).reshape(len(pixels), -1)
        except Exception as error:  # of its own kinds; pictures of a size that its layers do not fit
            raise DataError(f"{self.file} does not run ({one_line(error, 160)}); check its preprocessing") from None
        if scores.shape[1] != self.num_classes:
            raise DataError(
                f"{self.file} gives {scores.shape[1]} scores a picture, expected {self.num_classes} classes"
            )
        result = torch.from_numpy(scores).to(x.device)
        return result.clamp_min(torch.finfo(result.dtype).tiny).log() if self.probabilities else result
