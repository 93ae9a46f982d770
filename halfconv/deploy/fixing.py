"""Free dimensions made fixed, in a copy of a model: phones' and NPUs' compilers want sizes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import onnx

from halfconv.deploy.parts import Slot, place_model
from halfconv.errors import InputError, UsageError

__all__ = ["fixed_copy", "parse_fixed"]


def parse_fixed(texts: Iterable[str], inputs: Sequence[Slot]) -> dict[str, int]:
    """Read ``--fix``.

    Args:
        texts: ``NAME=SIZE`` for a named dimension, wherever it stands; ``INPUT:AXIS=SIZE`` for one axis.
        inputs: The model's inputs.

    Returns:
        Name, or ``INPUT:AXIS``, -> size.

    Raises:
        UsageError: A text is malformed, or no free dimension is called so.
    """
    free = {dim for slot in inputs for dim in slot.dims if isinstance(dim, str) and dim != "?"}
    axes = {f"{slot.name}:{axis}" for slot in inputs for axis, dim in enumerate(slot.dims) if isinstance(dim, str)}
    fixed: dict[str, int] = {}
    for text in texts:
        name, equals, size = text.rpartition("=")
        if not equals or not re.fullmatch(r"[1-9][0-9]{0,9}", size):
            raise UsageError(f"--fix {text} is no dimension and size", "--fix batch=1")
        if name not in free | axes:
            words = ", ".join(sorted(free) or sorted(axes)) or "none"
            raise UsageError(f"--fix {text}: no input has a free dimension '{name}'; there are: {words}", "one of these")
        if fixed.setdefault(name, int(size)) != int(size):
            raise UsageError(f"--fix gives '{name}' two sizes", "one of them")
    return fixed


def fixed_copy(model: Path, data: Mapping[str, Path], folder: Path, fixed: Mapping[str, int]) -> Path:
    """Write a copy of a model, with its files of weights, in which dimensions have a size.

    Args:
        model: The model.
        data: Location -> real path of its files of weights.
        folder: Where the copy goes.
        fixed: As `parse_fixed` gives it.

    Raises:
        InputError: The model contradicts the sizes.
    """
    copy = place_model(model, data, folder, model.name)
    proto = onnx.load(copy, load_external_data=False)
    free = {dim.dim_param for value in proto.graph.input for dim in value.type.tensor_type.shape.dim}
    names = {name: size for name, size in fixed.items() if name in free}
    for value in proto.graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            key = f"{value.name}:{axis}"
            if key in fixed and dim.dim_param and dim.dim_param not in names:
                names[dim.dim_param] = fixed[key]
            if key in fixed and not dim.HasField("dim_value"):
                dim.dim_value = fixed[key]
    for value in (*proto.graph.input, *proto.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in names:
                dim.dim_value = names[dim.dim_param]
    # What was inferred with free sizes is inferred anew with fixed ones; types that inference cannot give are kept.
    kept = {value.name: value for value in proto.graph.value_info}
    proto.graph.ClearField("value_info")
    for value in kept.values():
        entry = proto.graph.value_info.add()
        entry.name = value.name
        entry.type.CopyFrom(value.type)
        if value.type.HasField("tensor_type"):
            entry.type.tensor_type.ClearField("shape")
    if not data:
        try:
            proto = onnx.shape_inference.infer_shapes(proto, data_prop=True)
        except Exception as error:
            words = str(error).strip().partition("\n")[0][:300]
            raise InputError(f"{model}: its shapes contradict --fix: {words}", "other sizes") from None
    onnx.save(proto, copy)
    return copy
