"""Bring a model to a newer opset, for what is measured inside it."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from halfconv.graph.lift import lift
from halfconv.graph.raise_opset import RAISING
from halfconv.quiet import quiet

__all__ = ["raised_to"]


def raised_to(model: ir.Model, opset: int) -> bool:
    """Raise a model's opset in place: by halfconv's own rules, or else by the converters of onnxscript and onnx.

    Args:
        model: A prepared model.
        opset: What the opset of ONNX's own operators must be.

    Returns:
        Whether it is that now; if not, the model may have been changed in part.
    """
    if lift(model, opset) or lift(model, opset, RAISING):
        return True
    from onnxscript import version_converter

    try:
        with quiet(version_converter.__name__, common.shape_inference.__name__):
            version_converter.convert_version(model, opset, fallback=True)
            common.ShapeInferencePass()(model)
    except Exception:  # whatever they raise, the model stays where it is
        return False
    return model.opset_imports.get("") == opset
