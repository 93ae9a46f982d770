"""Compare what a model gives on recorded samples with what the FP32 model gave, as `halfconv validate` would.

This module is copied into packages, with `halfconv.drift`'s measures and gate: it needs numpy and ``errors``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halfconv.deploy.manifest import check
from halfconv.deploy.recorded import Recording, read_samples
from halfconv.drift.gate import make_gate
from halfconv.drift.metrics import Accumulator
from halfconv.errors import HalfconvError, InputError

__all__ = ["Outcome", "compare", "main"]

#: Runs the model on a sample's inputs.
Run = Callable[[Mapping[str, Any]], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a comparison found.

    Attributes:
        passed: Whether every output is within its bounds.
        lines: One sentence for each output.
    """

    passed: bool
    lines: tuple[str, ...]


def compare(recording: Recording, run: Run, tolerance: Mapping[str, float] | None = None) -> Outcome:
    """Run every sample, and judge the drift pooled over them.

    Args:
        recording: The samples.
        run: Runs the model.
        tolerance: Bounds in place of the recorded ones, for a model that is nearer to FP32.

    Raises:
        InputError: An output is missing.
    """
    names = list(recording.samples[0].outputs)
    gate = make_gate(recording.to, names, recording.tolerance if tolerance is None else tolerance, defaults={})
    found = {name: Accumulator(recording.to) for name in names}
    for sample in recording.samples:
        given = run(sample.inputs)
        if missing := sorted(sample.outputs.keys() - given.keys()):
            raise InputError(f"the model gives no output '{missing[0]}'", "the whole package again")
        for name, wanted in sample.outputs.items():
            found[name].update(wanted, given[name], sample.name)
    lines, passed = [], True
    for name in names:
        drift = gate.judge(found[name].result(name))
        measures = drift.measures
        figure = f"rel_l2 {measures.rel_l2:.3g}" if measures.rel_l2 is not None else f"agreement {measures.agreement}"
        passed = passed and drift.passed
        lines.append(f"{name}: {'FAILED: ' + '; '.join(drift.failures) if drift.failures else figure}")
    return Outcome(passed, tuple(lines))


def main(folder: Path, prove: Callable[[dict[str, Any], Recording], Mapping[str, Outcome]]) -> int:
    """Be the body of a package's ``verify.py``: check the files, run, compare, print.

    Args:
        folder: The package.
        prove: Gets the manifest and the samples; returns what was compared -> what was found.

    Returns:
        The exit code: 0 within tolerance, 1 not, 2 if something cannot be used; that is told in one line on stderr.
    """
    try:
        content = check(folder)
        recording = read_samples(folder / "samples")
        found = prove(content, recording)
    except HalfconvError as error:
        print(f"verify: {error}", file=sys.stderr)
        return error.exit_code
    except ImportError as error:
        print(f"verify: {error}; try: pip install -r requirements.txt", file=sys.stderr)
        return 2
    passed = all(outcome.passed for outcome in found.values())
    for what, outcome in found.items():
        print(f"{what}: {'passed' if outcome.passed else 'FAILED'} on {len(recording.samples)} {recording.kind} samples")
        for line in outcome.lines:
            print(f"  {line}")
    print("verify: passed" if passed else "verify: FAILED")
    return 0 if passed else 1
