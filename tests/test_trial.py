"""Trials: a run that gives up early is a run that would have failed."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import onnx
import pytest

from halfconv.drift.compare import open_reference
from halfconv.drift.gate import make_gate
from halfconv.planning import plan_model
from halfconv.samples import open_samples
from halfconv.synthetic import input_specs
from halfconv.trial import Trials
from tests.test_tuning import CANCEL


@pytest.mark.parametrize("limit", [1e-9, 1e-4, 1e-3, 1e-2, 1.0])
def test_giving_up_early_changes_no_verdict(tmp_path: Path, limit: float) -> None:
    onnx.save(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\nmain {CANCEL}'), tmp_path / "m.onnx")
    rng, chance = np.random.default_rng(3), random.Random(4)
    planned = plan_model(tmp_path / "m.onnx")
    feeds = [{"x": (scale * rng.normal(0, 1, (3, 4))).astype(np.float32)} for scale in (0.1, 2, 1, 0.5, 3)]
    samples = open_samples(feeds, input_specs(planned.source.model))
    with open_reference(planned.source, "simulate") as reference:
        trials = Trials(planned.source, reference.run, samples, make_gate("fp16", ["y"], {"rel_l2": limit}), {}, planned.dtype)
        trials.run(planned.assignment.half)
        gave_up = 0
        for _ in range(8):
            half = [chance.random() < 0.5 for _ in planned.assignment.half]
            whole, early = trials.run(half), trials.attempt(half)
            assert (early is not None and early.passed) is whole.passed
            if early is not None:
                assert early.outputs == whole.outputs
            gave_up += early is None
        assert trials.runs == 17
        assert not (limit == 1.0 and gave_up)
        assert not (limit == 1e-9 and gave_up < 4)
