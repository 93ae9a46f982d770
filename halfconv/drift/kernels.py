"""How half-precision kernels round: what a GPU keeps in FP32 inside one kernel, and what it rounds on the way.

Without an entry here a kernel computes in FP32 from half inputs and rounds its result once, which is what most of ONNX Runtime's
CUDA kernels do. The entries are what a comparison with an H100 showed (``bench/results/simulation_fidelity_h100.json``).
"""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["CUDA_ONLY", "HALF_TYPES", "UNMODELLED", "is_exact", "unmodelled"]

#: The formats that are simulated.
HALF_TYPES = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})

#: Operators whose every result element is an input element, its negation, or a number that half holds: nothing is rounded.
# fmt: off
EXACT = frozenset({
    "Abs", "Ceil", "Clip", "Compress", "Concat", "ConcatFromSequence", "ConstantOfShape", "DepthToSpace", "Dropout",
    "Expand", "EyeLike", "Flatten", "Floor", "Gather", "GatherElements", "GatherND", "GlobalMaxPool", "Hardmax",
    "Identity", "If", "Loop", "Max", "MaxPool", "MaxRoiPool", "MaxUnpool", "Min", "Neg", "OneHot", "Optional",
    "OptionalGetElement", "Pad", "ReduceMax", "ReduceMin", "Relu", "Reshape", "ReverseSequence", "Round", "Scan",
    "SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceMap", "Sign",
    "Size", "Slice", "SpaceToDepth", "Split", "SplitToSequence", "Squeeze", "TensorScatter", "ThresholdedRelu", "Tile",
    "TopK", "Transpose", "Trilu", "Unique", "Unsqueeze", "Where",
})
# fmt: on
#: The same, where an attribute has this value (or is absent and defaults to it).
EXACT_IF: tuple[tuple[str, str, str, frozenset[str]], ...] = (
    # operator, attribute, its default, values
    ("Resize", "mode", "nearest", frozenset({"nearest"})),
    ("ScatterElements", "reduction", "none", frozenset({"none", "max", "min"})),
    ("ScatterND", "reduction", "none", frozenset({"none", "max", "min"})),
    ("Upsample", "mode", "nearest", frozenset({"nearest"})),
)


def is_exact(node: ir.Node) -> bool:
    """Tell whether a node's half results need no rounding because its inputs are half numbers."""
    if node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type in EXACT:
        return True
    return any(
        node.op_type == op and node.attributes.get_string(attribute, default) in values
        for op, attribute, default, values in EXACT_IF
    )


#: Operators whose half kernel is not modelled: they are computed in FP32 and rounded once. At most ten; none of them is a matrix
#: product, convolution, normalisation, softmax, attention, reduction or elementwise operator.
UNMODELLED: dict[tuple[str, str], str] = {
    ("", "Resize"): "linear interpolation rounds its weights to half on the GPU, in an order that is not known",
    ("", "Upsample"): "as Resize",
    ("", "RotaryEmbedding"): "the GPU rounds one of the two products before their sum",
    ("com.microsoft", "RotaryEmbedding"): "the GPU rounds one of the two products before their sum",
    ("", "SoftmaxCrossEntropyLoss"): "a training loss, whose mean is summed in half in an order that is not known",
    ("com.microsoft", "GroupQueryAttention"): "its kernels depend on the GPU and on the length of the cache",
}


#: Operators of com.microsoft that have a half kernel for CUDA, none of any type for the CPU, and no definition here.
# fmt: off
CUDA_ONLY = frozenset({
    "BiasDropout", "BitmaskBiasDropout", "BitmaskDropout", "ComplexMul", "ComplexMulConj", "DecoderAttention",
    "DecoderMaskedSelfAttention", "DequantizeWithOrder", "DynamicSparseAttention", "GatedRelativePositionBias",
    "GemmFloat8", "GemmaRotaryEmbedding", "Irfft", "LongformerAttention", "MatMulBlockQuantizedFp4Weight",
    "MatMulBlockQuantizedFp8Weight", "PackedAttention", "PackedMultiHeadAttention", "PackedSparseAttentionIndexer",
    "PagedAttention", "QOrderedAttention", "QOrderedGelu", "QOrderedLayerNormalization", "QOrderedLongformerAttention",
    "QOrderedMatMul", "QuantizeWithOrder", "RelativePositionBias", "RemovePadding", "RestorePadding", "Rfft",
    "SparseAttentionIndexer", "SparsePagedAttention",
})
# fmt: on


def unmodelled(model: ir.Model) -> tuple[str, ...]:
    """Return a sentence for each operator of a model that holds half values and is not modelled."""
    found = {}
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        key = ("" if node.domain == "ai.onnx" else node.domain, node.op_type)
        if key in UNMODELLED and not is_exact(node) and any(output.dtype in HALF_TYPES for output in node.outputs):
            found[key] = f"{node.op_type}: {UNMODELLED[key]}"
    return tuple(found[key] for key in sorted(found))
