"""Sessions with the real packages: what CUDA lacks is said at creation, and nothing falls back in silence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import environments
from tests.runtime import models

pytestmark = pytest.mark.slow

CODE = """
import json, sys, warnings
warnings.simplefilter("error")
import numpy, halfconv
said = {}
for provider in ("cuda", "tensorrt", "cpu", "auto"):
    try:
        with halfconv.Session(sys.argv[1], provider=provider, profile=False) as session:
            x = numpy.full((2, 4), 3, numpy.float32)
            said[provider] = [session.provider, float(session.run({"x": x})["y"].max()), *session.notes]
    except halfconv.HalfconvError as error:
        said[provider] = [type(error).__name__, str(error)]
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environments.links(tmp_path_factory.mktemp("packages"))


@pytest.mark.parametrize(
    ("name", "wheels", "cause", "remedy"),
    [
        ("doctor-gpu", ["onnxruntime-gpu"], "no NVIDIA driver is installed", "install the driver"),
        ("doctor-both", ["onnxruntime-gpu", "onnxruntime"], "are installed together", "pip uninstall -y onnxruntime onnx"),
    ],
)
def test_a_session_says_why_it_is_not_on_cuda(
    name: str, wheels: list[str], cause: str, remedy: str, packages: Path, tmp_path: Path
) -> None:
    if Path("/dev/nvidiactl").exists():
        pytest.skip("there is a GPU")
    python = environments.with_runtimes(name, wheels, tmp_path)
    model = tmp_path / "squares.onnx"
    model.write_bytes(models.squares())
    done = environments.execute(python, packages, "-c", CODE, str(model))
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    for provider in ("cuda", "tensorrt"):
        kind, words = said[provider]
        assert kind == "EnvironmentProblem" and words.startswith(f"{provider} cannot be used: "), words
        assert cause in words and f"; try: {remedy}" in words
    assert said["cpu"] == ["cpu", 9.0]
    assert said["auto"][:2] == ["cpu", 9.0] and any(note.startswith("cuda cannot be used: ") for note in said["auto"][2:])
