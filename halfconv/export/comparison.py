"""Compare an exported file with PyTorch: on the example, and on inputs of other sizes where the file leaves dimensions free."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from halfconv.drift.gate import HARD, make_gate
from halfconv.drift.metrics import Accumulator
from halfconv.errors import CheckFailed, InputError
from halfconv.runtime.session_server import CPU, LEVELS
from halfconv.runtime_process import RuntimeProcess

if TYPE_CHECKING:
    import torch

    from halfconv.drift.report import OutputDrift
    from halfconv.export.sources import Source

__all__ = ["BOUNDS", "Comparison", "compare", "named_outputs"]

#: What every output must meet unless the user says otherwise.
BOUNDS = {"rel_l2": 1e-4, "agreement": 1.0, **HARD}
#: Seconds that the runtime may take.
TIMEOUT = 600


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was found.

    Attributes:
        outputs: Drift of every output against PyTorch's, pooled over the runs, judged.
        sizes: The free dimensions in each run.
        notes: Sentences for the report.
    """

    outputs: tuple[OutputDrift, ...]
    sizes: tuple[Mapping[str, int], ...]
    notes: tuple[str, ...] = ()


def named_outputs(returned: Any, prefix: str = "") -> list[tuple[str, torch.Tensor]]:
    """Take apart what a module returns, in the exporters' order: tensors in tuples, lists and dictionaries.

    Returns:
        (name, tensor); the name is made of keys and indices, "" for a single tensor.

    Raises:
        InputError: There is something else in it.
    """
    import torch

    if returned is None:
        return []
    if isinstance(returned, torch.Tensor):
        return [(prefix, returned)]
    parts: Iterable[tuple[Any, Any]]
    if isinstance(returned, Mapping):
        parts = returned.items()
    elif isinstance(returned, (tuple, list)):
        parts = enumerate(returned)
    else:
        raise InputError(f"the module returns a {type(returned).__name__}", "tensors, in tuples, lists or dictionaries")
    found = []
    for key, value in parts:
        found += named_outputs(value, f"{prefix}_{key}" if prefix else str(key))
    return found


def compare(source: Source, path: Path, model: ir.Model, tolerance: Sequence[str]) -> Comparison:
    """Run the file in a process of its own, and PyTorch beside it.

    Args:
        source: What was exported.
        path: The file.
        model: The same in memory.
        tolerance: Texts ``METRIC=VALUE[@OUTPUT]``, beside `BOUNDS`.

    Raises:
        CheckFailed: The file does not load or run, or an output is too far from PyTorch's.
        UsageError: A tolerance cannot be used.
    """
    names = [str(value.name) for value in model.graph.outputs]
    gate = make_gate("fp16", names, tolerance, defaults=BOUNDS)
    found = {name: Accumulator("fp16") for name in names}
    sizes, notes = [], []
    with RuntimeProcess(TIMEOUT) as process:
        try:
            session = process.open(path, LEVELS[0], CPU)
        except InputError as error:
            raise CheckFailed(f"ONNX Runtime does not load the exported model: {error}", "--no-check, or another --opset") from None
        for run, (size, inputs) in enumerate(_runs(source, model)):
            try:
                expected = named_outputs(source.run(inputs))
            except Exception as error:
                if not run:
                    raise
                words = f"{type(error).__name__}: {error}".partition("\n")[0][:200]
                notes.append(f"not compared at {_say(size)}: PyTorch itself fails there ({words})")
                continue
            feeds = {name: _array(inputs[name]) for name in inputs if name in {value.name for value in model.graph.inputs}}
            try:
                values = session.run(names, feeds)
            except InputError as error:
                raise CheckFailed(f"ONNX Runtime fails on the exported model at {_say(size)}: {error}", "another --opset") from None
            if len(values) != len(expected):
                raise CheckFailed(f"PyTorch returns {len(expected)} tensors, and the exported model has {len(values)} outputs")
            for name, (_, tensor), value in zip(names, expected, values, strict=True):
                found[name].update(_array(tensor), value, _say(size))
            sizes.append(size)
    judged = tuple(gate.judge(found[name].result(name)) for name in names)
    if failed := [drift for drift in judged if not drift.passed]:
        words = "; ".join(f"{drift.name}: {', '.join(drift.failures)}" for drift in failed[:3])
        raise CheckFailed(
            f"the exported model does not give what PyTorch gives: {words}", "--tolerance rel_l2=1e-3 if that is near enough"
        )
    return Comparison(judged, tuple(sizes), tuple(notes))


def _runs(source: Source, model: ir.Model) -> Iterable[tuple[dict[str, int], dict[str, torch.Tensor]]]:
    """Yield the example, and then inputs with one more of every free dimension."""
    axes = {
        str(value.name): {axis: str(dim.value) for axis, dim in enumerate(value.shape or ()) if isinstance(dim, ir.SymbolicDim)}
        for value in model.graph.inputs
    }
    example = {dim: source.inputs[name].shape[axis] for name, dims in axes.items() for axis, dim in dims.items()}
    yield example, dict(source.inputs)
    if example:
        yield _resized(source, axes, {dim: size + 1 for dim, size in example.items()})


def _resized(
    source: Source, axes: Mapping[str, Mapping[int, str]], sizes: dict[str, int]
) -> tuple[dict[str, int], dict[str, torch.Tensor]]:  # fmt: skip
    """Make the inputs of a size, by repeating what the example has."""
    import torch

    inputs = dict(source.inputs)
    for name, dims in axes.items():
        for axis, dim in dims.items():
            index = torch.arange(sizes[dim]) % inputs[name].shape[axis]
            inputs[name] = inputs[name].index_select(axis, index)
    return sizes, inputs


def _say(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name}={size}" for name, size in sizes.items()) or "the example's sizes"


def _array(tensor: torch.Tensor) -> Any:
    import torch

    tensor = tensor.detach().cpu()
    if tensor.dtype is torch.bfloat16:
        import ml_dtypes

        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
