"""Put operators of ``com.halfconv`` into a converted model: the stage between rewriting and writing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from halfconv.errors import UnsupportedModel
from halfconv.graph.fuse import FusionPass
from halfconv.graph.fusing import Refusal
from halfconv.graph.names import Names
from halfconv.graph.rules import Rule, RulePass
from halfconv.graph.sizes import Learned
from halfconv.graph.sweep import sweep
from halfconv.kernels.attention import attention
from halfconv.kernels.channels_last import ChannelsLastPass
from halfconv.kernels.norms import layer_norm, normed
from halfconv.kernels.operators import DOMAIN, VERSION, define, used
from halfconv.kernels.parts import stored
from halfconv.kernels.products import activated, biased_product, gelu_product, residual

__all__ = ["RULES", "Placed", "Row", "place"]


#: The first IR version with functions.
FUNCTIONS = 8
#: Opset of the definitions in a model that imports none of ONNX's own operators.
OPSET = 17


@dataclass(frozen=True, slots=True)
class Placed:
    """What the stage did.

    Attributes:
        operators: Operator of ours -> how many are in the model.
        copies: Transposes that it added; those that it removed are taken off.
        refused: Where a rule began to match, and why it did not.
        results: Names of what the operators make. A file has to say their types: ONNX does not infer them where a definition holds
            operators of ONNX Runtime's own.
    """

    operators: Mapping[str, int]
    copies: int
    refused: tuple[Refusal, ...]
    results: frozenset[str] = frozenset()

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON data."""
        return {
            "operators": dict(self.operators),
            "copies": self.copies,
            "refused": [refusal.to_dict() for refusal in self.refused],
        }


@dataclass(frozen=True, slots=True)
class Row:
    """One step.

    Attributes:
        name: The operators that it makes, as reports call it.
        why: What it is good for, in one line.
        make: Makes its pass, given what is known of sizes.
    """

    name: str
    why: str
    make: Callable[[Learned], FusionPass]


def _by(rule: Rule, *anchors: str) -> Callable[[Learned], FusionPass]:
    return lambda learned: RulePass(anchors, rule, learned=learned)


#: In this order: weights before what reads them, products before what follows them, the layout before what follows convolutions,
#: and a norm by itself last, where nothing before took it.
RULES: tuple[Row, ...] = (
    Row("weight", "a constant is stored as it is read", _by(stored, "Transpose")),
    Row("LinearGelu", "bias and GELU cost no pass over memory", _by(gelu_product, "BiasGelu")),
    Row("Linear", "the bias costs no pass over memory", _by(biased_product, "Add")),
    Row("PackedAttention", "attention reads queries, keys and values where their product wrote them", _by(attention, "Attention")),
    Row("Conv", "images lie channels last, as tensor cores want them", ChannelsLastPass),
    Row("residual", "the sum costs no pass over memory", _by(residual, "Add")),
    Row("LinearGelu", "the GELU costs no pass over memory", _by(gelu_product, "Gelu")),
    Row("activation", "the activation costs no pass over memory", _by(activated, "Relu")),
    Row("DepthwiseConvNorm", "no copy stands between convolution and norm", _by(normed, "LayerNormalization")),
    Row("LayerNorm", "a norm is one pass over memory, 16 bytes at a time", _by(layer_norm, "LayerNormalization")),
)


def place(model: ir.Model) -> Placed:
    """Put the operators in, with their functions, wherever a rule holds.

    Args:
        model: A model whose types are those that will run, in FP16 where they may be; changed in place.

    Raises:
        UnsupportedModel: The model has operators of this domain that it does not define, which would become ours.
    """
    for node in model.graph.all_nodes():
        if node.domain == DOMAIN and node.op_identifier() not in model.functions:
            raise UnsupportedModel(
                f"node '{node.name or ''}' is {DOMAIN}.{node.op_type}, which the model does not define", "without --kernels"
            )
    learned: Learned = {}
    refused: list[tuple[str, ir.Node, str]] = []
    copies = 0
    for row in RULES:
        step = row.make(learned)
        step(model)
        refused += [(row.name, node, why) for node, why in step.refused]
        copies += step.copies if isinstance(step, ChannelsLastPass) else 0
    sweep(model)
    found = used(model.graph.all_nodes())
    for name in found:
        function = define(name, model.opset_imports.get("", OPSET))
        model.functions[function.identifier()] = function
        for domain, version in function.opset_imports.items():
            model.opset_imports.setdefault(domain, version)
    if found:
        model.opset_imports[DOMAIN] = VERSION
        model.ir_version = max(model.ir_version, FUNCTIONS)
    else:
        model.opset_imports.pop(DOMAIN, None)
    names = Names.of(model)
    told = tuple(Refusal(name, names.node[node], why) for name, node, why in refused if node in names.node)
    made = (output for node in model.graph.all_nodes() if node.domain == DOMAIN for output in node.outputs)
    return Placed(found, copies, told, frozenset(output.name or "" for output in made))
