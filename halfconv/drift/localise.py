"""Find where drift arises: compare every floating-point value of two models inside one run.

Reference and simulated candidate become one graph with common inputs. Beside each pair of values that share a name stand
reductions, and only their results leave the run: no tensor is kept. A first run takes the measures that cost little; a second
one looks closer at the values that drift much, or are not finite.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import onnx_ir as ir
from onnx_ir.passes import common

from halfconv.drift.branches import TakeBranchesPass, Taken, taken_branches
from halfconv.drift.builder import Builder
from halfconv.drift.evaluate import evaluate_model
from halfconv.drift.measure import OPSET, ZEROED_LIMIT, PairSums, glance, measure
from halfconv.drift.origins import Origin, Origins
from halfconv.drift.report import LayerDrift
from halfconv.drift.simulate import Simulation
from halfconv.graph.lift import lift
from halfconv.graph.prepare import sweep
from halfconv.samples import Sample

__all__ = ["first_bad", "localise"]

MAX_HALF = {ir.DataType.FLOAT16: 65504.0, ir.DataType.BFLOAT16: 3.3895313892515355e38}
SMALLEST = {ir.DataType.FLOAT16: 5.960464477539063e-08, ir.DataType.BFLOAT16: 9.183549615799121e-41}
#: Operators that make infinities of zeros.
FROM_ZERO = {"Log": "takes the logarithm of", "Div": "divides by", "Reciprocal": "divides by", "Pow": "raises to a negative power"}
PREFIX = "candidate:"
#: Values that are looked at closely first, where the first that went bad is enough.
FIRST = 24


@dataclass(slots=True)
class _Joined:
    """Both models in one graph.

    Attributes:
        model: The graph.
        pairs: Names of the values compared, in topological order of the reference.
    """

    model: ir.Model
    pairs: list[str] = field(default_factory=list)


def localise(
    models: Callable[[], tuple[ir.Model, Simulation]],
    samples: Iterable[Sample],
    made: Origins,
    scopes: Origins,
    label: str,
    *,
    everything: bool = True,
) -> tuple[LayerDrift, ...]:
    """Compare every FP32 value of the main graph, and of branches taken, that both models have under one name.

    Args:
        models: Gives the FP32 reference, prepared, and the candidate's simulation; both are used up, and asked for again.
        samples: Samples; iterated several times.
        made: Where the candidate's values come from.
        scopes: Where the reference's values come from: exporters' scopes, which converters may drop.
        label: What messages call the candidate.
        everything: Whether all values must be looked at closely; if not, a run ends where the first that went bad is known.

    Returns:
        One entry a value, in topological order. Empty if the two graphs cannot be joined (they need one opset).

    Raises:
        InputError: The joined graph cannot be run.
    """
    taken = taken_branches(lambda: models()[0], samples)
    half, sums = _measured(models, samples, label, None, taken)
    closer = [name for name, found in sums.items() if found.suspicious]
    parts = [closer] if everything else [closer[:FIRST], closer[FIRST:]]
    for part in parts:
        if not part:
            break
        sums |= _measured(models, samples, label, set(part), taken)[1]
        layers = tuple(_layers(sums, half, made, scopes))
        if any(layer.verdict for layer, name in zip(layers, sums, strict=True) if name in part):
            return layers
    return tuple(_layers(sums, half, made, scopes))


def _measured(
    models: Callable[[], tuple[ir.Model, Simulation]], samples: Iterable[Sample], label: str, closer: set[str] | None, taken: Taken
) -> tuple[dict[str, ir.DataType], dict[str, PairSums]]:
    reference, simulation = models()
    for model in (reference, simulation.model):
        if TakeBranchesPass(taken)(model).modified:
            sweep(model)
    joined = _join(reference, simulation.model, closer)
    if joined is None or not joined.pairs:
        return {}, {}
    sums = {name: PairSums() for name in joined.pairs}
    with evaluate_model(joined.model, f"{label} beside its reference") as both:
        for sample in samples:
            rows = both.run(sample.feeds, sample.name)
            for found, row in zip(sums.values(), rows.values(), strict=True):
                found.add(row)
    return dict(simulation.half), sums


def _join(reference: ir.Model, candidate: ir.Model, closer: set[str] | None) -> _Joined | None:
    """Put both models into the reference's graph, with the cheap measures of all values, or all measures of some."""
    wanted = max(OPSET, reference.opset_imports.get("", 0), candidate.opset_imports.get("", 0))
    if not (_raised(reference, wanted) and _raised(candidate, wanted)):
        return None
    graph = reference.graph
    inputs = {value.name: value for value in graph.inputs}
    theirs = {value.name: value for value in candidate.graph.inputs}
    if set(theirs) != set(inputs) or any(
        value.dtype != theirs[name].dtype and ir.DataType.FLOAT not in (value.dtype, theirs[name].dtype)
        for name, value in inputs.items()
    ):
        return None
    ours = {o.name: o for node in graph for o in node.outputs if o.name and _is_plain(o)}
    pairs = [(ours[o.name], o) for node in candidate.graph for o in node.outputs if o.name in ours and _comparable(ours[o.name], o)]
    for inner in candidate.graphs():
        for node in inner:
            node.name = f"{PREFIX}{node.name}" if node.name else node.name
        for value in [*inner.inputs, *inner.initializers.values(), *(o for node in inner for o in node.outputs)]:
            if value.name and not (inner is candidate.graph and value.name in theirs):
                value.name = f"{PREFIX}{value.name}"
    candidate.graph.outputs.clear()  # of which an input may be one
    for name, value in theirs.items():
        value.replace_all_uses_with(inputs[name])
    moved = list(candidate.graph)
    weights = [value for value in candidate.graph.initializers.values() if value.name not in theirs]
    candidate.graph.remove(moved)
    candidate.graph.initializers.clear()
    for value in weights:
        graph.register_initializer(value)
    for domain, version in candidate.opset_imports.items():
        reference.opset_imports.setdefault(domain, version)
    # ONNX Runtime orders the run itself: it visits the graph's leaves, which are the measures, from the last node to the first, and
    # computes what each needs. So the first pair is measured by the last node: both values of a pair are computed, measured and
    # freed before the next.
    graph.extend(moved)
    order = {output: index for index, node in enumerate(graph) for output in node.outputs}
    joined = _Joined(reference)
    results, written = [], []
    for mine, its in sorted(pairs, key=lambda pair: order[pair[0]]):
        if closer is not None and mine.name not in closer:
            continue
        builder = Builder(ir.DataType.FLOAT16, f"measure:{mine.name}", wanted)
        results.append(glance(builder, mine, its) if closer is None else measure(builder, mine, its))
        written.append(builder.nodes)
        joined.pairs.append(mine.name or "")
    for nodes in reversed(written):
        graph.extend(nodes)
    graph.outputs[:] = results
    if closer is not None:  # ONNX Runtime would compute what nothing needs
        common.RemoveUnusedNodesPass()(reference)
    reference.ir_version = max(reference.ir_version, candidate.ir_version)
    return joined


def _raised(model: ir.Model, opset: int) -> bool:
    """Raise a model's opset: by halfconv's own rules, or else by the converters of onnxscript and onnx."""
    if lift(model, opset):
        return True
    from onnxscript import version_converter

    logger = logging.getLogger(version_converter.__name__)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        version_converter.convert_version(model, opset, fallback=True)
        common.ShapeInferencePass()(model)
    except Exception:  # whatever they raise, the model stays where it is
        return False
    finally:
        logger.setLevel(level)
    return model.opset_imports.get("") == opset


def _is_plain(value: ir.Value) -> bool:
    return value.dtype == ir.DataType.FLOAT and isinstance(value.type, ir.TensorType)


def _comparable(ours: ir.Value, theirs: ir.Value) -> bool:
    """Tell whether two values can have one shape."""
    if not _is_plain(theirs):
        return False
    if ours.shape is None or theirs.shape is None:
        return True
    pairs = list(zip(ours.shape, theirs.shape, strict=False))
    return ours.shape.rank() == theirs.shape.rank() and all(a == b for a, b in pairs if isinstance(a, int) and isinstance(b, int))


def _layers(sums: dict[str, PairSums], half: dict[str, ir.DataType], made: Origins, scopes: Origins) -> Iterator[LayerDrift]:
    for name, found in sums.items():
        origin = made.get(name) or scopes.get(name) or Origin("", "", "", "", ())
        to = half.get(name)
        if origin.op == "Cast" and name in scopes:  # which a converter put behind the node that makes the value
            to = to or next((half[read] for read in origin.reads if read in half), None)
            origin = scopes[name]
        scope = origin.scope or (scopes[name].scope if name in scopes else "")
        before = [sums[read].rel_l2 for read in origin.reads if read in sums]
        drift = found.rel_l2
        added = max(0.0, drift - max(before, default=0.0)) if math.isfinite(drift) else math.inf
        if origin.op == "If" or (math.isinf(drift) and any(math.isinf(value) for value in before)):
            added = 0.0  # it arose inside the branch, or before
        yield LayerDrift(
            value=scopes.get(name, origin).id or name,
            node=origin.node,
            op=origin.op,
            scope=scope,
            dtype=to.name.lower() if to is not None else "float32",
            rel_l2=drift,
            added=added,
            reference_absmax=found.reference_max,
            candidate_absmax=found.candidate_max,
            new_nan=found.new_nan,
            new_inf=found.new_inf,
            zeroed=found.share_zeroed,
            verdict=_verdict(name, found, to, origin, sums),
        )


def _verdict(name: str, found: PairSums, to: ir.DataType | None, origin: Origin, sums: dict[str, PairSums]) -> str:
    """Say in plain words what is wrong with a value; "" if nothing is."""
    node = origin.node or name
    spoilt = [read for read in origin.reads if read in sums and (sums[read].new_nan or sums[read].new_inf)]
    if found.new_inf or found.new_nan:
        count = found.new_inf + found.new_nan
        what = "infinite" if found.new_inf else "NaN"
        if spoilt:
            return f"{node} gives {count:,} {what} results: its input '{spoilt[0]}' already holds such"
        if to is not None and found.reference_max > MAX_HALF[to]:
            return f"{node} overflows: its result reaches {found.reference_max:,.6g} (> {MAX_HALF[to]:,.6g}) in FP32"
        if found.new_inf and to is not None:
            if origin.op in FROM_ZERO:
                return f"{node} gives {count:,} infinite results: half rounds what it {FROM_ZERO[origin.op]} to 0"
            reach = f"although its result only reaches {found.reference_max:,.6g}"
            return f"{node} overflows inside: a sum or product leaves half's range, {reach}"
        return f"{node} gives {count:,} {what} results where the reference is finite"
    share = found.share_zeroed
    if share is not None and share > ZEROED_LIMIT:
        if spoilt:
            return f"{node} gives zeros for {share:.0%} of its results: its input '{spoilt[0]}' is infinite"
        return f"{node} gives zeros for {share:.0%} of its results, which reach {found.reference_max:,.6g} in FP32"
    if to is not None and 0 < found.reference_max < SMALLEST[to] and not found.candidate_max:
        return f"{node} underflows: its largest result, {found.reference_max:.3g}, is below {SMALLEST[to]:.3g} in FP32"
    return ""


def first_bad(layers: Iterable[LayerDrift], limit: float) -> str:
    """Return what went wrong first, in plain words.

    Args:
        layers: Values in topological order.
        limit: rel_l2 from which a value is bad, if none is NaN, infinite or zeroed.
    """
    known = list(layers)
    for layer in known:
        if layer.verdict:
            return f"{layer.verdict} (value '{layer.value}')"
    for layer in known:
        if layer.rel_l2 is not None and layer.rel_l2 > limit:
            return f"{layer.node} drifts first: rel_l2 {layer.rel_l2:.3g} > {limit:g} (value '{layer.value}')"
    return ""
