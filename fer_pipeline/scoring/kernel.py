"""Compile code that scores half-precision rows against unit centroids: cosines, nearest class, margin in one pass.

BLAS has no product of half with single precision: the features would first be widened in memory, which costs several
times what reading them costs. Here a row is widened in registers and multiplied with all classes and itself, by code
that LLVM makes for this processor. Every sum runs over `LANES` partial sums by fused multiply-add, added up in a fixed
order: a row's bits depend on that row and the centroids alone, not on its neighbours nor on the processor's vectors.
"""

import ctypes
import math
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from jaxtyping import Float16, Float32, Float64, Int64
from llvmlite import ir

LANES = 16  # partial sums of every product: one register of AVX-512, two of AVX2
AHEAD = 2048  # features: prefetched so far ahead, for the processor itself stops at the end of every page
LINE = 64  # bytes of a cache line

FLOAT, HALF, INDEX, FLAG, POINTER = ir.FloatType(), ir.HalfType(), ir.IntType(64), ir.IntType(32), ir.PointerType()
FLOATS, HALVES = ir.VectorType(FLOAT, LANES), ir.VectorType(HALF, LANES)
Builder = Any  # ir.IRBuilder and ir.Value, whose methods carry no types
Value = Any


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
        self.table = aligned_zeros(num_classes, self.padded)
        self.table[:, : self.width] = units
        # As many sums at once as the registers hold; more classes take several passes over a row in the first cache.
        wide = llvm.get_host_cpu_features().get("avx512f")
        self.code, self.function = compile_module(
            build_module(num_classes, self.padded, at_once=at_once or (14 if wide else 6))
        )

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


def aligned_zeros(rows: int, columns: int) -> Float32[np.ndarray, "rows columns"]:
    """Allocates zeros whose rows begin at cache lines: a register's load across two lines takes twice the time."""
    memory = np.zeros(rows * columns * 4 + LINE, np.uint8)
    start = -memory.ctypes.data % LINE
    return memory[start : start + rows * columns * 4].view(np.float32).reshape(rows, columns)


def compile_module(module: ir.Module) -> tuple[Any, Callable[..., None]]:
    """Returns what owns the machine code and must outlive it, and its function `score`."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_default_triple()
    features = llvm.get_host_cpu_features().flatten()
    machine = target.create_target_machine(cpu=llvm.get_host_cpu_name(), features=features, opt=3)
    parsed = llvm.parse_assembly(str(module))
    parsed.verify()
    passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=2))
    passes.getModulePassManager().run(parsed, passes)
    code = llvm.create_mcjit_compiler(parsed, machine)
    code.finalize_object()
    signature = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 5, ctypes.c_int64)
    return code, signature(code.get_function_address("score"))


def build_module(num_classes: int, width: int, *, at_once: int) -> ir.Module:
    """Writes the code in LLVM's own language, for `width` features: a multiple of the lanes.

    score(features f16[n, width], centroids f32[c, width], cosine f32[n, c], nearest i64[n], margin f32[n], n)
    """
    module = ir.Module()
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [POINTER] * 5 + [INDEX]), "score")
    features, centroids, cosine, nearest, margin, rows = function.args
    fma = module.declare_intrinsic(f"llvm.fma.v{LANES}f32", (), ir.FunctionType(FLOATS, [FLOATS] * 3))
    fetch = module.declare_intrinsic("llvm.prefetch.p0", (), ir.FunctionType(ir.VoidType(), [POINTER, *[FLAG] * 3]))
    builder: Builder = ir.IRBuilder(function.append_basic_block())
    lines = list(range(num_classes + 1))  # the last is the feature itself, for the sum of the squares
    sums = [builder.alloca(FLOATS) for _ in lines]  # registers, once LLVM has optimised them
    with for_range(builder, rows, 1) as row:
        first = builder.gep(features, [builder.mul(row, INDEX(width))], source_etype=HALF)
        for begin in range(0, len(lines), at_once):  # one pass over the row for each group of products
            group = lines[begin : begin + at_once]
            for k in group:
                builder.store(ir.Constant(FLOATS, None), sums[k])
            with for_range(builder, INDEX(width), LANES) as column:
                place = builder.gep(first, [column], source_etype=HALF)
                if begin == 0:
                    beyond = builder.gep(place, [INDEX(AHEAD)], source_etype=HALF)
                    builder.call(fetch, [beyond, FLAG(0), FLAG(3), FLAG(1)])  # for reading, to be kept, data
                x = builder.fpext(builder.load(place, align=1, typ=HALVES), FLOATS)
                for k in group:
                    other = x
                    if k < num_classes:
                        at = builder.gep(centroids, [builder.add(INDEX(k * width), column)], source_etype=FLOAT)
                        other = builder.load(at, align=LINE, typ=FLOATS)
                    builder.store(builder.call(fma, [x, other, builder.load(sums[k], typ=FLOATS)]), sums[k])
        products = [sum_lanes(builder, builder.load(partial, typ=FLOATS)) for partial in sums]
        cosines = divide_by_length(builder, products[:-1], products[-1])
        for k, value in enumerate(cosines):
            store(builder, value, cosine, builder.add(builder.mul(row, INDEX(num_classes)), INDEX(k)))
        best, best_margin = rank_classes(builder, cosines)
        store(builder, best, nearest, row)
        store(builder, best_margin, margin, row)
    builder.ret_void()
    return module


def divide_by_length(builder: Builder, products: Sequence[Value], square: Value) -> list[Value]:
    """Divides products by the length of the feature: 0 for a zero feature, NaN for one that is not finite."""
    length = builder.call(builder.module.declare_intrinsic("llvm.sqrt", [FLOAT]), [square])
    length = builder.select(builder.fcmp_ordered("==", length, FLOAT(0.0)), FLOAT(1.0), length)
    length = builder.select(builder.fcmp_ordered("==", length, FLOAT(math.inf)), FLOAT(math.nan), length)
    return [builder.fdiv(product, length) for product in products]


def rank_classes(builder: Builder, cosines: Sequence[Value]) -> tuple[Value, Value]:
    """Finds the nearest class and the margin, as `engines.rank_classes` does."""
    best, second, nearest = cosines[0], FLOAT(-math.inf), INDEX(0)
    for k, value in enumerate(cosines[1:], start=1):
        better = builder.fcmp_ordered(">", value, best)
        runner_up = builder.select(builder.fcmp_ordered(">", value, second), value, second)
        second = builder.select(better, best, runner_up)
        nearest = builder.select(better, INDEX(k), nearest)
        best = builder.select(better, value, best)
    return nearest, builder.fsub(best, second)


def store(builder: Builder, value: Value, base: Value, at: Value) -> None:
    """Writes a number into an array."""
    builder.store(value, builder.gep(base, [at], source_etype=value.type), align=1)


@contextmanager
def for_range(builder: Builder, stop: Value, step: int) -> Iterator[Value]:
    """Builds a loop: what is built inside runs for 0, `step`, 2 `step` … below `stop`."""
    with builder.goto_entry_block():
        counter = builder.alloca(INDEX)
    check, body, after = (builder.append_basic_block() for _ in range(3))
    builder.store(INDEX(0), counter)
    builder.branch(check)
    builder.position_at_end(check)
    count = builder.load(counter, typ=INDEX)
    builder.cbranch(builder.icmp_unsigned("<", count, stop), body, after)
    builder.position_at_end(body)
    yield count
    builder.store(builder.add(count, INDEX(step)), counter)
    builder.branch(check)
    builder.position_at_end(after)


def sum_lanes(builder: Builder, vector: Value) -> Value:
    """Sums a vector's lanes: its upper half is added to its lower half until one is left."""
    lanes = LANES
    while lanes > 1:
        lanes //= 2
        mask = ir.VectorType(FLAG, lanes)
        halves = [
            builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), ir.Constant(mask, list(half)))
            for half in (range(lanes), range(lanes, 2 * lanes))
        ]
        vector = builder.fadd(*halves)
    return builder.extract_element(vector, FLAG(0))
