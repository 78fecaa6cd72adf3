"""What our own compiled loops (numba) have in common."""

from __future__ import annotations

from llvmlite import ir
from numba import void
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
