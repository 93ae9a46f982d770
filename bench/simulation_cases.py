"""Small half-precision models that show how a GPU's kernels round: ONNX's node tests, and what those do not reach.

`cases()` yields `Case`s: a model in half precision, and feeds. Beside the node tests there are long reductions, products whose
partial sums leave half's range, subnormals, recurrent networks, the operators that ONNX Runtime fuses at load, decomposed norms
and GELUs, and BF16.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
from onnx import TensorProto, helper, numpy_helper


@dataclass(slots=True)
class Case:
    """A half-precision model and what to run it on.

    Attributes:
        name: Unique name.
        op: The operator it is about.
        model: Serialized model.
        feeds: Inputs, one dictionary per run.
    """

    name: str
    op: str
    model: bytes
    feeds: list[dict[str, np.ndarray]] = field(default_factory=list)


def _half(value: Any) -> Any:
    with np.errstate(over="ignore"):
        return value.astype(np.float16) if isinstance(value, np.ndarray) and value.dtype == np.float32 else value


def node_test_cases() -> Iterator[Case]:
    """ONNX's node tests with float I/O, as far into half as the schemas allow; on their own data, and on 8 times that."""
    import halfconv
    from tests.node_cases import node_cases

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "a.onnx", Path(folder) / "b.onnx"
        for case in node_cases():
            if case.holds_sequences:
                continue
            model = onnx.load_from_string(case.model)
            source.write_bytes(case.model)
            ops = sorted({node.op_type for node in model.graph.node})
            options: dict[str, Any] = {"half_io": True, "block_list": "none", "fuse": False, "target": "cuda", "check": False}
            try:
                halfconv.convert(source, target, allow_ops=ops, **options)
            except halfconv.HalfconvError:
                try:
                    halfconv.convert(source, target, **options)
                except halfconv.HalfconvError:
                    continue
            feeds = [{name: _half(value) for name, value in feed.items()} for feed in case.feeds]
            larger = [
                {
                    name: _half(v * np.float32(8)) if isinstance(v, np.ndarray) and v.dtype == np.float32 else v
                    for name, v in f.items()
                }
                for f in case.feeds
            ]
            yield Case(case.name, case.op, target.read_bytes(), feeds + (larger if case.alone else []))


def text_case(name: str, op: str, body: str, feeds: dict[str, np.ndarray], opset: int = 20, *, bf16: bool = False) -> Case:
    """A model of one graph, with the feeds' shapes as its inputs and the output y; float constants become half.

    Python has no BF16 arrays of its own, so the interface of a BF16 model is FP32, with Casts.
    """
    half = TensorProto.BFLOAT16 if bf16 else TensorProto.FLOAT16
    kinds = {"float16": "float" if bf16 else "float16", "float32": "float", "int64": "int64", "int32": "int32", "bool": "bool"}
    suffix = "_in" if bf16 else ""
    inputs = ", ".join(f"{kinds[str(v.dtype)]}[{','.join(map(str, v.shape))}] {k}{suffix}" for k, v in feeds.items())
    casts = "".join(f"{k} = Cast<to = {half}>({k}_in)\n" for k in feeds) if bf16 else ""
    text = (
        f'<ir_version: 10, opset_import: ["": {opset}, "com.microsoft": 1]>\n'
        f"g ({inputs}) => ({'float out' if bf16 else 'float16 y'}) {{ {casts}{body}{' out = Cast<to = 1>(y)' if bf16 else ''} }}"
    )
    model = onnx.parser.parse_model(text)
    for attribute in (a for node in model.graph.node for a in node.attribute if a.t.data_type == TensorProto.FLOAT):
        values = numpy_helper.to_array(attribute.t)
        attribute.t.CopyFrom(helper.make_tensor("", half, values.shape, values.ravel()))
    if bf16:
        feeds = {f"{k}_in": v.astype(np.float32) for k, v in feeds.items()}
    return Case(name, op, model.SerializeToString(), [feeds])


def made_cases() -> Iterator[Case]:
    """What the node tests do not reach."""
    random = np.random.default_rng(0)

    def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
        return (random.standard_normal(shape) * scale).astype(np.float16)

    x = normal(4, 96)
    unary = (
        "Abs Neg Relu Sqrt Exp Log Erf Tanh Sigmoid Reciprocal Floor Ceil Round Sin Cos Softplus Softsign Elu Selu LeakyRelu "
        "HardSigmoid HardSwish Mish Celu ThresholdedRelu Gelu Softmax LogSoftmax Identity Sign IsNaN Atan"
    )
    for op in unary.split():
        if op in ("IsNaN",):
            continue
        for scale in (1e-6, 1.0, 30.0):
            yield text_case(f"unary_{op}_{scale:g}", op, f"y = {op}(x)", {"x": normal(4, 96, scale=scale)})
    yield text_case("gelu_tanh", "Gelu", 'y = Gelu<approximate = "tanh">(x)', {"x": normal(4, 96, scale=3)})
    for op in ("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "PRelu"):
        for scale in (1e-4, 1.0, 200.0):
            a, b = normal(4, 96, scale=scale), normal(4, 96, scale=scale)
            if op == "Pow":
                a, b = np.abs(a), np.clip(b, -3, 3).astype(np.float16)
            yield text_case(f"binary_{op}_{scale:g}", op, f"y = {op}(a, b)", {"a": a, "b": b})
    for exponent in (0.5, 2.0, 3.0, -0.5, 4.0):
        yield text_case(
            f"pow_{exponent:g}",
            "Pow",
            f"e = Constant<value = float[1] {{{exponent}}}>()\n y = Pow(x, e)",
            {"x": np.abs(x) + np.float16(0.1)},
        )
    for op in ("Sum", "Mean", "Max", "Min"):
        yield text_case(f"variadic_{op}", op, f"y = {op}(a, b, c, d)", {k: normal(4, 96, scale=100) for k in "abcd"})
    for op in [
        "ReduceSum",
        "ReduceMean",
        "ReduceL1",
        "ReduceL2",
        "ReduceLogSum",
        "ReduceLogSumExp",
        "ReduceMax",
        "ReduceMin",
        "ReduceSumSquare",
        "ReduceProd",
    ]:
        for scale in (1.0, 30.0):
            data = normal(8, 4096, scale=scale)
            if op in ("ReduceLogSum", "ReduceProd"):
                data = np.abs(data) if op == "ReduceLogSum" else (1 + data / 200).astype(np.float16)
            for axis in (0, 1):
                yield text_case(
                    f"{op}_{axis}_{scale:g}",
                    op,
                    f"axes = Constant<value = int64[1] {{{axis}}}>()\n y = {op}<keepdims = 1>(x, axes)",
                    {"x": data},
                )
    yield text_case("ReduceMean_all", "ReduceMean", "y = ReduceMean(x)", {"x": normal(256, 4096, scale=20)})
    yield text_case("CumSum", "CumSum", "a = Constant<value = int64 {1}>()\n y = CumSum(x, a)", {"x": normal(8, 2048)})
    for k, scale in ((64, 1.0), (4096, 1.0), (4096, 60.0), (768, 1e-4), (768, 1e-3)):
        yield text_case(
            f"MatMul_{k}_{scale:g}",
            "MatMul",
            "y = MatMul(a, b)",
            {"a": normal(32, k, scale=scale), "b": normal(k, 64, scale=scale)},
        )
    yield text_case("MatMul_batch", "MatMul", "y = MatMul(a, b)", {"a": normal(12, 64, 128), "b": normal(12, 128, 64)})
    yield text_case(
        "MatMul_cancel",
        "MatMul",
        "y = MatMul(a, b)",
        {
            "a": np.concatenate([np.full((16, 256), 200), np.full((16, 256), -200)], 1).astype(np.float16),
            "b": np.full((512, 32), 200, np.float16),
        },
    )
    yield text_case(
        "Gemm_bias",
        "Gemm",
        "y = Gemm<alpha = 0.5, beta = 2.0, transB = 1>(a, b, c)",
        {"a": normal(32, 192), "b": normal(64, 192), "c": normal(64, scale=30)},
    )
    yield text_case(
        "MatMul_Add",
        "MatMul",
        "m = MatMul(a, b)\n y = Add(m, c)",
        {"a": normal(32, 768), "b": normal(768, 64), "c": normal(64, scale=30)},
    )
    yield text_case(
        "Einsum", "Einsum", 'y = Einsum<equation = "bij,bjk->bik">(a, b)', {"a": normal(4, 32, 256), "b": normal(4, 256, 32)}
    )
    image = normal(1, 16, 14, 14)
    for name, attributes, w in (
        ("3x3", "pads = [1,1,1,1]", normal(32, 16, 3, 3)), ("1x1", "", normal(32, 16, 1, 1)),
        ("depthwise", "group = 16, pads = [1,1,1,1]", normal(16, 1, 3, 3)),
        ("strided", "strides = [2,2], pads=[3,3,3,3]", normal(24, 16, 7, 7)),
    ):  # fmt: skip
        for scale in (1.0, 1e-4):
            feeds = {"x": (image * np.float16(scale)).astype(np.float16), "w": w, "b": normal(w.shape[0], scale=10 * scale)}
            yield text_case(f"Conv_{name}_{scale:g}", "Conv", f"y = Conv<{attributes}>(x, w, b)".replace("<>", ""), feeds)
    yield text_case("Conv_1d", "Conv", "y = Conv<pads = [2,2]>(x, w)", {"x": normal(2, 32, 200), "w": normal(16, 32, 5)})
    yield text_case(
        "ConvTranspose",
        "ConvTranspose",
        "y = ConvTranspose<strides = [2,2]>(x, w, b)",
        {"x": image, "w": normal(16, 8, 3, 3), "b": normal(8)},
    )
    yield text_case(
        "Conv_Relu", "Conv", "c = Conv(x, w, b)\n y = Relu(c)", {"x": image, "w": normal(32, 16, 3, 3), "b": normal(32)}
    )
    yield text_case(
        "Conv_Add_Relu",
        "Conv",
        "c = Conv(x, w, b)\n a = Add(c, z)\n y = Relu(a)",
        {"x": image, "w": normal(32, 16, 3, 3), "b": normal(32), "z": normal(1, 32, 12, 12, scale=10)},
    )
    for op, attributes in (
        ("AveragePool", "kernel_shape = [3,3]"),
        ("AveragePool", "kernel_shape = [7,7], pads=[3,3,3,3], count_include_pad=1"),
        ("GlobalAveragePool", ""),
        ("MaxPool", "kernel_shape = [3,3]"),
        ("LpPool", "kernel_shape = [3,3], p = 2"),
        ("GlobalMaxPool", ""),
    ):
        tag = attributes.split("]")[0][-3:]
        yield text_case(f"{op}_{tag}", op, f"y = {op}<{attributes}>(x)".replace("<>", ""), {"x": normal(1, 16, 14, 14, scale=50)})
    yield text_case(
        "GlobalAveragePool_large", "GlobalAveragePool", "y = GlobalAveragePool(x)", {"x": normal(1, 8, 112, 112, scale=20)}
    )
    channel = {"s": normal(16), "b": normal(16), "m": normal(16), "v": np.abs(normal(16)) + np.float16(0.1)}
    yield text_case(
        "BatchNormalization", "BatchNormalization", "y = BatchNormalization(x, s, b, m, v)", {"x": image, **channel}, 15
    )
    yield text_case(
        "InstanceNormalization",
        "InstanceNormalization",
        "y = InstanceNormalization(x, s, b)",
        {"x": normal(1, 16, 14, 14, scale=300), "s": channel["s"], "b": channel["b"]},
    )
    yield text_case(
        "GroupNormalization",
        "GroupNormalization",
        "y = GroupNormalization<num_groups = 4>(x, s, b)",
        {"x": normal(1, 16, 14, 14, scale=300), "s": channel["s"], "b": channel["b"]},
        21,
    )
    yield text_case("LpNormalization", "LpNormalization", "y = LpNormalization(x)", {"x": normal(16, 768, scale=100)})
    yield text_case("LRN", "LRN", "y = LRN<size = 5>(x)", {"x": normal(1, 16, 14, 14, scale=30)})
    yield from _sums(normal)
    yield from _shaped(normal)


def _sums(normal: Any) -> Iterator[Case]:
    """Sums whose value leaves half's range although the result does not, over counts that are no powers of two."""
    for op in ("ReduceMean", "ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp"):
        for shape, axes in (
            ((6, 770), (1,)),
            ((770, 6), (0,)),
            ((4, 30, 50), (1,)),
            ((4, 30, 50), (0, 2)),
            ((4, 30, 50), (1, 2)),
            ((3, 7, 9, 11), (2, 3)),
        ):
            for scale in (1.0, 100.0) if op != "ReduceLogSumExp" else (1.0,):
                name = f"positive_{op}_{'x'.join(map(str, shape))}_{'_'.join(map(str, axes))}_{scale:g}"
                listed = ",".join(map(str, axes))
                body = f"axes = Constant<value = int64[{len(axes)}] {{{listed}}}>()\n y = {op}<keepdims = 0>(x, axes)"
                yield text_case(name, op, body, {"x": np.abs(normal(*shape, scale=scale))})
    for count in (2049, 70000):
        yield text_case(
            f"ReduceMean_of_{count}",
            "ReduceMean",
            "axes = Constant<value = int64[1] {1}>()\n y = ReduceMean(x, axes)",
            {"x": np.abs(normal(3, count, scale=0.5))},
        )
    for scale in (1.0, 100.0):
        image = np.abs(normal(2, 8, 30, 30, scale=scale))
        yield text_case(f"positive_GlobalAveragePool_{scale:g}", "GlobalAveragePool", "y = GlobalAveragePool(x)", {"x": image})
        yield text_case(
            f"positive_AveragePool_{scale:g}", "AveragePool", "y = AveragePool<kernel_shape = [29,29]>(x)", {"x": image}
        )
    for scale in (0.1, 1.0, 10.0, 100.0, 300.0):
        for shape in ((2, 6, 20, 20), (1, 1, 30, 30), (1, 12, 50)):
            c = shape[1]
            yield text_case(
                f"InstanceNorm_{'x'.join(map(str, shape))}_{scale:g}",
                "InstanceNormalization",
                "y = InstanceNormalization(x, s, b)",
                {"x": normal(*shape, scale=scale), "s": normal(c), "b": normal(c)},
            )
        yield text_case(
            f"BatchNorm_{scale:g}",
            "BatchNormalization",
            "y = BatchNormalization(x, s, b, m, v)",
            {
                "x": normal(2, 6, 20, 20, scale=scale),
                "s": normal(6),
                "b": normal(6),
                "m": normal(6, scale=scale),
                "v": np.abs(normal(6, scale=min(scale * scale, 1e4))) + np.float16(0.01),
            },
            15,
        )
        yield text_case(
            f"MeanVarianceNormalization_{scale:g}",
            "MeanVarianceNormalization",
            "y = MeanVarianceNormalization(x)",
            {"x": normal(2, 6, 20, 20, scale=scale)},
        )
        yield text_case(f"LpNorm_{scale:g}", "LpNormalization", "y = LpNormalization(x)", {"x": normal(16, 770, scale=scale)})
        yield text_case(f"LRN_{scale:g}", "LRN", "y = LRN<size = 5, alpha = 0.1>(x)", {"x": normal(2, 16, 9, 9, scale=scale)})
    for attributes in ("", "<exclusive = 1>", "<reverse = 1>"):
        yield text_case(
            f"CumSum_{attributes}".replace(" ", "").replace("<", "").replace(">", ""),
            "CumSum",
            f"a = Constant<value = int64 {{0}}>()\n y = CumSum{attributes}(x, a)",
            {"x": normal(100, 8)},
        )
    for axis in (0, 1, 2):
        for op in ("Softmax", "LogSoftmax"):
            yield text_case(f"{op}_axis{axis}", op, f"y = {op}<axis = {axis}>(x)", {"x": normal(5, 1500, 3, scale=5)})


def _shaped(normal: Any) -> Iterator[Case]:
    """Convolutions and resizes of other shapes."""
    for name, attributes, x, w in (
        ("dilated", "dilations = [2,2]", normal(1, 8, 20, 20), normal(8, 8, 3, 3)),
        ("grouped", "group = 4", normal(1, 16, 20, 20), normal(32, 4, 3, 3)),
        ("3d", "", normal(1, 4, 8, 9, 10), normal(6, 4, 3, 3, 3)), ("1d", "", normal(2, 32, 100), normal(16, 32, 7)),
        ("deep", "pads = [1,1,1,1]", normal(1, 256, 14, 14), normal(64, 256, 3, 3)),
        ("large", "", normal(1, 64, 7, 7, scale=30), normal(64, 64, 7, 7, scale=3)),
    ):  # fmt: skip
        for opset in (17, 22):
            yield text_case(
                f"shaped_Conv_{name}_{opset}",
                "Conv",
                f"y = Conv<{attributes}>(x, w, b)".replace("<>", ""),
                {"x": x, "w": w, "b": normal(w.shape[0], scale=10)},
                opset,
            )
    for mode in ("linear", "cubic", "nearest"):
        yield text_case(
            f"Resize_{mode}",
            "Resize",
            f's = Constant<value_floats = [1.0, 1.0, 1.7, 2.3]>()\n y = Resize<mode = "{mode}">(x, , s)',
            {"x": normal(1, 3, 20, 20, scale=10)},
            13,
        )
    yield text_case(
        "Clip",
        "Clip",
        "a = Constant<value = float {-0.3}>()\n b = Constant<value = float {1.7}>()\n y = Clip(x, a, b)",
        {"x": normal(16, 192)},
    )
