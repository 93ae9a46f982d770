"""Export: a source → a model of PyTorch's exporters → a file, compared with PyTorch before it is put in place."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from halfconv.check import require_runtime
from halfconv.errors import CheckFailed, EnvironmentProblem, InputError, UsageError
from halfconv.export.comparison import compare, named_outputs
from halfconv.export.exporters import EXPORTERS, TRACED, Attempt, export_module
from halfconv.export.specs import parse_dynamic, parse_inputs, read_example
from halfconv.export.weights import load_weights
from halfconv.imports import names_function
from halfconv.model_writer import EXTERNAL_DATA, INLINE_LIMIT, written_model
from halfconv.progress import Progress, StageClock
from halfconv.storage import check_output_path
from halfconv.weight_files import weight_bytes

if TYPE_CHECKING:
    from halfconv.drift.report import OutputDrift
    from halfconv.export.sources import Source
    from halfconv.recipes.recipe import Recipe

__all__ = ["OPSET", "ExportResult", "export", "export_source"]

#: The default opset: the newest that ONNX Runtime 1.18 reads.
OPSET = 20


@dataclass(frozen=True, slots=True)
class ExportResult:
    """What was exported.

    Attributes:
        output: The file.
        source: What was exported.
        attempts: The exporters that were tried, in order; the last one wrote the model.
        opset: Its opset.
        nodes: Its number of nodes.
        weight_bytes: Bytes of its weights.
        external: Whether they lie beside it.
        inputs: (name, type, shape); a free dimension is a name.
        outputs: The same of the outputs.
        compared: Drift of every output against PyTorch; None if it was not compared.
        sizes: The free dimensions in each of the runs that were compared.
        notes: Sentences for the report.
        seconds: Stage -> seconds.
    """

    output: Path
    source: str
    attempts: tuple[Attempt, ...]
    opset: int
    nodes: int
    weight_bytes: int
    external: bool
    inputs: tuple[tuple[str, str, tuple[int | str | None, ...] | None], ...]
    outputs: tuple[tuple[str, str, tuple[int | str | None, ...] | None], ...]
    compared: tuple[OutputDrift, ...] | None
    sizes: tuple[Mapping[str, int], ...]
    notes: tuple[str, ...]
    seconds: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON data."""
        compared = None
        if self.compared is not None:
            compared = [
                {"name": drift.name, **{key: getattr(drift.measures, key) for key in ("rel_l2", "max_abs", "agreement")}}
                for drift in self.compared
            ]
        return {
            "schema_version": 1,
            "output": str(self.output),
            "source": self.source,
            "attempts": [asdict(attempt) for attempt in self.attempts],
            "opset": self.opset,
            "nodes": self.nodes,
            "weight_bytes": self.weight_bytes,
            "external_data": self.external,
            "inputs": [_slot_dict(slot) for slot in self.inputs],
            "outputs": [_slot_dict(slot) for slot in self.outputs],
            "compared": compared,
            "sizes": [dict(size) for size in self.sizes],
            "notes": list(self.notes),
            "seconds": dict(self.seconds),
        }


def export(
    target: str,
    output: str | os.PathLike[str],
    *,
    weights: str | os.PathLike[str] | None = None,
    trust: bool = False,
    inputs: Sequence[str] = (),
    example: str | os.PathLike[str] | None = None,
    dynamic: Sequence[str] = (),
    output_names: Sequence[str] = (),
    opset: int | None = None,
    exporter: str = "auto",
    external_data: str = "auto",
    tolerance: Sequence[str] = (),
    check: bool = True,
    seed: int = 0,
    on_progress: Callable[[Progress], None] | None = None,
) -> ExportResult:
    """Export a PyTorch model to ONNX, and compare the file with PyTorch.

    Args:
        target: ``package.module:factory``, whose code is imported and run; a ``.pt2`` program; or the name of a recipe.
        output: The file; it appears when it has passed, or not at all.
        weights: ``.safetensors``, or a file of ``torch.save`` with nothing but tensors, for the module.
        trust: Load a ``.pt2`` program, which unpickles.
        inputs: ``NAME=TYPE[DIM,…]``: inputs to make up; a dimension that is a name stays free.
        example: An ``.npz`` file with inputs by name, in their place.
        dynamic: ``INPUT:AXIS=NAME``: dimensions that stay free.
        output_names: Names of the outputs; by default the keys of what the module returns, or ``output``.
        opset: The opset; None for the recipe's, or 20.
        exporter: ``dynamo``, ``torchscript``, or ``auto``: the second where the first fails.
        external_data: ``auto`` puts weights beside the model beyond 2 GB; or ``always``, ``never``.
        tolerance: Bounds on the distance from PyTorch, ``METRIC=VALUE[@OUTPUT]``; by default ``rel_l2=1e-4``.
        check: Whether to compare.
        seed: Of what is made up.
        on_progress: Told what is being done.

    Returns:
        What was exported.

    Raises:
        CheckFailed: The file does not give what PyTorch gives; none is left.
        UsageError: An option, or the factory, is wrong.
        InputError: A file cannot be used, or no exporter succeeds.
        EnvironmentProblem: PyTorch, or the runtime, is not installed, or the disk refuses the file.
    """
    _require_torch()
    if exporter not in ("auto", *EXPORTERS):
        raise UsageError(f"there is no exporter '{exporter}'", f"auto or one of {', '.join(EXPORTERS)}")
    if external_data not in EXTERNAL_DATA:
        raise UsageError(f"external_data='{external_data}' is not known", f"one of {', '.join(EXTERNAL_DATA)}")
    specs, dims, path = parse_inputs(inputs), parse_dynamic(dynamic), Path(output)
    check_output_path(Path(target), path, [Path(file) for file in (weights, example) if file is not None])
    if check:
        require_runtime()
    clock = StageClock(on_progress)
    with clock.stage("load"):
        arrays = read_example(Path(example)) if example is not None else {}
        if target.endswith(".pt2"):
            source = _program(target, trust, arrays, {"--weights": weights, "--input": specs, "--dynamic": dims})
        elif names_function(target):
            from halfconv.export.sources import from_factory

            source = from_factory(target, specs, arrays, dims, seed)
            if weights is not None:
                load_weights(source.module, Path(weights))
        else:
            source, known = _recipe(target, weights, {"--input": specs, "--dynamic": dims, "--example": arrays})
            opset, output_names = opset or known.opset, output_names or known.outputs
    return export_source(
        source, path, output_names=output_names, opset=opset or OPSET, exporter=exporter, external_data=external_data,
        tolerance=tolerance, check=check, clock=clock,
    )  # fmt: skip


def export_source(
    source: Source, output: Path, *, output_names: Sequence[str] = (), opset: int = OPSET, exporter: str = "auto",
    external_data: str = "auto", tolerance: Sequence[str] = (), check: bool = True, clock: StageClock | None = None,
) -> ExportResult:  # fmt: skip
    """Export what is loaded; the arguments are those of `export`."""
    clock = clock or StageClock()
    names = list(output_names) or _output_names(source)
    with tempfile.TemporaryDirectory(prefix="halfconv-export-") as folder:
        with clock.stage("export"):
            exporters = EXPORTERS if exporter == "auto" else (exporter,)
            model, attempts = export_module(source, opset, exporters, Path(folder))
            _name_outputs(model, names)
        notes = list(source.notes)
        left_out = sorted(set(source.inputs) - {value.name for value in model.graph.inputs})
        if left_out:
            notes.append(f"the module does not use {', '.join(left_out)}, and the model has no such input")
        if attempts[-1].exporter == "torchscript":
            notes.append(TRACED)
        size = weight_bytes(model)
        external = external_data == "always" or (external_data == "auto" and size > INLINE_LIMIT)
        slots = (_slots(model.graph.inputs), _slots(model.graph.outputs))
        nodes = sum(1 for _ in ir.traversal.RecursiveGraphIterator(model.graph))
        found = None
        with (
            clock.stage("write"),
            written_model(
                model, output, types={}, annotated=frozenset(), external=external, shard_size=None, data_format="onnx",
                unchanged=lambda: None, clock=clock,
            ) as written,
        ):  # fmt: skip
            if check:
                with clock.stage("check"):
                    _check(written)
                    found = compare(source, written, model, tolerance)
    clock.seconds["write"] -= clock.seconds.get("check", 0.0) + clock.seconds.get("sync", 0.0)
    return ExportResult(
        output, source.title, tuple(attempts), opset, nodes, size, external, *slots, found.outputs if found else None,
        found.sizes if found else (), (*notes, *(found.notes if found else ())), dict(clock.seconds),
    )  # fmt: skip


def _require_torch() -> None:
    import importlib.util

    if importlib.util.find_spec("torch") is None:
        raise EnvironmentProblem("PyTorch is not installed, which makes the export", "pip install 'halfconv[torch]'")


def _program(target: str, trust: bool, arrays: Mapping[str, Any], others: Mapping[str, Any]) -> Source:
    from halfconv.export.sources import from_program

    for option, value in others.items():
        if value:
            raise UsageError(f"{option} does not go with a .pt2 program, which holds all that itself", f"leave out {option}")
    return from_program(Path(target), trust, arrays)


def _output_names(source: Source) -> list[str]:
    """Return names made of the keys of what the module returns."""
    try:
        returned = source.run(source.inputs)
    except Exception as error:
        words = f"{type(error).__name__}: {error}".partition("\n")[0][:300]
        raise InputError(f"{source.title} fails on the example inputs: {words}", "other example inputs") from error
    keys = [key for key, _ in named_outputs(returned)]
    return [f"output_{key}" if key[:1].isdigit() else key or "output" for key in keys]


def _recipe(name: str, weights: str | os.PathLike[str] | None, others: Mapping[str, Any]) -> tuple[Source, Recipe]:
    from halfconv.recipes.catalog import NAMES
    from halfconv.recipes.training import recipe_source

    if name not in NAMES:
        words = f"package.module:factory, a .pt2 file, or one of the recipes {', '.join(NAMES)}"
        raise UsageError(f"'{name}' is nothing that can be exported", words)
    for option, value in others.items():
        if value:
            raise UsageError(f"{option} does not go with a recipe, which knows its inputs", f"leave out {option}")
    return recipe_source(name, None if weights is None else Path(weights))


def _name_outputs(model: ir.Model, names: Sequence[str]) -> None:
    outputs = model.graph.outputs
    if len(names) != len(outputs) or len(set(names)) != len(names):
        raise UsageError(f"{len(names)} names of outputs, {', '.join(names)}, for {len(outputs)}", "a name of its own for each")
    taken = {value.name for value in model.graph.inputs} | set(model.graph.initializers)
    for node in model.graph:
        taken |= {value.name for value in node.outputs if not value.is_graph_output()}
    for value, name in zip(outputs, names, strict=True):
        value.name = f"{name}_output" if name in taken else name


def _check(path: Path) -> None:
    import onnx

    try:
        onnx.checker.check_model(path, full_check=True)
    except Exception as error:
        words = str(error).strip().partition("\n")[0][:300]
        raise CheckFailed(f"onnx's checker refuses the exported model: {words}", "another --opset or --exporter") from None


def _slots(values: Sequence[ir.Value]) -> tuple[tuple[str, str, tuple[int | str | None, ...] | None], ...]:
    def dims(value: ir.Value) -> tuple[int | str | None, ...] | None:
        if value.shape is None:
            return None
        return tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)

    return tuple((str(value.name), value.dtype.name.lower() if value.dtype else "unknown", dims(value)) for value in values)


def _slot_dict(slot: tuple[str, str, tuple[int | str | None, ...] | None]) -> dict[str, Any]:
    name, dtype, shape = slot
    return {"name": name, "dtype": dtype, "shape": None if shape is None else list(shape)}
