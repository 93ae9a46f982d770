"""Raise a model to the opset in which ONNX's operators take BF16, by rewriting what changed on the way.

`halfconv.graph.lift` leaves a model alone where a step would change its graph; here the graph may change, its answers may not.
What a step cannot keep is refused, with the node's name: a converter that goes on all the same (onnx's own does, for the rounding
of a Resize) would give a model whose FP32 answers differ already.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from halfconv.errors import UnsupportedModel
from halfconv.graph.lift import (
    STEPS,
    Fresh,
    Rewriting,
    Steps,
    always,
    known_mode,
    lift,
    never,
    obstacle,
    one_output,
    over_last_axis,
    to_inputs,
)
from halfconv.graph.typegroups import is_float, is_weight

__all__ = ["BF16_OPSET", "RAISING", "raise_opset"]

#: The first opset in which Conv and 68 more operators take BF16.
BF16_OPSET = 22
#: The IR version that belongs to it.
IR_VERSION = 10
#: Operators whose axes became an input with opset 18.
REDUCTIONS = ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
              "ReduceSumSquare")  # fmt: skip
#: Operators of which ONNX Runtime 1.32 has kernels of opset 21, and none of opset 22 on either provider.
NO_KERNEL = ("GlobalLpPool", "MaxRoiPool", "Multinomial")
#: Old name of a GridSample mode -> its name since opset 20.
GRID_MODES = {"bilinear": "linear", "bicubic": "cubic"}


def _numbers(value: ir.Value | None) -> np.ndarray | None:
    """Return a constant's numbers."""
    if value is None or not is_weight(value) or value.const_value is None:
        return None
    return value.const_value.numpy()


def _flatten(node: ir.Node, fresh: Fresh) -> None:
    """Write the flattening out that operators of the Softmax family did up to opset 12."""
    value, output = node.inputs[0], node.outputs[0]
    assert value is not None
    axis, plain = node.attributes.get_int("axis", 1), over_last_axis(node)
    node.attributes.add(ir.AttrInt64("axis", -1))
    if plain:
        return
    shape = ir.node("Shape", [value], outputs=[ir.Value(name=fresh.name(f"{output.name}_shape"))])
    flat = ir.node("Flatten", [value], {"axis": axis}, outputs=[ir.Value(name=fresh.name(f"{output.name}_flat"))])
    shape.outputs[0].type, flat.outputs[0].type = ir.TensorType(ir.DataType.INT64), value.type
    node.prepend([shape, flat])
    node.replace_input_with(0, flat.outputs[0])
    back = ir.node("Reshape", [output, shape.outputs[0]])
    made, name = back.outputs[0], output.name or ""
    made.type, made.shape = output.type, output.shape
    output.replace_all_uses_with(made, replace_graph_outputs=True)
    back.replace_input_with(0, output)
    output.name, output.shape, made.name = fresh.name(f"{name}_rows"), None, name
    node.append(back)


def _scales_input(node: ir.Node, fresh: Fresh) -> None:
    scales = node.attributes.pop("scales", None)
    if scales is not None:
        node.resize_inputs(2)
        node.replace_input_with(1, fresh.constant(np.array(scales.as_floats(), np.float32), f"{node.outputs[0].name}_scales"))


def _old_scales(node: ir.Node) -> np.ndarray | None:
    if "scales" in node.attributes:
        return np.array(node.attributes["scales"].as_floats(), np.float32)
    return _numbers(node.inputs[1]) if len(node.inputs) > 1 else None


def _resizes(node: ir.Node) -> bool:
    """Tell whether an old Resize or Upsample has a form today: up to opset 10 it rounded down to enlarge, and up to shrink."""
    if node.attributes.get_string("mode", "nearest") != "nearest":
        return True
    scales = _old_scales(node)
    return scales is not None and bool((scales >= 1).all() or ((scales < 1) | (scales == 1)).all())


def _to_resize(node: ir.Node, fresh: Fresh) -> None:
    """Turn an Upsample, or a Resize of opset 10, into today's Resize."""
    scales = _old_scales(node)
    node.op_type = "Resize"
    given = node.inputs[1]
    node.resize_inputs(3)
    node.replace_input_with(1, None)
    node.replace_input_with(2, given)
    node.attributes.add(ir.AttrString("coordinate_transformation_mode", "asymmetric"))
    if node.attributes.get_string("mode", "nearest") == "nearest":
        down = scales is not None and bool((scales < 1).any())
        node.attributes.add(ir.AttrString("nearest_mode", "ceil" if down else "floor"))


def _one_way_to_size(node: ir.Node, fresh: Fresh) -> None:
    """Leave out the empty tensors by which exporters said that sizes count and scales do not."""
    for index in (1, 2, 3):
        if index >= len(node.inputs):
            break
        numbers = _numbers(node.inputs[index])
        if numbers is not None and numbers.size == 0:
            node.replace_input_with(index, None)
    if node.attributes.get_string("coordinate_transformation_mode", "") != "tf_crop_and_resize":
        node.replace_input_with(1, None)


def _pads_floats(node: ir.Node) -> bool:
    return is_float(node.inputs[0]) or not node.attributes.get_float("value", 0.0)


def _pads_input(node: ir.Node, fresh: Fresh) -> None:
    value = node.attributes.pop("value", None)
    to_inputs("pads")(node, fresh)
    if value is not None and value.as_float():
        node.resize_inputs(3)
        node.replace_input_with(2, fresh.constant(np.array(value.as_float(), np.float32), f"{node.outputs[0].name}_value"))


def _renamed(name: str) -> Rewriting:
    def rewrite(node: ir.Node, fresh: Fresh) -> None:
        node.op_type = name

    return rewrite


def _old_roi_mode(node: ir.Node, fresh: Fresh) -> None:
    """Write the mode down that was the only one up to opset 15."""
    node.attributes.add(ir.AttrString("coordinate_transformation_mode", "output_half_pixel"))


def _count_outputs(node: ir.Node, fresh: Fresh) -> None:
    if len(node.inputs) < 2 or node.inputs[1] is None:
        node.attributes.add(ir.AttrInt64("num_outputs", len(node.outputs)))


def _axis_input(node: ir.Node, fresh: Fresh) -> None:
    axis = node.attributes.pop("axis", None)
    node.resize_inputs(3)
    number = axis.as_int() if axis is not None else 1  # the default, which became -2
    node.replace_input_with(2, fresh.constant(np.array(number, np.int64), f"{node.outputs[0].name}_axis"))


def _grid_mode(node: ir.Node, fresh: Fresh) -> None:
    mode = node.attributes.get_string("mode", "bilinear")
    node.attributes.add(ir.AttrString("mode", GRID_MODES.get(mode, mode)))


#: What raising does beyond `STEPS`, or in their place: the operators whose meaning changed with the step from an opset.
_FURTHER: Steps = {
    7: {},  # wider broadcasting
    8: {"Upsample": (_resizes, _scales_input)},
    9: {"Dropout": (one_output, None), "Upsample": (_resizes, _to_resize)},  # the mask became a truth value
    10: {
        "Pad": (_pads_floats, _pads_input),
        "Resize": (_resizes, _to_resize),
        "Scatter": (always, _renamed("ScatterElements")),
    },
    12: {
        "Hardmax": (always, _flatten),
        "LogSoftmax": (always, _flatten),
        "Resize": (known_mode, _one_way_to_size),
        "Softmax": (always, _flatten),
    },
    15: {"RoiAlign": (always, _old_roi_mode)},
    17: {
        **dict.fromkeys(REDUCTIONS, (always, to_inputs("axes"))),
        "Resize": (known_mode, _one_way_to_size),
        "Split": (always, _count_outputs),
    },
    18: {},  # only types, and new attributes
    19: {"DFT": (always, _axis_input), "GridSample": (always, _grid_mode)},
    20: {"GroupNormalization": (never, None)},  # scale and bias became one per channel
    21: dict.fromkeys(NO_KERNEL, (never, None)),  # only types
}
RAISING: Steps = {step: {**STEPS.get(step, {}), **_FURTHER.get(step, {})} for step in sorted({*STEPS, *_FURTHER})}


def raise_opset(model: ir.Model, label: str) -> None:
    """Raise a model to the opset that BF16 needs, in place; constants and inserted nodes need preparing again.

    Args:
        model: A prepared model (`halfconv.graph.prepare`).
        label: What messages call it.

    Raises:
        UnsupportedModel: A node has no equal there, or the opset is too old.
    """
    current = model.opset_imports.get("", 0)
    advice = f"export it again with opset {BF16_OPSET}, or --to fp16"
    blocking = obstacle(model, BF16_OPSET, RAISING)
    if blocking is not None:
        raise UnsupportedModel(
            f"{label}: BF16 needs opset {BF16_OPSET}, in which node '{blocking.name or blocking.outputs[0].name}' "
            f"({blocking.op_type} of opset {current}) has no equal or no kernel",
            advice,
        )
    if not lift(model, BF16_OPSET, RAISING):
        raise UnsupportedModel(
            f"{label}: BF16 needs opset {BF16_OPSET}, and a model of opset {current} cannot be raised to it", advice
        )
    model.ir_version = max(model.ir_version, IR_VERSION)
