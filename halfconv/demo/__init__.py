"""`halfconv demo`: convert a real model on real files, and say what was done.

The model is Magika's, which tells a file's type from its bytes; the ``demo`` extra installs it. The files are those of
``files.json``: parts of this project's own dependencies, with their true types, so that every machine counts the same.

    load the list → find the files → convert the model, twice → run FP32 and FP16 on the files → `DemoReport`

The second conversion is that of ONNX Runtime's own converter: it shows what a check on the CPU misses and a simulation of the
GPU's rounding sees.

Magika's package requires the CPU build of ONNX Runtime, which does not live beside the GPU build: keep the ``demo``
extra out of GPU environments.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halfconv.demo.files import Collected, collect, load_list
from halfconv.demo.magika import MODEL_NAME, NO_ANSWER, MagikaModel, classify, convert_as_others, find_model, rows
from halfconv.demo.render import render
from halfconv.errors import EnvironmentProblem, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from halfconv.result import ConvertResult

__all__ = ["DemoReport", "render", "run_demo", "samples"]

OUTPUT_NAME = "magika.fp16.onnx"
#: The model's input.
INPUT_NAME = "bytes"
#: Whose answers are counted: the FP32 model, halfconv's FP16 model and that of ONNX Runtime's own converter, each on the CPU
#: provider and with a GPU's rounding simulated.
WHO = ("fp32", "fp16_cpu", "fp16_simulated", "other_cpu", "other_simulated")
#: Files on which the other model is searched for the value that goes wrong.
SEARCHED = 8
#: Of so many files `samples` takes one, and puts so many into a batch.
STEP, BATCH = 4, 16


@dataclass(frozen=True, slots=True)
class DemoReport:
    """What the demo did and measured.

    Attributes:
        model: The model's name and package version.
        model_sha256: The FP32 file's digest.
        files: Numbers of ``listed``, ``used``, ``differ`` and ``missing`` files.
        types: For each true type, the numbers of ``files`` and of right answers, by the names of `WHO`.
        conversion: What the converter reports.
        kept: Where the FP16 model lies, or None if it was only made for the demo.
        accuracy: Share of files whose type the model gives (top-1), by the names of `WHO`.
        correct: The numbers of files behind the shares.
        no_answer: Numbers of files for which a score was NaN or infinite.
        agreement: Share of files to which halfconv's model, with a GPU's rounding simulated, gives the FP32 model's type.
        first_bad: Where the other converter's model goes wrong first, in plain words.
        warnings: What keeps this run from being comparable with others.
    """

    model: str
    model_sha256: str
    files: dict[str, int]
    types: dict[str, dict[str, int]]
    conversion: "ConvertResult"
    kept: Path | None
    accuracy: dict[str, float]
    correct: dict[str, int]
    no_answer: dict[str, int]
    agreement: float
    first_bad: str
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON knows it."""
        return {
            "schema_version": 1,
            "model": self.model,
            "model_sha256": self.model_sha256,
            "files": dict(self.files),
            "types": {label: dict(counts) for label, counts in self.types.items()},
            "conversion": self.conversion.to_dict(),
            "kept": None if self.kept is None else str(self.kept),
            "accuracy": dict(self.accuracy),
            "correct": dict(self.correct),
            "no_answer": dict(self.no_answer),
            "agreement": self.agreement,
            "first_bad": self.first_bad or None,
            "warnings": list(self.warnings),
        }


def run_demo(
    output_dir: Path | None = None,
    *,
    convert: "Callable[[Path, Path], ConvertResult] | None" = None,
) -> DemoReport:
    """Convert Magika's model and run both precisions on the listed files.

    Args:
        output_dir: Where the FP16 model is kept (made if it is not there); None keeps nothing.
        convert: The converter; by default halfconv's own.

    Returns:
        The report.

    Raises:
        EnvironmentProblem: Magika or ONNX Runtime is not installed, or none of the listed files is here.
        UsageError: The output directory is a file.
    """
    from halfconv.drift.compare import validate

    if convert is None:
        from halfconv.pipeline import convert as convert_default

        convert = convert_default
    model = find_model()
    listed = load_list()
    found = collect(listed.files)
    if not found.used:
        raise EnvironmentProblem(
            f"none of the {len(listed.files)} listed files is on this machine with the listed content",
            "pip install 'halfconv[demo]' in a new virtual environment, with the versions of constraints.txt",
        )
    with ExitStack() as stack:
        folder = _made(output_dir) if output_dir else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        conversion = convert(model.path, folder / OUTPUT_NAME)
        inputs = rows(model, (content for _, content in found.used))
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        other, ours = convert_as_others(model.path, scratch / "other.onnx"), Path(conversion.output)
        answers = {
            "fp32": classify(model.path, inputs),
            "fp16_cpu": classify(ours, inputs),
            "fp16_simulated": classify(ours, inputs, simulated=True),
            "other_cpu": classify(other, inputs),
            "other_simulated": classify(other, inputs, simulated=True),
        }
        drift = validate(model.path, other, samples=[{INPUT_NAME: inputs[:SEARCHED]}])
    kept = Path(conversion.output) if output_dir else None
    return _report(model, found, conversion, answers, kept, listed.model_sha256, drift.first_bad)


def samples(step: int = STEP) -> "Iterator[dict[str, NDArray[Any]]]":
    """Give some of the listed files as samples for Magika's model: ``--samples halfconv.demo:samples``.

    Args:
        step: Every so many files are taken.

    Yields:
        Batches of the model's input, ``bytes`` [16, 2048] int32, and ``labels`` [16], the indices of the true types (-1 for one
        that the model does not know).

    Raises:
        EnvironmentProblem: Magika is not installed, or none of the listed files is here.
    """
    import numpy as np

    model = find_model()
    used = collect(load_list().files).used[::step]
    if not used:
        raise EnvironmentProblem("none of the listed files is on this machine", "pip install 'halfconv[demo]'")
    for start in range(0, len(used), BATCH):
        part = used[start : start + BATCH]
        known = [model.labels.index(file.label) if file.label in model.labels else -1 for file, _ in part]
        yield {INPUT_NAME: rows(model, (content for _, content in part)), "labels": np.array(known)}


def _made(folder: Path) -> Path:
    """The directory, made if needed."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; the demo writes into a directory", "-o DIR")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentProblem(f"cannot make the directory {folder} ({error})", "another -o DIR") from error
    return folder


def _report(
    model: MagikaModel,
    found: Collected,
    conversion: "ConvertResult",
    answers: "dict[str, NDArray[np.int64]]",
    kept: Path | None,
    listed_sha256: str,
    first_bad: str,
) -> DemoReport:
    """Count the answers."""
    truths = [file.label for file, _ in found.used]
    types = {label: {"files": truths.count(label), **dict.fromkeys(WHO, 0)} for label in sorted(set(truths))}
    for who, given in answers.items():
        for index, truth in zip(given, truths, strict=True):
            types[truth][who] += int(index != NO_ANSWER and model.labels[index] == truth)
    correct = {who: sum(counts[who] for counts in types.values()) for who in answers}
    both = [a == b != NO_ANSWER for a, b in zip(answers["fp32"], answers["fp16_simulated"], strict=True)]
    warnings = []
    if model.sha256 != listed_sha256:
        warnings.append(f"Magika {model.version} ships another model than the file list was made for")
    return DemoReport(
        model=f"Magika {MODEL_NAME} (package {model.version})",
        model_sha256=model.sha256,
        files=found.counts,
        types=types,
        conversion=conversion,
        kept=kept,
        accuracy={who: count / len(truths) for who, count in correct.items()},
        correct=correct,
        no_answer={who: int((given == NO_ANSWER).sum()) for who, given in answers.items()},
        agreement=sum(both) / len(truths),
        first_bad=first_bad,
        warnings=tuple(warnings),
    )
