"""Which operators a target can run in half precision.

The table holds the CUDA provider's kernels, as ONNX Runtime lists them itself; `bench/make_kernel_table.py` reduces the full
list. The CPU provider needs no table: it casts around every operator that it has no half kernel for.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources

import onnx_ir as ir

from halfconv.graph.schema import Signature

__all__ = ["Support", "combining", "on_cuda", "support", "table_source"]

#: Operators that the CPU provider cannot run in half: without a kernel, and without an input that it could cast.
NO_CPU_HALF = frozenset({"RandomNormal", "RandomUniform"})
#: ONNX Runtime's "no upper end" of a kernel's versions.
OPEN_END = 2**31 - 1
_LETTER = {ir.DataType.FLOAT16: "h", ir.DataType.BFLOAT16: "b"}

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
def _table() -> tuple[str, dict[str, list[Entry]]]:
    text = resources.files("halfconv.graph").joinpath("data/cuda_kernels.json").read_text("utf-8")
    content = json.loads(text)
    return content["package"], content["kernels"]


def table_source() -> str:
    """Return the package and version whose kernels the table lists."""
    return _table()[0]


def _serves(first: int, last: int, since: int) -> bool:
    """Tell whether a kernel for the versions first to last runs an operator of version ``since``.

    ONNX Runtime takes a kernel without an upper end for its first version only: a later version may mean something else.
    """
    return first == since or (first <= since <= last and last != OPEN_END)


def on_cuda(domain: str, op_type: str, since: int, dtype: ir.DataType) -> bool:
    """Tell whether the CUDA provider has a kernel of an operator's version for a half type."""
    key = f"{'' if domain == 'ai.onnx' else domain}::{op_type}"
    return any(
        _serves(first, last, since) and any(_LETTER[dtype] in letters for letters in types.values())
        for first, last, types in _table()[1].get(key, ())
    )


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
    if op_type in NO_CPU_HALF:
        return Support(frozenset(), False, f"ONNX Runtime's CPU provider has no {to.name} kernel for {op_type}")
    letter = _LETTER[to]
    package, table = _table()
    key = f"{'' if domain == 'ai.onnx' else domain}::{op_type}"
    listed = table.get(key, ())
    entries = [types for first, last, types in listed if _serves(first, last, signature.since)]
    # Of a version that CUDA has no kernel for in any type, the CPU provider runs both precisions: half needs fewer Casts around it.
    entries = entries or [types for first, last, types in listed if first <= signature.since <= last]
    if not entries:
        if signature.is_function:
            return Support(variables, mixed=False)
        return Support(frozenset(), False, f"{package} has no CUDA kernel for {op_type}-{signature.since}")

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
