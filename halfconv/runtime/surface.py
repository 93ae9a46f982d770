"""What callers see of a model: whether two are alike in that, and inputs that are made up for a first run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import InputError, UsageError
from .arrays import FLOATS, Spec
from .engine import Engine

__all__ = ["check_surface", "known_shapes", "made_up"]


def known_shapes(engine: Engine) -> list[Mapping[str, Any]]:
    """Return the shapes that are known without a request.

    Raises:
        UsageError: There are none.
    """
    known: list[Mapping[str, Any]] = list(engine.buckets.shapes())
    needed = {name: spec for name, spec in engine.inputs.items() if spec.needed}
    if not known and all(isinstance(dim, int) for spec in needed.values() for dim in spec.shape):
        known = [{name: spec.shape for name, spec in needed.items()}]
    if not known:
        found = ", ".join(f"{name!r}: {spec}" for name, spec in needed.items())
        raise UsageError(f"the model's shapes vary: {found}", "warmup({input: shape, …})")
    return known


def made_up(spec: Spec | None, value: Any) -> Any:
    """Return an array for a shape: floats around zero, integers 0; what is no shape is an array already.

    Raises:
        InputError: A dimension is negative.
    """
    if spec is None or not isinstance(value, (tuple, list)) or not all(isinstance(dim, int) for dim in value):
        return value
    if any(dim < 0 for dim in value):
        raise InputError(f"the shape {list(value)} of {spec.name!r} has a negative dimension", str(spec))
    if spec.element in FLOATS:
        return np.random.default_rng(0).standard_normal(value, np.float32)
    return np.full(value, "", object) if spec.element == "string" else np.zeros(value, spec.storage)


def check_surface(old: Engine, new: Engine) -> None:
    """Check that callers need not know which of two models answers.

    Raises:
        InputError: They have other inputs or outputs.
    """
    for side in ("inputs", "outputs"):
        before, after = ({n: str(s) for n, s in getattr(engine, side).items() if s.needed} for engine in (old, new))
        if before.keys() != after.keys():
            raise InputError(f"the new model's {side} are {sorted(after)}", f"a model with {sorted(before)}, or a new Session")
        for name, spec in getattr(old, side).items():
            other = getattr(new, side).get(name)
            if spec.needed and (len(other.shape) != len(spec.shape) or (spec.element in FLOATS) != (other.element in FLOATS)):
                raise InputError(f"the new model's {name!r} is {other}", f"a model with {spec}, or a new Session")
