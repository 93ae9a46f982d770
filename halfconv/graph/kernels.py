"""Which operators a provider of ONNX Runtime can run in half precision.

The tables hold the kernels of the CUDA and of the CPU provider, as ONNX Runtime lists them itself; `bench/make_kernel_table.py`
reduces the full lists. Planning asks only CUDA's: the CPU provider casts around every operator that it has no FP16 kernel for, and
it loads no BF16 model. Its own table says which operators are spared these casts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

import onnx_ir as ir

from halfconv.graph.schema import Signature

__all__ = [
    "DOMAINS", "INSERTED", "PROVIDERS", "Support", "bare_type", "combining", "expands", "has_kernel", "on_any", "on_cuda",
    "operators", "support", "table_source",
]  # fmt: skip

#: Providers whose kernels are known.
PROVIDERS = ("cuda", "cpu")
#: Domains whose operators a table has.
DOMAINS = ("", "ai.onnx.ml", "com.microsoft")
#: What the runtime inserts by itself.
INSERTED = frozenset({"MemcpyFromHost", "MemcpyToHost"})

#: Formats that the CPU provider runs, by casting. In the others only the CUDA provider's own kernels count.
ON_CPU = frozenset({ir.DataType.FLOAT16})
#: Operators that the CPU provider cannot run in half: without a kernel, and without an input that it could cast.
NO_CPU_HALF = frozenset({"RandomNormal", "RandomUniform"})
#: ONNX Runtime's "no upper end" of a kernel's versions.
OPEN_END = 2**31 - 1
_LETTER = {ir.DataType.FLOAT: "f", ir.DataType.FLOAT16: "h", ir.DataType.BFLOAT16: "b"}

Entry = tuple[int, int, dict[str, str]]


@dataclass(frozen=True, slots=True)
class Support:
    """What kernels allow one operator.

    Attributes:
        half: Type variables that some kernel accepts in half precision.
        mixed: Whether some kernel accepts type variables in different precisions; if not, all go together.
        missing: Why nothing may be half; empty if something may.
    """

    half: frozenset[str]
    mixed: bool
    missing: str = ""


@cache
def _table(provider: str = "cuda") -> tuple[str, dict[str, list[Entry]]]:
    text = resources.files("halfconv.graph").joinpath(f"data/{provider}_kernels.json").read_text("utf-8")
    content = json.loads(text)
    return content["package"], content["kernels"]


def bare_type(kind: str) -> str:
    """Return the element type of a type string of ONNX Runtime's: of ``seq(tensor(float16))``, ``float16``."""
    return kind.rstrip(")").rpartition("(")[2]


def table_source(provider: str = "cuda") -> str:
    """Return the package and version whose kernels a provider's table lists."""
    return _table(provider)[0]


def _key(domain: str, op_type: str) -> str:
    return f"{'' if domain == 'ai.onnx' else domain}::{op_type}"


def operators(provider: str, dtype: ir.DataType | None = None) -> tuple[str, ...]:
    """Return the operators for which a provider has a kernel, of any version, for floating-point numbers.

    Args:
        provider: One of `PROVIDERS`.
        dtype: FLOAT16 or BFLOAT16 to leave out those without a kernel for this type.

    Returns:
        Their names, sorted; those of other domains as ``com.microsoft::Gelu``.
    """
    wanted = "bfh" if dtype is None else _LETTER[dtype]
    return tuple(
        key.removeprefix("::")
        for key, entries in sorted(_table(provider)[1].items())
        if any(set(wanted) & set(letters) for _, _, types in entries for letters in types.values())
    )


def has_kernel(provider: str, domain: str, op_type: str, since: int, types: Mapping[str, ir.DataType]) -> bool:
    """Tell whether a provider has one kernel for all types of a node.

    Args:
        provider: One of `PROVIDERS`.
        domain: Operator domain.
        op_type: Operator name.
        since: The version of the operator.
        types: Type variable -> FLOAT, FLOAT16 or BFLOAT16, of the floating-point slots.
    """
    wanted = {variable.partition("@")[0]: _LETTER[dtype] for variable, dtype in types.items()}
    return any(
        _serves(first, last, since) and all(letter in known.get(variable, "bfh") for variable, letter in wanted.items())
        for first, last, known in _table(provider)[1].get(_key(domain, op_type), ())
    )


def _serves(first: int, last: int, since: int) -> bool:
    """Tell whether a kernel for the versions first to last runs an operator of version ``since``.

    ONNX Runtime takes a kernel without an upper end for its first version only: a later version may mean something else.
    """
    return first == since or (first <= since <= last and last != OPEN_END)


def on_cuda(domain: str, op_type: str, since: int, dtype: ir.DataType) -> bool:
    """Tell whether the CUDA provider has a kernel of an operator's version for a half type."""
    return any(
        _serves(first, last, since) and any(_LETTER[dtype] in letters for letters in types.values())
        for first, last, types in _table()[1].get(_key(domain, op_type), ())
    )


def on_any(op_type: str, since: int) -> bool:
    """Tell whether the CUDA provider has a kernel, of any type, of the version of one of ONNX's operators.

    Where it has kernels of other versions only, the operator runs on the CPU.
    """
    listed = _table()[1].get(f"::{op_type}", ())
    return not listed or any(_serves(first, last, since) for first, last, _ in listed)


def expands(signature: Signature, dtype: ir.DataType) -> bool:
    """Tell whether an operator is defined by others that have some CUDA kernel for a type each."""
    table, letter = _table()[1], _LETTER[dtype]

    def able(op_type: str) -> bool:
        rows = table.get("::Cast" if op_type == "CastLike" else f"::{op_type}", ())
        return op_type == "Constant" or any(letter in letters for _, _, types in rows for letters in types.values())

    return bool(signature.body) and all(map(able, signature.body))


def combining(node: ir.Node) -> str:
    """Return why a scattering node cannot be half; "" if it can.

    ONNX Runtime's CPU provider accepts half for the scatter operators and then refuses at run time to combine elements.
    """
    if node.domain or node.op_type not in ("ScatterElements", "ScatterND"):
        return ""
    reduction = node.attributes.get_string("reduction", "none")
    return "" if reduction == "none" else f"ONNX Runtime's CPU provider cannot '{reduction}' halves in {node.op_type}"


def support(domain: str, op_type: str, signature: Signature, variables: frozenset[str], to: ir.DataType) -> Support:
    """Look up what the CUDA provider can run in half.

    Args:
        domain: Operator domain.
        op_type: Operator name.
        signature: The operator's schema; its ``since`` selects the kernel.
        variables: Type variables that hold FP32 values in this node.
        to: FLOAT16 or BFLOAT16.

    Returns:
        The support. An operator that is defined by a function of other operators may be half without a kernel of its own,
        because the runtime expands it.
    """
    if to in ON_CPU and op_type in NO_CPU_HALF:
        return Support(frozenset(), False, f"ONNX Runtime's CPU provider has no {to.name} kernel for {op_type}")
    letter = _LETTER[to]
    package, table = _table()
    listed = table.get(_key(domain, op_type), ())
    entries = [types for first, last, types in listed if _serves(first, last, signature.since)]
    # Of a version that CUDA has no kernel for in any type, the CPU provider runs both precisions: half needs fewer Casts around it.
    if to in ON_CPU:
        entries = entries or [types for first, last, types in listed if first <= signature.since <= last]
    if not entries:
        if signature.is_function and (to in ON_CPU or (not listed and expands(signature, to))):
            return Support(variables, mixed=False)
        kind = "" if to in ON_CPU else f"{to.name} "
        return Support(frozenset(), False, f"{package} has no {kind}CUDA kernel for {op_type}-{signature.since}")

    def letters(types: dict[str, str], variable: str) -> str:
        return types.get(variable.partition("@")[0], "bfh")

    # "mixed" counts only kernels in which one variable is half while another is FP32.
    half = frozenset(v for v in variables if any(letter in letters(types, v) for types in entries))
    mixed = any(
        letter in letters(types, a) and "f" in letters(types, b) for types in entries for a in half for b in variables - {a}
    )
    fixed = variables - half
    if fixed and not mixed:
        half = frozenset()
    if not half:
        return Support(half, mixed, f"{package} has no {to.name} CUDA kernel for {op_type}-{signature.since}")
    return Support(half, mixed)
