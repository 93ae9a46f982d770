"""Models that ONNX Runtime's optimiser wrote: its own operators, some of them under ONNX's name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.cases.checks import answers, close, convert, normal, same_interface

WIDTH, HEADS, GROUPS, WORDS, PAST = 64, 4, 2, 50, 3
SIZE = WIDTH // HEADS
MS = "com.microsoft"


def _llama(layers: int) -> onnx.ModelProto:
    """A decoder as ONNX Runtime's tools export Llama: grouped attention with a cache and rotary positions, skip and RMS norms."""
    angles = np.outer(np.arange(32), 1 / 10000 ** (np.arange(SIZE // 2) / (SIZE // 2)))
    weights = {
        "words": normal(WORDS, WIDTH, scale=0.5), "head": normal(WIDTH, WORDS, scale=0.1), "norm0": np.ones(WIDTH),
        "cos": np.cos(angles), "sin": np.sin(angles), "one": np.array([1]), "place": np.array(1),
    }  # fmt: skip
    nodes = [
        helper.make_node("Gather", ["words", "ids"], ["h"]),
        helper.make_node("ReduceSum", ["mask", "one"], ["length"]),
        helper.make_node("Sub", ["length", "one"], ["last"]),
        helper.make_node("Cast", ["last"], ["last32"], to=TensorProto.INT32),
        helper.make_node("Shape", ["mask"], ["shape"]),
        helper.make_node("Gather", ["shape", "place"], ["total"]),
        helper.make_node("Cast", ["total"], ["total32"], to=TensorProto.INT32),
        helper.make_node("SimplifiedLayerNormalization", ["h", "norm0"], ["n0"], axis=-1, epsilon=1e-6, stash_type=1),
    ]
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["b", size]) for name, size in (("ids", "s"), ("mask", "t"))]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", "s", WORDS])]
    residual = "h"
    for i in range(layers):
        sizes = {"q": WIDTH, "k": GROUPS * SIZE, "v": GROUPS * SIZE, "o": WIDTH, "up": WIDTH, "gate": WIDTH, "down": WIDTH}
        for place, (name, size) in enumerate(sizes.items()):
            weights[f"w{name}{i}"] = normal(WIDTH, size, seed=10 * i + place, scale=0.1)
        weights |= {f"norm{i}b": np.abs(normal(WIDTH, seed=i)), f"norm{i + 1}": np.abs(normal(WIDTH, seed=i + 50))}
        for kind in "kv":
            cache = ["b", GROUPS, "p", SIZE]
            inputs.append(helper.make_tensor_value_info(f"past{kind}{i}", TensorProto.FLOAT, cache))
            outputs.append(helper.make_tensor_value_info(f"new{kind}{i}", TensorProto.FLOAT, [*cache[:2], "t", SIZE]))
        nodes += [helper.make_node("MatMul", [f"n{i}", f"w{name}{i}"], [f"{name}{i}"]) for name in "qkv"]
        attended = [f"q{i}", f"k{i}", f"v{i}", f"pastk{i}", f"pastv{i}", "last32", "total32", "cos", "sin"]
        nodes += [
            helper.make_node("GroupQueryAttention", attended, [f"a{i}", f"newk{i}", f"newv{i}"], domain=MS, num_heads=HEADS,
                             kv_num_heads=GROUPS, do_rotary=1),
            helper.make_node("MatMul", [f"a{i}", f"wo{i}"], [f"o{i}"]),
            helper.make_node("SkipSimplifiedLayerNormalization", [residual, f"o{i}", f"norm{i}b"], [f"m{i}", "", "", f"r{i}"],
                             domain=MS, epsilon=1e-6),
            helper.make_node("MatMul", [f"m{i}", f"wgate{i}"], [f"gate{i}"]),
            helper.make_node("QuickGelu", [f"gate{i}"], [f"act{i}"], domain=MS, alpha=1.0),
            helper.make_node("MatMul", [f"m{i}", f"wup{i}"], [f"up{i}"]),
            helper.make_node("Mul", [f"act{i}", f"up{i}"], [f"mul{i}"]),
            helper.make_node("MatMul", [f"mul{i}", f"wdown{i}"], [f"down{i}"]),
            helper.make_node("SkipSimplifiedLayerNormalization", [f"r{i}", f"down{i}", f"norm{i + 1}"],
                             [f"n{i + 1}", "", "", f"h{i}"] if i + 1 < layers else [f"n{i + 1}"], domain=MS, epsilon=1e-6),
        ]  # fmt: skip
        residual = f"h{i}"
    nodes.append(helper.make_node("MatMul", [f"n{layers}", "head"], ["logits"]))
    tensors = [
        onnx.numpy_helper.from_array(a.astype(np.float32) if a.dtype.kind == "f" else a, name) for name, a in weights.items()
    ]
    graph = helper.make_graph(nodes, "llama", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid(MS, 1)], ir_version=8)


_CACHE = [f"{name}{kind}{i}" for name in ("past", "new") for kind in "kv" for i in range(2)]


@pytest.mark.parametrize(("half_io", "casts"), [(False, 9), (True, 0), (_CACHE, 1)])
def test_a_llama_that_onnx_runtime_optimised(half_io: bool | list[str], casts: int, folder: Path) -> None:
    """It is converted though onnx's checker does not know it; with a half cache nothing but the logits is cast."""
    converted = convert(_llama(2), folder, half_io=half_io)
    feeds = {"ids": np.array([[3, 4]]), "mask": np.ones((1, PAST + 2), np.int64)}
    feeds |= {f"past{kind}{i}": normal(1, GROUPS, PAST, SIZE, seed=i) for i in range(2) for kind in "kv"}
    found = answers(converted, [feeds])
    close(found.plain, found.reference, 2e-3)
    close(found.simulated, found.reference, 2e-3)
    if not half_io:
        same_interface(converted)
    assert converted.result.casts == casts
    assert all(entry.rule == "io" for entry in converted.result.fp32)
    assert converted.result.weights == {"half": len(converted.model.graph.initializer) - 2, "float": 0, "both": 0}
