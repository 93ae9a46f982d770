"""The default block list: operators that stay FP32 although they could be half, with one line of why each.

To add a row, add it here with its why, and a test in tests/cases/ that fails without it. Patterns, which need more than one
operator, are in `halfconv.precision.patterns`.
"""

from __future__ import annotations

__all__ = ["BLOCK_LISTS", "DEFAULT_OPS", "block_list"]

#: (operator, why).
DEFAULT_OPS: tuple[tuple[str, str], ...] = (
    ("Acosh", "grows without bound and loses its argument's low bits near 1"),
    ("Asinh", "its argument spans more decades than half precision holds"),
    ("Acos", "its slope is infinite at ±1, where half precision has few numbers"),
    ("Asin", "its slope is infinite at ±1, where half precision has few numbers"),
    ("Atanh", "its slope is infinite at ±1, where half precision has few numbers"),
    ("Cos", "half precision holds angles beyond 2,048 only to whole radians"),
    ("Cosh", "overflows for arguments beyond 11.8"),
    ("CumProd", "a running product leaves half's range within a few steps"),
    ("CumSum", "a running sum passes 65,504, and stops growing once its ulp exceeds the terms"),
    ("DFT", "a spectrum spans more decades than half precision holds"),
    ("DequantizeLinear", "its scales are small numbers, and runtimes fuse quantised operators in FP32 only"),
    ("Det", "a determinant is a sum of products that overflow and cancel"),
    ("Exp", "overflows for arguments beyond 11.09"),
    ("GlobalLpPool", "its sum of powers passes 65,504"),
    ("Log", "its argument is often a small number that half precision flushes to zero"),
    ("LpNormalization", "its sum of squares passes 65,504"),
    ("LpPool", "its sum of powers passes 65,504"),
    ("LRN", "its sum of squares passes 65,504 for activations beyond 255"),
    ("MeanVarianceNormalization", "its variance is a difference of squares that pass 65,504"),
    ("MelWeightMatrix", "its frequencies pass 2,048, beyond which half precision skips whole numbers"),
    ("Mod", "a remainder keeps only the low bits, which half precision does not have"),
    ("Multinomial", "it draws from a running sum of probabilities"),
    ("NegativeLogLikelihoodLoss", "a loss sums over classes and batch"),
    ("QuantizeLinear", "its scales are small numbers, and runtimes fuse quantised operators in FP32 only"),
    ("Reciprocal", "the reciprocal of a number below 1.5e-5 overflows"),
    ("ReduceL1", "its sum may pass 65,504"),
    ("ReduceL2", "its sum of squares passes 65,504 for a vector of length 256"),
    ("ReduceLogSum", "its sum may pass 65,504 before the logarithm"),
    ("ReduceLogSumExp", "its exponentials overflow for arguments beyond 11.09"),
    ("ReduceProd", "a product leaves half's range within a few factors"),
    ("ReduceSum", "its sum may pass 65,504"),
    ("ReduceSumSquare", "its sum of squares passes 65,504 for a vector of length 256"),
    ("STFT", "a spectrum spans more decades than half precision holds"),
    ("Sin", "half precision holds angles beyond 2,048 only to whole radians"),
    ("Sinh", "overflows for arguments beyond 11.8"),
    ("SoftmaxCrossEntropyLoss", "a loss sums over classes and batch"),
    ("Tan", "half precision holds angles beyond 2,048 only to whole radians"),
)

BLOCK_LISTS = ("default", "none", "onnxconverter-common")


def block_list(name: str) -> tuple[tuple[str, str], ...]:
    """Return a block list as (operator, why) rows.

    Args:
        name: ``default``; ``none``; or ``onnxconverter-common``, that package's own list, for its users to compare.
    """
    if name == "none":
        return ()
    if name == "onnxconverter-common":
        from onnxconverter_common import float16

        return tuple((op, "is on onnxconverter-common's block list") for op in float16.DEFAULT_OP_BLOCK_LIST)
    return DEFAULT_OPS
