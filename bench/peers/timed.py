"""What the tools' scripts share: time one conversion, from the file of the source to the file of the result.

A script is run as ``python NAME.py SOURCE OUTPUT REPORT``, one that takes samples with ``SAMPLES TOLERANCE`` after
that: a folder of ``.npz`` files, and the largest rel_l2. It imports its tool first, so that ``call_seconds``, written to
REPORT as JSON, leaves imports out; the process as a whole is measured from outside.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path


def main(convert: Callable[[str, str], object]) -> None:
    """Run and time the conversion that the command line names.

    Args:
        convert: Converts the model at the first path and writes the result to the second.
    """
    source, output, report = sys.argv[1:4]
    begin = time.perf_counter()
    convert(source, output)
    seconds = time.perf_counter() - begin
    Path(report).write_text(json.dumps({"call_seconds": seconds}), encoding="utf-8")


def sampled(convert: Callable[[str, str, str, float], dict[str, object]], *others: type) -> None:
    """Run and time a conversion that takes samples, and count its runs of models.

    REPORT also has ``model_runs``, the calls of ``onnxruntime.InferenceSession.run`` in this process, whatever the model, and of
    the same method of other classes, whose sessions live elsewhere.

    Args:
        convert: Converts the model at the first path, writes the result to the second, and returns what else to report.
            It is given the folder of samples and the tolerance, too.
        others: Those classes.
    """
    import onnxruntime

    source, output, report, samples, tolerance = sys.argv[1:6]
    calls = 0

    def counted(run: Callable[..., object]) -> Callable[..., object]:
        @functools.wraps(run)
        def call(*args: object, **more: object) -> object:
            nonlocal calls
            calls += 1
            return run(*args, **more)

        return call

    for kind in (onnxruntime.InferenceSession, *others):
        kind.run = counted(kind.run)
    begin = time.perf_counter()
    more = convert(source, output, samples, float(tolerance))
    seconds = time.perf_counter() - begin
    found = {"call_seconds": seconds, "model_runs": calls, **more}
    Path(report).write_text(json.dumps(found), encoding="utf-8")
