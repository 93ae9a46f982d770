"""halfconv's library call with default options, to compare with the peers' calls.

A fourth argument is another target, for which nothing is checked: `bench/cuda.py` measures drift itself, on the GPU. A fifth,
``kernels``, asks for operators of halfconv's own.
"""

import sys

import timed

from halfconv import convert  # lazy: asking for the name imports what it needs


def run(source: str, output: str) -> None:
    """Convert one model."""
    target, *kernels = sys.argv[4:] or ["portable"]
    convert(source, output, target=target, check=len(sys.argv) <= 4, kernels=kernels == ["kernels"])


if __name__ == "__main__":
    timed.main(run)
