"""Reduce ONNX Runtime's list of a provider's kernels to what planning and reports ask of it.

Usage:
    python bench/make_kernel_table.py FULL.json halfconv/graph/data/cuda_kernels.json
    python bench/make_kernel_table.py cpu halfconv/graph/data/cpu_kernels.json

FULL.json holds what `onnxruntime.capi.onnxruntime_pybind11_state.get_all_opkernel_def()` says on a machine with a GPU:
``{"package", "kernels": [{"domain", "op", "versions": [first, last], "types": {variable: [type string, ...]}}]}``. ``cpu`` asks the
installed CPU package itself; that of the GPU package crashes in this call where TensorRT is missing. The reduced table keeps, per
operator, each distinct combination of floating-point types: ``f`` FP32, ``h`` FP16, ``b`` BF16, none of them where a kernel has a
variable for other types only. A variable that a kernel does not constrain, or that never holds such a type, is left out.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from halfconv.graph.kernels import DOMAINS, INSERTED, bare_type

LETTERS = {"float": "f", "float16": "h", "bfloat16": "b"}
CPU = "cpu"
#: Machines by their names on different systems.
MACHINES = {"amd64": "x86-64", "x86_64": "x86-64", "aarch64": "Arm64", "arm64": "Arm64"}


def machine() -> str:
    """Return what this machine's processor is called in a table; kernels of the CPU provider depend on it."""
    return MACHINES.get(platform.machine().lower(), platform.machine())


def installed_cpu() -> dict:
    """Return the full table of the installed CPU package.

    Raises:
        SystemExit: It is not installed, or the GPU package is too.
    """
    names = {distribution.name.lower() for distribution in importlib.metadata.distributions()}
    others = sorted(name for name in names if name.startswith("onnxruntime-"))
    if "onnxruntime" not in names or others:
        raise SystemExit(f"needs onnxruntime, and no other package of it beside: {', '.join(others) or 'it is not installed'}")
    from onnxruntime.capi.onnxruntime_pybind11_state import get_all_opkernel_def

    kernels = [
        {"domain": k.domain, "op": k.op_name, "versions": list(k.version_range), "types": dict(k.type_constraints)}
        for k in get_all_opkernel_def()
        if k.provider == "CPUExecutionProvider"
    ]
    package = f"onnxruntime {importlib.metadata.version('onnxruntime')} ({machine()})"
    return {"package": package, "source": "onnxruntime.capi get_all_opkernel_def()", "kernels": kernels}


def reduce(full: dict) -> dict:
    """Return the reduced table of a full one."""
    kernels = [k for k in full["kernels"] if k["domain"] in DOMAINS and k["op"] not in INSERTED]
    floating = {
        (kernel["domain"], kernel["op"], variable)
        for kernel in kernels
        for variable, kinds in kernel["types"].items()
        if letters_of(kinds)
    }
    table: dict[str, list] = {}
    for kernel in kernels:
        found = {variable: letters_of(kinds) for variable, kinds in sorted(kernel["types"].items())}
        if found and not any(found.values()):
            continue  # a kernel for integers, strings or doubles only
        types = {v: letters for v, letters in found.items() if (kernel["domain"], kernel["op"], v) in floating}
        entry = [*kernel["versions"], types]
        entries = table.setdefault(f"{kernel['domain']}::{kernel['op']}", [])
        if entry not in entries:
            entries.append(entry)
    return {"package": full["package"], "source": full["source"], "kernels": dict(sorted(table.items()))}


def letters_of(kinds: list[str]) -> str:
    """Return the letters of the floating-point types among type strings."""
    return "".join(sorted({LETTERS.get(bare_type(kind), "") for kind in kinds}))


def text(table: dict) -> str:
    """Return a reduced table as JSON, a line per operator."""
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in table["kernels"].items()]
    head = "".join(f"{json.dumps(key)}: {json.dumps(table[key])},\n" for key in ("package", "source"))
    return "{\n" + head + '"kernels": {\n' + ",\n".join(lines) + "\n}\n}\n"


def main() -> None:
    """Read the full table and write the reduced one."""
    source, target = sys.argv[1:3]
    full = installed_cpu() if source == CPU else json.loads(Path(source).read_text())
    Path(target).write_text(text(reduce(full)))


if __name__ == "__main__":
    main()
