"""What each slot of an operator may hold: type variables and the element types that they allow.

ONNX's own schemas come from `onnx.defs`; those of ``com.microsoft`` and ORT's other domains from the installed ONNX Runtime.
Nothing here is written by hand, except which operators fix a type in an attribute (`DTYPE_ATTRIBUTES`): schemas cannot
express that.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import onnx
import onnx_ir as ir

__all__ = ["DTYPE_ATTRIBUTES", "Signature", "known_to_onnx", "signature"]

#: Operators whose output type is an attribute: (operator, attribute). An absent attribute means FLOAT, or the type of the
#: first input for the ``…Like`` operators; a tensor attribute carries the type in its value.
DTYPE_ATTRIBUTES: dict[str, str] = {
    "Bernoulli": "dtype",
    "BlackmanWindow": "output_datatype",
    "Cast": "to",
    "ConstantOfShape": "value",
    "DequantizeLinear": "output_dtype",
    "EyeLike": "dtype",
    "HammingWindow": "output_datatype",
    "HannWindow": "output_datatype",
    "MelWeightMatrix": "output_datatype",
    "Multinomial": "dtype",
    "RandomNormal": "dtype",
    "RandomNormalLike": "dtype",
    "RandomUniform": "dtype",
    "RandomUniformLike": "dtype",
    "SequenceEmpty": "dtype",
}


@dataclass(frozen=True, slots=True)
class _Formal:
    variable: str
    variadic: bool
    homogeneous: bool


@dataclass(frozen=True, slots=True)
class Signature:
    """An operator's schema at one opset, reduced to its types.

    Attributes:
        since: The opset that introduced this version of the operator.
        is_function: The operator has a definition by other operators, which a runtime without a kernel expands.
        inputs: Formal inputs.
        outputs: Formal outputs.
        allowed: Type variable -> type strings, such as ``tensor(float16)``.
        body: Operators of that definition, where it is the same for every node.
    """

    since: int
    is_function: bool
    inputs: tuple[_Formal, ...]
    outputs: tuple[_Formal, ...]
    allowed: dict[str, frozenset[str]]
    body: tuple[str, ...] = ()

    def input_variable(self, index: int) -> str:
        """Return the type variable of the index-th input; each slot of a heterogeneous variadic input has its own."""
        return _variable(self.inputs, index, "in")

    def output_variable(self, index: int) -> str:
        """Return the type variable of the index-th output."""
        return _variable(self.outputs, index, "out")

    def may_hold(self, variable: str, dtype: ir.DataType) -> bool:
        """Tell whether a type variable admits an element type, as a tensor, sequence or optional."""
        types = self.allowed.get(variable.partition("@")[0], frozenset())
        element = dtype.name.lower()
        return any(kind.rstrip(")").endswith(f"({element}") for kind in types)


def _variable(formals: tuple[_Formal, ...], index: int, side: str) -> str:
    if not formals:
        return f"?@{side}{index}"
    formal = formals[min(index, len(formals) - 1)]
    if formal.variadic and not formal.homogeneous:
        return f"{formal.variable}@{side}{index}"
    return formal.variable


@lru_cache(maxsize=4096)
def signature(domain: str, op_type: str, version: int | None) -> Signature | None:
    """Look up an operator.

    Args:
        domain: Operator domain; "" is ONNX's own.
        op_type: Operator name.
        version: The opset version that the model imports for the domain; None if it imports none.

    Returns:
        The reduced schema, or None if nobody installed here knows the operator.
    """
    if domain in ("", "ai.onnx", "ai.onnx.ml", "ai.onnx.preview.training"):
        try:
            schema = onnx.defs.get_schema(op_type, version or 1, "" if domain == "ai.onnx" else domain)
        except onnx.defs.SchemaError:
            return _of_runtime("" if domain == "ai.onnx" else domain, op_type, version)
        variadic = onnx.defs.OpSchema.FormalParameterOption.Variadic
        constraints = {c.type_param_str: frozenset(c.allowed_type_strs) for c in schema.type_constraints}
        formals = [
            tuple(_Formal(p.type_str, p.option == variadic, p.is_homogeneous) for p in side)
            for side in (schema.inputs, schema.outputs)
        ]
        is_function = bool(schema.has_function or schema.has_context_dependent_function)  # type: ignore[attr-defined]  # missing in onnx's stubs
        body = tuple(node.op_type for node in schema.function_body.node) if schema.has_function else ()  # type: ignore[attr-defined]
        return _reduced(schema.since_version, is_function, formals, constraints, body)
    return _of_runtime(domain, op_type, version)


def known_to_onnx(domain: str, op_type: str, version: int | None) -> bool:
    """Tell whether ONNX itself has an operator at an opset; ONNX Runtime's optimiser writes others into ONNX's domain."""
    return onnx.defs.has(op_type, max_inclusive_version=version or 1, domain="" if domain == "ai.onnx" else domain)


def _of_runtime(domain: str, op_type: str, version: int | None) -> Signature | None:
    found = _runtime_schemas().get((domain, op_type))
    if found is None:
        return None
    versions = [s for s in found if version is None or s.since_version <= version]
    if not versions:
        return None
    schema = max(versions, key=lambda s: s.since_version)
    constraints = {c.type_param_str: frozenset(c.allowed_type_strs) for c in schema.type_constraints}
    formals = [
        tuple(_Formal(p.typeStr, p.option.name == "Variadic", p.isHomogeneous) for p in side)
        for side in (schema.inputs, schema.outputs)
    ]
    return _reduced(schema.since_version, False, formals, constraints)


def _reduced(
    since: int,
    is_function: bool,
    formals: list[tuple[_Formal, ...]],
    constraints: dict[str, frozenset[str]],
    body: tuple[str, ...] = (),
) -> Signature:
    allowed = dict(constraints)
    for side in formals:
        for formal in side:
            allowed.setdefault(formal.variable, frozenset((formal.variable,)))  # a plain type such as tensor(int64)
    return Signature(since, is_function, formals[0], formals[1], allowed, body)


@cache
def _runtime_schemas() -> dict[tuple[str, str], list[Any]]:
    """Return the schemas of ONNX Runtime's own domains; empty where no runtime is installed."""
    try:
        from onnxruntime.capi import onnxruntime_pybind11_state as state
    except ImportError:
        return {}
    found: dict[tuple[str, str], list[Any]] = {}
    for schema in state.get_all_operator_schema():
        found.setdefault((schema.domain, schema.name), []).append(schema)
    return found
