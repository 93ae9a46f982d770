"""PyTorch's exporters: the one of torch.export first, and the one that traces, TorchScript's, where that fails."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from halfconv.errors import InputError

if TYPE_CHECKING:
    from halfconv.export.sources import Source

__all__ = ["EXPORTERS", "TRACED", "Attempt", "export_module"]

#: In the order in which they are tried.
EXPORTERS = ("dynamo", "torchscript")
#: What is kept of the exporters' notes on nodes: the modules that they come from. Others hold paths of this machine.
KEPT = ("namespace", "pkg.torch.onnx.class_hierarchy", "pkg.torch.onnx.name_scopes")
#: What a traced model may do wrong.
TRACED = "the exporter that traces wrote it: branches and loops that depend on data are fixed as the example took them"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One exporter's turn.

    Attributes:
        exporter: One of `EXPORTERS`.
        problem: Why it failed; "" if it did not.
    """

    exporter: str
    problem: str


def export_module(source: Source, opset: int, exporters: Sequence[str], folder: Path) -> tuple[ir.Model, list[Attempt]]:
    """Export a module.

    Args:
        source: What to export.
        opset: The opset of the result.
        exporters: Those to try, in order.
        folder: An empty one, for what an exporter writes; it must stay while the result is in use.

    Returns:
        The model, with the source's names of inputs, and what was tried; the last attempt is the one that succeeded.

    Raises:
        InputError: All fail.
    """
    attempts: list[Attempt] = []
    for exporter in exporters:
        try:
            with _quiet():
                model = _dynamo(source, opset) if exporter == "dynamo" else _torchscript(source, opset, folder)
            found = model.opset_imports.get("", 0)
            if found != opset:
                raise InputError(f"it writes opset {found} and cannot bring it to {opset}")
            _name_inputs(model, source)
        except Exception as error:
            attempts.append(Attempt(exporter, _why(error)))
            continue
        attempts.append(Attempt(exporter, ""))
        _tidy(model)
        return model, attempts
    words = "; ".join(f"{attempt.exporter}: {attempt.problem}" for attempt in attempts)
    raise InputError(f"{source.title} cannot be exported at opset {opset} ({words})", "another --opset, or a change of the module")


def _dynamo(source: Source, opset: int) -> ir.Model:
    import torch

    options: dict[str, Any] = {"dynamo": True, "opset_version": opset, "external_data": False, "verbose": False}
    if source.translations:
        options["custom_translation_table"] = dict(source.translations)
    if source.program is not None:
        program = torch.onnx.export(source.program, **options)
    else:
        shapes = {name: dict(source.dims.get(name, {})) for name in source.inputs}
        arguments, keywords = ((), dict(source.inputs)) if source.by_name else (tuple(source.inputs.values()), None)
        dynamic: Any = shapes if source.by_name else (tuple(shapes.values()),)  # the one parameter is *inputs
        if not source.dims:
            dynamic = None
        program = torch.onnx.export(source.module, arguments, kwargs=keywords, dynamic_shapes=dynamic, **options)
    if program is None:
        raise InputError("it returned nothing")
    model: ir.Model = program.model
    return model


def _torchscript(source: Source, opset: int, folder: Path) -> ir.Model:
    import torch

    if source.program is not None:
        raise InputError("it takes no exported program")
    path = folder / "traced.onnx"
    arguments, keywords = ((), dict(source.inputs)) if source.by_name else (tuple(source.inputs.values()), None)
    with torch.no_grad():
        torch.onnx.export(
            source.module, arguments, os.fspath(path), kwargs=keywords, dynamo=False, opset_version=opset,
            input_names=list(source.inputs), dynamic_axes={name: dict(axes) for name, axes in source.dims.items()},
        )  # fmt: skip
    return ir.load(path)


def _name_inputs(model: ir.Model, source: Source) -> None:
    """Give the inputs the source's names, and refuse a model that fixed what should stay free."""
    known = {value.name for value in model.graph.inputs}
    if not known <= set(source.inputs):
        if len(model.graph.inputs) != len(source.inputs):
            raise InputError(f"it writes the inputs {sorted(map(str, known))} for {sorted(source.inputs)}")
        for value, name in zip(model.graph.inputs, source.inputs, strict=True):
            value.name = name
    for value in model.graph.inputs:
        for axis, dim in source.dims.get(value.name or "", {}).items():
            found = value.shape[axis] if value.shape is not None else None
            if isinstance(found, int):
                raise InputError(f"the module fixes '{dim}', axis {axis} of '{value.name}', at {found}")


def _tidy(model: ir.Model) -> None:
    """Remove what exporters note, but for the modules: paths and source lines of this machine, and PyTorch's own graph."""
    for graph in model.graphs():
        for node in graph:
            for name in [name for name in node.metadata_props if name not in KEPT]:
                del node.metadata_props[name]
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
        for value in (*graph.inputs, *graph.initializers.values()):
            value.metadata_props.clear()
        graph.metadata_props.clear()
        graph.doc_string = None
    model.metadata_props.clear()


def _why(error: BaseException) -> str:
    """Return the first line that says something of an exporter's error, or of what caused it."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    return (text.partition("\n")[0].strip() or type(error).__name__)[:300]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what the exporters say of themselves and of their way; errors are told in words of our own."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    sys.stdout.flush()
    kept = os.dup(1)  # C++ writes there, past sys.stdout
    try:
        with (
            Path(os.devnull).open("w") as nowhere,
            warnings.catch_warnings(),
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
        ):
            os.dup2(nowhere.fileno(), 1)
            warnings.simplefilter("ignore")
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        logging.disable(before)
