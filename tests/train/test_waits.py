"""A step waits for the device only where it must: each wait leaves a GPU without work until the host has launched more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from halfconv.train import fit
from halfconv.train.optimizer import adamw
from halfconv.train.scaling import LossScaler
from tests.train.problems import classes, network

Optimize = Callable[[Any], torch.optim.Optimizer]


class Looks(TorchDispatchMode):
    """Counts how often the host asks for the value of a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def looks(steps: int, precision: str, optimizer: Optimize, **options: Any) -> int:
    with Looks() as seen:
        fit(network(), [classes()] * steps, loss=cross_entropy, precision=precision, device="cpu", optimizer=optimizer, **options)
    return seen.count


def sgd(weights: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(weights, 0.01)


def fused(weights: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(weights, 0.01, fused=True)


@pytest.mark.parametrize("clip_norm", [None, 1.0])
@pytest.mark.parametrize("optimizer", [sgd, fused])
@pytest.mark.parametrize(("precision", "waits"), [("fp32", 0), ("bf16", 0), ("fp16", 1), ("pure-fp16", 0)])
def test_only_loss_scaling_waits_and_once(precision: str, waits: int, optimizer: Optimize, clip_norm: float | None) -> None:
    few, more = (looks(steps, precision, optimizer, clip_norm=clip_norm) for steps in (2, 12))
    assert more - few == 10 * waits


def test_who_is_told_of_progress_makes_no_step_wait() -> None:
    few, more = (looks(steps, "bf16", sgd, progress=lambda _: None) for steps in (2, 12))
    assert more - few <= 3  # one look in a tenth of a second


def scales(optimizer: torch.optim.Optimizer, weight: nn.Parameter, scaler: LossScaler, steps: int) -> list[tuple[bool, float]]:
    """Step with gradients of which those of steps 4, 5 and 9 overflow."""
    found = []
    for step in range(1, steps + 1):
        weight.grad = torch.full_like(weight, float("inf") if step in (4, 5, 9) else 1.0)
        scaler.scaled(torch.zeros(()))
        scaler.unscale(optimizer)
        found.append((scaler.step(optimizer, step), scaler.scale))
    return found


class Around(torch.optim.Optimizer):
    """An optimizer around another that is not made as torch's are, as of many libraries."""

    def __init__(self, weights: Any):
        self.inner = torch.optim.SGD(weights, 0.01)
        self.param_groups, self.defaults, self.state = self.inner.param_groups, self.inner.defaults, self.inner.state

    def step(self, closure: Any = None) -> Any:
        return self.inner.step(closure)


@pytest.mark.parametrize("optimizer", [sgd, fused, Around])
def test_what_is_known_of_the_scale_is_what_it_is(optimizer: Optimize) -> None:
    weight = nn.Parameter(torch.zeros(3))
    chosen, scaler = optimizer([weight]), LossScaler(torch.device("cpu"), enabled=True, growth_interval=3)
    told = scales(chosen, weight, scaler, 13)
    assert scaler._scaler.get_scale() == scaler.scale
    assert [step for step, (updated, _) in enumerate(told, start=1) if not updated] == [4, 5, 9] and scaler.skipped == 3
    # It doubles after 3 steps without overflow, which are counted anew after each change.
    assert [scale / 65536 for _, scale in told] == [1, 1, 2, 1, 0.5, 0.5, 0.5, 1, 0.5, 0.5, 0.5, 1, 1]
    assert scaler.history == [(0, 65536), *((step, told[step - 1][1]) for step in (3, 4, 5, 8, 9, 12))]


@pytest.mark.parametrize("optimizer", [sgd, fused])
def test_a_scaler_that_goes_on_grows_when_one_that_was_not_stopped_does(optimizer: Optimize) -> None:
    weight = nn.Parameter(torch.zeros(3))
    first = LossScaler(torch.device("cpu"), enabled=True, growth_interval=3)
    scales(optimizer([weight]), weight, first, 2)
    second = LossScaler(torch.device("cpu"), enabled=True, growth_interval=3)
    second.load_state_dict(first.state_dict())
    assert scales(optimizer([weight]), weight, second, 2) == [(True, 131072.0), (True, 131072.0)]
    assert second._scaler.get_scale() == second.scale


@pytest.mark.parametrize("optimizer", [sgd, fused])
def test_a_run_may_go_on_with_a_scale_that_is_fixed_or_adapts_although_it_began_otherwise(optimizer: Optimize) -> None:
    weight = nn.Parameter(torch.zeros(3))
    adaptive, fixed, again = (
        LossScaler(torch.device("cpu"), enabled=True, fixed=scale, growth_interval=3) for scale in (None, 1024.0, None)
    )
    scales(optimizer([weight]), weight, adaptive, 2)
    fixed.load_state_dict(adaptive.state_dict())
    told = scales(optimizer([weight]), weight, fixed, 8)
    assert told == [(step not in (4, 5), 1024.0) for step in range(1, 9)] and fixed.skipped == 2
    assert fixed._scaler.get_scale() == 1024
    again.load_state_dict(fixed.state_dict())  # three steps without overflow have been done
    assert scales(optimizer([weight]), weight, again, 3) == [(True, 1024.0), (True, 1024.0), (True, 2048.0)]
    assert again._scaler.get_scale() == 2048


def test_adamw_is_torchs_own_on_the_cpu() -> None:
    assert adamw(network().parameters(), lr=0.5).param_groups[0]["fused"] is None
    assert adamw(network().parameters(), lr=0.5).param_groups[0]["lr"] == 0.5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_on_a_gpu_adamw_is_fused_and_learns_the_same(precision: str) -> None:
    weights = []
    for optimizer in (None, torch.optim.AdamW):
        torch.manual_seed(0)
        model = nn.Linear(12, 4)
        fit(model, [classes()] * 8, loss=cross_entropy, precision=precision, device="cuda", optimizer=optimizer)
        weights.append(torch.cat([weight.detach().flatten() for weight in model.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-4)
    on_gpu = network().cuda()
    assert adamw(on_gpu.parameters()).param_groups[0]["fused"] is True
    assert adamw(on_gpu.half().parameters()).param_groups[0]["fused"] is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_resumed_run_keeps_the_numbers_of_steps_where_they_were(tmp_path: Path) -> None:
    kept: list[torch.optim.Optimizer] = []

    def plain(weights: Any) -> torch.optim.Optimizer:
        kept.append(torch.optim.AdamW(weights))
        return kept[-1]

    for epochs in (1, 2):
        fit(
            network(), [classes()] * 2, loss=cross_entropy, epochs=epochs, device="cuda", optimizer=plain,
            checkpoint=tmp_path / "run.pt", resume=True,
        )  # fmt: skip
    for optimizer in kept:
        assert {state["step"].device.type for state in optimizer.state.values()} == {"cpu"}
        assert {state["exp_avg"].device.type for state in optimizer.state.values()} == {"cuda"}
