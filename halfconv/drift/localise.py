"""Find where drift arises: compare every floating-point value of two models inside one run.

Reference and simulated candidate become one graph with common inputs. Beside each pair of values that share a name stand
reductions, and only their results leave the run: no tensor is kept. A first run takes the measures that cost little; a second
one looks closer at the values that drift much, or are not finite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

import onnx_ir as ir
from onnx_ir.passes import common

from halfconv.drift.bodies import CANDIDATE, Pair, inside, pairs_of, partners
from halfconv.drift.builder import Builder
from halfconv.drift.evaluate import evaluate_model
from halfconv.drift.measure import GLANCED, OPSET, SUMMED, ZEROED_LIMIT, PairSums, glance, measure
from halfconv.drift.origins import Origin, Origins
from halfconv.drift.raising import raised_to
from halfconv.drift.report import LayerDrift
from halfconv.drift.simulate import Simulation
from halfconv.drift.surface import BODIES
from halfconv.formats.layout import BFLOAT16, BINARY16
from halfconv.graph.names import values_of
from halfconv.graph.prepare import UniqueNamesPass
from halfconv.samples import Sample

__all__ = ["first_bad", "glanced", "localise"]

MAX_HALF = {ir.DataType.FLOAT16: BINARY16.max, ir.DataType.BFLOAT16: BFLOAT16.max}
SMALLEST = {ir.DataType.FLOAT16: BINARY16.min_subnormal, ir.DataType.BFLOAT16: BFLOAT16.min_subnormal}
#: Operators that make infinities of zeros.
FROM_ZERO = {"Log": "takes the logarithm of", "Div": "divides by", "Reciprocal": "divides by", "Pow": "raises to a negative power"}
#: How a verdict ends that blames an input.
SPOILT = "already holds such"
#: Values that are looked at closely first, where the first that went bad is enough.
FIRST = 24


@dataclass(slots=True)
class _Joined:
    """Both models in one graph.

    Attributes:
        model: The graph; each output is the measures of one value, or a table of those inside a node.
        rows: For each output the pairs whose measures its rows are.
    """

    model: ir.Model
    rows: list[list[Pair]] = field(default_factory=list)


def localise(
    models: Callable[[], tuple[ir.Model, Simulation]],
    samples: Iterable[Sample],
    made: Origins,
    scopes: Origins,
    label: str,
    *,
    everything: bool = True,
) -> tuple[LayerDrift, ...]:
    """Compare every FP32 value that both models have under one name, in all scopes.

    Values in branches that no sample takes, and in bodies that never run, are left out.

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
    half, places, sums = _measured(models, samples, label, None)
    half = {places.get(place, place): to for place, to in half.items()}
    made = {
        places.get(place, place): replace(origin, reads=tuple(places.get(read, read) for read in origin.reads))
        for place, origin in made.items()
    }
    closer = [place for place, entry in sums.items() if entry.suspicious]
    parts = [closer] if everything else [closer[:FIRST], closer[FIRST:]]
    for part in parts:
        if not part:
            break
        sums |= _measured(models, samples, label, set(part))[2]
        layers = tuple(_layers(sums, half, made, scopes))
        if any(layer.verdict for layer, place in zip(layers, sums, strict=True) if place in part):
            return layers
    return tuple(_layers(sums, half, made, scopes))


def glanced(models: Callable[[], tuple[ir.Model, Simulation]], samples: Iterable[Sample], label: str) -> dict[str, PairSums]:
    """Take the cheap measures of every value; see `localise`.

    Returns:
        Place of a value (`halfconv.graph.names.places`) -> what was measured. Empty if the two graphs cannot be joined.
    """
    return _measured(models, samples, label, None)[2]


def _measured(
    models: Callable[[], tuple[ir.Model, Simulation]], samples: Iterable[Sample], label: str, closer: set[str] | None
) -> tuple[dict[str, ir.DataType], dict[str, str], dict[str, PairSums]]:
    """Return the candidate's formats by its own places, its places -> the reference's, and what was measured by the latter."""
    reference, simulation = models()
    joined = _join(reference, simulation.model, closer)
    if joined is None or not joined.rows:
        return {}, {}, {}
    known = [[PairSums() for _ in rows] for rows in joined.rows]
    with evaluate_model(joined.model, f"{label} beside its reference") as both:
        for sample in samples:
            tables = both.run(sample.feeds, sample.name)
            for entries, table in zip(known, tables.values(), strict=True):
                for entry, row in zip(entries, table.reshape(len(entries), -1), strict=True):
                    entry.add(row)
    found = [pair for rows in joined.rows for pair in rows]
    places = {pair.their_place: pair.place for pair in found}
    sums = {pair.place: entry for pair, entry in zip(found, [e for entries in known for e in entries], strict=True) if entry.runs}
    return simulation.half, places, sums


def _join(reference: ir.Model, candidate: ir.Model, closer: set[str] | None) -> _Joined | None:
    """Put both models into the reference's graph, with the cheap measures of all values, or all measures of some."""
    wanted = max(OPSET, reference.opset_imports.get("", 0), candidate.opset_imports.get("", 0))
    if not (raised_to(reference, wanted) and raised_to(candidate, wanted)):
        return None
    for model in (reference, candidate):  # bodies are copied, weights need not be
        if common.LiftSubgraphInitializersToMainGraphPass()(model).modified:
            UniqueNamesPass()(model)
    graph = reference.graph
    inputs = {value.name: value for value in graph.inputs}
    theirs = {value.name: value for value in candidate.graph.inputs}
    if set(theirs) != set(inputs) or any(
        value.dtype != theirs[name].dtype and ir.DataType.FLOAT not in (value.dtype, theirs[name].dtype)
        for name, value in inputs.items()
    ):
        return None
    for inner in candidate.graphs():
        for node in inner:
            node.name = f"{CANDIDATE}{node.name}" if node.name else node.name
        for value in values_of(inner):
            if value.name and not (inner is candidate.graph and value.name in theirs):
                value.name = f"{CANDIDATE}{value.name}"
    ours, moved = list(graph), list(candidate.graph)
    pairs = pairs_of((o for node in ours for o in node.outputs), (o for node in moved for o in node.outputs))
    candidate.graph.outputs.clear()  # of which an input may be one
    for name, value in theirs.items():
        value.replace_all_uses_with(inputs[name])
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
    order = {node: index for index, node in enumerate(graph)}
    write, summed = (glance, GLANCED) if closer is None else (measure, SUMMED)
    written: list[tuple[int, list[ir.Node], ir.Value, list[Pair]]] = []
    for mine, its in partners(ours, moved):
        table = inside(mine, its, lambda pair: closer is None or pair.place in closer, write, summed, wanted)
        if table is not None:
            written.append((order[mine], table.nodes, table.value, table.rows))
    for pair in pairs:
        if closer is None or pair.place in closer:
            builder = Builder(ir.DataType.FLOAT16, f"measure:{pair.place}", wanted)
            result, producer = write(builder, pair.ours, pair.theirs), pair.ours.producer()
            assert producer is not None
            written.append((order[producer], builder.nodes, result, [pair]))
    written.sort(key=lambda entry: entry[0])  # what is inside a node stays before what it gives
    for _, nodes, _, _ in reversed(written):
        graph.extend(nodes)
    graph.outputs[:] = [result for _, _, result, _ in written]
    if closer is not None:  # ONNX Runtime would compute what nothing needs
        common.RemoveUnusedNodesPass()(reference)
    reference.ir_version = max(reference.ir_version, candidate.ir_version)
    return _Joined(reference, [rows for _, _, _, rows in written])


def _layers(sums: dict[str, PairSums], half: dict[str, ir.DataType], made: Origins, scopes: Origins) -> Iterator[LayerDrift]:
    for name, found in sums.items():
        origin = made.get(name) or scopes.get(name) or Origin(name, "", "", "", ())
        to = half.get(name)
        if origin.op == "Cast" and name in scopes:  # which a converter put behind the node that makes the value
            to = to or next((half[read] for read in origin.reads if read in half), None)
            origin = scopes[name]
        scope = origin.scope or (scopes[name].scope if name in scopes else "")
        before = [sums[read].rel_l2 for read in origin.reads if read in sums]
        drift = found.rel_l2
        added = max(0.0, drift - max(before, default=0.0)) if math.isfinite(drift) else math.inf
        if not origin.op or origin.op in BODIES or (math.isinf(drift) and any(math.isinf(value) for value in before)):
            added = 0.0  # it arose inside the body, or before
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
    if not origin.op:
        return ""  # what a body is given arose before
    node = origin.node
    spoilt = [read for read in origin.reads if read in sums and sums[read].bad_runs]
    if found.new_inf or found.new_nan:
        count = found.new_inf + found.new_nan
        what = "infinite" if found.new_inf else "NaN"
        if spoilt and found.bad_runs <= sum(sums[read].bad_runs for read in spoilt):
            return f"{node} gives {count:,} {what} results: its input '{spoilt[0]}' {SPOILT}"
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
    wrong = [layer for layer in known if layer.verdict]
    # In a loop, what is spoilt by an earlier iteration may stand before its cause.
    for layer in [layer for layer in wrong if not layer.verdict.endswith(SPOILT)] or wrong:
        return f"{layer.verdict} (value '{layer.value}')"
    for layer in known:
        if layer.rel_l2 is not None and layer.rel_l2 > limit:
            return f"{layer.node} drifts first: rel_l2 {layer.rel_l2:.3g} > {limit:g} (value '{layer.value}')"
    return ""
