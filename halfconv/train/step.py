"""One step of training: gradients of its batches, unscaled, clipped and used."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from halfconv.train.batches import Batch
from halfconv.train.precision import Precision
from halfconv.train.scaling import LossScaler
from halfconv.train.tensors import call, to_device, to_float, to_half

__all__ = ["Loss", "Stepper"]

Loss = Callable[[Any, Any], torch.Tensor]


@dataclass(slots=True)
class Stepper:
    """Trains a model step by step.

    Attributes:
        model: The model, wrapped for data parallel training if there are several processes.
        optimizer: What updates its weights.
        loss: The loss of (output, target), a scalar.
        precision: What the model computes in.
        device: Where it is.
        scaler: What scales the loss.
        clip_norm: The largest L2 norm of all gradients together; None for no bound.
        grad_norm: That norm in the last step, unscaled and not yet clipped, a scalar on the device; None without ``clip_norm``.
    """

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    loss: Loss
    precision: Precision
    device: torch.device
    scaler: LossScaler
    clip_norm: float | None
    grad_norm: torch.Tensor | None = None

    def backward(self, batches: Sequence[Batch], *, half: bool = True) -> torch.Tensor:
        """Add the gradients of the scaled mean loss of some batches to those that the weights have.

        The model runs under autocast; the loss is computed outside of it, from outputs cast to FP32, as losses add up many small
        numbers. Without master weights it is computed in half, as everything else.

        Args:
            batches: (inputs, target) pairs.
            half: Whether the model runs in half where the precision says so.

        Returns:
            The mean loss, not scaled; a scalar on the device.
        """
        total, count = torch.zeros(()), len(batches)
        for number, batch in enumerate(batches, start=1):
            inputs, target = to_device(tuple(batch), self.device)
            with self._synchronised(number == count):
                with self.precision.autocast(self.device) if half else contextlib.nullcontext():
                    output = call(self.model, inputs)
                if self.precision.half is None or self.precision.master:
                    loss = self.loss(to_float(output), target)
                else:
                    loss = self.loss(output, to_half(target, self.precision.half))
                torch.autograd.backward(self.scaler.scaled(loss / count if count > 1 else loss))
            mean = loss.detach().float() / count if count > 1 else loss.detach().float()
            total = mean if number == 1 else total + mean
        return total

    def update(self, number: int) -> bool:
        """Unscale the gradients, clip them, and step the optimizer unless they overflowed.

        Args:
            number: Which step this is; the first is 1.

        Returns:
            Whether the weights were updated.
        """
        self.scaler.unscale(self.optimizer)
        if self.clip_norm is not None:
            weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
            self.grad_norm = torch.nn.utils.clip_grad_norm_(weights, self.clip_norm)
        return self.scaler.step(self.optimizer, number)

    def _synchronised(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Average gradients over the processes after the step's last batch only."""
        if isinstance(self.model, torch.nn.parallel.DistributedDataParallel) and not last:
            return self.model.no_sync()
        return contextlib.nullcontext()
