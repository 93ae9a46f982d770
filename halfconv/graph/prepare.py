"""Bring a loaded model into the form that planning expects: no functions, no Constants, sorted, typed.

Each step is an `onnx_ir` pass. Shapes are inferred once, and again where a fusion makes more of them known; later stages write
types from the plan and infer nothing again.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from halfconv.errors import InputError, UnsupportedModel
from halfconv.graph.fusing import Kept, Prepared, Refusal, fuse_for
from halfconv.graph.infer import infer
from halfconv.graph.lift import LiftClipPass
from halfconv.graph.names import subgraphs, values_of
from halfconv.graph.schema import signature
from halfconv.graph.sweep import DetachDeadGraphsPass, sweep
from halfconv.graph.typegroups import is_weight
from halfconv.graph.validate import check_functions, check_nodes

__all__ = [
    "DetachDeadGraphsPass",
    "InputConstantsPass",
    "Kept",
    "Prepared",
    "Refusal",
    "ShareWeightsPass",
    "UniqueNamesPass",
    "prepare",
    "sweep",
]


def prepare(
    model: ir.Model, *, label: str = "the model", fuse: bool = True, target: str = "portable",
    to: ir.DataType = ir.DataType.FLOAT16, without: frozenset[str] = frozenset(), kept: Kept | None = None,
) -> Prepared:  # fmt: skip
    """Prepare a model in place.

    Args:
        model: A loaded model.
        label: What messages call it.
        fuse: Whether groups of operators become one, see `halfconv.graph.fusions`.
        target: The kind of hardware, which decides which.
        to: The half-precision type that the result must have kernels for.
        without: Names of the target's fusions that are left out.
        kept: Returns the nodes that the user named, each with the rule: a fusion that takes one up is reported as lost.

    Raises:
        InputError: The graph has a cycle.
        UnsupportedModel: A function cannot be inlined.
    """
    done = Prepared()
    check_functions(model, label)
    try:
        if model.functions:
            _name_results(model)
            common.InlinePass()(model)
            model.functions.clear()
    except Exception as error:
        raise UnsupportedModel(
            f"{label}: its functions cannot be inlined: {error}", "onnx.inliner.inline_local_functions on it"
        ) from None
    _check_operators(model, label)
    check_nodes(model, label)
    unique = UniqueNamesPass()
    unique(model)
    done.notes += unique.notes
    constants = InputConstantsPass()
    constants(model)
    if constants.fixed:
        done.notes.append(f"{constants.fixed} weights that were also listed as inputs are now constants only")
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    ShareWeightsPass()(model)
    try:
        common.TopologicalSortPass()(model)
    except Exception:
        raise InputError(f"{label}: the graph has a cycle", "export it again") from None
    sweep(model)
    infer(model)
    LiftClipPass()(model)
    if fuse:
        fuse_for(model, done, target, to, without, kept)
    return done


def _name_results(model: ir.Model) -> None:
    """Give what functions return unchanged a value of its own: the inliner would rename the caller's."""
    for function in model.functions.values():
        for index, value in enumerate(function.outputs):
            if value.is_graph_input():
                function.append(copy := ir.node("Identity", [value]))
                function.outputs[index] = copy.outputs[0]


def _check_operators(model: ir.Model, label: str) -> None:
    """Refuse an operator of ONNX's own domains that ONNX does not know: the checker would refuse it too."""
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        version = model.opset_imports.get(node.domain)
        if node.domain in ("", "ai.onnx", "ai.onnx.ml") and signature(node.domain, node.op_type, version) is None:
            raise UnsupportedModel(
                f"{label}: node '{node.name or ''}' has operator {node.op_type}, unknown in opset {version}",
                "pip install -U onnx, or export with a newer opset",
            )


class UniqueNamesPass(ir.passes.InPlacePass):
    """Rename values in subgraphs that hide a value of an outer graph: ONNX forbids it and its checker refuses it.

    ONNX Runtime runs such a model all the same. Where an initializer hides an outer value that something reads, it gives the
    subgraph the outer value (measured, 1.32), and so does this pass: the FP32 model's answers are the reference.

    Attributes:
        notes: A sentence per value that was given to a subgraph in place of its own.
    """

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass."""
        taken = {v.name for graph in model.graphs() for v in values_of(graph)}
        return ir.passes.PassResult(model, modified=self._visit(model.graph, {}, taken))

    def _visit(self, graph: ir.Graph, outer: dict[str, ir.Value], taken: set[str | None]) -> bool:
        changed = False
        for value in values_of(graph):
            hidden = outer.get(value.name or "")
            if hidden is None:
                continue
            changed = True
            if value.is_initializer() and (hidden.uses() or hidden.is_graph_output()):
                self.notes.append(
                    f"initializer '{value.name}' of a subgraph hides an outer value; ONNX Runtime reads the outer one"
                )
                value.replace_all_uses_with(hidden)
                del graph.initializers[value.name or ""]
                continue
            number = 2
            while f"{value.name}_{number}" in taken:
                number += 1
            value.name = f"{value.name}_{number}"
            taken.add(value.name)
        inner = outer | {value.name: value for value in values_of(graph) if value.name}
        for node in graph:
            for _, body in subgraphs(node):
                changed |= self._visit(body, inner, taken)
        return changed


class ShareWeightsPass(ir.passes.InPlacePass):
    """Read a weight directly where an Identity stands between: exporters write one for each weight that equals another."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass."""
        changed = False
        for node in list(ir.traversal.RecursiveGraphIterator(model.graph)):
            value = node.inputs[0] if node.op_type == "Identity" and not node.domain and node.inputs else None
            if value is None or not is_weight(value) or node.outputs[0].is_graph_output() or node.graph is None:
                continue
            node.outputs[0].replace_all_uses_with(value)
            node.graph.remove(node, safe=True)
            changed = True
        return ir.passes.PassResult(model, modified=changed)


class InputConstantsPass(ir.passes.InPlacePass):
    """Make constants of weights that an exporter also listed as inputs.

    Up to IR version 3 every initializer had to be an input; later, an exporter that lists all of them does so out of habit. A
    model of IR version 4 or more that lists only some of them means defaults that a caller may override: those stay inputs.

    Attributes:
        fixed: Number of inputs removed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fixed = 0

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass."""
        graph = model.graph
        listed = [value for value in graph.inputs if value.is_initializer()]
        all_listed = len(listed) == len(graph.initializers) and len(listed) > 1
        if not listed or not (model.ir_version < 4 or all_listed):
            return ir.passes.PassResult(model, modified=False)
        outputs = set(graph.outputs)
        kept = [value for value in graph.inputs if not value.is_initializer() or value in outputs]
        self.fixed = len(graph.inputs) - len(kept) if model.ir_version >= 4 else 0
        graph.inputs[:] = kept
        model.ir_version = max(model.ir_version, 4)
        return ir.passes.PassResult(model, modified=True)
