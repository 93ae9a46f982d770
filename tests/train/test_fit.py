"""Training in each precision: it learns, it counts what it says, and it refuses what cannot work."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from halfconv.errors import EnvironmentProblem, UsageError
from halfconv.progress import Progress
from halfconv.train import fit
from halfconv.train.tensors import map_tensors, to_float, to_half
from tests.train.problems import classes, network, shuffled

PRECISIONS = ("fp32", "fp16", "bf16", "pure-fp16")


def accuracy(model: nn.Module) -> dict[str, float]:
    inputs, labels = classes(seed=0)
    assert not model.training and not torch.is_grad_enabled()
    return {"accuracy": float((model(inputs).argmax(-1) == labels).float().mean())}


def momentum(weights: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(weights, 0.05, momentum=0.9)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_learns(precision: str) -> None:
    model = network()
    result = fit(
        model, shuffled(), loss=cross_entropy, optimizer=momentum, epochs=6, precision=precision, device="cpu", evaluate=accuracy
    )
    assert result.metrics["accuracy"] > 0.95
    assert [entry["epoch"] for entry in result.history] == list(range(6))
    assert result.history[-1]["loss"] < result.history[0]["loss"] / 2
    assert result.history[-1]["accuracy"] == result.metrics["accuracy"]
    assert result.steps == 36 and result.skipped == 0 and result.moves == []
    assert (result.scales == [(0, 65536.0)]) == (precision == "fp16")
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert model.training and not model._forward_pre_hooks


@pytest.mark.parametrize(("precision", "half"), [("fp16", torch.float16), ("bf16", torch.bfloat16), ("pure-fp16", torch.float16)])
def test_what_is_half(precision: str, half: torch.dtype) -> None:
    seen: dict[str, torch.dtype] = {}

    class Probe(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(12, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.layer(x)
            seen.update(weight=self.layer.weight.dtype, output=y.dtype)
            return y

    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        seen["loss"] = output.dtype
        return cross_entropy(output, target)

    kept: list[torch.optim.Optimizer] = []

    def remembered(weights: Any) -> torch.optim.Optimizer:
        kept.append(momentum(weights))
        return kept[0]

    fit(Probe(), [classes()] * 4, loss=loss, optimizer=remembered, precision=precision, device="cpu")
    master = half if precision == "pure-fp16" else torch.float32
    (state, _) = kept[0].state.values()
    assert seen == {"weight": master, "output": half, "loss": master}
    assert state["momentum_buffer"].dtype == master


def test_same_seed_same_bits() -> None:
    def trained(seed: int) -> torch.Tensor:
        model = network(dropout=0.2)
        fit(model, shuffled(), loss=cross_entropy, epochs=2, seed=seed, device="cpu")
        return model[0].weight.detach()

    assert torch.equal(trained(3), trained(3))
    assert not torch.equal(trained(3), trained(4))


def test_accumulated_batches_are_one_large_batch() -> None:
    inputs, labels = classes(48)
    weights = []
    for parts, accumulate in ((1, 1), (4, 4), (4, 5)):  # the last step of an epoch may have fewer batches
        model = nn.Linear(12, 4)
        nn.init.constant_(model.weight, 0.1)
        nn.init.zeros_(model.bias)
        data = list(zip(inputs.chunk(parts), labels.chunk(parts), strict=True))
        result = fit(model, data, loss=cross_entropy, optimizer=momentum, epochs=3, accumulate=accumulate, device="cpu")
        assert result.steps == 3
        weights.append(model.weight.detach())
    torch.testing.assert_close(weights[1], weights[0], rtol=0, atol=1e-6)
    assert torch.equal(weights[1], weights[2])


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_gradients_are_clipped_after_unscaling(precision: str) -> None:
    model = nn.Linear(12, 4, bias=False)
    before = model.weight.detach().clone()
    step = fit(
        model, [classes()], loss=lambda y, t: 100 * cross_entropy(y, t), precision=precision, device="cpu", clip_norm=0.5,
        optimizer=lambda weights: torch.optim.SGD(weights, 1.0), loss_scale=64.0 if precision == "fp16" else None,
    )  # fmt: skip
    assert step.steps == 1 and float((model.weight.detach() - before).norm()) == pytest.approx(0.5, rel=1e-4)


def test_inputs_of_all_forms() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 1)

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"sum": self.layer(a + b)}

    a, b, y = torch.ones(2, 3), torch.ones(2, 3), torch.ones(2, 1)
    data = [((a, b), y), ({"a": a, "b": b}, y), ([a, b], y)]
    assert fit(Two(), data, loss=lambda out, t: mse_loss(out["sum"], t), precision="bf16", device="cpu").steps == 3


def test_data_by_epoch_scheduler_and_after_step() -> None:
    asked, rates, steps = [], [], []

    def data(epoch: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        asked.append(epoch)
        return [classes(seed=epoch)] * 2

    def scheduler(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        rates.append(optimizer)
        return torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)

    fit(network(), data, loss=cross_entropy, epochs=2, scheduler=scheduler, after_step=steps.append, device="cpu")
    assert asked == [0, 1] and len(steps) == 4
    assert rates[0].param_groups[0]["lr"] == pytest.approx(1e-3 / 16)


def test_frozen_weights_and_mode_stay() -> None:
    model = network().eval()
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    fit(model, [classes()], loss=cross_entropy, device="cpu")
    assert torch.equal(model[0].weight, before) and not model.training


def test_progress_is_told() -> None:
    told: list[Progress] = []
    fit(network(), shuffled(), loss=cross_entropy, epochs=2, device="cpu", progress=told.append)
    assert [(each.stage, each.done, each.total) for each in told[5:7]] == [("epoch 1 of 2", 6, 6), ("epoch 2 of 2", 1, 6)]
    assert all(re.match(r"loss \d", each.detail) for each in told)


def test_result_is_data() -> None:
    result = fit(network(), [classes()], loss=cross_entropy, precision="fp16", device="cpu").to_dict()
    assert set(result) == {"metrics", "history", "scales", "skipped", "moves", "steps"}
    assert result["scales"] == [[0, 65536.0]] and math.isfinite(result["history"][0]["seconds"])


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"precision": "fp8"}, "no precision is called 'fp8'; try: fp32, fp16"),
    ({"device": "tpux"}, "torch knows no device 'tpux'; try: auto"),
    ({"device": "meta"}, "training on 'meta' is not supported"),
    ({"epochs": 0}, "count from 1"),
    ({"seed": -1}, "seed -1 is negative"),
    ({"resume": True}, "need the file; try: checkpoint="),
    ({"loss_scale": 8.0}, "only fp16 is scaled"),
    ({"precision_policy": "adaptive", "precision": "pure-fp16"}, "leaves nothing in FP32"),
    ({"precision_policy": "adaptiv"}, "no policy is called 'adaptiv'; try: precision_policy="),
    ({"data": []}, "the data has no batches in epoch 0"),
    ({"data": [classes()[0]]}, "a batch is a Tensor, not a pair"),
    ({"data": iter([classes()]), "epochs": 2}, "the data has no batches in epoch 1"),
    ({"model": network().half()}, "weight '0.weight' is half"),
    ({"model": network().requires_grad_(False)}, "no weight that requires a gradient"),
    ({"model": nn.ReLU()}, "no weight that requires a gradient"),
]  # fmt: skip


@pytest.mark.parametrize(("changed", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_refusals(changed: dict[str, Any], words: str) -> None:
    arguments = {"model": network(), "data": [classes()], "loss": cross_entropy, "device": "cpu", **changed}
    with pytest.raises(UsageError, match=re.escape(words)):
        fit(**arguments)


def test_no_gpu_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EnvironmentProblem, match=r"finds no CUDA device; try: device=\"cpu\""):
        fit(network(), [classes()], loss=cross_entropy, device="cuda")
    assert fit(network(), [classes()], loss=cross_entropy, device="auto").steps == 1


@pytest.mark.parametrize(
    "error", ["\"foo_cpu\" not implemented for 'Half'", "could not create a primitive descriptor for LSTM. Run …"]
)
def test_operators_without_fp16_on_the_cpu(error: str) -> None:
    class Missing(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError(error)

    with pytest.raises(EnvironmentProblem, match=r"cannot compute in FP16 here: .*; try: precision=\"bf16\", or a GPU"):
        fit(Missing(12, 4), [classes()], loss=cross_entropy, precision="fp16", device="cpu")
    with pytest.raises(RuntimeError, match="for"):
        fit(Missing(12, 4), [classes()], loss=cross_entropy, precision="bf16", device="cpu")


def test_a_failed_run_leaves_the_model_as_it_was() -> None:
    model = network()

    def broken(*_: Any) -> torch.Tensor:
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        fit(model, [classes()], loss=broken, precision="pure-fp16", device="cpu")
    assert model[0].weight.dtype == torch.float32 and not model._forward_pre_hooks


class Pair(NamedTuple):
    a: torch.Tensor
    b: Any


class Output(dict[str, Any]):
    pass


@pytest.mark.parametrize(
    "form", [lambda x: x, lambda x: (x, None), lambda x: [x], lambda x: Pair(x, "b"), lambda x: Output(x=x, y=1)]
)
def test_nests_keep_their_form(form: Callable[[Any], Any]) -> None:
    nest = form(torch.ones(2, dtype=torch.bfloat16))
    found = to_float(nest)
    assert type(found) is type(nest)
    assert str(found) == str(form(torch.ones(2)))
    assert str(to_half(found, torch.bfloat16)) == str(nest)
    assert map_tensors(torch.neg, torch.ones(1)) == -1


def test_log_dir_without_tensorboard(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(EnvironmentProblem, match=r"log_dir needs the package tensorboard .*; try: pip install tensorboard"):
        fit(network(), [classes()], loss=cross_entropy, device="cpu", log_dir=tmp_path)


def test_events(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fit(
        network(), shuffled(), loss=cross_entropy, epochs=2, device="cpu", precision="fp16", clip_norm=1.0, evaluate=accuracy,
        log_dir=tmp_path,
    )  # fmt: skip
    events = EventAccumulator(str(tmp_path)).Reload()
    train = ["train/gradient_norm", "train/learning_rate", "train/loss", "train/loss_scale", "train/skipped"]
    assert sorted(events.Tags()["scalars"]) == ["epoch/loss", "metrics/accuracy", *train]
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 13))
    assert [event.step for event in events.Scalars("epoch/loss")] == [6, 12]
