"""How much of a model the accelerators of phones could take, as ONNX Runtime's mobile helper estimates it.

The helper looks at operators and shapes of the graph as it is, not at types, and lists caveats that it does not check. What it does
not cover, nobody says anything about.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import onnx

__all__ = ["Usability", "find_usability"]

#: What the helper says nothing of.
UNCOVERED = ("XNNPACK", "QNN")
#: Largest sizes of partitions that are kept.
KEPT = 50


@dataclass(frozen=True, slots=True)
class Usability:
    """What one provider could take of one model.

    Attributes:
        model: The model's file in the package.
        provider: ``NNAPI``, ``CoreML MLProgram``, ``CoreML NeuralNetwork``, ``XNNPACK`` or ``QNN``.
        covered: Whether the helper knows the provider.
        nodes: Nodes of the model.
        supported: Nodes that the provider could take.
        partitions: Their partitions' sizes.
        supported_if_fixed: The same if all dimensions were fixed.
        partitions_if_fixed: Likewise.
        unsupported: Operators that it cannot take.
        caveats: Limits of operators that were not checked.
        verdict: ``YES``, ``MAYBE`` or ``NO``: whether to try it, as the helper says; "" where it says nothing.
        note: Why there is no answer; "" if there is one.
    """

    model: str
    provider: str
    covered: bool
    nodes: int = 0
    supported: int = 0
    partitions: tuple[int, ...] = ()
    supported_if_fixed: int = 0
    partitions_if_fixed: tuple[int, ...] = ()
    unsupported: tuple[str, ...] = ()
    caveats: tuple[str, ...] = ()
    verdict: str = ""
    note: str = ""


def find_usability(model: str, name: str) -> list[dict[str, Any]]:
    """Ask ONNX Runtime's helper about a model; `halfconv.deploy.ort_tools` calls this in a process of its own.

    Args:
        model: The model, as it is shipped.
        name: What it is called in the package.

    Returns:
        `Usability` of each provider, as a dictionary.
    """
    return [asdict(entry) for entry in _entries(model, name)]


def _entries(model: str, name: str) -> tuple[Usability, ...]:
    from onnxruntime.tools.mobile_helpers import usability_checker as helper

    def coreml(table: str) -> Callable[[onnx.ModelProto, bool], Any]:
        return lambda proto, fixed: helper.check_coreml_partitions(proto, fixed, table)

    checks: tuple[tuple[str, Callable[[onnx.ModelProto, bool], Any]], ...] = (
        ("NNAPI", helper.check_nnapi_partitions),
        ("CoreML MLProgram", coreml("coreml_supported_mlprogram_ops.md")),
        ("CoreML NeuralNetwork", coreml("coreml_supported_neuralnetwork_ops.md")),
    )
    try:
        proto = onnx.shape_inference.infer_shapes(_lifted(onnx.load(model, load_external_data=False)), data_prop=True)
    except Exception as error:
        words = str(error).strip().partition("\n")[0][:200]
        note = f"shapes cannot be inferred: {words}"
        return tuple(Usability(name, provider, True, note=note) for provider, _ in checks) + _rest(name)
    return tuple(_ask(proto, name, provider, check) for provider, check in checks) + _rest(name)


def _rest(name: str) -> tuple[Usability, ...]:
    return tuple(Usability(name, provider, False, note="ONNX Runtime's helper does not cover it") for provider in UNCOVERED)


def _ask(proto: onnx.ModelProto, name: str, provider: str, check: Callable[[onnx.ModelProto, bool], Any]) -> Usability:
    try:
        now, fixed = check(proto, True), check(proto, False)
        best = max(now.suitability(), fixed.suitability())
    except (ValueError, ZeroDivisionError, KeyError, IndexError) as error:
        return Usability(name, provider, True, note=f"the helper fails: {' '.join(str(error).split())[:200]}")
    return Usability(
        model=name, provider=provider, covered=True, nodes=now.num_nodes, supported=now.num_supported_nodes,
        partitions=_sizes(now), supported_if_fixed=fixed.num_supported_nodes, partitions_if_fixed=_sizes(fixed),
        unsupported=tuple(sorted(now.unsupported_ops | fixed.unsupported_ops)),
        caveats=tuple(caveat.strip() for caveat in fixed.supported_ops_checker.get_caveats()), verdict=best.name,
    )  # fmt: skip


def _sizes(info: Any) -> tuple[int, ...]:
    return tuple(sorted((len(group) for group in info.supported_groups), reverse=True)[:KEPT])


def _lifted(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Make weights of Constant nodes, as ONNX Runtime does before it partitions a graph; the helper would count them as nodes."""
    kept = []
    for node in proto.graph.node:
        if node.op_type == "Constant" and len(node.attribute) == 1 and node.attribute[0].name == "value":
            tensor = proto.graph.initializer.add()
            tensor.CopyFrom(node.attribute[0].t)
            tensor.name = node.output[0]
        else:
            kept.append(node)
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
    proto.graph.ClearField("node")
    proto.graph.node.extend(nodes)
    return proto
