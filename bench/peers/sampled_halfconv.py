"""halfconv's library call with samples and a tolerance: ``halfconv convert --samples DIR --tolerance rel_l2=…``."""

import functools
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import timed

from halfconv import convert
from halfconv.runtime_process import Session
from halfconv.trial import Trials


def run(source: str, output: str, samples: str, tolerance: float) -> dict[str, object]:
    """Convert one model, and count the candidates that are simulated."""
    tried = 0

    def counted(method: Callable[..., object]) -> Callable[..., object]:
        @functools.wraps(method)
        def once(*args: object, **more: object) -> object:
            nonlocal tried
            tried += 1
            return method(*args, **more)

        return once

    Trials.run, Trials.attempt = counted(Trials.run), counted(Trials.attempt)
    result = convert(source, output, samples=samples, tolerance={"rel_l2": tolerance})
    return {
        "candidates": tried,
        "feeds": len(list(Path(samples).glob("*.npz"))),
        "repair": result.repair.to_dict() if result.repair else None,
        "fp32_rules": dict(Counter(entry.rule for entry in result.fp32)),
    }


if __name__ == "__main__":
    timed.sampled(run, Session)
