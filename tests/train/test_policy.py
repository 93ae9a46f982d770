"""Precision policies: what stays in FP32, and what the adaptive one moves, when, and why."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from halfconv.errors import UsageError
from halfconv.train import AdaptivePolicy, Move, PrecisionPolicy, fit
from halfconv.train.policy import fp32_modules
from tests.train.problems import classes, network

CPU = torch.device("cpu")


class Named(nn.Module):
    """A model with a body of two layers, a norm and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16))
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor, *, bias: torch.Tensor | None = None) -> torch.Tensor:
        return self.head(self.norm(self.body(x))) + (0 if bias is None else bias)


def formats(model: nn.Module, kept: set[str], x: torch.Tensor | None = None) -> dict[str, tuple[torch.dtype, torch.dtype]]:
    """Run a model under BF16; return the formats of each module's first input and of its output."""
    seen: dict[str, tuple[torch.dtype, torch.dtype]] = {}
    modules = dict(model.named_modules())
    with fp32_modules(modules, kept, CPU):
        hooks = [
            module.register_forward_hook(lambda _, inputs, output, name=name: seen.update({name: (inputs[0].dtype, output.dtype)}))
            for name, module in modules.items()
        ]
        with torch.autocast("cpu", torch.bfloat16):
            model(torch.ones(2, 12) if x is None else x)
            assert torch.is_autocast_enabled("cpu")
    for hook in hooks:
        hook.remove()
    assert not torch.is_autocast_enabled("cpu")
    return seen


def test_modules_kept_in_fp32() -> None:
    half, full = torch.bfloat16, torch.float32
    assert formats(Named(), set())["body.2"] == (half, half)
    seen = formats(Named(), {"body.2", "head"})
    assert seen["body.0"] == (full, half) and seen["body.2"] == (full, full) and seen["head"] == (full, full)
    seen = formats(Named(), {"body"})
    assert {seen[name] for name in ("body", "body.0", "body.1", "body.2")} == {(full, full)}
    assert seen["head"] == (full, half)


def test_an_error_inside_leaves_autocast_on_and_hooks_go() -> None:
    model = Named()
    with fp32_modules({"body": model.body}, {"body"}, CPU), torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(RuntimeError, match="shape"):
            model(torch.ones(2, 5))
        assert torch.is_autocast_enabled("cpu")
        assert model.head(torch.ones(2, 16)).dtype == torch.bfloat16
        assert copy.deepcopy(model).body(torch.ones(2, 12)).dtype == torch.float32
    assert not model.body._forward_pre_hooks and not model.body._forward_hooks


def test_what_a_policy_names() -> None:
    model = Named()
    assert PrecisionPolicy(fp32=("head", r"body\.\d"), types=(nn.LayerNorm,)).names(model) == {
        "head", "body.0", "body.1", "body.2", "norm",
    }  # fmt: skip
    assert PrecisionPolicy().names(model) == frozenset()
    with pytest.raises(UsageError, match=r"no module's name matches 'heads'; try: head"):
        PrecisionPolicy(fp32=("heads",)).names(model)
    with pytest.raises(UsageError, match=r"'\(' is no regular expression"):
        PrecisionPolicy(fp32=("(",)).names(model)
    with pytest.raises(UsageError, match="the model has no Conv2d"):
        PrecisionPolicy(types=(nn.Conv2d,)).names(model)
    with pytest.raises(UsageError, match="counts in whole steps"):
        AdaptivePolicy(patience=0)


def test_a_policy_holds_in_training_and_evaluation_and_ends_with_it() -> None:
    model, seen = Named(), []
    model.head.register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    fit(
        model, [classes()], loss=cross_entropy, precision="bf16", device="cpu", precision_policy=PrecisionPolicy(fp32=("head",)),
        evaluate=lambda model: {"x": float(model(classes()[0]).mean())},
    )  # fmt: skip
    assert seen == [torch.float32] * 2
    with torch.autocast("cpu", torch.bfloat16):
        assert model(classes()[0]).dtype == torch.bfloat16


def test_a_policy_is_no_matter_in_fp32() -> None:
    weights = []
    for policy in (None, PrecisionPolicy(types=(nn.Linear,)), "adaptive"):
        model = network()
        fit(model, [classes()] * 3, loss=cross_entropy, device="cpu", precision_policy=policy)
        weights.append(model[0].weight.detach())
    assert torch.equal(weights[0], weights[1]) and torch.equal(weights[0], weights[2])


class Scaled(nn.Module):
    """Multiplies by 100,000 and takes it back: more than FP16 can hold in between."""

    def __init__(self, calm_after: int | None = None):
        super().__init__()
        self.calm_after, self.calls = calm_after, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += self.training
        factor = 1e5 if self.calm_after is None or self.calls <= self.calm_after else 1.0
        return (x + 1) * factor / factor - 1


class WithScaled(nn.Module):
    def __init__(self, calm_after: int | None = None):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.scaled = nn.Linear(12, 32), Scaled(calm_after)
        self.last = nn.Sequential(nn.ReLU(), nn.Linear(32, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.scaled(self.first(x)))


def accuracy(model: nn.Module) -> dict[str, float]:
    inputs, labels = classes()
    return {"accuracy": float((model(inputs).argmax(-1) == labels).float().mean())}


def trained(model: nn.Module, steps: int, policy: Any, precision: str = "fp16", **more: Any) -> Any:
    return fit(
        model, [classes()] * steps, **{"loss": cross_entropy, **more}, precision=precision, device="cpu", precision_policy=policy,
        evaluate=accuracy, optimizer=lambda weights: torch.optim.SGD(weights, 0.1),
    )  # fmt: skip


def test_the_module_that_overflows_is_moved_and_no_other() -> None:
    lost = trained(WithScaled(), 40, None)
    assert lost.skipped == 40 and lost.metrics["accuracy"] < 0.6
    saved = trained(WithScaled(), 40, "adaptive")
    (move,) = saved.moves
    assert (move.step, move.module, move.to, move.reason) == (2, "scaled", "fp32", "overflow") and move.figure > 0.5
    assert saved.skipped < 5 and saved.metrics["accuracy"] > 0.95
    exact = trained(WithScaled(), 40, None, "fp32")
    assert saved.history[0]["loss"] == pytest.approx(exact.history[0]["loss"], rel=0.2)


def test_bf16_has_the_range() -> None:
    assert trained(WithScaled(), 40, "adaptive", "bf16").moves == []


def test_a_module_returns_when_it_is_calm() -> None:
    policy = AdaptivePolicy(calm_steps=10)
    moves = trained(WithScaled(calm_after=5), 40, policy).moves
    assert moves[0].to == "fp32"
    assert moves[1:] == [Move(moves[0].step + 10, "scaled", "half", "calm", 10.0)]


def test_a_module_on_trial_leaves_at_once_and_for_longer() -> None:
    policy = AdaptivePolicy(calm_steps=10)
    moves = trained(WithScaled(), 80, policy).moves
    assert [(move.step, move.to) for move in moves] == [
        (2, "fp32"), (12, "half"), (13, "fp32"), (33, "half"), (34, "fp32"), (74, "half"), (75, "fp32"),
    ]  # fmt: skip
    assert {move.module for move in moves} == {"scaled"}


def test_a_user_of_large_numbers_is_moved_too() -> None:
    """The next layer gets more than half holds, and cannot be half either."""

    class Large(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 1e5

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 8), Large(), nn.Linear(8, 4), nn.LayerNorm(4), nn.Linear(4, 4))
    moves = trained(model, 30, "adaptive").moves
    assert [(move.module, move.reason) for move in moves] == [("1", "overflow"), ("2", "overflow")]


def test_what_the_user_keeps_never_moves() -> None:
    policy = AdaptivePolicy(fp32=("scaled",), calm_steps=3)
    result = trained(WithScaled(), 30, policy)
    assert result.moves == [] and result.metrics["accuracy"] > 0.95


def test_gradients_that_vanish_move_a_module() -> None:
    """The loss is far too small for the scale, so that gradients vanish on their way to the first layer."""

    class Shrink(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 1e-5

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), Shrink(), nn.Linear(32, 4))
    policy = AdaptivePolicy(probe_every=5, calm_steps=1000)
    moves = trained(model, 30, policy, loss=lambda y, t: 1e-5 * cross_entropy(y, t)).moves
    assert moves and moves[0].module == "0" and moves[0].reason == "underflow" and moves[0].step == 10
    assert 0.5 < moves[0].figure <= 1


def test_noise_moves_a_module_and_probes_disturb_nothing() -> None:
    def after(policy: Any) -> tuple[nn.Module, Any]:
        model = network(dropout=0.5)
        return model, trained(model, 12, policy, "bf16")

    plain, _ = after(None)
    probed, quiet = after(AdaptivePolicy(probe_every=1, noise=10))
    assert quiet.moves == []
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), probed.state_dict().values(), strict=True))
    _, noisy = after(AdaptivePolicy(probe_every=1, noise=1e-4))
    assert {(move.module, move.reason) for move in noisy.moves} == {("0", "noise"), ("1", "noise"), ("4", "noise")}
    assert all(1e-4 < move.figure < 0.1 for move in noisy.moves)
