"""Reading and writing memory by address in compiled loops, every dtype as float32 or float64.

A dtype is chosen by an example value, `like`: float32 and float64 stand for themselves, int16 for
bfloat16 and uint16 for float16, which Numba does not have. Loops over plain addresses vectorise;
loops over array views carry checks for negative indices that prevent it.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

FLOAT32, FLOAT64 = np.float32(0), np.float64(0)
BFLOAT16, FLOAT16 = np.int16(0), np.uint16(0)

_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_STORED = {types.float32: ir.FloatType(), types.float64: ir.DoubleType()}


def _working_type(like: Any) -> Any:
    """The type in which values of a dtype are computed."""
    return types.float64 if like == types.float64 else types.float32


def _place(builder: Any, address: Any, index: Any, element: Any) -> Any:
    return builder.gep(builder.inttoptr(address, element.as_pointer()), [index])


@intrinsic
def load(typing_context: Any, address: Any, index: Any, like: Any) -> Any:
    """Element `index` of the values at `address`: float64 for float64, else float32."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        element = _STORED.get(like, _I16)
        value = builder.load(_place(builder, args[0], args[1], element))
        if like == types.int16:
            bits = builder.shl(builder.zext(value, _I32), ir.Constant(_I32, 16))
            return builder.bitcast(bits, ir.FloatType())
        if like == types.uint16:
            return builder.fpext(builder.bitcast(value, ir.HalfType()), ir.FloatType())
        return value

    return _working_type(like)(types.int64, types.int64, like), generate


@intrinsic
def store(typing_context: Any, address: Any, index: Any, value: Any, like: Any) -> Any:
    """Write a value, rounded to nearest even in a 16-bit dtype; NaN stays NaN."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        element, value = _STORED.get(like, _I16), args[2]
        if like == types.int16:
            bits = builder.bitcast(value, _I32)
            odd = builder.and_(builder.lshr(bits, ir.Constant(_I32, 16)), ir.Constant(_I32, 1))
            rounded = builder.add(builder.add(bits, ir.Constant(_I32, 0x7FFF)), odd)
            nan = builder.fcmp_unordered("uno", value, value)
            rounded = builder.select(nan, ir.Constant(_I32, 0x7FC00000), rounded)
            value = builder.trunc(builder.lshr(rounded, ir.Constant(_I32, 16)), _I16)
        elif like == types.uint16:
            value = builder.bitcast(builder.fptrunc(value, ir.HalfType()), _I16)
        builder.store(value, _place(builder, args[0], args[1], element))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, _working_type(like), like), generate


@intrinsic
def load_integer(typing_context: Any, address: Any, index: Any) -> Any:
    """Element `index` of the int64 numbers at `address`."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(_place(builder, args[0], args[1], _I64))

    return types.int64(types.int64, types.int64), generate


@intrinsic
def load_flag(typing_context: Any, address: Any, index: Any) -> Any:
    """Element `index` of the bools at `address`."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        byte = builder.load(_place(builder, args[0], args[1], _I8))
        return builder.icmp_unsigned("!=", byte, ir.Constant(_I8, 0))

    return types.boolean(types.int64, types.int64), generate


@intrinsic
def fetch_add(typing_context: Any, address: Any, amount: Any) -> Any:
    """Add to the int64 at `address` and return what it was, as one step among all threads."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], _I64.as_pointer())
        return builder.atomic_rmw("add", pointer, args[1], "monotonic")

    return types.int64(types.int64, types.int64), generate


@intrinsic
def fetch(typing_context: Any, address: Any) -> Any:
    """Ask for the cache line at an address, without waiting for it."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [_I8.as_pointer(), _I32, _I32, _I32])
        prefetch = builder.module.declare_intrinsic("llvm.prefetch", [_I8.as_pointer()], kind)
        numbers = (ir.Constant(_I32, number) for number in (0, 2, 1))  # read, second cache, data
        builder.call(prefetch, [builder.inttoptr(args[0], _I8.as_pointer()), *numbers])
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def invoke(typing_context: Any, function: Any, p: Any, phase: Any) -> Any:
    """Call the function at an address with two int64."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [_I64, _I64])
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@intrinsic
def wait(typing_context: Any, function: Any) -> Any:
    """Call the function at an address without arguments."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [])
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), [])
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def ask(typing_context: Any, function: Any) -> Any:
    """Call the function at an address, which takes nothing and gives an int32."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(_I32, [])
        return builder.sext(builder.call(builder.inttoptr(args[0], kind.as_pointer()), []), _I64)

    return types.int64(types.int64), generate


@intrinsic
def power_of_two(typing_context: Any, exponent: Any) -> Any:
    """2 ** exponent for an integral float32 from -126 to 127, by its bits."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        biased = builder.add(builder.fptosi(args[0], _I32), ir.Constant(_I32, 127))
        return builder.bitcast(builder.shl(biased, ir.Constant(_I32, 23)), ir.FloatType())

    return types.float32(types.float32), generate


def working(value: float, like: Any) -> Any:
    """A float64 in the type in which values of a dtype are computed."""
    raise NotImplementedError("compiled only")


@overload(working, strict=False)
def _working_of(value: Any, like: Any) -> Any:
    if like == types.float64:
        return lambda value, like: value
    return lambda value, like: np.float32(value)


def wide(like: Any) -> Any:
    """An example value of the dtype in which values of a dtype are computed."""
    raise NotImplementedError("compiled only")


@overload(wide, strict=False)
def _wide(like: Any) -> Any:
    example = FLOAT64 if like == types.float64 else FLOAT32
    return lambda like: example
