"""What people follow a run by: TensorBoard event files, and a progress bar."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from halfconv.errors import EnvironmentProblem
from halfconv.progress import Progress

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["EventLog", "Listener", "listening", "open_log"]

Listener = Callable[[Progress], None]


class EventLog:
    """Writes scalars into an event file, or nothing.

    Args:
        writer: The file; None for nothing.
    """

    def __init__(self, writer: SummaryWriter | None):
        self._writer = writer

    def __bool__(self) -> bool:
        """Tell whether anything is written."""
        return self._writer is not None

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Write values of a step: tag -> value."""
        if self._writer is not None:
            for tag, value in values.items():
                self._writer.add_scalar(tag, value, step)

    def text(self, step: int, tag: str, words: str) -> None:
        """Write words about a step."""
        if self._writer is not None:
            self._writer.add_text(tag, words, step)


@contextlib.contextmanager
def open_log(folder: Path | None, step: int) -> Iterator[EventLog]:
    """Open an event file in a folder, which is made.

    Args:
        folder: None for no file.
        step: The step that the run begins after; what earlier files of the folder say of later steps is not shown any more.

    Raises:
        EnvironmentProblem: The package ``tensorboard`` is missing, or the folder cannot be written.
    """
    if folder is None:
        yield EventLog(None)
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise EnvironmentProblem(f"log_dir needs the package tensorboard ({error})", "pip install tensorboard") from None
    try:
        writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)
    except OSError as error:
        raise EnvironmentProblem(f"cannot write events in {folder}: {error.strerror or error}", "another log_dir") from None
    with contextlib.closing(writer):
        yield EventLog(writer)


@contextlib.contextmanager
def listening(progress: bool | Listener, quiet: bool) -> Iterator[Listener | None]:
    """Return who is told of progress.

    Args:
        progress: True for a bar on stderr if that is a terminal; a function to tell instead; False for nobody.
        quiet: Whether nobody is told in any case.
    """
    if quiet or progress is False:
        yield None
    elif progress is True:
        from halfconv.terminal import progress as bar

        with bar(False, "training") as tell:
            yield tell
    else:
        yield progress
