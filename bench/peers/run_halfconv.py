"""halfconv's library call with default options, to compare with the peers' calls.

A fourth argument is another target, for which nothing is checked: `bench/cuda.py` measures drift itself, on the GPU.
"""

import sys

import timed

from halfconv import convert  # lazy: asking for the name imports what it needs


def run(source: str, output: str) -> None:
    """Convert one model."""
    target = sys.argv[4:]
    convert(source, output, target=(target or ["portable"])[0], check=not target)


if __name__ == "__main__":
    timed.main(run)
