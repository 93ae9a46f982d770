"""Sweep a fleet: decide which jobs are to be done, have them done, and keep each outcome as it comes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halfconv.errors import UsageError
from halfconv.progress import Progress
from halfconv.sweep.fleet import read_fleet
from halfconv.sweep.job import Job, make_jobs
from halfconv.sweep.outcome import DRIFTED, ENVIRONMENT, FAILED, PASSED
from halfconv.sweep.store import Store

__all__ = ["KEPT", "PLANNED", "RAN", "SweepEntry", "SweepReport", "sweep"]

RAN, KEPT, PLANNED = "ran", "kept", "planned"


@dataclass(frozen=True, slots=True)
class SweepEntry:
    """A job and what became of it.

    Attributes:
        name: The model's name.
        model: The model's file.
        target: What it is converted for.
        to: The precision that was asked for.
        state: ``ran``, ``kept`` (an earlier run did it, with the same input) or ``planned`` (a dry run, which would do it).
        result: The outcome, see `halfconv.sweep.outcome.outcome`; None where it is only planned.
    """

    name: str
    model: str
    target: str
    to: str
    state: str
    result: Mapping[str, Any] | None

    @property
    def status(self) -> str:
        """``passed``, ``drifted``, ``failed``, or ``planned``."""
        return str(self.result["status"]) if self.result is not None else PLANNED

    def to_dict(self) -> dict[str, Any]:
        """Return the entry as JSON data."""
        return {key: getattr(self, key) for key in ("name", "model", "target", "to", "state", "result")}


@dataclass(frozen=True, slots=True)
class SweepReport:
    """What a sweep did.

    Attributes:
        fleet: The fleet file.
        out: The folder of results.
        dry_run: Whether nothing was done.
        entries: The jobs, in the fleet's order.
        notes: What is not as one might expect.
    """

    fleet: str
    out: str
    dry_run: bool
    entries: tuple[SweepEntry, ...]
    notes: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether no job failed or drifted; those that are only planned count for neither."""
        return not any(entry.status in (DRIFTED, FAILED) for entry in self.entries)

    def counts(self) -> dict[str, int]:
        """Return the number of jobs by what became of them."""
        status = Counter(entry.status for entry in self.entries)
        state = Counter(entry.state for entry in self.entries)
        return {key: status[key] for key in (PASSED, DRIFTED, FAILED)} | {key: state[key] for key in (RAN, KEPT, PLANNED)}

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON data (``sweep --json``)."""
        return {
            "schema_version": 1,
            "fleet": self.fleet,
            "out": self.out,
            "dry_run": self.dry_run,
            "passed": self.passed,
            "counts": self.counts(),
            "jobs": [entry.to_dict() for entry in self.entries],
            "notes": list(self.notes),
        }


def sweep(
    fleet: str | os.PathLike[str], out: str | os.PathLike[str] | None = None, *, jobs: int | None = None, ray: str | None = None,
    gpus: float = 0.0, retry_failed: bool = False, dry_run: bool = False, on_progress: Callable[[Progress], None] | None = None,
    on_done: Callable[[SweepEntry, int, int], None] | None = None,
) -> SweepReport:  # fmt: skip
    """Convert, validate and measure the models of a fleet.

    A job that was done before, with the same model, samples, options and version of halfconv, is not done again; one that failed
    is, if `retry_failed` says so, or if it was for want of space, a runtime or a machine.
    What a job did is kept as soon as it is done.

    Args:
        fleet: A fleet file, see `halfconv.sweep.fleet`.
        out: Folder of results; default ``STEM.sweep`` beside the fleet file.
        jobs: How many run at a time; default half of the processors, on a cluster as many as it has room for.
        ray: Address of a Ray cluster; None for processes of this machine.
        gpus: GPUs, or the share of one, that a job takes on the cluster.
        retry_failed: Whether jobs are done again that failed.
        dry_run: Whether to do nothing but say what would be done.
        on_progress: Told how many jobs are done.
        on_done: Told each job as it ends, which one it is, and how many there are to do.

    Raises:
        InputError: The fleet file, or what it names, cannot be used.
        UsageError: An option is wrong.
        EnvironmentProblem: The folder cannot be written or is in use, or the cluster is not there.
    """
    file = Path(fleet)
    store = Store(Path(out) if out is not None else file.with_name(f"{file.stem}.sweep"))
    if jobs is not None and jobs < 1:
        raise UsageError(f"--jobs {jobs}", "--jobs 2")
    if gpus < 0 or (gpus and ray is None):
        raise UsageError(f"--gpus {gpus:g} is the share of GPUs that a job takes on a cluster", "--ray ADDRESS --gpus 0.5")
    if on_progress is not None:
        on_progress(Progress("fingerprints"))
    planned, notes = make_jobs(read_fleet(file, store.folder))
    if dry_run:
        known = {place: _kept(store, job, retry_failed=retry_failed) for place, job in enumerate(planned)}
        return _report(file, store, planned, known, {}, notes, dry_run=True)
    with store.held():
        known = {place: _kept(store, job, retry_failed=retry_failed) for place, job in enumerate(planned)}
        todo = [place for place, found in known.items() if found is None]
        done: dict[int, Mapping[str, Any]] = {}
        tasks = [planned[place].task(store.output(planned[place])) for place in todo]
        with closing(_run(tasks, jobs, ray, gpus)) as outcomes:
            for number, result in outcomes:
                place = todo[number]
                store.write(planned[place], result)
                done[place] = result
                if on_progress is not None:
                    on_progress(Progress("jobs", planned[place].label, len(done), len(todo)))
                if on_done is not None:
                    on_done(_entry(planned[place], RAN, result), len(done), len(todo))
    return _report(file, store, planned, known, done, notes, dry_run=False)


def _run(
    tasks: Sequence[Mapping[str, Any]], jobs: int | None, ray: str | None, gpus: float
) -> Generator[tuple[int, dict[str, Any]], None, None]:  # fmt: skip
    if not tasks:
        return
    if ray is not None:
        from halfconv.sweep.cluster import run_on_cluster

        yield from run_on_cluster(tasks, jobs, ray, gpus)
    else:
        from halfconv.sweep.local import run_here

        yield from run_here(tasks, jobs or max(1, (os.cpu_count() or 1) // 2))


def _kept(store: Store, job: Job, *, retry_failed: bool) -> dict[str, Any] | None:
    """Return the outcome of a job that need not be done: not if it failed for want of space, a runtime or a machine."""
    found = store.read(job)
    again = found is not None and found["status"] == FAILED and (retry_failed or found["error"]["kind"] == ENVIRONMENT)
    return None if again else found


def _entry(job: Job, state: str, result: Mapping[str, Any] | None) -> SweepEntry:
    return SweepEntry(job.name, str(job.model), job.target, job.to, state, result)


def _report(
    file: Path, store: Store, jobs: Sequence[Job], known: Mapping[int, Mapping[str, Any] | None],
    done: Mapping[int, Mapping[str, Any]], notes: Sequence[str], *, dry_run: bool,
) -> SweepReport:  # fmt: skip
    entries = [
        _entry(job, KEPT if known[place] is not None else PLANNED if dry_run else RAN, known[place] or done.get(place))
        for place, job in enumerate(jobs)
    ]
    return SweepReport(str(file), str(store.folder), dry_run, tuple(entries), tuple(notes))
