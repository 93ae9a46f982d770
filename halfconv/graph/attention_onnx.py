"""Fuse attention further: ONNX's own operator into ONNX Runtime's, and the projections before it into one product."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from halfconv.graph.attention_masks import LOWEST, UNMASKED, for_all_heads, lowest, mask_of, unmasked_rows
from halfconv.graph.fuse import is_op, only_reader
from halfconv.graph.heads import TO_HEADS, Heads, flat_rows, heads_of
from halfconv.graph.rules import MS, Outcome, Rewriter, readers
from halfconv.graph.sizes import Size
from halfconv.graph.typegroups import is_float, is_weight

__all__ = ["onnx_attention", "packed_attention"]


#: Attributes of ONNX's Attention that are carried over, or change nothing here.
ATTRIBUTES = frozenset(
    {"is_causal", "kv_num_heads", "q_num_heads", "qk_matmul_output_mode", "scale", "softcap", "softmax_precision"}
)


def onnx_attention(node: ir.Node, rewriter: Rewriter) -> Outcome:
    """Turn ONNX's Attention into MultiHeadAttention, which is faster on CUDA."""
    if node.domain:
        return None
    given = [node.inputs[index] if index < len(node.inputs) else None for index in range(4)]
    if any(node.inputs[4:]) or len([output for output in node.outputs if output.name]) > 1:
        return "it has a cache of keys and values, or gives more than the answer"
    if node.attributes.get_float("softcap", 0.0):
        return "its scores are capped, which MultiHeadAttention does not do"
    if unknown := sorted(set(node.attributes) - ATTRIBUTES):
        return f"it has {unknown[0]}, which MultiHeadAttention has not"
    query, key, value, mask = given
    if query is None or key is None or value is None or not is_float(query):
        return None
    rows = {part.shape.rank() for part in (query, key, value) if part.shape is not None}
    heads, kv_heads = node.attributes.get_int("q_num_heads", 0), node.attributes.get_int("kv_num_heads", 0)
    parts = [part for value in given[:3] if (part := heads_of(value, rewriter)) is not None] if rows == {4} else []
    if len(parts) == 3:
        counts = [part.sizes[1] for part in parts]
        heads, kv_heads = (count if isinstance(count, int) else 0 for count in counts[:2])
    if rows not in ({3}, {4}) or not heads or (rows == {4} and len(parts) < 3):
        return "the number of heads or their size is not known"
    if heads != kv_heads:
        return "groups of queries share keys (GroupQueryAttention), which the simulation does not model"
    causal = bool(node.attributes.get_int("is_causal", 0))
    lengths = [rewriter.sizes.size(part, 1 if rows == {3} else 2) for part in (query, key)]
    if causal and lengths[0] != lengths[1]:
        return "it is causal, and the lengths of queries and keys may differ"
    if mask is not None and (why := _unfit(mask, lengths[1], causal, rewriter)):
        return why
    return lambda: _converted(node, [query, key, value], parts, mask, heads, causal, rewriter)


def _unfit(mask: ir.Value, length: Size, causal: bool, rewriter: Rewriter) -> str:
    """Say why a mask cannot be MultiHeadAttention's; "" if it can."""
    sizes = rewriter.sizes.of(mask)
    if sizes is None or not 0 < len(sizes) <= 4:
        return "the rank of its mask is not known"
    if sizes[-1] not in (1, length):
        return "its mask may be shorter than the keys"
    # A row that is masked as a whole gives zeros, which MultiHeadAttention does not give.
    if causal or not (for_all_heads(mask, rewriter) or lowest(mask) > UNMASKED):
        return "a row may be masked as a whole, by " + (
            "causality and mask together" if causal else "a mask that differs between heads"
        )
    return ""


def _converted(
    node: ir.Node, given: Sequence[ir.Value], parts: Sequence[Heads], mask: ir.Value | None, heads: int, causal: bool,
    rewriter: Rewriter,
) -> ir.Node:  # fmt: skip
    """Put MultiHeadAttention in the place of ONNX's Attention."""
    names = ("query", "key", "value")
    flat = [flat_rows(part, node, name, rewriter) for part, name in zip(parts, names, strict=True)] if parts else list(given)
    fills = [(mask, True, LOWEST)] if mask is not None and mask.dtype == ir.DataType.BOOL else []
    bias = mask_of([mask] if mask is not None and not fills else [], fills, False, flat, node, rewriter)
    attributes: dict[str, ir.Attr | int] = {name: a for name, a in node.attributes.items() if name == "scale"}
    attributes |= {"num_heads": heads, **({"unidirectional": 1} if causal else {})}
    inputs = [*flat, *([None, None, bias] if bias is not None else [])]
    # Nor does a mask of numbers that half holds mask a row.
    zeroed = bias is not None and mask is not None and not lowest(mask) > UNMASKED
    if not parts and not zeroed:
        return rewriter.replace(node, "MultiHeadAttention", inputs, attributes, domain=MS)
    sizes = [rewriter.sizes.size(flat[0], 0), rewriter.sizes.size(flat[0], 1), rewriter.sizes.size(flat[2], 2)]
    answer = rewriter.add("MultiHeadAttention", inputs, node, "attention", sizes, attributes, domain=MS)
    made = answer.producer()
    assert made is not None
    if zeroed:
        chosen = [unmasked_rows(bias, node, rewriter), answer, rewriter.constant(np.array(0, np.float32), "zero")]
        if not parts:
            rewriter.replace(node, "Where", chosen)
            return made
        answer = rewriter.add("Where", chosen, node, "rows", sizes)
    wide = parts[2].sizes[3]
    assert isinstance(wide, int)
    shape = rewriter.constant(np.array([0, 0, heads, wide], np.int64), "heads_shape")
    split = rewriter.add("Reshape", [answer, shape], node, "heads", [*sizes[:2], heads, wide])
    rewriter.replace(node, "Transpose", [split], {"perm": TO_HEADS})
    return made


def packed_attention(node: ir.Node, rewriter: Rewriter) -> Outcome:
    """Fuse the projections of queries, keys and values of one input into Attention, which computes them as one product."""
    if node.domain != MS or len([value for value in node.inputs[:3] if value is not None]) < 3:
        return None
    if any(value is not None for index, value in enumerate(node.inputs) if index in (3, 4) or index > 5):
        return None
    joint = _joint([value for value in node.inputs[:3] if value is not None], rewriter)
    if joint is not None:
        return lambda: _joined(node, joint, rewriter)
    found = [_projection(value) for value in node.inputs[:3]]
    if any(part is None for part in found):
        return "queries, keys and values are not each a product with a weight"
    parts = [part for part in found if part is not None]
    sources = {part[0] for part in parts}
    if len(sources) > 1:
        return "queries, keys and values are not products of one input"
    widths = {tuple(part[1].shape) for part in parts if part[1].shape is not None}
    if len(widths) > 1:
        return "queries, keys and values differ in size"
    (source,) = sources
    return lambda: _pack(node, source, parts, rewriter)


_Projection = tuple[ir.Value, ir.Value, ir.Value | None]


def _joint(values: Sequence[ir.Value], rewriter: Rewriter) -> _Projection | None:
    """Return the one projection whose parts queries, keys and values are, in this order, if nothing else reads it."""
    cuts, wholes = [value.producer() for value in values], set()
    sizes = [rewriter.sizes.of(value) for value in values]
    width = sizes[0][-1] if sizes[0] is not None else None
    if not isinstance(width, int) or any(size is None or size[-1] != width for size in sizes):
        return None
    for place, (cut, value) in enumerate(zip(cuts, values, strict=True)):
        if cut is None or cut.domain or only_reader(value) is None or not _is_cut(cut, value, place, width, rewriter):
            return None
        wholes.add(cut.inputs[0])
    (whole, *others) = wholes
    if others or whole is None or rewriter.sizes.of(whole) != [*(sizes[0] or [])[:2], 3 * width]:
        return None
    return (_product(whole) or _flat_product(whole, rewriter)) if set(readers(whole)) <= set(cuts) else None


def _is_cut(cut: ir.Node, value: ir.Value, place: int, width: int, rewriter: Rewriter) -> bool:
    """Tell whether a node cuts one of three parts of equal width from the last axis of a value of rank 3."""
    if cut.op_type == "Split":
        return cut.attributes.get_int("axis", 0) in (-1, 2) and len(cut.outputs) == 3 and cut.outputs[place] is value
    if cut.op_type != "Slice" or len(cut.inputs) < 4:
        return False
    start, end, axes = (rewriter.sizes.elements(read) for read in cut.inputs[1:4])
    return start == [place * width] and end == [(place + 1) * width] and axes in ([2], [-1])


def _joined(node: ir.Node, joint: _Projection, rewriter: Rewriter) -> ir.Node:
    source, weight, bias = joint
    return _attention(node, [source, weight, bias], rewriter)


def _projection(value: ir.Value | None) -> _Projection | None:
    """Return (input, weight, bias) of x · W + b that one node reads."""
    return _product(value) if value is not None and only_reader(value) is not None else None


def _product(value: ir.Value) -> _Projection | None:
    """Return (input, weight, bias) of x · W + b."""
    node, bias = value.producer(), None
    if node is None:
        return None
    if is_op(node, "Add", node.graph):
        bias = next((read for read in node.inputs if read is not None and is_weight(read)), None)
        inner = next((read for read in node.inputs if read is not bias), None)
        if bias is None or inner is None or bias.shape is None or bias.shape.rank() != 1 or only_reader(inner) is None:
            return None
        node = inner.producer()
    if node is None or not is_op(node, "MatMul", node.graph):
        return None
    source, weight = node.inputs
    if source is None or weight is None or not is_weight(weight) or weight.shape is None or weight.shape.rank() != 2:
        return None
    if source.shape is None or source.shape.rank() != 3 or len(list(weight.uses())) > 1:
        return None
    if bias is not None and (bias.shape is None or bias.shape[0] != weight.shape[1]):
        return None
    return source, weight, bias


def _flat_product(value: ir.Value, rewriter: Rewriter) -> _Projection | None:
    """As `_product`, where batch and length are one axis for a Gemm, as in GPT-2."""
    back = value.producer()
    gemm = (
        back.inputs[0].producer()
        if back is not None and is_op(back, "Reshape", back.graph) and back.inputs[0] is not None
        else None
    )
    if back is None or gemm is None or not is_op(gemm, "Gemm", back.graph) or only_reader(gemm.outputs[0]) is None:
        return None
    fold = gemm.inputs[0].producer() if gemm.inputs[0] is not None else None
    source = fold.inputs[0] if fold is not None and is_op(fold, "Reshape", back.graph) else None
    weight, bias = gemm.inputs[1], gemm.inputs[2] if len(gemm.inputs) > 2 else None
    plain = all(gemm.attributes.get_float(name, 1.0) == 1.0 for name in ("alpha", "beta"))
    plain = plain and not any(gemm.attributes.get_int(name, 0) for name in ("transA", "transB"))
    if source is None or weight is None or not plain or not is_weight(weight) or weight.shape is None:
        return None
    if bias is not None and (not is_weight(bias) or bias.shape is None or tuple(bias.shape) != (weight.shape[1],)):
        return None
    before, after = rewriter.sizes.of(source), rewriter.sizes.of(value)
    same = before is not None and after is not None and len(before) == 3 and before[:2] == after[:2]
    return (source, weight, bias) if same and before is not None and before[2] == weight.shape[0] else None


def _pack(node: ir.Node, source: ir.Value, parts: list[_Projection], rewriter: Rewriter) -> ir.Node:
    weights, biases = [part[1] for part in parts], [part[2] for part in parts]
    tensors = [value.const_value for value in weights]
    assert weights[0].shape is not None
    inner, width = weights[0].shape.numpy()
    label = weights[0].name or node.name or ""

    def joined() -> np.ndarray:
        return np.concatenate([tensor.numpy() for tensor in tensors if tensor is not None], axis=1)

    weight = rewriter.lazy(joined, (inner, 3 * width), f"{label}_qkv")
    bias = None
    if any(value is not None for value in biases):
        rows = [
            np.zeros(width, np.float32) if value is None or value.const_value is None else value.const_value.numpy()
            for value in biases
        ]
        bias = rewriter.constant(np.concatenate(rows), f"{label}_qkv_bias")
    return _attention(node, [source, weight, bias], rewriter)


def _attention(node: ir.Node, projected: Sequence[ir.Value | None], rewriter: Rewriter) -> ir.Node:
    """Put Attention in the place of MultiHeadAttention."""
    mask = node.inputs[5] if len(node.inputs) > 5 else None
    attributes = {name: a for name, a in node.attributes.items() if name in ("num_heads", "scale", "unidirectional")}
    inputs = [*projected, *([None, None, mask] if mask is not None else [])]
    return rewriter.replace(node, "Attention", inputs, attributes, domain=MS)
