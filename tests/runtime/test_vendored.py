"""``halfconv/runtime`` and ``errors.py`` alone, copied into another package: stdlib, onnxruntime and numpy are all they need."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import halfconv
from tests.runtime import models

PACKAGE = Path(halfconv.__file__).parent
MODULES = sorted((PACKAGE / "runtime").glob("*.py"))
ALLOWED = {"numpy", "onnxruntime", "ml_dtypes", *sys.stdlib_module_names}

BODY = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {refused!r}:
            raise ImportError("refused: " + name)

sys.meta_path.insert(0, Refuse())
import numpy as np
from app.vendored.runtime.session import Session
from app.vendored.runtime.shadow import Shadow
from app.vendored.errors import InputError, ProfileWarning

session = Session({half!r}, provider="cpu", buckets=[4])
print(session.run({{"x": np.ones((2, 3))}}, timeout=60)["y"].tolist(), session.provider, session.placement.measured)
bf16 = Session({bf16!r}, provider="cpu")
y = bf16.run({{"x": np.full((1, 3), 1.00390625, np.float32)}})["y"]
print(y.dtype, y.tolist())
try:
    session.run({{}})
except InputError as error:
    print(error)
with Shadow(session, session, 1.0) as shadow:
    shadow.run({{"x": np.ones((2, 3))}})
print(shadow.drift[0].rel_l2)
session.close()
print(sorted(name for name in sys.modules if name.partition(".")[0] in {refused!r}))
"""


def test_runs_without_halfconv_onnx_and_the_rest(tmp_path: Path) -> None:
    vendored = tmp_path / "app" / "vendored"
    shutil.copytree(PACKAGE / "runtime", vendored / "runtime", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PACKAGE / "errors.py", vendored / "errors.py")
    for folder in (tmp_path / "app", vendored):
        (folder / "__init__.py").write_text("")
    refused = ("halfconv", "onnx", "onnx_ir", "onnxscript", "ml_dtypes", "torch", "cupy", "scipy", "click", "rich")
    code = BODY.format(refused=refused, half=models.cast_only("float16"), bf16=models.cast_only("bfloat16"))
    command = [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{code}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    half, bf16, error, drift, loaded = done.stdout.splitlines()
    assert half == "[[2.0, 2.0, 2.0], [2.0, 2.0, 2.0]] cpu True"
    assert bf16 == "float32 [[2.0, 2.0, 2.0]]"  # numpy has no BF16: a half above 1 is rounded to even, and float32 holds the result
    assert error == "an input is missing; try: give 'x': float16[n, 3]"
    assert (drift, loaded) == ("0.0", "[]")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_modules_import_what_is_allowed(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            assert {alias.name.partition(".")[0] for alias in node.names} <= ALLOWED
        elif isinstance(node, ast.ImportFrom):
            if node.level == 0:
                assert (node.module or "").partition(".")[0] in ALLOWED
            elif node.level == 2:
                assert node.module == "errors"
            else:
                assert node.level == 1
