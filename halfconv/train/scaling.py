"""Loss scaling: FP16's smallest number is 6e-8, and gradients that lie below it become zero unless the loss is multiplied first.

The method is that of Micikevicius et al., *Mixed Precision Training*, ICLR 2018, section 3.2: multiply the loss, which multiplies
all gradients; divide the gradients by the same factor in FP32 before they are clipped and used; if one of them is infinite or NaN,
skip the step and halve the factor; if none was for a while, double it. ``torch.amp.GradScaler`` does so; this adds the history.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch

__all__ = ["LossScaler"]

INITIAL_SCALE = 65536.0
#: Steps without overflow before the scale doubles.
GROWTH_INTERVAL = 2000
_NEVER = 2**31 - 1


class LossScaler:
    """Scales the loss, and skips the steps whose gradients overflow.

    Args:
        device: Where the gradients are.
        enabled: Whether anything is scaled; if not, steps are passed on as they are.
        fixed: A scale that stays; None for one that adapts.
        growth_interval: Steps without overflow before the scale doubles.

    Attributes:
        history: (step, scale) at the beginning and after each step that changed the scale.
        skipped: Number of steps that were skipped.
    """

    def __init__(self, device: torch.device, *, enabled: bool, fixed: float | None = None, growth_interval: int = GROWTH_INTERVAL):
        self._fixed, self._interval = fixed, growth_interval if fixed is None else _NEVER
        self._scaler = torch.amp.GradScaler(
            device.type,
            init_scale=INITIAL_SCALE if fixed is None else fixed,
            growth_interval=self._interval,
            enabled=enabled,
        )
        self._now = self._scaler.get_scale()  # each look at the scaler's own waits for the GPU
        self._calm = 0  # steps since the last overflow or growth; the scaler's own count is on the GPU
        self.history: list[tuple[int, float]] = [(0, self._now)] if enabled else []
        self.skipped = 0

    @property
    def scale(self) -> float:
        """The factor now; 1 if nothing is scaled."""
        return self._now

    def scaled(self, loss: torch.Tensor) -> torch.Tensor:
        """Return the loss times the scale, to call ``backward()`` on."""
        return self._scaler.scale(loss)

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the gradients of the optimizer's weights by the scale, and look for infinities and NaN."""
        self._scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer, number: int) -> bool:
        """Step the optimizer unless a gradient is infinite or NaN, and adapt the scale.

        This waits for the GPU once, and again if the scale changes; not at all where nothing is scaled. torch does not call an
        optimizer whose gradients overflowed, which tells, but for a fused one, which finds out on the GPU: then the scale tells.

        Args:
            optimizer: One whose gradients are unscaled.
            number: Which step this is, for the history; the first is 1.

        Returns:
            Whether the weights were updated.
        """
        if not self._scaler.is_enabled():
            optimizer.step()
            return True
        before, called = self._now, [False]
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(AttributeError):  # one around another may not be made as torch's are: the scale tells
                stack.callback(optimizer.register_step_post_hook(lambda *_: called.__setitem__(0, True)).remove)
            self._scaler.step(optimizer)
        self._scaler.update()
        fused, due = getattr(optimizer, "_step_supports_amp_scaling", False), self._calm + 1 == self._interval
        after = self._scaler.get_scale() if fused or due or not called[0] else before
        self._calm = 0 if due or after < before else self._calm + 1
        if after < before:  # which only an overflow does
            self.skipped += 1
            if self._fixed is not None:
                self._scaler.update(self._fixed)
                return False
        self._now = after
        if after != before:
            self.history.append((number, after))
        return after >= before

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain data."""
        return {"scaler": self._scaler.state_dict(), "history": self.history, "skipped": self.skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take a state back, but for what this one was made with: a fixed scale, and when it doubles."""
        if state["scaler"]:
            calm = int(state["scaler"]["_growth_tracker"])
            self._calm = calm if calm < self._interval else 0
            fixed = {} if self._fixed is None else {"scale": self._fixed}
            own = {"growth_interval": self._interval, "_growth_tracker": self._calm}
            self._scaler.load_state_dict({**state["scaler"], **own, **fixed})
            self._now = self._scaler.get_scale()
        self.history = [(int(step), float(scale)) for step, scale in state["history"]]
        self.skipped = int(state["skipped"])
