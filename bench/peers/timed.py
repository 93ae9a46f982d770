"""What the peers' scripts share: time one conversion, from the file of the source to the file of the result.

A script is run as ``python run_NAME.py SOURCE OUTPUT REPORT``. It imports its tool first, so that ``call_seconds``,
written to REPORT as JSON, leaves imports out; the process as a whole is measured from outside.
"""

from __future__ import annotations

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
