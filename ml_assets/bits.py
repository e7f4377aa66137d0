"""Pieces of compiled loops that numba has no words for: many numbers compared at once, by bits."""

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

# Numbers compared at once.
WORD = 64


ONE = np.uint64(1)


@njit(cache=True, nogil=True, forceinline=True)
def which_are_above(values: np.ndarray, start: int, n: int, limit: float) -> np.uint64:
    """Up to 64 values from `start` on compared with a limit: a bit for each, the first one lowest.

    Args:
        values: Float32 or float64; 64 of them must be there to be read. A NaN is above nothing.
        start: Place of the first.
        n: How many count.
        limit: Of the type of the values.
    """
    above = _compare(values, start, limit)
    return above if n >= WORD else above & ((ONE << np.uint64(n)) - ONE)


@intrinsic
def _compare(typing_context, values, start, limit):  # type: ignore[no-untyped-def]
    width = types.unliteral(values.dtype)

    def code(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        vector = ir.VectorType(context.get_value_type(width), WORD)
        address = builder.gep(array.data, [arguments[1]])
        read = builder.load(
            builder.bitcast(address, vector.as_pointer()), align=width.bitwidth // 8
        )
        first = ir.Constant(ir.IntType(32), 0)
        limits = builder.insert_element(ir.Constant(vector, ir.Undefined), arguments[2], first)
        everywhere = ir.Constant(ir.VectorType(ir.IntType(32), WORD), [first] * WORD)
        limits = builder.shuffle_vector(limits, ir.Constant(vector, ir.Undefined), everywhere)
        return builder.bitcast(builder.fcmp_ordered(">", read, limits), ir.IntType(WORD))

    return types.uint64(values, types.intp, width), code


@intrinsic
def fetch(typing_context, values, at):  # type: ignore[no-untyped-def]
    """Have the line of memory that holds values[at] brought near, without waiting for it."""

    def code(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        flag, pointer = ir.IntType(32), ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer, flag, flag, flag])
        function = builder.module.declare_intrinsic("llvm.prefetch", [pointer], kind)
        address = builder.bitcast(builder.gep(array.data, [arguments[1]]), pointer)
        # To be read; into the nearest cache; data.
        builder.call(function, [address, flag(0), flag(3), flag(1)])
        return context.get_dummy_value()

    return types.void(values, types.intp), code


@intrinsic
def lowest_bit(typing_context, word):  # type: ignore[no-untyped-def]
    """The place of the lowest bit of a uint64 that has one."""

    def code(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(types.uint64), code


@intrinsic
def as_ordered(typing_context, value):  # type: ignore[no-untyped-def]
    """A float32 >= 0 as a uint64 below 2^32 that orders as the numbers do."""

    def code(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.zext(builder.bitcast(arguments[0], ir.IntType(32)), ir.IntType(64))

    return types.uint64(types.float32), code


@intrinsic
def from_ordered(typing_context, word):  # type: ignore[no-untyped-def]
    """The float32 of `as_ordered`, from the lower half of a uint64."""

    def code(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        half = builder.trunc(arguments[0], ir.IntType(32))
        return builder.bitcast(half, ir.FloatType())

    return types.float32(types.uint64), code
