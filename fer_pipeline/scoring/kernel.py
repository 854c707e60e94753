"""Compile code that scores half-precision rows against unit centroids: cosines, nearest class, margin in one pass.

BLAS has no product of half with single precision: the features would first be widened in memory, which costs several
times what reading them costs. Here a row is widened in registers and multiplied with all classes and itself, by code
that LLVM makes for this processor out of the template `kernel.ll.j2`. Every sum runs over `LANES` partial sums by fused
multiply-add, added up in a fixed order: a row's bits depend on that row and the centroids alone, not on its neighbours
nor on the processor's vectors.
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
    """Compiled code for some centroids.

    It keeps no state between calls and runs without the interpreter's lock, so that threads may share it.
    """

    def __init__(self, units: Float64[np.ndarray, "c d"], *, at_once: int | None = None) -> None:
        num_classes, self.width = units.shape
        self.padded = -(-self.width // LANES) * LANES
        # Rows begin at cache lines: a register's load across two lines takes twice the time.
        memory = np.zeros(num_classes * self.padded * 4 + LINE, np.uint8)
        start = -memory.ctypes.data % LINE
        self.table = memory[start : memory.nbytes - LINE + start].view(np.float32).reshape(num_classes, self.padded)
        self.table[:, : self.width] = units
        # As many sums at once as the registers hold; more classes take several passes over a row in the first cache.
        features = llvm.get_host_cpu_features()
        size = at_once or (14 if features.get("avx512f") else 6)
        groups = [range(begin, min(begin + size, num_classes + 1)) for begin in range(0, num_classes + 1, size)]
        environment = Environment(line_statement_prefix="#", line_comment_prefix="##", undefined=StrictUndefined)
        template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
        text = template.render(
            classes=num_classes, width=self.padded, groups=groups, lanes=LANES, ahead=AHEAD, line=LINE
        )
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
        signature = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 5, ctypes.c_int64)
        self.function = signature(self.code.get_function_address("score"))

    def fill(
        self,
        parts: Sequence[Float16[np.ndarray, "_ d"]],
        cosine: Float32[np.ndarray, "n c"],
        nearest: Int64[np.ndarray, " n"],
        margin: Float32[np.ndarray, " n"],
    ) -> None:
        """Scores rows that may lie in several places, one after the other.

        Zero features have cosines of 0; those that are not finite have cosines and a margin of NaN. Ties go to the
        lowest class; the margin is infinite where there is one class.
        """
        assert sum(len(part) for part in parts) == len(cosine) == len(nearest) == len(margin)
        assert cosine.flags.c_contiguous, "cosines are written row by row"
        table = self.table.ctypes.data
        outs = [(array.ctypes.data, array.strides[0]) for array in (cosine, nearest, margin)]
        start = 0
        for part in parts:
            assert part.dtype == np.float16, "features in another precision than half"
            assert part.shape[1] == self.width, "features of another width than the centroids"
            rows = part if self.padded == self.width else np.pad(part, ((0, 0), (0, self.padded - self.width)))
            rows = np.ascontiguousarray(rows)  # no copy of what comes from our files
            places = [base + start * stride for base, stride in outs]
            self.function(rows.__array_interface__["data"][0], table, *places, len(rows))
            start += len(rows)
