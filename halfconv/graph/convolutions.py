"""Fold a bias or BatchNormalization into the convolution before it, and say why an activation is not fused into one."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from halfconv.graph.fuse import is_op, only_reader
from halfconv.graph.rules import Outcome, Rewriter
from halfconv.graph.typegroups import is_float, is_weight

__all__ = ["fold_batch_norm", "fold_bias", "fused_conv", "group_norm"]

#: Where a convolution's weight has its output channels.
CHANNELS = {"Conv": 0, "ConvTranspose": 1}


def fold_batch_norm(norm: ir.Node, rewriter: Rewriter) -> Outcome:
    """Fold BatchNormalization into the weight and bias of a convolution that nothing else reads."""
    x = norm.inputs[0]
    conv = _conv_of(x)
    if norm.domain or x is None or conv is None:
        return None
    if norm.attributes.get_int("training_mode", 0) or len([output for output in norm.outputs if output.name]) > 1:
        return "it is for training"
    if only_reader(x) is not norm or conv.graph is not norm.graph:
        return f"'{x.name}' is read by others, too"
    if conv.op_type == "ConvTranspose" and conv.attributes.get_int("group", 1) != 1:
        return "its transposed convolution has groups"
    constants = [*norm.inputs[1:5], *conv.inputs[1:3]]
    if any(value is not None and (not is_weight(value) or value.const_value is None) for value in constants):
        return "a weight is computed"
    if conv.inputs[1] is None or conv.inputs[1].shape is None:
        return None
    return lambda: _fold(conv, norm, rewriter)


def _fold(conv: ir.Node, norm: ir.Node, rewriter: Rewriter) -> ir.Node:
    weight, axis = conv.inputs[1], CHANNELS[conv.op_type]
    assert weight is not None and weight.shape is not None
    gamma, beta, mean, variance = (_numbers(value) for value in norm.inputs[1:5])
    factor = gamma / np.sqrt(variance + norm.attributes.get_float("epsilon", 1e-5))
    given = _bias(conv, mean.size)
    column = factor.reshape([-1 if place == axis else 1 for place in range(weight.shape.rank())])
    tensor = weight.const_value
    assert tensor is not None

    def folded() -> np.ndarray:
        return (tensor.numpy().astype(np.float64) * column).astype(np.float32)

    bias = ((given - mean) * factor + beta).astype(np.float32)
    whole = rewriter.lazy(folded, weight.shape.numpy(), f"{weight.name}_folded")
    inputs = [conv.inputs[0], whole, rewriter.constant(bias, f"{weight.name}_bias")]
    return rewriter.replace(norm, conv.op_type, inputs, dict(conv.attributes))


def _conv_of(x: ir.Value | None) -> ir.Node | None:
    """Return the convolution that makes a value of floats."""
    conv = x.producer() if x is not None and is_float(x) else None
    return conv if conv is not None and conv.op_type in CHANNELS and not conv.domain else None


def _bias(conv: ir.Node, channels: int) -> np.ndarray:
    """Return a convolution's bias, zeros if it has none."""
    return _numbers(conv.inputs[2]) if len(conv.inputs) > 2 and conv.inputs[2] is not None else np.zeros(channels)


def _numbers(value: ir.Value | None) -> np.ndarray:
    assert value is not None and value.const_value is not None
    return value.const_value.numpy().astype(np.float64)


def fold_bias(add: ir.Node, rewriter: Rewriter) -> Outcome:
    """Fold the sum with a number for each channel into the bias of a convolution, as Paddle's exporter leaves it behind one."""
    x, added = add.inputs
    if x is not None and is_weight(x):
        x, added = added, x
    conv = _conv_of(x)
    if add.domain or x is None or conv is None:
        return None
    if added is None or not is_weight(added) or added.const_value is None:
        return None
    channels, rank = _channels(conv)
    given = added.const_value.shape.numpy()
    shape = [*(1,) * (rank - len(given)), *given]
    if not rank or len(shape) != rank or shape[1] not in (1, channels) or any(size != 1 for size in (shape[0], *shape[2:])):
        return None
    if only_reader(x) is not add or conv.graph is not add.graph:
        return f"'{x.name}' is read by others, too"
    bias = conv.inputs[2] if len(conv.inputs) > 2 else None
    if bias is not None and (not is_weight(bias) or bias.const_value is None):
        return "the convolution's bias is computed"

    def fold() -> ir.Node:
        whole = (_bias(conv, channels) + _numbers(added).reshape(-1)).astype(np.float32)
        inputs = [*conv.inputs[:2], rewriter.constant(whole, f"{add.outputs[0].name}_bias")]
        return rewriter.replace(add, conv.op_type, inputs, dict(conv.attributes))

    return fold


def _channels(conv: ir.Node) -> tuple[int, int]:
    """Return how many channels a convolution makes, and its rank; 0 if that is not known."""
    weight = conv.inputs[1]
    if weight is None or weight.shape is None or not weight.shape.is_static():
        return 0, 0
    groups = conv.attributes.get_int("group", 1) if conv.op_type == "ConvTranspose" else 1
    return weight.shape.numpy()[CHANNELS[conv.op_type]] * groups, weight.shape.rank()


def fused_conv(node: ir.Node, rewriter: Rewriter) -> Outcome:
    """Find a Relu behind a convolution, which FusedConv would compute; where the target has it in half, ONNX Runtime fuses it."""
    x = node.inputs[0]
    conv = x.producer() if x is not None else None
    found = conv is not None and is_op(conv, "Conv", node.graph) and x is not None and only_reader(x) is node and not node.domain
    return "ONNX Runtime fuses it when it loads the model" if found else None


def group_norm(node: ir.Node, rewriter: Rewriter) -> Outcome:
    """Find InstanceNormalization between Reshapes, which is a group norm."""
    x = node.inputs[0]
    around = x.producer() if x is not None else None, only_reader(node.outputs[0])
    shaped = all(side is not None and is_op(side, "Reshape", node.graph) for side in around)
    return "ONNX Runtime's CPU provider, which measures ranges, has no kernel of GroupNorm" if shaped and not node.domain else None
