"""Training on a GPU: precisions, loss scaling and resuming."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from halfconv.train import fit
from tests.train.problems import classes, network, shuffled
from tests.train.test_fit import momentum
from tests.train.test_policy import WithScaled

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def on_gpu(model: nn.Module) -> dict[str, float]:
    inputs, labels = classes()
    return {"accuracy": float((model(inputs.cuda()).argmax(-1).cpu() == labels).float().mean())}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "pure-fp16"])
def test_learns(precision: str) -> None:
    model = network()
    result = fit(
        model, shuffled(), loss=cross_entropy, optimizer=momentum, epochs=6, precision=precision, device="cuda", evaluate=on_gpu
    )
    assert result.metrics["accuracy"] > 0.95


def test_scaling_rescues_what_fp16_loses() -> None:
    moved = {}
    for precision in ("fp16", "pure-fp16"):
        model = network().half().float()
        before = model[0].weight.detach().clone()
        fit(model, [classes()] * 5, loss=lambda y, t: 1e-8 * cross_entropy(y, t), precision=precision, device="cuda",
            optimizer=lambda weights: torch.optim.SGD(weights, 1e4))  # fmt: skip
        moved[precision] = float((model[0].weight.detach().cpu() - before).abs().max())
    assert moved["fp16"] > 0 and moved["pure-fp16"] == 0


def test_the_module_that_overflows_is_moved() -> None:
    result = fit(WithScaled(), [classes()] * 40, loss=cross_entropy, precision="fp16", device="cuda", precision_policy="adaptive")
    assert [(move.module, move.reason) for move in result.moves] == [("scaled", "overflow")]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_resumed_is_bit_equal(tmp_path: Path, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    try:
        whole = network(dropout=0.3)
        fit(whole, shuffled(), loss=cross_entropy, epochs=4, precision=precision, device="cuda")
        for epochs in (2, 4):
            model = network(dropout=0.3)
            fit(
                model, shuffled(), loss=cross_entropy, epochs=epochs, precision=precision, device="cuda",
                checkpoint=tmp_path / "run.pt", resume=True,
            )  # fmt: skip
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), model.state_dict().values(), strict=True))
