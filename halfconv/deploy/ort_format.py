"""ORT format: the FP32 twin for runtimes that read nothing else, and the operators that a reduced build of ONNX Runtime needs.

ONNX Runtime's converter loads a model on the CPU and saves what it has then. An FP16 model loses there what it was made for: the
CPU provider has few half kernels, so Casts come in before and after its nodes, and from constant folding on weights are FP32. Hence
only the FP32 model is shipped like that, and what is shipped is looked at.

`halfconv.deploy.ort_tools` calls these functions in a process of its own.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

__all__ = ["read_ort", "required_operators", "to_ort"]

#: Sets the converter's optimisation level.
LEVEL = "ORT_CONVERT_ONNX_MODELS_TO_ORT_OPTIMIZATION_LEVEL"


def to_ort(model: str, level: str, types: bool) -> dict[str, str]:
    """Convert a model with ONNX Runtime's converter; the result lies beside it.

    Args:
        model: The model.
        level: Optimisation level: ``disable``, ``basic``, ``extended`` or ``all``.
        types: Whether the list of its operators names types, too.

    Returns:
        ``ort`` -> the file; ``operators`` -> the list, for ``--include_ops_by_config`` of ONNX Runtime's build.
    """
    from onnxruntime.tools.convert_onnx_models_to_ort import OptimizationStyle, convert_onnx_models_to_ort

    os.environ[LEVEL] = level
    path, ending = Path(model), "" if level == "all" else f".{level}"
    convert_onnx_models_to_ort(path, None, [OptimizationStyle.Fixed], target_platform="arm", enable_type_reduction=types)
    made = path.with_suffix(f"{ending}.ort")
    operators = path.with_suffix(f".required_operators{'_and_types' if types else ''}{ending}.config")
    _without_folders(operators)
    return {"ort": str(made), "operators": str(operators)}


def required_operators(files: Iterable[str], target: str) -> None:
    """Write the operators that several models in ORT format need, of all types.

    Args:
        files: The models.
        target: The file.
    """
    from onnxruntime.tools.ort_format_model import create_config_from_models

    create_config_from_models([Path(file) for file in files], Path(target), False)
    _without_folders(Path(target))


def _without_folders(operators: Path) -> None:
    """Leave the folders of this machine out of the comments."""
    operators.write_text(re.sub(r"^# - .*[/\\]", "# - ", operators.read_text("utf-8"), flags=re.M), "utf-8")


def read_ort(path: str) -> dict[str, dict[str, int]]:
    """Read what a model in ORT format holds.

    Args:
        path: The file.

    Returns:
        ``weights`` and ``values``: element type -> their number, as in ``{"FLOAT": 12}``; ``operators``: operator -> nodes.
    """
    from onnxruntime.tools.ort_format_model.ort_flatbuffers_py import fbs

    session = fbs.InferenceSession.InferenceSession.GetRootAsInferenceSession(bytearray(Path(path).read_bytes()), 0)
    names = {number: name for name, number in vars(fbs.TensorDataType.TensorDataType).items() if not name.startswith("_")}
    weights: Counter[str] = Counter()
    values: Counter[str] = Counter()
    operators: Counter[str] = Counter()
    for graph in _graphs(session.Model().Graph()):
        weights.update(names[graph.Initializers(place).DataType()] for place in range(graph.InitializersLength()))
        for place in range(graph.NodeArgsLength()):
            kind = graph.NodeArgs(place).Type()
            if kind is not None and kind.ValueType() == fbs.TypeInfoValue.TypeInfoValue.tensor_type:
                tensor = fbs.TensorTypeAndShape.TensorTypeAndShape()
                table = kind.Value()
                tensor.Init(table.Bytes, table.Pos)
                values[names[tensor.ElemType()]] += 1
        operators.update(graph.Nodes(place).OpType().decode() for place in range(graph.NodesLength()))
    return {"weights": dict(weights), "values": dict(values), "operators": dict(operators)}


def _graphs(graph: Any) -> Iterator[Any]:
    """Yield a graph and all graphs inside it."""
    yield graph
    for place in range(graph.NodesLength()):
        node = graph.Nodes(place)
        for number in range(node.AttributesLength()):
            inner = node.Attributes(number).G()
            if inner is not None:
                yield from _graphs(inner)
