"""halfconv's library call with samples and a tolerance: ``halfconv convert --samples DIR --tolerance rel_l2=…``."""

from collections import Counter
from pathlib import Path

import timed

from halfconv import convert  # lazy: asking for the name imports what it needs


def run(source: str, output: str, samples: str, tolerance: float) -> dict[str, object]:
    """Convert one model."""
    result = convert(source, output, samples=samples, tolerance={"rel_l2": tolerance})
    tried = result.repair.runs - 2 if result.repair else 1  # the others measure ranges and contributions
    return {
        "candidates": tried,
        "feeds": len(list(Path(samples).glob("*.npz"))),
        "repair": result.repair.to_dict() if result.repair else None,
        "fp32_rules": dict(Counter(entry.rule for entry in result.fp32)),
    }


if __name__ == "__main__":
    timed.sampled(run)
