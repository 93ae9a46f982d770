"""The default block list: operators that stay FP32 although they could be half, with one line of why each.

To add a row, add it here with its why, and a test in tests/cases/ that fails without it. Patterns, which need more than one
operator, are in `halfconv.precision.patterns`.
"""

from __future__ import annotations

from dataclasses import dataclass

from halfconv.precision.formats import BOTH, FP16, HalfFormat

__all__ = ["BLOCK_LISTS", "DEFAULT_OPS", "BlockedOp", "block_list"]


@dataclass(frozen=True, slots=True)
class BlockedOp:
    """A row of the block list.

    Attributes:
        op: The operator.
        why: One line; ``{precision}`` and ``{whole}`` stand for the format's name and the end of its whole numbers.
        formats: The formats that it holds for: one about range is about FP16 alone.
    """

    op: str
    why: str
    formats: tuple[HalfFormat, ...] = (FP16,)


DEFAULT_OPS: tuple[BlockedOp, ...] = (
    BlockedOp("Acosh", "grows without bound and loses its argument's low bits near 1", BOTH),
    BlockedOp("Asinh", "its argument spans decades, of which {precision} keeps few digits", BOTH),
    BlockedOp("Acos", "its slope is infinite at ±1, where {precision} has few numbers", BOTH),
    BlockedOp("Asin", "its slope is infinite at ±1, where {precision} has few numbers", BOTH),
    BlockedOp("Atanh", "its slope is infinite at ±1, where {precision} has few numbers", BOTH),
    BlockedOp("Cos", "{precision} holds angles beyond {whole} only to whole radians", BOTH),
    BlockedOp("Cosh", "overflows for arguments beyond 11.8"),
    BlockedOp("CumProd", "a running product rounds at every step, and in FP16 leaves the range within a few", BOTH),
    BlockedOp("CumSum", "a running sum stops growing once its ulp exceeds the terms, and in FP16 passes 65,504", BOTH),
    BlockedOp("DFT", "a spectrum spans more decades than {precision} holds"),
    BlockedOp("DequantizeLinear", "its scales are small numbers, and runtimes fuse quantised operators in FP32 only", BOTH),
    BlockedOp("Det", "a determinant is a sum of products that cancel, and in FP16 overflow", BOTH),
    BlockedOp("Exp", "overflows for arguments beyond 11.09"),
    BlockedOp("GlobalLpPool", "its sum of powers passes 65,504"),
    BlockedOp("Log", "its argument is often a small number that half precision flushes to zero"),
    BlockedOp("LpNormalization", "its sum of squares passes 65,504"),
    BlockedOp("LpPool", "its sum of powers passes 65,504"),
    BlockedOp("LRN", "its sum of squares passes 65,504 for activations beyond 255"),
    BlockedOp("MeanVarianceNormalization", "its variance is a difference of squares, which cancel, and in FP16 pass 65,504", BOTH),
    BlockedOp("MelWeightMatrix", "its frequencies pass {whole}, beyond which {precision} skips whole numbers", BOTH),
    BlockedOp("Mod", "a remainder keeps only the low bits, which {precision} does not have", BOTH),
    BlockedOp("Multinomial", "it draws from a running sum of probabilities", BOTH),
    BlockedOp("NegativeLogLikelihoodLoss", "a loss sums over classes and batch", BOTH),
    BlockedOp("QuantizeLinear", "its scales are small numbers, and runtimes fuse quantised operators in FP32 only", BOTH),
    BlockedOp("Reciprocal", "the reciprocal of a number below 1.5e-5 overflows"),
    BlockedOp("ReduceL1", "its sum may pass 65,504"),
    BlockedOp("ReduceL2", "its sum of squares passes 65,504 for a vector of length 256"),
    BlockedOp("ReduceLogSum", "its sum may pass 65,504 before the logarithm"),
    BlockedOp("ReduceLogSumExp", "its exponentials overflow for arguments beyond 11.09"),
    BlockedOp("ReduceProd", "a product leaves half's range within a few factors"),
    BlockedOp("ReduceSum", "its sum may pass 65,504"),
    BlockedOp("ReduceSumSquare", "its sum of squares passes 65,504 for a vector of length 256"),
    BlockedOp("STFT", "a spectrum spans more decades than {precision} holds"),
    BlockedOp("Sin", "{precision} holds angles beyond {whole} only to whole radians", BOTH),
    BlockedOp("Sinh", "overflows for arguments beyond 11.8"),
    BlockedOp("SoftmaxCrossEntropyLoss", "a loss sums over classes and batch", BOTH),
    BlockedOp("Tan", "{precision} holds angles beyond {whole} only to whole radians", BOTH),
)

BLOCK_LISTS = ("default", "none", "onnxconverter-common")


def block_list(name: str, to: HalfFormat = FP16) -> tuple[tuple[str, str], ...]:
    """Return a block list as (operator, why) rows.

    Args:
        name: ``default``; ``none``; or ``onnxconverter-common``, that package's own list, for its users to compare.
        to: The half-precision format.
    """
    if name == "none":
        return ()
    if name == "onnxconverter-common":
        from onnxconverter_common import float16

        return tuple((op, "is on onnxconverter-common's block list") for op in float16.DEFAULT_OP_BLOCK_LIST)
    return tuple((row.op, to.word(row.why)) for row in DEFAULT_OPS if to in row.formats)
