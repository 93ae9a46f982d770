"""Rewrite what was chosen to be computed channels last, with copies at its borders only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from halfconv.graph.fuse import FusionPass, scalar
from halfconv.graph.rules import Rewriter, is_transpose
from halfconv.graph.sizes import Learned
from halfconv.graph.sweep import sweep
from halfconv.kernels.layout import Layout, choose, is_pixel, reads_in_order
from halfconv.kernels.operators import DOMAIN, TO_FIRST, TO_LAST, VERSION
from halfconv.kernels.parts import HALF, half_weight, reshaped

__all__ = ["ChannelsLastPass"]


class ChannelsLastPass(FusionPass):
    """Makes operators of ours of convolutions, and computes what lies between them channels last.

    Args:
        learned: What is known of sizes; those of new values are added.

    Attributes:
        copies: Transposes that it added; those that it removed are taken off.
    """

    def __init__(self, learned: Learned | None = None) -> None:
        super().__init__()
        self.learned, self.copies = learned, 0

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass on the main graph."""
        layout = choose(model.graph)
        self.refused = layout.refused
        if not layout.last:
            return ir.passes.PassResult(model, modified=False)
        before = _transposes(model)
        made = _Rewriting(model, layout, Rewriter(model, self.learned)).run()
        sweep(model)
        model.opset_imports.setdefault(DOMAIN, VERSION)
        self.made = [node for node in made if node.graph is not None]
        self.count, self.copies = len(self.made), _transposes(model) - before
        return ir.passes.PassResult(model, modified=True)


class _Rewriting:
    """One run over a graph."""

    def __init__(self, model: ir.Model, layout: Layout, rewriter: Rewriter) -> None:
        self.graph, self.layout, self.rewriter = model.graph, layout, rewriter
        self.last: dict[ir.Value, ir.Value] = {}  # image -> the same with channels last
        self.made: list[ir.Node] = []

    def run(self) -> list[ir.Node]:
        """Rewrite all nodes, and return those of ours."""
        done = []
        for node in list(self.graph):
            if node not in self.layout.last:
                continue
            if is_transpose(node, TO_FIRST):
                assert node.inputs[0] is not None
                self.last[node.outputs[0]] = node.inputs[0]
                self._pass_on(node.outputs[0])
            elif is_transpose(node, TO_LAST):
                assert node.inputs[0] is not None
                node.outputs[0].replace_all_uses_with(self.to_last(node.inputs[0]))
            else:
                self._rewrite(node)
                done.append(node)
        # What no longer reads images with channels first; a Transpose that makes them reads one, if it is given it, as it is.
        gone = {node for node in self.layout.last if not is_transpose(node, TO_FIRST)}
        for node in done:
            self._restore(node.outputs[0], gone)
        for node in reversed(done):
            for place in range(len(node.inputs)):
                node.replace_input_with(place, None)
        return self.made

    def to_last(self, image: ir.Value) -> ir.Value:
        """Return an image with channels last."""
        if image not in self.last:
            value, node = self._moved(image, TO_LAST, image, f"{image.name}_last")
            producer = image.producer()
            if producer is not None:
                producer.append(node)
            else:
                self.graph.insert_before(self.graph[0], node)
            self.last[image] = value
        return self.last[image]

    def _rewrite(self, node: ir.Node) -> None:
        known = self.layout.convolutions.get(node)
        attributes: dict[str, Any] = {a.name: a for a in node.attributes.values()}
        op, domain, output = node.op_type, node.domain, node.outputs[0]
        if known is not None:
            assert node.inputs[0] is not None
            op, domain, attributes = known.op, DOMAIN, known.attributes
            inputs: Sequence[ir.Value | None] = known.inputs(self.to_last(node.inputs[0]), self.rewriter)
        else:
            inputs = [self._input(value) for value in node.inputs]
            if op == "GlobalAveragePool":
                domain = DOMAIN
            if op == "Concat":
                attributes = {"axis": TO_LAST.index(node.attributes.get_int("axis", 1) % 4)}
        made = ir.node(
            op, inputs, attributes, domain=domain, name=node.name, outputs=[self._value(output, TO_LAST, f"{output.name}_last")],
            metadata_props=dict(node.metadata_props),
        )  # fmt: skip
        node.append(made)
        self.last[output] = made.outputs[0]
        if domain == DOMAIN:
            self.made.append(made)

    def _input(self, value: ir.Value | None) -> ir.Value | None:
        """Return an input of an operator that works element by element."""
        if value is None or not value.is_initializer():
            return None if value is None else self.to_last(value)
        dims = half_weight(value)
        if scalar(value) is not None or dims is None:
            return value
        whole = [1] * (4 - len(dims)) + list(dims)
        shape = [whole[axis] for axis in TO_LAST]
        return reshaped(value, "last", shape, lambda array: array.reshape(whole).transpose(TO_LAST), self.rewriter)

    def _restore(self, image: ir.Value, gone: set[ir.Node]) -> None:
        """Let those that read an image with channels first go on reading it so."""
        self._pass_on(image)
        last = self.last[image]
        if image.is_graph_output() or any(use.node not in gone for use in image.uses()):
            name = image.name
            value, node = self._moved(last, TO_FIRST, image, None)
            made = last.producer()
            assert made is not None
            made.append(node)
            image.replace_all_uses_with(value, replace_graph_outputs=True)
            image.name, value.name = None, name

    def _pass_on(self, image: ir.Value) -> None:
        """Let those that read an image of one pixel element by element read it with channels last."""
        for use in list(image.uses()):
            if use.node not in self.layout.last and is_pixel(image) and reads_in_order(use.node, use.idx):
                use.node.replace_input_with(use.idx, self.last[image])

    def _moved(self, value: ir.Value, perm: tuple[int, ...], like: ir.Value, name: str | None) -> tuple[ir.Value, ir.Node]:
        """Return an image in the other layout, and the node that makes it, in no graph yet; one pixel only gets another shape."""
        result = self._value(like, perm if perm == TO_LAST else (0, 1, 2, 3), name)
        title = self.rewriter.fresh(f"{like.name}_to_{'last' if perm == TO_LAST else 'first'}")
        if not is_pixel(like):
            return result, ir.node("Transpose", [value], {"perm": perm}, outputs=[result], name=title)
        assert like.shape is not None
        channels = like.shape[1] if isinstance(like.shape[1], int) else -1
        shape = np.array([0, channels, 1, 1] if perm == TO_FIRST else [0, 1, 1, channels], np.int64)
        return result, ir.node("Reshape", [value, self.rewriter.constant(shape, "pixel")], outputs=[result], name=title)

    def _value(self, like: ir.Value, axes: Sequence[int], name: str | None) -> ir.Value:
        shape = ir.Shape([like.shape[axis] for axis in axes]) if like.shape is not None else None
        value = ir.Value(name=self.rewriter.fresh(name) if name else None, type=ir.TensorType(HALF), shape=shape)
        sizes = self.rewriter.sizes.of(like)
        if sizes is not None:
            self.rewriter.sizes.learn(value, [sizes[axis] for axis in axes])
        return value


def _transposes(model: ir.Model) -> int:
    return sum(node.op_type == "Transpose" for node in model.graph)
