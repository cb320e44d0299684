"""Products of unsigned 8-bit inputs and signed 8-bit weights, four at a time, added to 32-bit integers exactly."""

from typing import Literal

from llvmlite import ir

from sparsemble.runtime.kernels.llvm_builder import LLVMBuilder, Value

Dot = Literal["vnni", "maddwd", "sdot", "saddlp", "plain"]
"""Instructions: vpdpbusd (AVX-512 VNNI, AVX-VNNI), vpmaddwd (AVX2, AVX-512), sdot or saddlp (NEON of 64 bits), or
shifts and products."""
LOW_BYTES, TOP_BITS = 0x00FF00FF, -0x7F7F7F80
MADD = {4: "sse2.pmadd.wd", 8: "avx2.pmadd.wd", 16: "avx512.pmaddw.d.512"}
SHORT, BYTE = ir.IntType(16), ir.IntType(8)


def dot_product(code: LLVMBuilder, kind: Dot, total: Value, inputs: Value, weights: Value) -> Value:
    """Return, lane by lane, the total plus four products modulo 2^32; `sdot` takes 128 from every input.

    Args:
        code: the function.
        kind: the instructions.
        total: vector of int32.
        inputs: the same shape; each lane holds four unsigned bytes.
        weights: the same shape; each lane holds four signed bytes.
    """
    if kind == "vnni" and code.lanes >= 4:
        return code.call(f"llvm.x86.avx512.vpdpbusd.{32 * code.lanes}", code.integers, total, inputs, weights)
    if (kind == "maddwd" and code.lanes >= 4) or (kind == "saddlp" and code.lanes == 4):
        return _widened(code, kind, total, inputs, weights)
    if kind == "sdot" and code.lanes == 4:
        return _signed(code, total, inputs, weights)
    for i in range(4):
        x = code.builder.and_(_shifted(code, inputs, 8 * i), code.splat_integer(255))
        w = code.builder.ashr(code.builder.shl(weights, code.splat_integer(24 - 8 * i)), code.splat_integer(24))
        total = code.builder.add(total, code.builder.mul(x, w))
    return total


def _shifted(code: LLVMBuilder, value: Value, bits: int) -> Value:
    return code.builder.lshr(value, code.splat_integer(bits)) if bits else value


def _widened(code: LLVMBuilder, kind: Dot, total: Value, inputs: Value, weights: Value) -> Value:
    """Add products of bytes 0 and 2, then of bytes 1 and 3, as 16-bit numbers: vpmaddubsw would saturate.

    A single product fits 16 bits, as integer weights lie in -127..127.
    """
    shorts = ir.VectorType(SHORT, 2 * code.lanes)
    eight = ir.Constant(shorts, [8] * (2 * code.lanes))
    w = code.builder.bitcast(weights, shorts)
    even = code.builder.bitcast(code.builder.and_(inputs, code.splat_integer(LOW_BYTES)), shorts)
    odd = code.builder.lshr(code.builder.bitcast(inputs, shorts), eight)
    for x, y in ((even, code.builder.ashr(code.builder.shl(w, eight), eight)), (odd, code.builder.ashr(w, eight))):
        if kind == "saddlp":
            name, products = "aarch64.neon.saddlp.v4i32.v8i16", [code.builder.mul(x, y)]
        else:
            name, products = "x86." + MADD[code.lanes], [x, y]
        total = code.builder.add(total, code.call(f"llvm.{name}", code.integers, *products))
    return total


def _signed(code: LLVMBuilder, total: Value, inputs: Value, weights: Value) -> Value:
    """Add products of the weights and the inputs less 128; the planner adds 128 times the weights to the bias."""
    octets = ir.VectorType(BYTE, 16)
    x = code.builder.bitcast(code.builder.xor(inputs, code.splat_integer(TOP_BITS)), octets)
    w = code.builder.bitcast(weights, octets)
    return code.call("llvm.aarch64.neon.sdot.v4i32.v16i8", code.integers, total, x, w)
