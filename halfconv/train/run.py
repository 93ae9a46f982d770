"""A training run: its epochs, what it has come to, and how that is saved and taken up again."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sized
from pathlib import Path
from typing import Any, Protocol

import torch

from halfconv.errors import UsageError
from halfconv.progress import Progress
from halfconv.train.adaptive import Watcher
from halfconv.train.batches import Batch, Data, steps_of
from halfconv.train.checkpoint import save_checkpoint
from halfconv.train.distributed import Processes
from halfconv.train.log import EventLog, Listener
from halfconv.train.optimizer import computed_as
from halfconv.train.randomness import capture_rng, restore_rng
from halfconv.train.result import Result
from halfconv.train.step import Stepper

__all__ = ["Evaluate", "Run", "Scheduler"]

#: Seconds between two looks at the loss for who is told of progress: each waits for the GPU.
LOOK = 0.1

Scheduler = torch.optim.lr_scheduler.LRScheduler
Evaluate = Callable[[torch.nn.Module], dict[str, float]]


class _Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any], /) -> Any: ...


class Run:
    """Trains epoch by epoch. For the arguments see `halfconv.train.fit`.

    Args:
        model: The model itself, where ``stepper`` has it wrapped.
        stepper: What does a step.
        shared: The processes that train together.
        watcher: Moves modules between half and FP32; None if nothing does.

    Attributes:
        epoch: The epoch that comes next, or is under way.
        step: Steps done.
        kind: What a run must have in common with this one to go on from its checkpoint.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        stepper: Stepper,
        shared: Processes,
        *,
        seed: int,
        accumulate: int,
        scheduler: Scheduler | None,
        watcher: Watcher | None,
        evaluate: Evaluate | None,
        after_step: Callable[[torch.nn.Module], None] | None,
        checkpoint: Path | None,
        checkpoint_every: int | None,
    ):
        self._model, self._stepper, self._shared = model, stepper, shared
        self._scheduler, self._watcher, self._evaluate, self._after_step = scheduler, watcher, evaluate, after_step
        self._checkpoint, self._every = checkpoint, checkpoint_every
        self.kind = {"precision": stepper.precision.name, "accumulate": accumulate, "seed": seed, "processes": shared.count}
        self._seed, self._accumulate = seed, accumulate
        self.epoch = self.step = 0
        self._done = 0  # steps of the epoch under way
        self._updates = 0  # those of them that updated the weights
        self._loss = torch.zeros((), dtype=torch.float64, device=stepper.device)  # the sum of their losses
        self._rng: dict[str, Any] | None = None  # where the generators were when the epoch was left
        self._history: list[dict[str, float]] = []
        self._metrics: dict[str, float] = {}

    def train_epoch(self, data: Data, epochs: int, log: EventLog, tell: Listener | None) -> None:
        """Train for an epoch, or for what is left of it, evaluate, and save.

        Raises:
            UsageError: The data is used up, or has less than when the checkpoint was written.
        """
        begin = time.perf_counter()
        looked, words = begin - LOOK, ""
        self._model.train()
        steps = steps_of(data, self.epoch, seed=self._seed, accumulate=self._accumulate, shared=self._shared)
        if sum(1 for _ in itertools.islice(steps, self._done)) < self._done:
            raise UsageError(f"epoch {self.epoch} has fewer steps than the checkpoint did in it ({self._done})", "the same data")
        if self._rng is not None:
            restore_rng(self._rng, self._stepper.device)
            self._rng = None
        total = -(-len(data) // (self._accumulate * self._shared.count)) if isinstance(data, Sized) else 0
        for batches in steps:
            loss = self._train_step(batches, log)
            if tell is not None:
                if (now := time.perf_counter()) >= looked + LOOK:
                    looked, words = now, f"loss {float(loss):.4g}"
                tell(Progress(f"epoch {self.epoch + 1} of {epochs}", words, self._done, total))
            if self._every and self.step % self._every == 0:
                self._save()
        loss_sum = float(self._loss) / self._updates if self._updates else float("nan")
        (mean,) = self._shared.mean([loss_sum])
        seconds = time.perf_counter() - begin
        self._metrics = self._evaluated()
        self._history.append({"epoch": self.epoch, "loss": mean, "seconds": seconds, **self._metrics})
        log.scalars(self.step, {"epoch/loss": mean, **{f"metrics/{name}": value for name, value in self._metrics.items()}})
        self.epoch, self._done, self._updates = self.epoch + 1, 0, 0
        self._loss.zero_()
        self._save()

    def _train_step(self, batches: list[Batch], log: EventLog) -> torch.Tensor:
        stepper = self._stepper
        stepper.optimizer.zero_grad()
        if self._watcher is not None:
            self._watcher.before_backward(self.step + 1)
        loss = stepper.backward(batches)
        if self._watcher is not None:
            self._watcher.after_backward(batches)
        self.step, self._done = self.step + 1, self._done + 1
        updated = stepper.update(self.step)
        if updated:
            self._loss += loss
            self._updates += 1
            if self._scheduler is not None:
                self._scheduler.step()
            if self._after_step is not None:
                self._after_step(self._model)
        moves = self._watcher.decide(self.step) if self._watcher is not None else []
        if log:
            values = {"train/loss": float(loss), "train/learning_rate": stepper.optimizer.param_groups[0]["lr"]}
            if stepper.precision.scaled:
                values |= {"train/loss_scale": stepper.scaler.scale, "train/skipped": stepper.scaler.skipped}
            if stepper.grad_norm is not None:
                values["train/gradient_norm"] = float(stepper.grad_norm)
            log.scalars(self.step, values)
            for move in moves:
                log.text(self.step, "train/moves", f"{move.module} to {move.to}: {move.reason} {move.figure:.3g}")
        return loss

    def _evaluated(self) -> dict[str, float]:
        if self._evaluate is None:
            return {}
        found: dict[str, float] = {}
        if self._shared.first:
            self._model.eval()
            with torch.no_grad(), self._stepper.precision.autocast(self._stepper.device):
                found = {name: float(value) for name, value in self._evaluate(self._model).items()}
        return dict(self._shared.from_first(found))

    def result(self) -> Result:
        """Return what the run has done so far."""
        scaler = self._stepper.scaler
        moves = list(self._watcher.moves) if self._watcher is not None else []
        return Result(self._metrics, self._history, scaler.history, scaler.skipped, moves, self.step)

    def _parts(self) -> dict[str, _Stateful]:
        """Return everything that keeps a state of its own."""
        parts: dict[str, Any] = {"model": self._model, "optimizer": self._stepper.optimizer, "scaler": self._stepper.scaler}
        parts |= {"scheduler": self._scheduler} if self._scheduler is not None else {}
        return parts | ({"watcher": self._watcher} if self._watcher is not None else {})

    def _save(self) -> None:
        if self._checkpoint is None:
            return
        generators = self._shared.gather(capture_rng(self._stepper.device))
        if self._shared.first:
            own = {
                "run": self.kind,
                "epoch": self.epoch,
                "step": self.step,
                "done": self._done,
                "updates": self._updates,
                "loss": self._loss,
                "history": self._history,
                "metrics": self._metrics,
                "generators": generators,
            }
            save_checkpoint(self._checkpoint, own | {name: part.state_dict() for name, part in self._parts().items()})

    def load(self, state: dict[str, Any]) -> None:
        """Take up the state of a checkpoint.

        Raises:
            UsageError: It is that of another model, or of a run with other parts.
        """
        for name, part in self._parts().items():
            if name not in state:
                words = f"the checkpoint has no state of a {name}, which this run has"
                raise UsageError(words, "the same arguments, or resume=False")
            try:
                part.load_state_dict(computed_as(part, state[name]) if isinstance(part, torch.optim.Optimizer) else state[name])
            except (RuntimeError, ValueError, KeyError) as error:
                words = f"the checkpoint's {name} does not fit this run's: {error}"
                raise UsageError(words, "the same arguments, or resume=False") from error
        self.epoch, self.step, self._done, self._updates = (int(state[name]) for name in ("epoch", "step", "done", "updates"))
        self._loss.copy_(state["loss"])
        self._history, self._metrics = list(state["history"]), dict(state["metrics"])
        self._rng = state["generators"][self._shared.rank] if self._done else None
