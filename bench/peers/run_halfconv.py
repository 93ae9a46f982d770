"""halfconv's library call with default options, to compare with the peers' calls.

A fourth argument is another target, for which nothing is checked: `bench/cuda.py` measures drift itself, on the GPU. More are
``kernels``, which asks for operators of halfconv's own, and a file of samples, with which it is checked, and repaired.
"""

import sys

import timed

from halfconv import convert  # lazy: asking for the name imports what it needs


def run(source: str, output: str) -> None:
    """Convert one model."""
    target, *more = sys.argv[4:] or ["portable"]
    samples = next((argument for argument in more if argument.endswith(".npz")), None)
    check = samples is not None or len(sys.argv) <= 4
    convert(source, output, target=target, samples=samples, check=check, kernels="kernels" in more)


if __name__ == "__main__":
    timed.main(run)
