"""Compile code that scores half-precision rows: cosines to centroids, nearest class, margin and logits in one pass.

BLAS has no product of half with single precision: the features would first be widened in memory, which costs several
times what reading them costs. Here a row is widened in registers and multiplied with all centroids, the head's vectors
and itself, by code that LLVM makes for this processor out of the template `kernel.ll.j2`. Every sum runs over `LANES`
partial sums by fused multiply-add, added up in a fixed order: a row's bits depend on that row and the centroids alone,
not on its neighbours nor on the processor's vectors.
"""

import ctypes
import platform
from collections.abc import Sequence
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np
from jaxtyping import Float16, Float32, Float64, Int64
from jinja2 import Environment, StrictUndefined

LANES = 16  # partial sums of every product: one register of AVX-512, two of AVX2
AHEAD = 2048  # features: prefetched so far ahead, for the processor itself stops at the end of every page
LINE = 64  # bytes of a cache line
TEMPLATE = Path(__file__).with_name("kernel.ll.j2")


def is_supported() -> bool:
    """Whether this processor widens half precision and fuses multiply-add by itself; all servers since 2013 do."""
    if platform.machine().lower() in ("arm64", "aarch64"):
        return True
    features = llvm.get_host_cpu_features()
    return bool(features.get("f16c") and features.get("fma"))


class Kernel:
    """Compiled code for some centroids and, where there is one, a head (`[h d]`, whose bias is the caller's to add).

    It keeps no state between calls and runs without the interpreter's lock, so that threads may share it.
    """

    def __init__(
        self,
        units: Float64[np.ndarray, "c d"],
        head: Float32[np.ndarray, "h d"] | None = None,
        *,
        at_once: int | None = None,
    ) -> None:
        num_classes, self.width = units.shape
        vectors = units if head is None else np.concatenate([units, head])
        self.padded = -(-self.width // LANES) * LANES
        # Rows begin at cache lines: a register's load across two lines takes twice the time.
        memory = np.zeros(len(vectors) * self.padded * 4 + LINE, np.uint8)
        start = -memory.ctypes.data % LINE
        self.table = memory[start : memory.nbytes - LINE + start].view(np.float32).reshape(-1, self.padded)
        self.table[:, : self.width] = vectors
        # As many sums at once as the registers hold; more vectors take several passes over a row in the first cache.
        features = llvm.get_host_cpu_features()
        size = at_once or (14 if features.get("avx512f") else 6)
        count = len(vectors) + 1  # of the sums: the last is the row with itself
        groups = [range(begin, min(begin + size, count)) for begin in range(0, count, size)]
        environment = Environment(line_statement_prefix="#", line_comment_prefix="##", undefined=StrictUndefined)
        template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
        text = template.render(
            classes=num_classes, vectors=len(vectors), width=self.padded, groups=groups, lanes=LANES, ahead=AHEAD,
            line=LINE,
        )  # fmt: skip
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        target = llvm.Target.from_default_triple()
        machine = target.create_target_machine(cpu=llvm.get_host_cpu_name(), features=features.flatten(), opt=3)
        module = llvm.parse_assembly(text)
        module.verify()
        passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=2))
        passes.getModulePassManager().run(module, passes)
        self.code = llvm.create_mcjit_compiler(module, machine)  # owns the machine code
        self.code.finalize_object()
        signature = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 6, ctypes.c_int64)
        self.function = signature(self.code.get_function_address("score"))

    def fill(
        self,
        parts: Sequence[Float16[np.ndarray, "_ d"]],
        cosine: Float32[np.ndarray, "n c"],
        nearest: Int64[np.ndarray, " n"],
        margin: Float32[np.ndarray, " n"],
        logit: Float32[np.ndarray, "n h"] | None = None,
    ) -> None:
        """Scores rows that may lie in several places, one after the other.

        Zero features have cosines of 0; those that are not finite have cosines and a margin of NaN. Ties go to the
        lowest class; the margin is infinite where there is one class. `logit`, of as many columns as the head has rows,
        takes the products with the head.
        """
        assert sum(len(part) for part in parts) == len(cosine) == len(nearest) == len(margin)
        logit = np.empty((len(cosine), 0), np.float32) if logit is None else logit
        assert cosine.flags.c_contiguous, "cosines are written row by row"
        assert logit.flags.c_contiguous, "logits are written row by row"
        assert cosine.shape[1] + logit.shape[1] == len(self.table), "another head than that of the code"
        table = self.table.ctypes.data
        outs = [(array.ctypes.data, array.strides[0]) for array in (cosine, nearest, margin, logit)]
        start = 0
        for part in parts:
            assert part.dtype == np.float16, "features in another precision than half"
            assert part.shape[1] == self.width, "features of another width than the centroids"
            rows = part if self.padded == self.width else np.pad(part, ((0, 0), (0, self.padded - self.width)))
            rows = np.ascontiguousarray(rows)  # no copy of what comes from our files
            places = [base + start * stride for base, stride in outs]
            self.function(rows.__array_interface__["data"][0], table, *places, len(rows))
            start += len(rows)
