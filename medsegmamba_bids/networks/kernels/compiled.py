"""What our own compiled loops (numba) have in common."""

from __future__ import annotations

import numpy as np
import torch
from llvmlite import ir
from numba import float32, int32, njit, types, void
from numba.extending import intrinsic, overload

#: Fast-math but for infinities and NaN; sums may be regrouped, so that they fill vectors.
FAST = {"nsz", "contract", "arcp", "reassoc"}


@intrinsic
def arrays_are_apart(typing_context):
    """Promise that no array given to the function that calls this overlaps one that it writes.

    Without it the compiler writes every value back to memory, lest something else is to be read there.
    """

    def codegen(context, builder, signature, args):
        stored = (ir.FloatType().as_pointer(), ir.IntType(16).as_pointer())  # float32, and bfloat16
        for argument in builder.function.args:
            if argument.type in stored:
                argument.add_attribute("noalias")
        return context.get_dummy_value()

    return void(), codegen


@intrinsic
def float_of_bits(typing_context, bits):
    """The float32 with these bits; a register move, which keeps the loops around it vectorised."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.FloatType())

    return float32(int32), codegen


@intrinsic
def bits_of_float(typing_context, number):
    """The bits of a float32."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.IntType(32))

    return int32(float32), codegen


def stored(x: torch.Tensor) -> np.ndarray:
    """The array of a tensor, float32 but for bfloat16, which numpy and numba do not know: its bits come as int16."""
    return x.view(torch.int16).numpy() if x.dtype == torch.bfloat16 else x.float().numpy()


def number(stored):
    """The float32 of what an array holds: float32, or the bits of a bfloat16, its upper half, as int16."""


def _number_by_type(stored):
    if stored == types.int16:
        return lambda stored: float_of_bits(np.int32(stored) << np.int32(16))
    return lambda stored: stored


def as_stored(value, like):
    """A float32 as an array holds it that has ``like`` in it; of two bfloat16 the even one, as torch rounds."""


def _as_stored_by_type(value, like):
    if like == types.int16:
        return lambda value, like: _nearest_half(bits_of_float(value))
    return lambda value, like: value


# What the compiler takes for both, by the type that an array has.
overload(number, inline="always")(_number_by_type)
overload(as_stored, inline="always")(_as_stored_by_type)


@njit(inline="always")
def _nearest_half(bits):
    odd = (bits >> np.int32(16)) & np.int32(1)
    return np.int16((bits + np.int32(0x7FFF) + odd) >> np.int32(16))
