"""Damage small models where that reaches new code of halfconv: ``python -m tests.fuzz_guided [libFuzzer's options]``.

Needs the package atheris, which is no dependency. It ends at the first finding, or after ``-max_total_time=SECONDS``. Models are
damaged as in `tests.fuzzing`, from random numbers that the fuzzer chooses, or are the fuzzer's own bytes; it begins with whole
ones. ONNX Runtime's part runs in child processes, so each model is planned and written but for one in eight, which is checked and
simulated, too.
"""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["halfconv"]):
    import halfconv.inspection
    import halfconv.pipeline  # noqa: F401

from tests.fuzzing import attempt, damaged, seeds


def one(data: bytes) -> None:
    """Attempt one model; the first byte says how it comes from the others."""
    if not data:
        return
    content = damaged(random.Random(data[1:])) if data[0] & 1 else data[1:]
    attempt(content, check=data[0] & 14 == 0)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="halfconv-corpus-") as corpus:
        for number, content in enumerate(seeds()):
            (Path(corpus) / f"whole{number}").write_bytes(b"\x02" + content)
        atheris.Setup([*sys.argv, "-max_len=4096", "-timeout=90", corpus], one)
        atheris.Fuzz()
