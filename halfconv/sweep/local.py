"""Run jobs by processes of this machine."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from halfconv.sweep.process import Runner

__all__ = ["run_here"]


def run_here(tasks: Sequence[Mapping[str, Any]], jobs: int) -> Generator[tuple[int, dict[str, Any]], None, None]:
    """Run tasks, some at a time; when the caller stops listening, the processes end.

    Args:
        tasks: What `halfconv.sweep.job.Job.task` returns.
        jobs: How many run at a time.

    Yields:
        The place of a task, and its outcome, as they end.
    """
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[int, dict[str, Any] | BaseException]] = queue.SimpleQueue()
    for place in range(len(tasks)):
        waiting.put(place)

    def serve(runner: Runner) -> None:
        while True:
            try:
                place = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                found = runner.run(tasks[place])
            except BaseException as error:
                done.put((place, error))
                return
            if found is None:
                return
            done.put((place, found))

    runners = [Runner() for _ in range(min(jobs, len(tasks)))]
    threads = [threading.Thread(target=serve, args=(runner,), daemon=True) for runner in runners]
    try:
        for thread in threads:
            thread.start()
        for _ in tasks:
            place, found = done.get()
            if isinstance(found, BaseException):
                raise found
            yield place, found
    finally:
        for runner in runners:
            runner.stop()
        for thread in threads:
            if thread.ident is not None:
                thread.join()
