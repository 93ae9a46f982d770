"""Loss scaling rescues what FP16 loses, skips what overflows, and keeps its history."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from halfconv.train import Result, fit
from tests.train.problems import classes

#: The loss is multiplied by this, so that its gradients lie below 6e-8, FP16's smallest number.
TINY = 1e-8


def trained(precision: str, loss_scale: float | None = None) -> tuple[Result, float, float]:
    """Train on a loss with tiny gradients; return the result, how far the weights moved, and the accuracy."""
    torch.manual_seed(0)
    model = nn.Linear(12, 4)
    start = model.weight.detach().half().float() if precision == "pure-fp16" else model.weight.detach().clone()
    inputs, labels = classes()
    result = fit(
        model, [(inputs, labels)] * 20, loss=lambda y, target: TINY * cross_entropy(y, target), precision=precision, device="cpu",
        optimizer=lambda weights: torch.optim.SGD(weights, 1e4 if precision == "pure-fp16" else 0.5 / TINY), loss_scale=loss_scale,
    )  # fmt: skip
    moved = float((model.weight.detach() - start).abs().max())
    return result, moved, float((model(inputs).argmax(-1) == labels).float().mean())


def test_the_gradients_are_below_half() -> None:
    model = nn.Linear(12, 4)
    inputs, labels = classes()
    (TINY * cross_entropy(model(inputs), labels)).backward()
    assert 0 < float(model.weight.grad.abs().max()) < 5.96e-8


def test_scaling_rescues_what_fp16_loses() -> None:
    _, pure, lost = trained("pure-fp16")
    _, unscaled, lost_too = trained("fp16", loss_scale=1.0)
    result, scaled, found = trained("fp16")
    _, exact, best = trained("fp32")
    assert pure == unscaled == 0
    assert lost < 0.6 and lost_too < 0.6
    assert best > 0.95 and abs(found - best) < 0.02 and abs(scaled - exact) < 0.02 * exact
    assert result.scales == [(0, 65536.0)] and result.skipped == 0


def test_bf16_needs_no_scaling() -> None:
    result, moved, found = trained("bf16")
    assert moved > 0.1 and found > 0.95 and result.scales == []


def test_steps_that_overflow_are_skipped_until_the_scale_fits() -> None:
    model = nn.Linear(12, 4)
    weights: list[torch.Tensor] = []

    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        weights.append(model.weight.detach().clone())
        return 1e3 * cross_entropy(output, target)

    result = fit(model, [classes()] * 20, loss=loss, precision="fp16", device="cpu", clip_norm=1.0)
    assert 3 <= result.skipped < 20
    assert result.scales[:3] == [(0, 65536.0), (1, 32768.0), (2, 16384.0)]
    assert result.scales[-1] == (result.skipped, 65536.0 / 2**result.skipped)
    assert all(torch.equal(each, weights[0]) for each in weights[: result.skipped + 1])
    assert not torch.equal(weights[result.skipped + 1], weights[0])
    assert result.history[0]["loss"] == result.history[0]["loss"]  # skipped steps leave no NaN in the mean


def test_a_fixed_scale_stays() -> None:
    result = fit(
        nn.Linear(12, 4), [classes()] * 4, loss=lambda y, t: 1e3 * cross_entropy(y, t), precision="fp16", device="cpu",
        loss_scale=65536.0,
    )  # fmt: skip
    assert result.skipped == 4 and result.scales == [(0, 65536.0)]
    assert result.history[0]["loss"] != result.history[0]["loss"]


@pytest.mark.slow
def test_the_scale_grows_when_nothing_overflows() -> None:
    result = fit(
        nn.Linear(12, 4), [classes(8)] * 2001, loss=lambda y, t: TINY * cross_entropy(y, t), precision="fp16", device="cpu"
    )
    assert result.scales == [(0, 65536.0), (2000, 131072.0)]
