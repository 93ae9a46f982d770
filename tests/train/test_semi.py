"""Labelled and unlabelled data: digits with 100 labels, and what the teacher does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import affine_grid, cross_entropy, grid_sample

from halfconv.errors import UsageError
from halfconv.train import PrecisionPolicy, fit, fit_semi, warm_up
from halfconv.train.semi import _StudentAndTeacher
from tests.train.problems import classes, network


def altered(images: torch.Tensor) -> torch.Tensor:
    """Turn by up to 17 degrees, scale by up to 15 %, shift by up to one pixel, and add noise; images are (batch, 1, 8, 8)."""
    angle, scale, shift = (torch.rand(len(images), 4) * 2 - 1).mul(torch.tensor([0.3, 0.15, 0.25, 0.25])).split([1, 1, 2], 1)
    cos, sin = angle.cos() * (1 + scale), angle.sin() * (1 + scale)
    rows = torch.stack([torch.cat([cos, -sin, shift[:, :1]], 1), torch.cat([sin, cos, shift[:, 1:]], 1)], 1)
    moved = grid_sample(images, affine_grid(rows, list(images.shape), align_corners=False), align_corners=False)
    return moved + 0.1 * torch.randn_like(images)


class Digits:
    """1,797 images: 360 for the test, 100 with labels, and all but the test's without."""

    def __init__(self, seed: int):
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        order = torch.randperm(1797, generator=torch.Generator().manual_seed(seed))
        self.images = torch.from_numpy(images).float().div(16).view(-1, 1, 8, 8)[order]
        self.labels = torch.from_numpy(labels)[order]

    def labelled(self, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for part in (360 + torch.randperm(100)).split(50):
            yield self.images[part], self.labels[part]

    def unlabelled(self, epoch: int) -> Iterator[torch.Tensor]:
        for part in (360 + torch.randperm(1437)).split(128):  # 12 batches
            yield self.images[part]

    def accuracy(self, model: nn.Module) -> dict[str, float]:
        return {"accuracy": float((model(self.images[:360]).argmax(-1) == self.labels[:360]).float().mean())}


def perceptron(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU())
    return nn.Sequential(encoder, nn.Linear(64, 10))


def decoder() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.Unflatten(1, (1, 8, 8)))


@pytest.mark.slow
def test_a_hundred_labels_and_the_rest_without_beat_the_labels_alone() -> None:
    gains = []
    for seed in range(3):
        data = Digits(seed)
        options: dict[str, Any] = {"precision": "bf16", "device": "cpu", "seed": seed, "evaluate": data.accuracy}
        alone = fit(perceptron(seed), data.labelled, loss=cross_entropy, epochs=720, **options).metrics["accuracy"]  # as many steps
        model = perceptron(seed)
        warm_up(model[0], decoder(), data.unlabelled, corrupt=altered, epochs=20, precision="bf16", device="cpu", seed=seed)
        both = fit_semi(model, data.labelled, data.unlabelled, strong=altered, threshold=0.8, epochs=120, **options).metrics
        print(f"seed {seed}: labels {alone:.4f}, with the rest {both['accuracy']:.4f}, confident {both['confident']:.3f}")
        gains.append(both["accuracy"] - alone)
    assert sum(gains) / 3 >= 0.03
    assert min(gains) > 0


def test_warm_up_learns_to_restore() -> None:
    data = Digits(0)
    encoder = perceptron(0)[0]
    before = encoder[1].weight.detach().clone()
    result = warm_up(encoder, decoder(), data.unlabelled, epochs=8, precision="bf16", device="cpu", corrupt=lambda x: x)
    assert result.history[-1]["loss"] < result.history[0]["loss"] / 2
    assert not torch.equal(encoder[1].weight, before)
    listed = warm_up(encoder, decoder(), [data.images[:64]], device="cpu")
    assert listed.steps == 1


def semi(model: nn.Module, **more: Any) -> Any:
    inputs, labels = classes(200)
    rest = list(inputs[20:].split(45))
    labelled = [(inputs[:20], labels[:20])]
    return fit_semi(model, labelled, rest, **{"strong": lambda x: x + 0.1, "device": "cpu", "epochs": 2, **more})


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_all_precisions(precision: str) -> None:
    result = semi(
        network(), epochs=20, threshold=0.8, precision=precision, optimizer=lambda weights: torch.optim.AdamW(weights, 0.01)
    )
    assert result.steps == 80 and result.metrics["confident"] > 0.5


def test_thresholds_and_weights_decide_what_is_used() -> None:
    assert semi(network(), threshold=1.0).metrics == {"confident": 0.0}
    assert semi(network(), threshold=0.0).metrics == {"confident": 1.0}
    first, second = network(), network()
    semi(first, threshold=0.0, weight=0.0)
    semi(second, threshold=1.0)
    assert torch.equal(first[0].weight, second[0].weight)


def test_the_teacher_is_an_average_and_ends_in_the_model() -> None:
    model = network()
    both = _StudentAndTeacher(model, lambda x: x, None, 0.9)
    start = model[0].weight.detach().clone()
    assert both.train().teacher.training is False and both.student.training
    assert not any(weight.requires_grad for weight in both.teacher.parameters())
    with torch.no_grad():
        model[0].weight += 1.0
    model[1].num_batches_tracked += 7
    both.average()  # the first counts 1 of 10
    torch.testing.assert_close(both.teacher[0].weight, start + 0.9)
    both.average()
    torch.testing.assert_close(both.teacher[0].weight, start + 0.9 + 0.1 * 9 / 11)
    for _ in range(200):
        both.average()
    torch.testing.assert_close(both.teacher[0].weight, model[0].weight)
    assert int(both.teacher[1].num_batches_tracked) == 7


def test_stopped_and_resumed_is_bit_equal(tmp_path: Path) -> None:
    whole, first, second = network(dropout=0.2), network(dropout=0.2), network(dropout=0.2)
    path = tmp_path / "run.pt"
    semi(whole, epochs=4, precision="bf16")
    semi(first, epochs=2, precision="bf16", checkpoint=path)
    semi(second, epochs=4, precision="bf16", checkpoint=path, resume=True)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), second.state_dict().values(), strict=True))


def test_policies_use_the_models_names() -> None:
    seen: set[torch.dtype] = set()
    model = network()
    model[4].register_forward_hook(lambda _, __, output: seen.add(output.dtype))
    semi(model, precision="bf16", precision_policy=PrecisionPolicy(fp32=("4",)))
    assert seen == {torch.float32}
    assert semi(network(), precision="bf16", precision_policy="adaptive").moves == []
    with pytest.raises(UsageError, match="no module's name matches"):
        semi(network(), precision="bf16", precision_policy=PrecisionPolicy(fp32=("head",)))


@pytest.mark.parametrize("wrong", [{"threshold": 1.5}, {"decay": 1.0}, {"weight": -1.0}])
def test_shares_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="threshold is from 0 to 1"):
        semi(network(), **wrong)


def test_no_labels() -> None:
    with pytest.raises(UsageError, match="there are no labelled batches"):
        fit_semi(network(), [], [classes()[0]], strong=lambda x: x, device="cpu")
