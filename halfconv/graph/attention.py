"""Fuse attention, in the forms that exporters write, into ONNX Runtime's own operators.

From a Softmax, scores are followed up to the product of queries and keys, whatever scales them and is added to them on the way, and
probabilities down to the product with the values. Heads may be an axis of their own (rank 4) or be folded into the batch (rank 3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from halfconv.graph.attention_masks import for_all_heads, is_finite, lets_all_pass, mask_fault, mask_of, unmasked_rows
from halfconv.graph.fuse import is_op, only_reader, scalar
from halfconv.graph.heads import TO_HEADS, Heads, flat_rows, heads_of, heads_of_rows, unscaled, untransposed
from halfconv.graph.rules import MS, Outcome, Rewriter, readers, transposed
from halfconv.graph.sizes import Size
from halfconv.graph.typegroups import is_float, is_weight

__all__ = ["attention"]

#: What is filled into scores is a mask if it is not above this.
MASKED = -1e4
#: Operators that hand floats on.
PASSING = frozenset({"Cast", "Dropout", "Identity"})
#: Operators that move floats, and products: attention may be written with them in ways that are not followed.
MOVING = PASSING | {"Expand", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze", "Where"}
PRODUCTS = frozenset({"Einsum", "MatMul"})


@dataclass
class _Scores:
    """What is under a Softmax.

    Attributes:
        product: The product of queries and keys.
        scale: What it is multiplied by.
        biases: What is added to it.
        fills: (condition, whether it keeps scores, what is filled in where it does not).
        inside: The values from the product to the Softmax.
    """

    product: ir.Node
    scale: float = 1.0
    biases: list[ir.Value] = field(default_factory=list)
    fills: list[tuple[ir.Value, bool, float]] = field(default_factory=list)
    inside: list[ir.Value] = field(default_factory=list)


def attention(softmax: ir.Node, rewriter: Rewriter) -> Outcome:
    """Fuse what is around a Softmax into MultiHeadAttention."""
    if softmax.domain or not is_float(softmax.inputs[0]):
        return None
    final, probabilities, guarded = _final_product(softmax.outputs[0])
    if final is None:
        shared = any(is_op(node, "MatMul", softmax.graph) for node in readers(softmax.outputs[0]))
        shared = shared and _scores(softmax.inputs[0], rewriter) is not None
        return f"'{softmax.outputs[0].name}' inside it is read by others, too" if shared else _unfollowed(softmax)
    scores = _scores(softmax.inputs[0], rewriter)
    if scores is None:
        return "its scores are no product of queries and keys that is scaled and masked"
    if not _over_last(softmax, rewriter.opset):
        return "its softmax is not over the last axis"
    if scores == "scaled mask":
        return "its mask is scaled together with the scores"
    assert isinstance(scores, _Scores)
    scores.biases = [bias for bias in scores.biases if not lets_all_pass(bias)]
    single = [value for value in [*scores.inside, *probabilities] if value.is_graph_output() or only_reader(value) is None]
    if single and not (guarded and single == [softmax.outputs[0]] and not single[0].is_graph_output()):
        return f"'{single[0].name}' inside it is read by others, too"
    parts = _parts(scores, final, rewriter)
    if isinstance(parts, str):
        return parts
    query, key, value, scale = parts
    # A row that is −inf throughout gives zeros here, which the fused kernel does not give.
    zeroed = guarded and (any(math.isinf(fill) for *_, fill in scores.fills) or not all(map(is_finite, scores.biases)))
    masks = [*scores.biases, *(condition for condition, *_ in scores.fills)]
    if zeroed and (query.folded or not all(for_all_heads(mask, rewriter) for mask in masks)):
        return "a row of its mask may be −inf throughout, and differ between heads"
    for bias in scores.biases:
        if (wrong := mask_fault(bias, query, rewriter)) is not None:
            return wrong
    return lambda: _fuse(final, scores, query, key, value, scale, zeroed, rewriter)


def _over_last(softmax: ir.Node, opset: int) -> bool:
    rank = softmax.outputs[0].shape.rank() if softmax.outputs[0].shape is not None else None
    axis = softmax.attributes.get_int("axis", -1 if opset >= 13 else 1)
    return axis == -1 or (rank is not None and axis == rank - 1)


def _final_product(probabilities: ir.Value) -> tuple[ir.Node | None, list[ir.Value], bool]:
    """Return the product of probabilities and values, the values before it, and whether NaN is replaced by 0 before it."""
    value, guarded, inside = probabilities, False, [probabilities]
    for _ in range(4):
        found = readers(value)
        where = next((node for node in found if node.op_type == "Where" and not node.domain), None)
        if not guarded and len(found) == 2 and where is not None and any(is_op(node, "IsNaN", where.graph) for node in found):
            if scalar(where.inputs[1]) != 0.0 or where.inputs[2] is not value:
                break
            value, guarded = where.outputs[0], True
        elif len(found) == 1 and found[0].op_type in PASSING and not found[0].domain and is_float(found[0].outputs[0]):
            value = found[0].outputs[0]
        elif len(found) == 1 and is_op(found[0], "MatMul", found[0].graph) and found[0].inputs[0] is value:
            second = found[0].inputs[1]
            return (found[0] if second is not None and not is_weight(second) else None), inside, guarded
        else:
            break
        inside.append(value)
    return None, [], False


def _unfollowed(softmax: ir.Node) -> str | None:
    """Say which operator is in the way if a Softmax lies between two products after all, as attention does."""
    value, between = softmax.outputs[0], ""
    for _ in range(4):
        found = [node for node in readers(value) if not node.domain and node.op_type in MOVING | PRODUCTS]
        if len(found) != 1 or found[0].graph is not softmax.graph:
            return None
        between = between or ("" if found[0].op_type in PASSING else found[0].op_type)
        if found[0].op_type in PRODUCTS:
            # Probabilities as the second factor of a MatMul weigh something else than values.
            others = [read for read in found[0].inputs if read is not value]
            known = not others or any(read is None or is_weight(read) for read in others)
            weighs = found[0].op_type == "Einsum" or found[0].inputs[0] is value
            if known or not weighs or not _is_product(softmax.inputs[0]):
                return None
            return f"its probabilities reach the values through {between}, which is not followed"
        value = found[0].outputs[0]
    return None


def _is_product(value: ir.Value | None, depth: int = 8) -> bool:
    """Tell whether a value is a product of two computed values that is scaled, masked or moved."""
    node = value.producer() if value is not None else None
    if node is None or node.domain or not depth or not is_float(value):
        return False
    if node.op_type in PRODUCTS:
        return len(node.inputs) == 2 and not any(read is None or is_weight(read) for read in node.inputs)
    return node.op_type in MOVING | {"Add", "Div", "Mul", "Sub"} and any(_is_product(read, depth - 1) for read in node.inputs)


def _scores(value: ir.Value | None, rewriter: Rewriter, depth: int = 10) -> _Scores | str | None:
    """Follow scores up to the product of queries and keys."""
    node = value.producer() if value is not None else None
    if node is None or value is None or node.domain or depth == 0:
        return None
    if node.op_type == "MatMul":
        return None if any(read is None or is_weight(read) for read in node.inputs) else _Scores(node, inside=[value])
    found: _Scores | str | None = None
    if node.op_type in PASSING and is_float(node.inputs[0]):
        found = _scores(node.inputs[0], rewriter, depth - 1)
    elif node.op_type in ("Mul", "Div"):
        for place in (0, 1) if node.op_type == "Mul" else (0,):
            factor = rewriter.number(node.inputs[1 - place])
            if factor:
                found = _scores(node.inputs[place], rewriter, depth - 1)
                if isinstance(found, _Scores):
                    if found.biases or found.fills:
                        return "scaled mask"
                    found.scale *= factor if node.op_type == "Mul" else 1 / factor
                break
    elif node.op_type == "Add":
        for place in (0, 1):
            found, other = _scores(node.inputs[place], rewriter, depth - 1), node.inputs[1 - place]
            if isinstance(found, _Scores) and other is not None:
                found.biases.append(other)
            if found is not None:
                break
    elif node.op_type == "Where" and node.inputs[0] is not None:
        for place in (1, 2):
            fill = scalar(node.inputs[3 - place])
            if fill is not None and fill <= MASKED:
                found = _scores(node.inputs[place], rewriter, depth - 1)
                if isinstance(found, _Scores):
                    found.fills.append((node.inputs[0], place == 1, fill))
                break
    if isinstance(found, _Scores):
        found.inside.append(value)
    return found


def _parts(scores: _Scores, final: ir.Node, rewriter: Rewriter) -> tuple[Heads, Heads, Heads, float] | str:
    """Return queries, keys, values and the scale."""
    left, by_left = unscaled(scores.product.inputs[0], rewriter)
    right, by_right = unscaled(scores.product.inputs[1], rewriter)
    query, value = heads_of(left, rewriter), heads_of(final.inputs[1], rewriter)
    rows = transposed(right, 0, 2, 3, 1)
    if rows is not None:
        key, by_keys = heads_of_rows(rows, rewriter), 1.0
    else:
        keys, by_keys = unscaled(untransposed(right, rewriter), rewriter)
        if keys is None:
            return "its keys are not transposed in a way that is known"
        key = heads_of(keys, rewriter)
    if query is None or key is None or value is None:
        return "the number of heads or their size is not known"
    if not query.folded == key.folded == value.folded:
        return "queries, keys and values differ in rank"
    if not query.sizes[1] == key.sizes[1] == value.sizes[1] or query.sizes[3] != key.sizes[3]:
        return "queries, keys and values differ in the number of heads or their size"
    batches = {part.sizes[0] for part in (query, key, value)}
    if any(isinstance(batch, int) for batch in batches) and len(batches) > 1:
        return "queries, keys and values differ in batch size"
    return query, key, value, scores.scale * by_left * by_right * by_keys


def _fuse(
    final: ir.Node, scores: _Scores, query: Heads, key: Heads, value: Heads, scale: float, zeroed: bool, rewriter: Rewriter
) -> ir.Node:  # fmt: skip
    heads, size, wide = query.sizes[1], query.sizes[3], value.sizes[3]
    assert isinstance(heads, int) and isinstance(size, int) and isinstance(wide, int)
    last, ready = (final, True) if query.folded else _last(final, query, heads * wide, rewriter)
    flat = [flat_rows(part, last, name, rewriter) for part, name in ((query, "query"), (key, "key"), (value, "value"))]
    bias = mask_of(scores.biases, scores.fills, query.folded, flat, last, rewriter)
    inputs = [*flat, *([None, None, bias] if bias is not None else [])]
    attributes: dict[str, int | float] = {"num_heads": heads}
    if abs(scale * math.sqrt(size) - 1) > 1e-6:
        attributes["scale"] = scale
    if ready and not zeroed:
        return rewriter.replace(last, "MultiHeadAttention", inputs, attributes, domain=MS)
    sizes = [query.sizes[0], query.sizes[2], heads * wide]
    answer = rewriter.add("MultiHeadAttention", inputs, last, "attention", sizes, attributes, domain=MS)
    made = answer.producer()
    assert made is not None
    chosen = [unmasked_rows(bias, last, rewriter), answer, rewriter.constant(np.array(0, np.float32), "zero")] if zeroed else []
    if ready:
        rewriter.sizes.learn(rewriter.replace(last, "Where", chosen).outputs[0], sizes)
        return made
    if zeroed:
        answer = rewriter.add("Where", chosen, last, "rows", sizes)
    shape = rewriter.constant(np.array([0, 0, heads, wide], np.int64), "heads_shape")
    if last is final:
        split = rewriter.add("Reshape", [answer, shape], last, "heads", [*sizes[:2], heads, wide])
        rewriter.replace(last, "Transpose", [split], {"perm": TO_HEADS})
    else:
        rewriter.replace(last, "Reshape", [answer, shape])
    return made


def _only_into(value: ir.Value, node: ir.Node, depth: int = 8) -> bool:
    """Tell whether all that reads a value computes what one node reads: its shape."""
    found = [reader for reader in readers(value) if reader is not node]
    if value.is_graph_output() or not depth:
        return False
    return all(_only_into(output, node, depth - 1) for reader in found for output in reader.outputs)


def _last(final: ir.Node, query: Heads, width: int, rewriter: Rewriter) -> tuple[ir.Node, bool]:
    """Return the node whose place attention takes, and whether that node's result is what attention gives."""
    answer = final.outputs[0]
    # The product of probabilities and values has the queries' batch, whatever a mask's batch is called.
    rewriter.sizes.learn(answer, [*query.sizes[:3], width // query.sizes[1]] if isinstance(query.sizes[1], int) else [])
    same = [node for node in readers(answer) if is_op(node, "Reshape", final.graph) and node.inputs[0] is answer]
    if len(same) == 1 and _only_into(answer, same[0]) and rewriter.sizes.of(same[0].outputs[0]) == rewriter.sizes.of(answer):
        answer = same[0].outputs[0]
    turn = only_reader(answer)
    if turn is None or transposed(turn.outputs[0], *TO_HEADS) is None or turn.graph is not final.graph:
        return final, False
    join = only_reader(turn.outputs[0])
    if join is None or not is_op(join, "Reshape", final.graph):
        return turn, False
    wanted: list[Size] = [query.sizes[0], query.sizes[2], width]
    return (join, True) if rewriter.sizes.of(join.outputs[0]) == wanted else (turn, False)
