"""The wheel, installed elsewhere: the demo and a conversion; and what halfconv says where no runtime is installed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Place:
    """A virtual environment outside the clone."""

    folder: Path

    def run(self, *command: str, timeout: int = 900) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment, in a folder that holds nothing of the project."""
        kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")}
        work = self.folder / "work"
        work.mkdir(exist_ok=True)
        program = str(self.folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / command[0])
        return subprocess.run(
            [program, *command[1:]],
            cwd=work,
            env={**kept, "PYTHONNOUSERSITE": "1", "COLUMNS": "100"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=timeout,
            check=False,
        )

    def good(self, *command: str) -> str:
        done = self.run(*command)
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (made,) = folder.iterdir()
    return made


def installed(place: Path, wheel: Path, extra: str) -> Place:
    venv.create(place / "venv", with_pip=True)
    here = Place(place)
    here.good("python", "-m", "pip", "install", "-q", "-c", str(ROOT / "constraints.txt"), f"{wheel}{extra}")
    return here


@pytest.fixture(scope="module")
def demo(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    return installed(tmp_path_factory.mktemp("demo"), wheel, "[demo]")


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    return installed(tmp_path_factory.mktemp("bare"), wheel, "")


def small_model(folder: Path) -> Path:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[n, 4] x) => (float[n, 4] y) { h = Mul(x, x) y = Relu(h) }"""
    folder.mkdir(exist_ok=True)
    onnx.save(onnx.parser.parse_model(text), folder / "m.onnx")
    return folder / "m.onnx"


# What is in it


def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    assert re.fullmatch(r"halfconv-\d+\.\d+\.\d+-py3-none-any\.whl", wheel.name)
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0] for name in names} == {"halfconv", wheel.name.rsplit("-", 3)[0] + ".dist-info"}
    listed = subprocess.run(["git", "ls-files", "halfconv"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a clone")
    assert set(listed.stdout.split()) <= names
    recipes = {f"halfconv/models/{path.name}" for path in (ROOT / "models").iterdir() if path.is_file()}
    assert {f"halfconv/models/digits_cnn.{ending}" for ending in ("py", "onnx", "npz")} <= recipes <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_readme_is_the_description(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith("METADATA"))
    metadata = archive.read(name).decode("utf-8")
    assert (ROOT / "README.md").read_text("utf-8").strip() in metadata
    assert "License-Expression: Apache-2.0" in metadata


# With the demo extra


def test_package_comes_from_the_environment(demo: Place) -> None:
    place = Path(demo.good("python", "-c", "import halfconv; print(halfconv.__file__)").strip())
    assert demo.folder in place.parents
    assert ROOT not in place.parents


def test_demo_runs(demo: Place) -> None:
    content = json.loads(demo.good("halfconv", "demo", "--json"))
    files = content["files"]
    assert files == {"listed": files["listed"], "used": files["listed"], "differ": 0, "missing": 0}
    assert content["agreement"] >= 0.99
    assert set(content["no_answer"].values()) == {0}
    assert content["correct"]["other_simulated"] == 0
    assert content["conversion"]["check"]["loaded"] is True
    assert content["kept"] is None
    assert "right type, GPU simulated" in demo.good("halfconv", "demo")


def test_model_converts(demo: Place) -> None:
    small_model(demo.folder / "work")
    content = json.loads(demo.good("halfconv", "convert", "m.onnx", "--json"))
    assert content["check"]["level"] == "ORT_ENABLE_ALL"
    assert sorted(path.name for path in (demo.folder / "work").iterdir()) == [
        "m.fp16.onnx",
        "m.fp16.onnx.profile.json",
        "m.onnx",
    ]
    onnx.checker.check_model(onnx.load(demo.folder / "work" / "m.fp16.onnx"), full_check=True)


def test_recipes_are_found_where_the_package_is_installed(demo: Place) -> None:
    code = "from halfconv.recipes.catalog import NAMES, recipes_folder as f; print(*(str(f() / (n + '.py')) for n in NAMES))"
    for path in demo.good("python", "-c", code).split():
        assert demo.folder in Path(path).parents
        assert Path(path).is_file()
    done = demo.run("halfconv", "train", "digits_cnn", "-o", "digits")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"halfconv: [^\n]+; try: pip install 'halfconv\[cpu,recipes\]'[^\n]+\n", done.stderr)


def test_environment_is_consistent(demo: Place) -> None:
    assert "No broken requirements found" in demo.good("python", "-m", "pip", "check")


def test_schemas_are_installed(demo: Place) -> None:
    code = "from importlib.resources import files; print(*(f.name for f in files('halfconv').joinpath('schemas').iterdir()))"
    assert sorted(demo.good("python", "-c", code).split()) == sorted(p.name for p in (ROOT / "halfconv" / "schemas").iterdir())


# Without a runtime


def test_convert_without_runtime_says_which_to_install(bare: Place) -> None:
    source = small_model(bare.folder / "work")
    done = bare.run("halfconv", "convert", "m.onnx")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"halfconv: no ONNX Runtime is installed[^\n]*; try: [^\n]+\n", done.stderr)
    for part in ("halfconv[cpu]", "halfconv[gpu]", "not both", "overwrite each other's files", "--no-check"):
        assert part in done.stderr
    assert list(source.parent.iterdir()) == [source]


def test_inspect_and_unchecked_conversion_need_no_runtime(bare: Place) -> None:
    source = small_model(bare.folder / "work")
    assert json.loads(bare.good("halfconv", "inspect", "m.onnx", "--json"))["nodes"] == 2
    content = json.loads(bare.good("halfconv", "convert", "m.onnx", "--no-check", "--json", "-o", "unchecked.onnx"))
    assert content["check"] is None
    for name in ("unchecked.onnx", "unchecked.onnx.profile.json"):
        (source.parent / name).unlink()


def test_demo_without_its_extra_says_what_to_install(bare: Place) -> None:
    done = bare.run("halfconv", "demo")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"halfconv: [^\n]+; try: pip install 'halfconv\[demo\]'\n", done.stderr)
