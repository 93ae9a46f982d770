"""Says what machine a benchmark ran on, and measures what one command costs on it.

Linux only: memory is read from ``/proc``. Nothing outside the standard library is imported, so that the measuring
process stays small. That matters: the kernel counts the parent's memory, until the child has replaced itself by the
command, in the child's ``ru_maxrss``, so a parent of 300 MB would hide every tool that needs less.

What is measured, for one command and all processes it starts:

* seconds: from before the process is made until it has ended, interpreter start and imports included;
* ``peak_rss_mb``: the larger of two figures. First, the resident memory of all processes of the tree added up, sampled
  every 5 ms; pages that two of them share count twice. Second, ``ru_maxrss`` of the process or of its largest child,
  which no sampling can miss. Pages of mapped files count as resident although the kernel may drop them;
* ``peak_anon_mb``: the sampled sum of ``RssAnon``, memory that no file backs: what a model conversion really needs.
  A peak between two samples is missed.

1 MB is 10^6 bytes.
"""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

INTERVAL = 0.005
MB = 1e6


@dataclass(frozen=True, slots=True)
class Usage:
    """What one command did and cost.

    Attributes:
        returncode: The exit code; ``-N`` if signal N ended it.
        seconds: Wall-clock seconds from start to end.
        peak_rss_mb: Peak resident memory of the process tree, in MB.
        peak_anon_mb: Peak anonymous memory of the process tree, in MB.
        timed_out: Whether it was killed because it took too long.
    """

    returncode: int
    seconds: float
    peak_rss_mb: float
    peak_anon_mb: float
    timed_out: bool

    @property
    def failure(self) -> str | None:
        """How the command failed, in words, or None."""
        if self.timed_out:
            return f"timed out after {self.seconds:.0f} s"
        if self.returncode < 0:
            return f"killed by {signal.Signals(-self.returncode).name}"
        return f"exit code {self.returncode}" if self.returncode else None


def machine() -> dict[str, object]:
    """Describe this machine as benchmark files do.

    Returns:
        The processor, the cores this process may use, memory in GiB, the system and Python's version.
    """
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "os": platform.platform(terse=True),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2),
    }


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def measure(
    command: Sequence[str],
    *,
    stdout: Path,
    stderr: Path,
    timeout: float,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> Usage:
    """Run a command and measure it.

    Args:
        command: The program and its arguments.
        stdout: The file that receives its standard output.
        stderr: The file that receives its standard error.
        timeout: Seconds after which it and its children are killed.
        cwd: Its working directory.
        env: Variables to set on top of this process's own.

    Returns:
        Exit code, time and memory.
    """
    with stdout.open("wb") as out, stderr.open("wb") as err:
        begin = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
        sampler = _Sampler(process.pid, begin + timeout)
        sampler.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            _kill(process.pid)
            raise
        finally:
            sampler.stop()
        seconds = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    _kill(process.pid)  # children that outlived it would disturb the next measurement
    return Usage(
        returncode=process.returncode,
        seconds=seconds,
        peak_rss_mb=max(sampler.rss, usage.ru_maxrss * 1024) / MB,
        peak_anon_mb=sampler.anon / MB,
        timed_out=sampler.timed_out,
    )


def _kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


class _Sampler(threading.Thread):
    """Samples the memory of a process tree, and ends the tree at a deadline."""

    def __init__(self, pid: int, deadline: float) -> None:
        super().__init__(daemon=True)
        self.rss = 0
        self.anon = 0
        self.timed_out = False
        self._pid = pid
        self._deadline = deadline
        self._done = threading.Event()

    def run(self) -> None:
        """Sample until stopped."""
        while not self._done.wait(INTERVAL):
            memory = [_memory(pid) for pid in _tree(self._pid)]
            self.rss = max(self.rss, sum(rss for rss, _ in memory))
            self.anon = max(self.anon, sum(anon for _, anon in memory))
            if time.perf_counter() > self._deadline:
                self.timed_out = True
                _kill(self._pid)
                return

    def stop(self) -> None:
        """End sampling and wait for it."""
        self._done.set()
        self.join()


def _tree(pid: int) -> list[int]:
    """The process and all its living descendants."""
    pids = [pid]
    for parent in pids:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{parent}/task").iterdir():
                with contextlib.suppress(OSError):
                    pids += map(int, (task / "children").read_bytes().split())
    return pids


def _memory(pid: int) -> tuple[int, int]:
    """Resident and anonymous bytes of a process; zeros once it is gone."""
    rss = anon = 0
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status", "rb") as file:  # noqa: PTH123
        for line in file:
            if line.startswith(b"VmRSS:"):
                rss = int(line.split()[1]) * 1024
            elif line.startswith(b"RssAnon:"):
                anon = int(line.split()[1]) * 1024
                break
    return rss, anon
