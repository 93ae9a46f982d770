"""docs/deploy.md: its commands work, and its tables name what there is."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from halfconv.deploy.kinds import KINDS
from tests.deploy.packages import ROOT, node_modules
from tests.documents import BLOCK, shell

PAGE = (ROOT / "docs" / "deploy.md").read_text("utf-8")
BLOCKS = [body for kind, body in BLOCK.findall(PAGE) if kind == "sh"]


def run(script: str, folder: Path) -> str:
    script = re.sub(r"^python ", f"{sys.executable} ", script, flags=re.M)
    script = re.sub(r"^halfconv ", f"{sys.executable} -m halfconv ", script, flags=re.M)
    return shell(script, folder, 600)


@pytest.mark.slow
def test_commands_work(tmp_path: Path) -> None:
    (tmp_path / "models").symlink_to(ROOT / "models")
    edge, example, mobile, node = BLOCKS
    assert run(edge, tmp_path).rstrip().endswith("verify: passed")
    assert "logits: float32" in run(example, tmp_path)
    assert run(mobile, tmp_path).rstrip().endswith("verify: passed")
    assert node.count("npm install --ignore-scripts\n") == 1
    (tmp_path / "node_modules").symlink_to(node_modules())  # what that command installs
    said = run(node.replace("npm install --ignore-scripts\n", ""), tmp_path)
    assert "verify: passed" in said and said.rstrip().endswith(" ms")


@pytest.mark.parametrize("kind", [kind.name for kind in KINDS if f"## {kind.name}\n" in PAGE])
def test_every_kind_of_the_page_is_in_its_table(kind: str) -> None:
    assert re.search(rf"^\| `{kind}` \| .+ \| .+ \|$", PAGE, re.M)


def test_the_kinds_of_this_page_are_there() -> None:
    assert {"edge", "mobile", "node"} <= {kind.name for kind in KINDS}
    assert len(BLOCKS) == 4
