"""What docs/sweep.md shows does what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from halfconv.sweep.options import OPTIONS
from tests.sweep.fleets import ROOT, environment, results, save_model, save_samples

TEXT = (ROOT / "docs" / "sweep.md").read_text("utf-8")


def test_every_key_is_in_the_table() -> None:
    table = "\n".join(line.split("|")[1] for line in TEXT.partition("### Keys")[2].splitlines() if line.startswith("| `"))
    assert sorted(re.findall(r"`(\w+)`", table)) == sorted(["path", "name", *OPTIONS])


@pytest.mark.slow
def test_the_example_runs(folder: Path) -> None:
    (fleet,) = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    (commands,) = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
    (folder / "fleet.toml").write_text(fleet.replace('"Softmax"', '"Relu"'), "utf-8")
    save_model(folder / "models" / "encoder.onnx")
    save_model(folder / "models" / "other.onnx", 1)
    save_samples(folder / "samples" / "encoder.npz")
    for command in commands.splitlines():
        words = command.split()
        assert words[0] == "halfconv"
        done = subprocess.run(
            [sys.executable, "-m", *words], cwd=folder, env=environment(), capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done
    assert sorted(results(folder / "fleet.sweep")) == sorted(
        f"{name}.{target}.{to}.result.json"
        for name, targets in (("encoder", ["cuda"]), ("other", ["cuda", "portable"]))
        for target in targets
        for to in ("fp16", "bf16")
    )
    assert (folder / "table.md").is_file()
