"""Convert a small model and check everything that must be true of every conversion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir

import halfconv
from tests import structure
from tests.runtime_helpers import Feeds, Job, Outcome, difference, full_check, rel_l2, run_all
from tests.simulation import simulate

Model = str | onnx.ModelProto | Path


def proto(model: Model) -> onnx.ModelProto:
    """A model of any form; text is ONNX text form."""
    if isinstance(model, onnx.ModelProto):
        return model
    if isinstance(model, Path):
        return onnx.load(model)
    return onnx_ir.to_proto(onnx_ir.from_onnx_text(model))


def text(graph: str, *, opset: int = 17, ir: int = 8, ml: int = 0, extra: str = "") -> str:
    """A model's text from its graph: ``(float[2,3] x) => (float[2,3] y) <weights> { y = Relu(x) }``."""
    domains = f'"" : {opset}' + (f', "ai.onnx.ml" : {ml}' if ml else "") + extra
    return f"<ir_version: {ir}, opset_import: [{domains}]>\nmain {graph}"


def with_weights(model: Model, weights: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """Give the main graph its initializers."""
    made = onnx.ModelProto()
    made.CopyFrom(proto(model))
    made.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    if made.ir_version < 4:  # initializers had to be inputs too
        made.graph.input.extend(onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in made.graph.initializer)
    return made


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    """Normally distributed float32 numbers, the same in every run."""
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


@dataclass(frozen=True)
class Converted:
    """A source, what it was converted to, and the answers of both."""

    source: Path
    result: Any

    @property
    def path(self) -> Path:
        return Path(self.result.output)

    @cached_property
    def model(self) -> onnx.ModelProto:
        return onnx.load(self.path)

    def ops(self, op: str) -> list[structure.Site]:
        """The output's nodes of one operator, in all scopes."""
        return structure.of_type(self.model, op)

    def all_half(self, *ops: str) -> bool:
        """Every node of these operators is there and runs in half."""
        return all(found and all(site.half for site in found) for found in map(self.ops, ops))

    def none_half(self, *ops: str) -> bool:
        """Every node of these operators is there and none has anything in half."""
        half = structure.HALF
        return all(found and not any(half in (*site.inputs, *site.outputs) for site in found) for found in map(self.ops, ops))

    def reasons(self) -> dict[str, Any]:
        """Value id -> the entry that says why it is FP32."""
        return {entry.value: entry for entry in self.result.fp32}


def convert(model: Model, folder: Path, name: str = "model.onnx", **options: Any) -> Converted:
    """Write the model, convert it, and make sure that the source is untouched."""
    source = folder / name
    if not isinstance(model, Path):
        onnx.save(proto(model), source)
    else:
        source = model
    before = source.read_bytes()
    result = halfconv.convert(source, **options)
    assert source.read_bytes() == before, "the source was touched"
    return Converted(source, result)


def tidy(converted: Converted) -> None:
    """Valid, the same interface, no Cast too many, a reason for every FP32 value."""
    full_check(converted.path)
    before, after = structure.round_trips(converted.source), structure.round_trips(converted.model)
    assert set(after) <= set(before), f"round trips: {after}"
    assert set(structure.repeated_casts(converted.model)) <= set(structure.repeated_casts(converted.source))
    assert set(structure.idle_casts(converted.model)) <= set(structure.idle_casts(converted.source))
    assert all(entry.reason and entry.rule for entry in converted.result.fp32)
    assert len(converted.result.fp32) == converted.result.values["float"]


def same_interface(converted: Converted) -> None:
    assert structure.signature(converted.model) == structure.signature(converted.source)


@dataclass(frozen=True)
class Answers:
    """What the source gives, what the output gives on the CPU, and what it gives with GPU rounding."""

    reference: list[dict[str, Any]]
    plain: list[dict[str, Any]]
    simulated: list[dict[str, Any]]


def answers(converted: Converted, feeds: Sequence[Feeds], *, level: str = "ALL") -> Answers:
    """Run the source, the output and its simulation; the output must load at the level at least."""
    jobs = [Job(str(converted.source), feeds), Job(str(converted.path), feeds, fit=True)]
    reference, plain = run_all(jobs, workers=1)
    assert reference.loads, f"the test's own model does not run: {reference.failure}"
    assert plain.loads, f"the output does not run: {plain.failure} {plain.stumbled}"
    assert plain.level == level, f"the output loads only at {plain.level}: {plain.stumbled}"
    simulated = simulate(converted.path, feeds)
    assert simulated.loads, f"the simulation does not run: {simulated.failure}"
    return Answers(reference.outputs, plain.outputs, simulated.outputs)


def _apart(got: Any, want: Any, drift: float) -> str:
    """Say how two outputs differ beyond the drift; integers, texts and the places of NaN and infinities must agree."""
    if isinstance(want, np.ndarray) and want.dtype.kind == "f" and isinstance(got, np.ndarray):
        if got.shape != want.shape:
            return f"shape: got {got.shape}, want {want.shape}"
        odd = ~np.isfinite(want)
        if not np.array_equal(got[odd].astype(want.dtype), want[odd], equal_nan=True):
            return "NaN and infinities are not where they were"
        distance = rel_l2(got, want)
        return "" if distance <= drift else f"drift {distance:.3g}"
    if isinstance(want, (list, dict)):
        return difference(got, want, rtol=drift, atol=drift)
    return difference(got, want, rtol=0, atol=0)


def close(got: Sequence[dict[str, Any]], want: Sequence[dict[str, Any]], drift: float, what: str = "output") -> None:
    for index, (g, w) in enumerate(zip(got, want, strict=True)):
        assert g.keys() == w.keys()
        for name in w:
            assert not (text := _apart(g[name], w[name], drift)), f"{what} {name} of sample {index}: {text}"


def runs(converted: Converted, *feeds: Feeds, drift: float = 5e-3, level: str = "ALL", keep_io: bool = True) -> Answers:
    """ "Runs", as cases.md puts it: valid, loads at default optimisation, interface kept, small drift in simulation."""
    tidy(converted)
    if keep_io:
        same_interface(converted)
    found = answers(converted, feeds, level=level)
    close(found.plain, found.reference, drift, "on the CPU:")
    close(found.simulated, found.reference, drift, "simulated:")
    return found


def outcome_of(path: Path, feeds: Sequence[Feeds]) -> Outcome:
    return run_all([Job(str(path), feeds, fit=True)], workers=1)[0]
