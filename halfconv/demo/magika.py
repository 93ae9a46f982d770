"""Magika's model and its features, without Magika's own code.

Magika tells a file's type from its first and last bytes. Its package ships the ONNX model and a configuration; this
module finds both, turns files into the model's input as Magika 1.0 does, and runs a model on ONNX Runtime's CPU
provider. The package itself is not imported: only its data files are read.
"""

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halfconv.errors import CheckFailed, EnvironmentProblem

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MODEL_NAME = "standard_v3_3"
NO_ANSWER = -1
_BATCH = 64
_INSTALL = "pip install 'halfconv[demo]'"


@dataclass(frozen=True, slots=True)
class MagikaModel:
    """The model as the installed package has it.

    Attributes:
        path: The ONNX file.
        sha256: Its digest.
        version: The package's version.
        labels: What each of the model's outputs stands for.
        beginning: How many of the file's first bytes the model reads.
        end: How many of its last bytes.
        block: How many bytes are read at either side before white space is stripped.
        padding: The number that stands for no byte.
    """

    path: Path
    sha256: str
    version: str
    labels: tuple[str, ...]
    beginning: int
    end: int
    block: int
    padding: int


def find_model() -> MagikaModel:
    """Find the model in the installed package.

    Raises:
        EnvironmentProblem: The package is missing, or is a version that keeps its model or features otherwise.
    """
    spec = importlib.util.find_spec("magika")
    if spec is None or spec.origin is None:
        raise EnvironmentProblem("the demo converts Magika's model, and magika is not installed", _INSTALL)
    version = importlib.metadata.version("magika")
    folder = Path(spec.origin).parent / "models" / MODEL_NAME
    try:
        config: dict[str, Any] = json.loads((folder / "config.min.json").read_text(encoding="utf-8"))
        digest = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
    except OSError as error:
        raise EnvironmentProblem(f"magika {version} lacks the model {MODEL_NAME} ({error})", _INSTALL) from error
    if config["mid_size"] or config["use_inputs_at_offsets"]:
        raise EnvironmentProblem(f"magika {version} prepares its model's input in a way unknown to the demo", _INSTALL)
    return MagikaModel(
        path=folder / "model.onnx",
        sha256=digest,
        version=version,
        labels=tuple(config["target_labels_space"]),
        beginning=config["beg_size"],
        end=config["end_size"],
        block=config["block_size"],
        padding=config["padding_token"],
    )


def features(model: MagikaModel, content: bytes) -> list[int]:
    """A file's features: its first and last bytes without outer white space, padded.

    Args:
        model: Sizes and padding.
        content: All of the file.
    """
    beginning = content[: model.block].lstrip()[: model.beginning]
    end = content[-model.block :].rstrip()[-model.end :]
    return [
        *beginning,
        *[model.padding] * (model.beginning - len(beginning)),
        *[model.padding] * (model.end - len(end)),
        *end,
    ]


def rows(model: MagikaModel, contents: Iterable[bytes]) -> "NDArray[np.int32]":
    """The features of many files, one row each.

    Args:
        model: Sizes and padding.
        contents: The files' contents.
    """
    import numpy as np

    each = [features(model, content) for content in contents]
    return np.array(each, np.int32).reshape(len(each), model.beginning + model.end)


def classify(path: Path, inputs: "NDArray[np.int32]", *, simulated: bool = False) -> "NDArray[np.int64]":
    """The index of the label that a model gives each file, on the CPU provider.

    A row whose scores are not all finite gets `NO_ANSWER`.

    Args:
        path: Magika's model, converted or not.
        inputs: What `rows` made.
        simulated: Whether half values are rounded as on a GPU; ONNX Runtime's CPU provider drops most roundings.

    Raises:
        EnvironmentProblem: No ONNX Runtime is installed.
        CheckFailed: ONNX Runtime cannot load the model.
    """
    import numpy as np

    answers = [np.empty(0, np.int64)]
    with _simulation(path) if simulated else contextlib.nullcontext(_session(path)) as run:
        for start in range(0, len(inputs), _BATCH):
            scores = np.asarray(run(inputs[start : start + _BATCH]), np.float32)
            answers.append(np.where(np.isfinite(scores).all(axis=1), scores.argmax(axis=1), NO_ANSWER).astype(np.int64))
    return np.concatenate(answers)


Run = Callable[["NDArray[np.int32]"], Any]


@contextlib.contextmanager
def _simulation(path: Path) -> Iterator[Run]:
    """Open the simulation of a half-precision model, and give a function that runs it."""
    from halfconv.drift.evaluate import evaluate_simulation
    from halfconv.drift.simulate import simulate
    from halfconv.model import load

    with evaluate_simulation(simulate(load(path)), str(path)) as evaluator:
        (name,) = evaluator.inputs
        yield lambda rows: next(iter(evaluator.run({name: rows}, "the listed files").values()))


def _session(path: Path) -> Run:
    """A function that runs a model, at the highest optimisation level that ONNX Runtime manages for it."""
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise EnvironmentProblem("the demo runs Magika's model, and onnxruntime is not installed", _INSTALL) from error
    options = ort.SessionOptions()
    options.log_severity_level = 3
    levels = ort.GraphOptimizationLevel
    for level in (levels.ORT_ENABLE_ALL, levels.ORT_ENABLE_EXTENDED):
        options.graph_optimization_level = level
        try:
            session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            problem = error
            continue
        name = session.get_inputs()[0].name
        return lambda rows: session.run(None, {name: rows})[0]
    raise CheckFailed(f"onnxruntime {ort.__version__} cannot load {path}: {problem}")


def convert_as_others(source: Path, target: Path) -> Path:
    """Convert with ONNX Runtime's own converter and its defaults, for comparison.

    Args:
        source: The FP32 model.
        target: Where to write.
    """
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of every constant that it changes
        onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=True), target)
    return target
