"""Check a ``config.pbtxt`` against its model, without a server, as Triton's ONNX Runtime backend does when it loads it.

This module is copied into packages: it needs tritonclient and halfconv's runtime.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from halfconv.deploy.oip import TYPES
from halfconv.errors import EnvironmentProblem, InputError
from halfconv.runtime.arrays import Spec

__all__ = ["check_config", "read_config"]

#: Bytes of a configuration that are read.
LONGEST = 1 << 20


def read_config(path: Path) -> Any:
    """Read a configuration with Triton's own definition, which knows every field.

    Args:
        path: ``config.pbtxt``.

    Returns:
        A ``ModelConfig``.

    Raises:
        InputError: It has an unknown field, or is no text form of one.
        EnvironmentProblem: tritonclient is not installed.
    """
    try:
        from google.protobuf import text_format
        from tritonclient.grpc import model_config_pb2
    except ImportError as error:
        raise EnvironmentProblem(f"the configuration cannot be read: {error}", "pip install -r requirements.txt") from None
    with path.open("rb") as stream:
        text = stream.read(LONGEST)
    try:
        return text_format.Parse(text, model_config_pb2.ModelConfig())
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is no configuration of Triton's: {error}", "the whole package again") from None


def check_config(path: Path, inputs: Mapping[str, Spec], outputs: Mapping[str, Spec]) -> tuple[str, ...]:
    """Compare names, types and dimensions with the model's, and the warm-up samples with their files.

    Args:
        path: ``config.pbtxt``, in its model's folder.
        inputs: The model's inputs.
        outputs: The model's outputs.

    Returns:
        One sentence for each thing that is wrong.

    Raises:
        InputError: As for `read_config`.
        EnvironmentProblem: As for `read_config`.
    """
    config = read_config(path)
    problems = []
    if config.name != path.parent.name:
        problems.append(f"the name is '{config.name}', and the folder's is '{path.parent.name}'")
    if not (path.parent / "1" / config.default_model_filename).is_file():
        problems.append(f"there is no model 1/{config.default_model_filename}")
    batched = config.max_batch_size > 0
    problems += [f"input {words}" for words in _compare(config.input, inputs, batched, exact=False)]
    problems += [f"output {words}" for words in _compare(config.output, outputs, batched, exact=True)]
    if any(not 0 < size <= config.max_batch_size for size in config.dynamic_batching.preferred_batch_size):
        problems.append("a preferred batch size is larger than max_batch_size")
    for warmup in config.model_warmup:
        problems += [f"warm-up '{warmup.name}': {words}" for words in _compare_warmup(warmup, config, path.parent / "warmup")]
    return tuple(problems)


def _compare(entries: Sequence[Any], specs: Mapping[str, Spec], batched: bool, *, exact: bool) -> list[str]:
    declared = {entry.name: entry for entry in entries}
    odd = sorted(declared.keys() ^ specs.keys())
    problems = [f"'{name}' is {'none of the model' if name in declared else 'missing'}" for name in odd]
    for name in sorted(declared.keys() & specs.keys()):
        entry, spec = declared[name], specs[name]
        word = _word(entry)
        if word != f"TYPE_{TYPES.get(spec.element, spec.element)}":
            problems.append(f"'{name}' is {word}, and the model's {spec}")
        dims = list(entry.reshape.shape) if entry.HasField("reshape") else list(entry.dims)
        whole = [-1, *dims] if batched else dims
        model = [dim if isinstance(dim, int) else -1 for dim in spec.shape]
        fits = len(whole) == len(model) and all(a == b or (not exact and b == -1) for a, b in zip(whole, model, strict=True))
        if not fits or (batched and model[:1] != [-1]):
            problems.append(f"'{name}' has the shape {whole}, and the model's is {model}")
    return problems


def _word(entry: Any) -> str:
    return str(entry.DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number[entry.data_type].name)


def _compare_warmup(warmup: Any, config: Any, folder: Path) -> list[str]:
    sizes = {"BOOL": 1, "UINT8": 1, "INT8": 1, "UINT16": 2, "INT16": 2, "FP16": 2, "UINT32": 4, "INT32": 4, "FP32": 4}
    problems = []
    if set(warmup.inputs) != {entry.name for entry in config.input}:
        problems.append("its inputs are not the model's")
    if not 1 <= warmup.batch_size <= max(1, config.max_batch_size):
        problems.append(f"it has {warmup.batch_size} rows")
    for name, entry in warmup.inputs.items():
        needed = sizes.get(_word(entry).removeprefix("TYPE_"), 8)
        for dim in entry.dims:
            needed *= dim
        file = folder / entry.input_data_file
        if not file.is_file() or file.stat().st_size != needed:
            problems.append(f"{file.name} does not hold the {needed:,} bytes of '{name}'")
    return problems
