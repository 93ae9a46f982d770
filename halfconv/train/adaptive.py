"""The adaptive policy at work: measures, in every module, what half precision loses, and moves modules to FP32 and back.

*Overflow*, in every step: a module is to blame for infinite or NaN outputs if its inputs are finite and none of the modules inside
it is to blame. *Underflow* and *noise*, in probes: the gradients of a step's batches are computed a second time with all modules in
FP32, with the same random numbers, and compared weight by weight, both as they are after loss scaling. What overflowed is left out
there: the loss scale is lowered for it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from halfconv.train.batches import Batch
from halfconv.train.distributed import Processes
from halfconv.train.policy import AdaptivePolicy
from halfconv.train.randomness import capture_rng, restore_rng
from halfconv.train.result import Move
from halfconv.train.step import Stepper
from halfconv.train.tensors import tensors_in

__all__ = ["Watcher"]

#: Outputs of modules in FP32 beyond this share of half's largest number count as overflow: near it, they may not go back.
HEADROOM = 0.5


@dataclass(slots=True)
class _Record:
    """What is known of a module.

    Attributes:
        strikes: Times in trouble since it last was quiet for long.
        quiet: Steps since the last trouble.
        wait: Quiet steps after which it is calm.
        trial: Whether it came back from FP32, and the next trouble moves it.
    """

    strikes: int
    quiet: int
    wait: int
    trial: bool


class Watcher:
    """Measures modules and moves them.

    Args:
        policy: The limits.
        modules: The model's modules by name, all of them.
        kept: Names of those in FP32, which is changed here; those in it at first stay.
        stepper: What computes gradients.
        shared: The processes, which all move the same modules.

    Attributes:
        moves: What was moved so far.
    """

    def __init__(
        self, policy: AdaptivePolicy, modules: dict[str, torch.nn.Module], kept: set[str], stepper: Stepper, shared: Processes
    ):
        assert stepper.precision.half is not None
        self._policy, self._modules, self._kept, self._stepper, self._shared = policy, modules, kept, stepper, shared
        self._half = stepper.precision.half
        self._names = [name for name in modules if name not in kept]
        self._records = {name: _Record(0, 0, policy.calm_steps, trial=False) for name in self._names}
        self._weights = {name: _own_weights(modules[name]) for name in self._names}
        self._outside: dict[str, torch.Tensor] = {}
        self._probed: dict[str, tuple[float, float]] = {}
        self._paused = False
        self._generators: dict[str, Any] | None = None
        self.moves: list[Move] = []

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Look at outputs for as long as the context lasts."""
        hooks = [self._modules[name].register_forward_hook(self._look(name), with_kwargs=True) for name in self._names]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _look(self, name: str) -> Any:
        watcher = self

        def look(module: torch.nn.Module, arguments: Any, named: Any, output: Any) -> None:
            if watcher._paused or not module.training:
                return
            limit = HEADROOM * torch.finfo(watcher._half).max if name in watcher._kept else None
            share = _share_outside((arguments, named), output, limit)
            if share is not None:
                before = watcher._outside.get(name)
                watcher._outside[name] = share if before is None else torch.maximum(before, share)

        return look

    def before_backward(self, step: int) -> None:
        """Keep the random numbers of a step that is probed."""
        self._generators = None if step % self._policy.probe_every else capture_rng(self._stepper.device)

    def after_backward(self, batches: Sequence[Batch]) -> None:
        """Measure underflow and noise if the step is probed.

        Args:
            batches: The step's; the weights have its gradients, scaled.
        """
        if self._generators is None:
            return
        optimized = [weight for group in self._stepper.optimizer.param_groups for weight in group["params"]]
        in_half = {id(weight): weight.grad for weight in optimized}
        with self._undisturbed(optimized):
            restore_rng(self._generators, self._stepper.device)
            self._stepper.backward(batches, half=False)
            figures = torch.stack([self._compare(name, in_half) for name in self._names])
        lost, noise = figures.T.tolist()
        self._probed = dict(zip(self._names, zip(lost, noise, strict=True), strict=True))

    @contextlib.contextmanager
    def _undisturbed(self, weights: list[torch.nn.Parameter]) -> Iterator[None]:
        """Begin without gradients, and leave gradients, buffers and generators as they were."""
        model, device = self._stepper.model, self._stepper.device
        gradients = [weight.grad for weight in weights]
        buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
        generators = capture_rng(device)
        self._paused = True
        for weight in weights:
            weight.grad = None
        try:
            yield
        finally:
            self._paused = False
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient
            with torch.no_grad():
                for buffer, content in buffers:
                    buffer.copy_(content)
            restore_rng(generators, device)

    def _compare(self, name: str, in_half: dict[int, torch.Tensor | None]) -> torch.Tensor:
        """Return the share of gradients that half turns to zero, and the relative error of half, of a module's own weights."""
        total = torch.zeros(4, device=self._stepper.device)
        for weight in self._weights[name]:
            exact, half = weight.grad, in_half.get(id(weight))
            if exact is None or half is None:
                continue
            if name in self._kept:  # what half would make of it
                half = exact.to(self._half).float()
            nonzero = exact != 0
            error, norm = (half - exact).square().sum(), exact.square().sum()
            total += torch.stack([(nonzero & (half == 0)).sum(), nonzero.sum(), error, norm])
        return torch.stack([total[0] / total[1].clamp(min=1), (total[2] / total[3].clamp(min=1e-30)).sqrt()])

    def decide(self, step: int) -> list[Move]:
        """Move modules by what was measured in a step.

        Args:
            step: The step that was done.

        Returns:
            What was moved.
        """
        zero = torch.zeros((), device=self._stepper.device)
        outside = self._shared.maximum(torch.stack([self._outside.get(name, zero) for name in self._names]))
        shares = dict(zip(self._names, outside.tolist(), strict=True))
        seen = set(self._outside)
        blamed = {name for name in self._names if shares[name] > self._policy.overflow}
        found = []
        for name in self._names:
            inside = any(other != name and (not name or other.startswith(f"{name}.")) for other in blamed)
            trouble = self._trouble(name, 0.0 if inside else shares[name])
            if name in seen and (move := self._judge(name, step, trouble)):
                found.append(move)
        self._outside, self._probed = {}, {}
        self.moves += found
        return found

    def _trouble(self, name: str, share: float) -> tuple[str, float] | None:
        lost, noise = self._probed.get(name, (0.0, 0.0))
        if share > self._policy.overflow:
            return "overflow", share
        if lost > self._policy.underflow and noise == noise:
            return "underflow", lost
        return ("noise", noise) if noise > self._policy.noise and noise < float("inf") else None

    def _judge(self, name: str, step: int, trouble: tuple[str, float] | None) -> Move | None:
        record = self._records[name]
        if trouble is None:
            record.quiet += 1
            if record.quiet < record.wait:
                return None
            record.strikes, record.quiet, record.trial = 0, 0, name in self._kept
            if name not in self._kept:
                record.wait = self._policy.calm_steps
                return None
            self._kept.discard(name)
            return Move(step, name, "half", "calm", float(record.wait))
        record.strikes, record.quiet = record.strikes + 1, 0
        if name in self._kept or (record.strikes < self._policy.patience and not record.trial):
            return None
        record.wait *= 2 if record.trial else 1
        record.strikes, record.trial = 0, False
        self._kept.add(name)
        return Move(step, name, "fp32", *trouble)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain data."""
        return {
            "kept": sorted(self._kept),
            "records": {name: asdict(record) for name, record in self._records.items()},
            "moves": [asdict(move) for move in self.moves],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take a state back.

        Raises:
            KeyError: It is that of another model.
        """
        self._records = {name: _Record(**state["records"][name]) for name in self._names}
        self._kept.clear()
        self._kept.update(state["kept"])
        self.moves = [Move(**move) for move in state["moves"]]


def _own_weights(module: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [weight for weight in module.parameters(recurse=False) if weight.requires_grad]


def _share_outside(inputs: Any, output: Any, limit: float | None) -> torch.Tensor | None:
    """Return the share of outputs beyond a limit, or infinite or NaN; zero if an input is so, None if no output is a float."""
    with torch.no_grad():
        floats = [tensor.detach() for tensor in tensors_in(output) if tensor.is_floating_point() and tensor.numel()]
        if not floats:
            return None
        beyond = sum((~(each.abs() <= (limit or torch.finfo(each.dtype).max))).sum() for each in floats)
        share = beyond / sum(each.numel() for each in floats)
        for each in tensors_in(inputs):
            if each.is_floating_point():
                share = share * each.detach().isfinite().all()
        return torch.as_tensor(share, dtype=torch.float32)
