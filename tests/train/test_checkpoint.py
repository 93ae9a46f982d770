"""Checkpoints: a run that was stopped goes on to the same bits, and files that do not fit are refused."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from halfconv.errors import EnvironmentProblem, InputError, UsageError
from halfconv.train import AdaptivePolicy, Result, fit
from tests.train.problems import classes, network, shuffled


class Stop(Exception):
    pass


def noisy(epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches in a random order and with noise from all three generators."""
    inputs, labels = classes()
    for part in torch.randperm(96).chunk(6):
        yield inputs[part] + random.random() + np.random.rand() + torch.rand(12) + epoch, labels[part]


def cyclic(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, 40)


def trained(data: Any, stop_at: int | None = None, **more: Any) -> tuple[nn.Module, Result]:
    model, seen = network(dropout=0.3), [0]

    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        seen[0] += 1
        if seen[0] == stop_at:
            raise Stop
        return cross_entropy(output, target)

    arguments: dict[str, Any] = {"epochs": 4, "device": "cpu", "seed": 5, "evaluate": lambda _: {"one": 1.0}, **more}
    return model, fit(model, data, loss=loss, **arguments)


def same(first: nn.Module, second: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))


def without_times(result: Result) -> dict[str, Any]:
    found = result.to_dict()
    for entry in found["history"]:
        del entry["seconds"]
    return found


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "pure-fp16"])
@pytest.mark.parametrize("data", [shuffled, lambda: noisy], ids=["loader", "function"])
@pytest.mark.parametrize(("stop_at", "every"), [(15, None), (17, 1), (9, 2)])
def test_resumed_is_bit_equal(tmp_path: Path, data: Any, stop_at: int, every: int | None, precision: str) -> None:
    options: dict[str, Any] = {"precision": precision, "scheduler": cyclic, "clip_norm": 1.0}
    if precision in ("fp16", "bf16"):
        options["precision_policy"] = AdaptivePolicy(probe_every=3, noise=0.001, calm_steps=4)
    if precision == "pure-fp16":  # in which Adam divides by zero
        options["optimizer"] = lambda weights: torch.optim.SGD(weights, 0.01, momentum=0.9)
    whole, expected = trained(data(), **options)
    path = tmp_path / "run.pt"
    with pytest.raises(Stop):
        trained(data(), stop_at, checkpoint=path, checkpoint_every=every, **options)
    assert [file.name for file in tmp_path.iterdir()] == ["run.pt"]
    resumed, result = trained(data(), checkpoint=path, checkpoint_every=every, resume=True, **options)
    assert same(whole, resumed)
    assert without_times(result) == without_times(expected)
    assert result.steps == 24
    if precision == "bf16":
        assert result.moves


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(("before", "after"), [(None, True), (True, None), (False, True)])
def test_an_optimizer_goes_on_with_its_own_kernels(tmp_path: Path, before: bool | None, after: bool | None, precision: str) -> None:
    """As where a run goes on on a GPU that began on a CPU, or before the default there was the fused one."""
    made: list[torch.optim.Optimizer] = []

    def optimizer(weights: Any) -> torch.optim.Optimizer:
        made.append(torch.optim.AdamW(weights, (0.01, 0.5)[len(made)], fused=(before, after)[len(made)]))
        return made[-1]

    def more(epochs: int) -> tuple[nn.Module, Result]:
        return trained(
            shuffled(), precision=precision, optimizer=optimizer, epochs=epochs, checkpoint=tmp_path / "run.pt", resume=True
        )  # fmt: skip

    more(2)
    _, result = more(4)
    assert [own.param_groups[0]["fused"] for own in made] == [before, after] and result.steps == 24
    assert made[1].param_groups[0]["lr"] == 0.01  # the checkpoint's, as all that says what is computed
    assert {float(state["step"]) for state in made[1].state.values()} == {24}


def test_accumulated_steps_resume(tmp_path: Path) -> None:
    whole, _ = trained(shuffled(), accumulate=4)
    with pytest.raises(Stop):
        trained(shuffled(), 16, accumulate=4, checkpoint=tmp_path / "run.pt", checkpoint_every=1)
    resumed, _ = trained(shuffled(), accumulate=4, checkpoint=tmp_path / "run.pt", resume=True)
    assert same(whole, resumed)


def test_a_finished_run_is_taken_up_as_it_is_and_can_go_on(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    whole, _ = trained(shuffled(), epochs=6)
    first, done = trained(shuffled(), checkpoint=path)
    again, result = trained(shuffled(), checkpoint=path, resume=True)
    assert same(first, again) and result == done and result.metrics == {"one": 1.0}
    longer, result = trained(shuffled(), epochs=6, checkpoint=path, resume=True)
    assert same(whole, longer) and len(result.history) == 6


def test_resume_without_a_file_begins(tmp_path: Path) -> None:
    whole, _ = trained(shuffled())
    begun, _ = trained(shuffled(), checkpoint=tmp_path / "run.pt", resume=True)
    assert same(whole, begun)


def test_files_hold_plain_data_only(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    trained(shuffled(), checkpoint=path, precision="fp16", scheduler=cyclic)
    assert torch.load(path, weights_only=True)["step"] == 24


class Evil:
    def __reduce__(self) -> Any:
        return print, ("run",)


def test_damaged_and_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    trained(shuffled(), checkpoint=path)
    content = path.read_bytes()
    for damaged in (b"", b"text", content[:1000], content[: len(content) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"cannot be read: .*; try: training from the start"):
            trained(shuffled(), checkpoint=path, resume=True)
    torch.save({"halfconv_checkpoint": 1, "model": Evil()}, path)
    with pytest.raises(InputError, match="cannot be read"):
        trained(shuffled(), checkpoint=path, resume=True)
    torch.save({"weights": torch.ones(1)}, path)
    with pytest.raises(InputError, match="is no checkpoint of this version"):
        trained(shuffled(), checkpoint=path, resume=True)


def test_other_runs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    with pytest.raises(Stop):
        trained(shuffled(), 6, checkpoint=path, checkpoint_every=4)

    def refused(words: str, model: nn.Module | None = None, data: Any = None, **more: Any) -> None:
        arguments = {"epochs": 4, "seed": 5, "device": "cpu", **more}
        with pytest.raises(UsageError, match=words):
            fit(model or network(), data or shuffled(), loss=cross_entropy, checkpoint=path, resume=True, **arguments)

    refused("written with precision 'fp32', and this run has 'bf16'; try: precision='fp32'", precision="bf16")
    refused("written with seed 5, and this run has 6", seed=6)
    refused("written with accumulate 1", accumulate=2)
    refused("has no state of a scheduler", scheduler=cyclic)
    refused("the checkpoint's model does not fit", model=nn.Linear(12, 4))
    refused("the checkpoint's optimizer does not fit", optimizer=lambda weights: torch.optim.SGD(list(weights)[:1], 1.0))
    refused("fewer steps than the checkpoint did in it", data=[classes()])


def test_paths_are_checked_before_training(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a directory; try: "):
        trained(shuffled(), 1, checkpoint=tmp_path)
    with pytest.raises(EnvironmentProblem, match="missing or read-only; try: mkdir -p"):
        trained(shuffled(), 1, checkpoint=tmp_path / "no" / "run.pt")
