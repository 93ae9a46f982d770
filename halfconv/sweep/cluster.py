"""Run jobs on a Ray cluster: each task runs a job as a machine of its own would, in a process (https://docs.ray.io)."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from halfconv.errors import EnvironmentProblem, UsageError
from halfconv.sweep.outcome import ENVIRONMENT, FAILED, outcome
from halfconv.sweep.process import Runner
from halfconv.sweep.work import START

__all__ = ["run_on_cluster"]

#: How often Ray begins a job again whose worker or machine it lost.
RETRIES = 2
#: Seconds in which a cluster must take a connection.
PATIENCE = 10


def run_on_cluster(
    tasks: Sequence[Mapping[str, Any]], jobs: int | None, address: str, gpus: float
) -> Generator[tuple[int, dict[str, Any]], None, None]:  # fmt: skip
    """Run tasks, as many at a time as the cluster has room for; when the caller stops listening, they are cancelled.

    Every machine needs this version of halfconv, and the models, samples and results under the same paths.

    Args:
        tasks: What `halfconv.sweep.job.Job.task` returns.
        jobs: How many run at a time at most; None leaves it to the cluster.
        address: The cluster's, as ``ray.init`` takes it: ``auto``, ``HOST:PORT`` or ``ray://HOST:PORT``.
        gpus: How many GPUs a job takes, or which share of one; 0 for none.

    Yields:
        The place of a task, and its outcome, as they end.

    Raises:
        UsageError: The address is none.
        EnvironmentProblem: Ray is not installed, the cluster is not there, or no machine of it has what a job takes.
    """
    try:
        import ray
    except ImportError:
        raise EnvironmentProblem("--ray needs the package ray, which is not installed", "pip install 'halfconv[ray]'") from None
    _check_listens(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
    except Exception as error:  # Ray has no class of its own for a cluster that is not there
        raise _no_cluster(address, error) from None
    try:
        _check_room(ray, gpus)
        yield from _run(ray, tasks, jobs, gpus)
    finally:
        with contextlib.suppress(Exception):
            ray.shutdown()  # which ends the workers of this driver, and they their jobs


def _check_listens(address: str) -> None:
    """Refuse an address at which nobody listens: Ray would try again for many minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if address == "auto":
        return
    if not (host and colon and port.isdecimal() and int(port) < 1 << 16):
        raise UsageError(f"--ray {address} is no address", "auto, HOST:PORT or ray://HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), PATIENCE).close()
    except OSError as error:
        raise _no_cluster(address, error) from None


def _no_cluster(address: str, error: Exception) -> EnvironmentProblem:
    words = str(error).strip().splitlines() or [type(error).__name__]
    advice = "ray status, another --ray, or RAY_AUTH_MODE=token in the environment where it wants one"
    return EnvironmentProblem(f"no Ray cluster answers at {address}: {words[0]}", advice)


def _check_room(ray: Any, gpus: float) -> None:
    """Refuse what no machine of the cluster has: Ray would wait for one to join."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if gpus and not any(node.get("GPU", 0) >= gpus for node in alive):
        raise EnvironmentProblem(f"no machine of the cluster has {gpus:g} GPUs for a job", "a smaller --gpus, or none")


def _run(
    ray: Any, tasks: Sequence[Mapping[str, Any]], jobs: int | None, gpus: float
) -> Generator[tuple[int, dict[str, Any]], None, None]:
    remote = ray.remote(_run_one).options(max_retries=RETRIES, num_cpus=1, num_gpus=gpus, name="halfconv sweep")
    places: dict[Any, int] = {}
    waiting = iter(enumerate(tasks))
    while True:
        while jobs is None or len(places) < jobs:
            following = next(waiting, None)
            if following is None:
                break
            places[remote.remote(following[1])] = following[0]
        if not places:
            return
        (ready,), _ = ray.wait(list(places), num_returns=1)
        place = places.pop(ready)
        try:
            found = ray.get(ready)
        except ray.exceptions.RayError as error:
            words = " ".join(str(error).split())[:300]
            message = f"lost on the cluster: {type(error).__name__}: {words}"
            found = outcome(tasks[place], FAILED, stage=START, kind=ENVIRONMENT, message=message, attempts=RETRIES + 1)
        yield place, found


def _run_one(task: Mapping[str, Any]) -> dict[str, Any]:
    found = Runner().run(task)
    assert found is not None  # nobody stops it
    return found
