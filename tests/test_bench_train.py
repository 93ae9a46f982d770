"""The benchmark of training runs without a GPU."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench import tools, train
from halfconv.recipes.catalog import NAMES, load_recipe

ROOT = Path(train.__file__).parents[1]


def test_the_first_epoch_does_not_count_where_there_are_more() -> None:
    history = [{"seconds": 9.0}, {"seconds": 1.0}, {"seconds": 3.0}, {"seconds": 2.0}]
    assert train.figures(history, 40) == {"step_ms": 200.0, "steps": 40}
    assert train.figures(history[:1], 10) == {"step_ms": 900.0, "steps": 10}


@pytest.mark.parametrize("text", ["nothing", "resnet50", "resnet50@", "resnet50@0", "digits_cnn@3"])
def test_unknown_cases_are_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train.parsed(["run", "x.json", text])
    assert "try: digits_cnn" in capsys.readouterr().err


def failing(case: str) -> Callable[..., dict[str, Any]]:
    def trained(precision: str, device: str, epochs: int | None) -> dict[str, Any]:
        if precision == "fp16":
            raise ValueError("too large")
        return {"step_ms": 1.0}

    return trained


def test_a_precision_that_fails_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "_synthetic", failing)
    rows = list(train.train("tiny_cnn@2", ("fp32", "fp16", "bf16"), "cpu", 1))
    assert [(row["who"], row.get("step_ms"), row.get("error")) for row in rows] == [
        ("train-fp32", 1.0, None), ("train-fp16", None, "ValueError: too large"), ("train-bf16", 1.0, None),
    ]  # fmt: skip


def test_what_a_process_printed_before_it_died_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(command: list[str], folder: Path, timeout: float) -> None:
        (folder / "stdout.txt").write_text('{"who": "train-fp32", "step_ms": 2.0}\n{"who": "train-tf32", "st', "utf-8")
        raise tools.Failed("killed by SIGKILL")

    monkeypatch.setattr(train, "measured", killed)
    rows = train.alone("tiny_cnn@2", ["fp32", "tf32", "bf16"], train.parsed(["run", "x.json", "--device", "cuda"]))
    assert rows == [
        {"who": "train-fp32", "step_ms": 2.0}, {"who": "train-tf32", "error": "killed by SIGKILL"},
        {"who": "train-bf16", "error": "killed by SIGKILL"},
    ]  # fmt: skip


@pytest.mark.slow
def test_a_precision_is_worth_the_same_after_another_as_alone() -> None:
    (_, after), (alone,) = (list(train.train("digits_mlp", precisions, "cpu", 2)) for precisions in (("fp32", "bf16"), ("bf16",)))
    assert 0.3 < alone["metric"] < 1
    assert {key: after[key] for key in ("who", "steps", "skipped", "metric")} == {
        key: alone[key] for key in ("who", "steps", "skipped", "metric")
    }


@pytest.mark.gpu
def test_memory_is_the_same_after_another_precision_as_alone() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    options = train.parsed(["run", "x.json", "--device", "cuda", "--epochs", "1"])
    after, (alone,) = (train.alone("tiny_cnn@256", kinds, options) for kinds in (["fp32", "tf32", "fp16", "bf16"], ["bf16"]))
    assert alone["peak_mb"] > 1
    assert after[-1]["peak_mb"] == pytest.approx(alone["peak_mb"], rel=0.02)


@pytest.mark.slow
def test_recipes_and_random_numbers_are_trained_in_each_precision(tmp_path: Path) -> None:
    target = tmp_path / "train_cpu.json"
    command = [sys.executable, str(ROOT / "bench" / "train.py"), "run", str(target), "digits_mlp", "tiny_bert@2", "--device", "cpu"]
    done = subprocess.run(
        [*command, "--epochs", "2"], capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads(target.read_text("utf-8"))["rows"]
    assert [(row["case"], row["who"]) for row in rows] == [
        (case, f"train-{kind}") for case in ("digits_mlp", "tiny_bert@2") for kind in ("fp32", "bf16")
    ]
    for row in rows:
        assert "error" not in row and row["step_ms"] > 0 and row["peak_mb"] > 50 and row["skipped"] == 0
        assert (row["metric"] is None) == ("@" in row["case"])


def committed() -> dict[tuple[str, str], dict[str, Any]]:
    """The committed rows of a GPU, by case and precision."""
    rows = json.loads((ROOT / "bench" / "results" / "train_h200.json").read_text("utf-8"))["rows"]
    return {(row["case"], row["who"].removeprefix("train-")): row for row in rows}


def test_on_a_gpu_every_recipe_reaches_what_it_promises_in_every_precision() -> None:
    pytest.importorskip("torch")
    found = committed()
    for name, precision in itertools.product(NAMES, train.PRECISIONS["cuda"]):
        assert found[name, precision]["metric"] >= load_recipe(name).threshold, (name, precision)


def test_what_the_documentation_says_of_time_and_memory() -> None:
    found = committed()
    for name, half in itertools.product(NAMES, ("fp16", "bf16")):
        assert found[name, half]["step_ms"] > 0.95 * found[name, "fp32"]["step_ms"]
        assert found[name, "fp16"]["step_ms"] > 1.1 * found[name, "fp32"]["step_ms"]
        assert found[name, half]["metric"] >= found[name, "fp32"]["metric"] - 0.005
    for half in ("fp16", "bf16"):
        row, whole, rounded = (found["resnet50@64", kind] for kind in (half, "fp32", "tf32"))
        assert row["step_ms"] < 0.5 * whole["step_ms"]
        assert row["peak_mb"] < 0.6 * min(whole["peak_mb"], rounded["peak_mb"])
        assert row["step_ms"] == pytest.approx(rounded["step_ms"], rel=0.1)
        assert found["bert_base@32", "tf32"]["step_ms"] < found["bert_base@32", half]["step_ms"]


def test_what_the_documentation_says_of_operators_that_autocast_adds() -> None:
    assert 0.4 < operators("bf16") / operators("fp32") - 1 < 0.6


def operators(precision: str) -> int:
    """Count the operators of a step of a small BERT of twelve layers, but for those that only look at memory otherwise."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from torch.utils._python_dispatch import TorchDispatchMode

    from bench import gpu_models
    from halfconv.train import fit

    class Counting(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.count += not func.is_view
            return func(*args, **(kwargs or {}))

    sizes = {"hidden_size": 16, "num_hidden_layers": 12, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 100}
    module = gpu_models._bert("sdpa", **sizes).train()
    inputs = tuple(torch.from_numpy(array) for array in gpu_models._text(8, 100)(2, 0).values())
    target = torch.zeros_like(module(*inputs))
    with Counting() as seen:
        fit(
            module, [(inputs, target)], loss=torch.nn.functional.mse_loss, precision=precision, device="cpu",
            optimizer=lambda weights: torch.optim.SGD(weights, 0.1, fused=True),
        )  # fmt: skip
    return seen.count


def test_on_two_cores_every_recipe_reaches_what_it_promises_in_five_minutes() -> None:
    pytest.importorskip("torch")
    content = json.loads((ROOT / "bench" / "results" / "train_cpu.json").read_text("utf-8"))
    found = {(row["case"], row["who"].removeprefix("train-")): row for row in content["rows"]}
    assert content["machine"]["cores"] == 2
    for name, precision in itertools.product(NAMES, train.PRECISIONS["cpu"]):
        row = found[name, precision]
        assert row["metric"] >= load_recipe(name).threshold, (name, precision)
        assert row["steps"] * row["step_ms"] < 5 * 60e3, (name, precision)
