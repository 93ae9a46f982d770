"""Small models in text form for tests of what a graph is."""

from __future__ import annotations

import onnx_ir as ir

from halfconv.graph.names import Names
from halfconv.graph.prepare import prepare
from halfconv.graph.typegroups import TypeGroups


def model(graph: str, *, opset: int = 17, imports: str = "", functions: str = "") -> ir.Model:
    """Read a model from its graph: ``(float[2,3] x) => (float[2,3] y) { y = Relu(x) }``."""
    return ir.from_onnx_text(f'<ir_version: 8, opset_import: ["" : {opset}{imports}]>\nmain {graph}\n{functions}')


def prepared(graph: str, *, fuse: bool = True, **options: object) -> ir.Model:
    made = model(graph, **options)  # type: ignore[arg-type]
    prepare(made, fuse=fuse)
    return made


def grouped(graph: str, **options: object) -> tuple[ir.Model, Names, TypeGroups]:
    """Prepare a model and collect its type groups for FP16."""
    made = prepared(graph, **options)  # type: ignore[arg-type]
    names = Names.of(made)
    return made, names, TypeGroups.of(made, names, ir.DataType.FLOAT16)


def group(names: Names, groups: TypeGroups, value: str) -> int:
    """Return the group of a value by its id."""
    return next(number for known, number in groups.produced.items() if names.value[known] == value)


def forced(graph: str, value: str, **options: object) -> tuple[str, str, str] | None:
    """Return (rule, node, reason) of what forces a value to FP32, or None."""
    _, names, groups = grouped(graph, **options)
    why = groups.forced.get(group(names, groups, value))
    return (why.rule, why.node, why.reason) if why else None


def ops(made: ir.Model) -> list[str]:
    """Operators of all scopes, in order."""
    return [node.op_type for node in ir.traversal.RecursiveGraphIterator(made.graph)]
