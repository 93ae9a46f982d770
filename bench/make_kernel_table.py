"""Reduce ONNX Runtime's list of CUDA kernels to what planning asks of it.

Usage: python bench/make_kernel_table.py FULL.json halfconv/graph/data/cuda_kernels.json

FULL.json holds what `onnxruntime.capi.onnxruntime_pybind11_state.get_all_opkernel_def()` says on a machine with a GPU:
``{"package", "kernels": [{"domain", "op", "versions": [first, last], "types": {variable: [type string, ...]}}]}``. The reduced
table keeps, per operator, each distinct combination of floating-point types: ``f`` FP32, ``h`` FP16, ``b`` BF16; a variable that
a kernel does not constrain, or that never holds such a type, is left out.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

LETTERS = {"float": "f", "float16": "h", "bfloat16": "b"}
DOMAINS = ("", "ai.onnx.ml", "com.microsoft")


def reduce(full: dict) -> dict:
    """Return the reduced table of a full one."""
    table: dict[str, list] = {}
    for kernel in full["kernels"]:
        if kernel["domain"] not in DOMAINS:
            continue
        types = {}
        for variable, kinds in sorted(kernel["types"].items()):
            letters = {LETTERS.get(kind.rstrip(")").rpartition("(")[2], "") for kind in kinds}
            types[variable] = "".join(sorted(letters - {""}))
        if types and not any(types.values()):
            continue  # a kernel for integers, strings or doubles only
        entry = [*kernel["versions"], {variable: letters for variable, letters in types.items() if letters}]
        entries = table.setdefault(f"{kernel['domain']}::{kernel['op']}", [])
        if entry not in entries:
            entries.append(entry)
    return {"package": full["package"], "source": full["source"], "kernels": dict(sorted(table.items()))}


def main() -> None:
    """Read the full table and write the reduced one, a line per operator."""
    source, target = map(Path, sys.argv[1:3])
    table = reduce(json.loads(source.read_text()))
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in table["kernels"].items()]
    head = "".join(f"{json.dumps(key)}: {json.dumps(table[key])},\n" for key in ("package", "source"))
    target.write_text("{\n" + head + '"kernels": {\n' + ",\n".join(lines) + "\n}\n}\n")


if __name__ == "__main__":
    main()
