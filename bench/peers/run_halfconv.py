"""halfconv's library call with default options, to compare with the peers' calls; a fourth argument is another target."""

import sys

import timed

from halfconv import convert  # lazy: asking for the name imports what it needs


def run(source: str, output: str) -> None:
    """Convert one model."""
    convert(source, output, target=(sys.argv[4:] or ["portable"])[0])


if __name__ == "__main__":
    timed.main(run)
