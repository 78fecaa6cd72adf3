"""What our own compiled loops (numba) have in common."""

from __future__ import annotations

from llvmlite import ir
from numba import float32, int32, void
from numba.extending import intrinsic

#: Fast-math but for infinities and NaN; sums may be regrouped, so that they fill vectors.
FAST = {"nsz", "contract", "arcp", "reassoc"}


@intrinsic
def arrays_are_apart(typing_context):
    """Promise that no array given to the function that calls this overlaps one that it writes.

    Without it the compiler writes every value back to memory, lest something else is to be read there.
    """

    def codegen(context, builder, signature, args):
        for argument in builder.function.args:
            if argument.type == ir.FloatType().as_pointer():
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
