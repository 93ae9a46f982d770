"""The folder of a sweep: for each job the converted model and a file with its outcome, which appears when the job is done.

Its layout::

    OUT/NAME/NAME.TARGET.TO.onnx           the model, with its run profile
    OUT/NAME/NAME.TARGET.TO.result.json    the outcome
    OUT/.lock                              held by the process that sweeps
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from halfconv.claims import claimed, data_files
from halfconv.errors import EnvironmentProblem
from halfconv.json_schema import complaint
from halfconv.locks import only_one
from halfconv.profile import profile_path
from halfconv.storage import atomic_text, disk_problem
from halfconv.sweep.job import Job
from halfconv.sweep.outcome import FAILED

__all__ = ["Store"]


class Store:
    """The folder.

    Args:
        folder: Where it is, or will be.
    """

    def __init__(self, folder: Path):
        self.folder = Path(os.path.abspath(folder))  # noqa: PTH100  # links are kept

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Make the folder, and keep other sweeps out of it.

        Raises:
            EnvironmentProblem: It cannot be written, or another sweep is using it.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with contextlib.ExitStack() as begun:
                other = begun.enter_context(only_one(self.folder / ".lock"))
                begun = begun.pop_all()
        except OSError as error:
            raise EnvironmentProblem(
                f"cannot write in {self.folder}: {error.strerror or error}", "another --out, or free space there"
            ) from None
        with begun:
            if other is not None:
                raise EnvironmentProblem(
                    f"another sweep (process {other or 'unknown'}) is using {self.folder}", "wait for its end, or another --out"
                )
            yield

    def output(self, job: Job) -> Path:
        """Where a job's model goes."""
        return self.folder / job.name / f"{job.name}.{job.target}.{job.to}.onnx"

    def result(self, job: Job) -> Path:
        """Where a job's outcome goes."""
        return self.output(job).with_suffix(".result.json")

    def read(self, job: Job) -> dict[str, Any] | None:
        """Return the outcome of a job that is done; None if it is not, or was with another input, or its model is gone."""
        try:
            found = json.loads(self.result(job).read_text("utf-8"))
        except (OSError, ValueError, RecursionError):
            return None
        if complaint(found, "sweep_result") is not None or found["key"] != job.key:
            return None
        if (found["status"] == FAILED) != (found["error"] is not None):
            return None
        conversion, output = found["conversion"], self.output(job)
        if conversion is not None and _bytes(output) != conversion["bytes_after"]:
            return None
        where = None if conversion is None else {**conversion, "output": str(output)}  # the folder may have been moved
        return {**found, "model": str(job.model), "conversion": where}

    def write(self, job: Job, found: Mapping[str, Any]) -> None:
        """Keep the outcome of a job; where there is no model of it, none is left of earlier times or of a worker that died.

        Raises:
            EnvironmentProblem: The disk refuses it.
        """
        output = self.output(job)
        try:
            output.parent.mkdir(exist_ok=True)
            if found["conversion"] is None:
                with claimed(output):  # which removes what is unfinished
                    for file in (*data_files(output), output, profile_path(output)):
                        file.unlink(missing_ok=True)
        except OSError as error:
            raise disk_problem(error, output.parent) from None
        atomic_text(self.result(job), json.dumps(found, indent=2, allow_nan=False) + "\n")


def _bytes(model: Path) -> int:
    """Return the bytes of a model and of its files of weights; -1 if one is missing."""
    try:
        return sum(file.stat().st_size for file in (model, *data_files(model)))
    except OSError:
        return -1
