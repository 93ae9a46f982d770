"""One job of a sweep: a model for a target in a precision. Its key changes with whatever could change its result."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halfconv import __version__
from halfconv.drift.waivers import expired_in
from halfconv.errors import UsageError
from halfconv.imports import names_function
from halfconv.precision.formats import FORMATS
from halfconv.runtime.installation import runtime_version
from halfconv.sweep.fleet import Fleet, FleetModel
from halfconv.sweep.identity import Digests
from halfconv.sweep.options import PATHS

__all__ = ["Job", "make_jobs"]

#: Options that decide which jobs there are, or when one is given up, not what one gives.
_APART = frozenset({"targets", "to", "timeout"})


@dataclass(frozen=True, slots=True)
class Job:
    """A job.

    Attributes:
        name: The model's name in the fleet.
        model: The model's file.
        target: What it is converted for.
        to: ``fp16``, ``bf16`` or ``auto``.
        options: A value for each of `halfconv.sweep.options.OPTIONS`.
        folder: The fleet file's folder, in which functions are looked for.
        sha256: SHA-256 of the model's file.
        key: Fingerprint of the model with its weights, of the samples' content, of the options with
            what has expired of their waivers, and of the versions of halfconv and ONNX Runtime.
    """

    name: str
    model: Path
    target: str
    to: str
    options: Mapping[str, Any]
    folder: Path
    sha256: str
    key: str

    @property
    def label(self) -> str:
        """What people are told of it: ``encoder cuda fp16``."""
        return f"{self.name} {self.target} {self.to}"

    def task(self, output: Path) -> dict[str, Any]:
        """Return what a worker needs to know, as JSON data.

        Args:
            output: Where the converted model goes.
        """
        return {
            "halfconv": __version__,
            "key": self.key,
            "name": self.name,
            "model": str(self.model),
            "sha256": self.sha256,
            "target": self.target,
            "to": self.to,
            "output": str(output),
            "folder": str(self.folder),
            "options": dict(self.options),
        }


def make_jobs(fleet: Fleet) -> tuple[list[Job], list[str]]:
    """Return a fleet's jobs in its order, and a sentence for each combination that no hardware runs.

    Raises:
        UsageError: There are no jobs.
    """
    digests = Digests()
    jobs, left_out = [], {}
    for model in fleet.models:
        for target in model.options["targets"]:
            for to in model.options["to"]:
                try:
                    if to in FORMATS:
                        FORMATS[to].check_target(target)
                except UsageError:
                    left_out[target, to] = f"{to} is left out for {target}, which has no kernels for it"
                    continue
                jobs.append(_job(model, target, to, fleet.folder, digests))
    if not jobs:
        raise UsageError(f"{fleet.file}: no target has kernels for {', '.join(fleet.models[0].options['to'])}", 'to = "fp16"')
    return jobs, list(left_out.values())


def _job(model: FleetModel, target: str, to: str, folder: Path, digests: Digests) -> Job:
    options = model.options
    known = {name: value for name, value in options.items() if name not in _APART and name not in PATHS}
    content = {
        "halfconv": __version__,
        "runtime": runtime_version(),
        "model": digests.model(model.path),
        "target": target,
        "to": to,
        "options": known,
        "samples": None if options["samples"] is None else digests.samples(options["samples"], folder),
        "tolerance_file": None if options["tolerance_file"] is None else digests.file(Path(options["tolerance_file"])),
        "metric": [part for text in options["metric"] if names_function(text) for part in digests.function(text, folder)],
        "allow_links": options["allow_links"],
    }
    # What passed by a waiver is not kept beyond its last day, on which nothing else changes.
    if options["tolerance_file"] is not None and (over := expired_in(Path(options["tolerance_file"]), datetime.date.today())):
        content["expired_waivers"] = over
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return Job(model.name, model.path, target, to, options, folder, digests.file(model.path), key)
