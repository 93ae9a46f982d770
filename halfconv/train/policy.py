"""Precision policies: which modules of a model stay in FP32 while autocast runs the others in half.

In a module that stays FP32, autocast is off and half inputs are cast up, for everything that it calls, too. Gradients that flow
through it are FP32 there by themselves.
"""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from halfconv.errors import UsageError
from halfconv.train.tensors import to_float

__all__ = ["AdaptivePolicy", "PrecisionPolicy", "fp32_modules", "policy_named"]


@dataclass(frozen=True, slots=True)
class PrecisionPolicy:
    """Which modules stay FP32.

    Attributes:
        fp32: Regular expressions; modules whose whole name (as in ``model.named_modules()``) matches one of them stay FP32.
        types: Modules of these classes stay FP32.
    """

    fp32: tuple[str, ...] = ()
    types: tuple[type[torch.nn.Module], ...] = ()

    def names(self, model: torch.nn.Module) -> frozenset[str]:
        """Return the names of the modules that stay FP32.

        Raises:
            UsageError: An expression is invalid, or an expression or class matches no module.
        """
        modules = dict(model.named_modules())
        found: set[str] = set()
        for pattern in self.fp32:
            try:
                matching = {name for name in modules if re.fullmatch(pattern, name)}
            except re.error as error:
                what = f"precision_policy: {pattern!r} is no regular expression: {error}"
                raise UsageError(what, "re.escape for a plain name") from None
            if not matching:
                close = difflib.get_close_matches(pattern, modules, 3, 0.4) or list(modules)[1:4]
                what = f"precision_policy: no module's name matches {pattern!r}"
                raise UsageError(what, ", ".join(close) or "precision_policy=None")
            found |= matching
        for kind in self.types:
            matching = {name for name, module in modules.items() if isinstance(module, kind)}
            if not matching:
                raise UsageError(f"precision_policy: the model has no {kind.__name__}", "precision_policy=None")
            found |= matching
        return frozenset(found)


@dataclass(frozen=True, slots=True)
class AdaptivePolicy(PrecisionPolicy):
    """Moves modules between half and FP32 while the model trains, by what is measured in each.

    Modules that ``fp32`` and ``types`` name stay FP32 throughout. The others begin in half. A module moves to FP32 when it was in
    trouble ``patience`` times without ``calm_steps`` quiet steps between; it moves back after ``calm_steps`` quiet steps, on trial:
    the next trouble moves it to FP32 again, and for twice as long.

    Attributes:
        overflow: The share of a module's outputs that may be infinite or NaN in half though its inputs are finite. Looked at in
            every step.
        underflow: The share of the gradients of a module's weights that may become zero in half, after loss scaling, among those
            that are not zero in FP32.
        noise: The relative L2 error that half may add to the gradients of a module's weights.
        probe_every: Steps from one probe to the next, in which underflow and noise are measured: the step's gradients are computed
            a second time in FP32.
        patience: Times in trouble that move a module.
        calm_steps: Quiet steps after which it moves back. Trouble of a module in FP32 is what would be trouble in half: outputs
            beyond half of the format's largest number, gradients that would become zero.
    """

    overflow: float = 0.0
    underflow: float = 0.5
    noise: float = 1.0
    probe_every: int = 50
    patience: int = 2
    calm_steps: int = 500

    def __post_init__(self) -> None:
        if min(self.probe_every, self.patience, self.calm_steps) < 1:
            raise UsageError("an adaptive policy counts in whole steps from 1", "probe_every, patience, calm_steps >= 1")


def policy_named(policy: PrecisionPolicy | str | None) -> PrecisionPolicy:
    """Return the policy that a name stands for: ``adaptive``, or none.

    Raises:
        UsageError: There is none of this name.
    """
    if policy is None:
        return PrecisionPolicy()
    if isinstance(policy, PrecisionPolicy):
        return policy
    if policy == "adaptive":
        return AdaptivePolicy()
    raise UsageError(f"no policy is called {policy!r}", 'precision_policy="adaptive", or PrecisionPolicy(fp32=("head",))')


@contextlib.contextmanager
def fp32_modules(modules: dict[str, torch.nn.Module], kept: set[str], device: torch.device) -> Iterator[None]:
    """Run modules in FP32 inside autocast, for as long as the context lasts.

    Args:
        modules: Those that may be run so, by name.
        kept: Names of those that are; may change between runs of the model.
        device: The model's device.
    """
    hooks: list[RemovableHandle] = []
    for name, module in modules.items():
        hooks += _keep_fp32(module, name, kept, device.type)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _keep_fp32(module: torch.nn.Module, name: str, kept: set[str], device: str) -> tuple[RemovableHandle, RemovableHandle]:
    """Add the hooks; functions, not objects, since copies of a model share them."""
    entered: list[contextlib.ExitStack] = []

    def enter(
        _: torch.nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if name not in kept or not torch.is_autocast_enabled(device):
            return None
        context = contextlib.ExitStack()
        context.enter_context(torch.autocast(device, enabled=False))
        entered.append(context)
        return to_float(arguments), to_float(named)

    def leave(_: torch.nn.Module, __: object, ___: object) -> None:
        if entered:
            entered.pop().close()

    before = module.register_forward_pre_hook(enter, with_kwargs=True)
    return before, module.register_forward_hook(leave, always_call=True)
