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
                {name: _half(v * np.float32(8)) if isinstance(v, np.ndarray) and v.dtype == np.float32 else v for name, v in f.items()}
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


_LAYER_NORM = """
 axes = Constant <value = int64[1] {{-1}}> ()
 two = Constant <value = float[1] {{2}}> ()
 eps = Constant <value = float[1] {{{eps}}}> ()
 mean = ReduceMean <keepdims = 1> (x, axes)
 d = Sub (x, mean)
 sq = Pow (d, two)
 var = ReduceMean <keepdims = 1> (sq, axes)
 ve = Add (var, eps)
 sd = Sqrt (ve)
 {n} = Div (d, sd)
"""
_SCALED = " s = Mul (n, g)\n y = Add (s, b)"
_GELU = """
 r = Constant <value = float[1] {1.41421354}> ()
 one = Constant <value = float[1] {1}> ()
 half = Constant <value = float[1] {0.5}> ()
 d = Div (x, r)
 e = Erf (d)
 a = Add (e, one)
 m = Mul (x, a)
 y = Mul (m, half)
"""
_FAST_GELU = """
 three = Constant <value = float[1] {3}> ()
 k = Constant <value = float[1] {0.044715}> ()
 s = Constant <value = float[1] {0.7978845608}> ()
 one = Constant <value = float[1] {1}> ()
 half = Constant <value = float[1] {0.5}> ()
 c = Pow (x, three)
 m = Mul (k, c)
 a = Add (x, m)
 u = Mul (s, a)
 t = Tanh (u)
 p = Add (one, t)
 q = Mul (half, p)
 y = Mul (x, q)
"""


def made_cases() -> Iterator[Case]:
    """What the node tests do not reach."""
    random = np.random.default_rng(0)

    def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
        return (random.standard_normal(shape) * scale).astype(np.float16)

    x = normal(64, 768)
    unary = (
        "Abs Neg Relu Sqrt Exp Log Erf Tanh Sigmoid Reciprocal Floor Ceil Round Sin Cos Softplus Softsign Elu Selu LeakyRelu "
        "HardSigmoid HardSwish Mish Celu ThresholdedRelu Gelu Softmax LogSoftmax Identity Sign IsNaN Atan"
    )
    for op in unary.split():
        if op in ("IsNaN",):
            continue
        for scale in (1e-6, 1.0, 30.0):
            yield text_case(f"unary_{op}_{scale:g}", op, f"y = {op}(x)", {"x": normal(64, 768, scale=scale)})
    yield text_case("gelu_tanh", "Gelu", 'y = Gelu<approximate = "tanh">(x)', {"x": normal(64, 768, scale=3)})
    for op in ("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "PRelu"):
        for scale in (1e-4, 1.0, 200.0):
            a, b = normal(64, 768, scale=scale), normal(64, 768, scale=scale)
            if op == "Pow":
                a, b = np.abs(a), np.clip(b, -3, 3).astype(np.float16)
            yield text_case(f"binary_{op}_{scale:g}", op, f"y = {op}(a, b)", {"a": a, "b": b})
    for exponent in (0.5, 2.0, 3.0, -0.5, 4.0):
        yield text_case(f"pow_{exponent:g}", "Pow", f"e = Constant<value = float[1] {{{exponent}}}>()\n y = Pow(x, e)", {"x": np.abs(x) + np.float16(0.1)})
    for op in ("Sum", "Mean", "Max", "Min"):
        yield text_case(f"variadic_{op}", op, f"y = {op}(a, b, c, d)", {k: normal(64, 768, scale=100) for k in "abcd"})
    for op in "ReduceSum ReduceMean ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMin ReduceSumSquare ReduceProd".split():
        for scale in (1.0, 30.0):
            data = normal(8, 4096, scale=scale)
            if op in ("ReduceLogSum", "ReduceProd"):
                data = np.abs(data) if op == "ReduceLogSum" else (1 + data / 200).astype(np.float16)
            for axis in (0, 1):
                yield text_case(
                    f"{op}_{axis}_{scale:g}", op, f"axes = Constant<value = int64[1] {{{axis}}}>()\n y = {op}<keepdims = 1>(x, axes)", {"x": data}
                )
    yield text_case("ReduceMean_all", "ReduceMean", "y = ReduceMean(x)", {"x": normal(256, 4096, scale=20)})
    yield text_case("CumSum", "CumSum", "a = Constant<value = int64 {1}>()\n y = CumSum(x, a)", {"x": normal(8, 2048)})
    for k, scale in ((64, 1.0), (4096, 1.0), (4096, 60.0), (768, 1e-4), (768, 1e-3)):
        yield text_case(f"MatMul_{k}_{scale:g}", "MatMul", "y = MatMul(a, b)", {"a": normal(32, k, scale=scale), "b": normal(k, 64, scale=scale)})
    yield text_case("MatMul_batch", "MatMul", "y = MatMul(a, b)", {"a": normal(12, 64, 128), "b": normal(12, 128, 64)})
    yield text_case("MatMul_cancel", "MatMul", "y = MatMul(a, b)", {
        "a": np.concatenate([np.full((16, 256), 200), np.full((16, 256), -200)], 1).astype(np.float16), "b": np.full((512, 32), 200, np.float16)})
    yield text_case("Gemm_bias", "Gemm", "y = Gemm<alpha = 0.5, beta = 2.0, transB = 1>(a, b, c)", {
        "a": normal(32, 768), "b": normal(64, 768), "c": normal(64, scale=30)})
    yield text_case("MatMul_Add", "MatMul", "m = MatMul(a, b)\n y = Add(m, c)", {"a": normal(32, 768), "b": normal(768, 64), "c": normal(64, scale=30)})
    yield text_case("Einsum", "Einsum", 'y = Einsum<equation = "bij,bjk->bik">(a, b)', {"a": normal(4, 32, 256), "b": normal(4, 256, 32)})
    image = normal(2, 16, 28, 28)
    for name, attributes, w in (
        ("3x3", "pads = [1,1,1,1]", normal(32, 16, 3, 3)), ("1x1", "", normal(32, 16, 1, 1)),
        ("depthwise", "group = 16, pads = [1,1,1,1]", normal(16, 1, 3, 3)), ("strided", "strides = [2,2], pads=[3,3,3,3]", normal(24, 16, 7, 7)),
    ):  # fmt: skip
        for scale in (1.0, 1e-4):
            feeds = {"x": (image * np.float16(scale)).astype(np.float16), "w": w, "b": normal(w.shape[0], scale=10 * scale)}
            yield text_case(f"Conv_{name}_{scale:g}", "Conv", f"y = Conv<{attributes}>(x, w, b)".replace("<>", ""), feeds)
    yield text_case("Conv_1d", "Conv", "y = Conv<pads = [2,2]>(x, w)", {"x": normal(2, 32, 200), "w": normal(16, 32, 5)})
    yield text_case("ConvTranspose", "ConvTranspose", "y = ConvTranspose<strides = [2,2]>(x, w, b)", {"x": image, "w": normal(16, 8, 3, 3), "b": normal(8)})
    yield text_case("Conv_Relu", "Conv", "c = Conv(x, w, b)\n y = Relu(c)", {"x": image, "w": normal(32, 16, 3, 3), "b": normal(32)})
    yield text_case("Conv_Add_Relu", "Conv", "c = Conv(x, w, b)\n a = Add(c, z)\n y = Relu(a)", {
        "x": image, "w": normal(32, 16, 3, 3), "b": normal(32), "z": normal(2, 32, 26, 26, scale=10)})
    for op, attributes in (("AveragePool", "kernel_shape = [3,3]"), ("AveragePool", "kernel_shape = [7,7], pads=[3,3,3,3], count_include_pad=1"),
                           ("GlobalAveragePool", ""), ("MaxPool", "kernel_shape = [3,3]"), ("LpPool", "kernel_shape = [3,3], p = 2"), ("GlobalMaxPool", "")):
        tag = attributes.split("]")[0][-3:]
        yield text_case(f"{op}_{tag}", op, f"y = {op}<{attributes}>(x)".replace("<>", ""), {"x": normal(2, 16, 28, 28, scale=50)})
    yield text_case("GlobalAveragePool_large", "GlobalAveragePool", "y = GlobalAveragePool(x)", {"x": normal(1, 8, 112, 112, scale=20)})
    channel = {"s": normal(16), "b": normal(16), "m": normal(16), "v": np.abs(normal(16)) + np.float16(0.1)}
    yield text_case("BatchNormalization", "BatchNormalization", "y = BatchNormalization(x, s, b, m, v)", {"x": image, **channel}, 15)
    yield text_case("InstanceNormalization", "InstanceNormalization", "y = InstanceNormalization(x, s, b)",
                    {"x": normal(2, 16, 28, 28, scale=300), "s": channel["s"], "b": channel["b"]})
    yield text_case("GroupNormalization", "GroupNormalization", "y = GroupNormalization<num_groups = 4>(x, s, b)",
                    {"x": normal(2, 16, 28, 28, scale=300), "s": channel["s"], "b": channel["b"]}, 21)
    yield text_case("LpNormalization", "LpNormalization", "y = LpNormalization(x)", {"x": normal(16, 768, scale=100)})
    yield text_case("LRN", "LRN", "y = LRN<size = 5>(x)", {"x": normal(2, 16, 28, 28, scale=30)})
    gb = {"g": normal(768), "b": normal(768)}
    for scale in (1.0, 300.0, 1e-3):
        big = {"x": normal(64, 768, scale=scale), **gb}
        yield text_case(f"LayerNormalization_{scale:g}", "LayerNormalization", "y = LayerNormalization(x, g, b)", big)
        yield text_case(f"RMSNormalization_{scale:g}", "RMSNormalization", "y = RMSNormalization(x, g)", {"x": big["x"], "g": gb["g"]}, 23)
        for eps in ("1e-5", "1e-12"):
            norm = _LAYER_NORM.format(eps=eps, n="n")
            yield text_case(f"decomposed_LayerNorm_{scale:g}_{eps}", "decomposed", norm + _SCALED, big)
            yield text_case(f"decomposed_LayerNorm_plain_{scale:g}_{eps}", "decomposed", _LAYER_NORM.format(eps=eps, n="y"), {"x": big["x"]})
            static = norm.replace("axes = Constant", f"g = Constant <value = float[768] {{{','.join(f'{v:g}' for v in gb['g'])}}}> ()\n"
                                  f" b = Constant <value = float[768] {{{','.join(f'{v:g}' for v in gb['b'])}}}> ()\n axes = Constant")
            yield text_case(f"decomposed_LayerNorm_static_{scale:g}_{eps}", "decomposed", static + _SCALED, {"x": big["x"]})
        yield text_case(f"decomposed_Gelu_{scale:g}", "decomposed", _GELU, {"x": big["x"]})
        yield text_case(f"decomposed_FastGelu_{scale:g}", "decomposed", _FAST_GELU, {"x": np.clip(big["x"], -50, 50)})
    yield text_case("bias_Gelu", "decomposed", "x = Add(x0, b)\n" + _GELU, {"x0": normal(4, 16, 768), "b": normal(768)})
    yield from _sums(normal)
    yield from _fused(normal)
    yield from _shaped(normal)
    yield from _recurrent(normal)
    yield from _contrib(normal)
    yield from _bf16(normal)


def _sums(normal: Any) -> Iterator[Case]:
    """Sums whose value leaves half's range although the result does not, over counts that are no powers of two."""
    for op in ("ReduceMean", "ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp"):
        for shape, axes in (((6, 770), (1,)), ((770, 6), (0,)), ((4, 30, 50), (1,)), ((4, 30, 50), (0, 2)), ((4, 30, 50), (1, 2)), ((3, 7, 9, 11), (2, 3))):
            for scale in (1.0, 100.0) if op != "ReduceLogSumExp" else (1.0,):
                name = f"positive_{op}_{'x'.join(map(str, shape))}_{'_'.join(map(str, axes))}_{scale:g}"
                body = f"axes = Constant<value = int64[{len(axes)}] {{{','.join(map(str, axes))}}}>()\n y = {op}<keepdims = 0>(x, axes)"
                yield text_case(name, op, body, {"x": np.abs(normal(*shape, scale=scale))})
    for count in (2049, 70000):
        yield text_case(f"ReduceMean_of_{count}", "ReduceMean", "axes = Constant<value = int64[1] {1}>()\n y = ReduceMean(x, axes)",
                        {"x": np.abs(normal(3, count, scale=0.5))})
    for scale in (1.0, 100.0):
        image = np.abs(normal(2, 8, 30, 30, scale=scale))
        yield text_case(f"positive_GlobalAveragePool_{scale:g}", "GlobalAveragePool", "y = GlobalAveragePool(x)", {"x": image})
        yield text_case(f"positive_AveragePool_{scale:g}", "AveragePool", "y = AveragePool<kernel_shape = [29,29]>(x)", {"x": image})
    for scale in (0.1, 1.0, 10.0, 100.0, 300.0):
        for shape in ((2, 6, 20, 20), (1, 1, 30, 30), (1, 12, 50)):
            c = shape[1]
            yield text_case(f"InstanceNorm_{'x'.join(map(str, shape))}_{scale:g}", "InstanceNormalization", "y = InstanceNormalization(x, s, b)",
                            {"x": normal(*shape, scale=scale), "s": normal(c), "b": normal(c)})
        yield text_case(f"BatchNorm_{scale:g}", "BatchNormalization", "y = BatchNormalization(x, s, b, m, v)", {
            "x": normal(2, 6, 20, 20, scale=scale), "s": normal(6), "b": normal(6), "m": normal(6, scale=scale),
            "v": np.abs(normal(6, scale=min(scale * scale, 1e4))) + np.float16(0.01)}, 15)
        yield text_case(f"MeanVarianceNormalization_{scale:g}", "MeanVarianceNormalization", "y = MeanVarianceNormalization(x)", {"x": normal(2, 6, 20, 20, scale=scale)})
        yield text_case(f"LpNorm_{scale:g}", "LpNormalization", "y = LpNormalization(x)", {"x": normal(16, 770, scale=scale)})
        yield text_case(f"LRN_{scale:g}", "LRN", "y = LRN<size = 5, alpha = 0.1>(x)", {"x": normal(2, 16, 9, 9, scale=scale)})
    for attributes in ("", "<exclusive = 1>", "<reverse = 1>"):
        yield text_case(f"CumSum_{attributes}".replace(" ", "").replace("<", "").replace(">", ""), "CumSum", f"a = Constant<value = int64 {{0}}>()\n y = CumSum{attributes}(x, a)", {"x": normal(300, 8)})
    for axis in (0, 1, 2):
        for op in ("Softmax", "LogSoftmax"):
            yield text_case(f"{op}_axis{axis}", op, f"y = {op}<axis = {axis}>(x)", {"x": normal(5, 3000, 7, scale=5)})


def _fused(normal: Any) -> Iterator[Case]:
    """Patterns that ONNX Runtime fuses, or might."""
    a, w = normal(48, 96), normal(96, 80)
    for name, body, more in (
        ("Gemm_1d", "y = Gemm(a, w, c)", {"c": normal(80, scale=20)}),
        ("Gemm_2d", "y = Gemm(a, w, c)", {"c": normal(48, 80, scale=20)}),
        ("Gemm_row", "y = Gemm(a, w, c)", {"c": normal(1, 80, scale=20)}),
        ("Gemm_column", "y = Gemm(a, w, c)", {"c": normal(48, 1, scale=20)}),
        ("Gemm_none", "y = Gemm(a, w)", {}),
        ("Gemm_alpha", "y = Gemm<alpha = 0.3>(a, w)", {}),
        ("Gemm_beta", "y = Gemm<beta = 0.3>(a, w, c)", {"c": normal(80, scale=20)}),
        ("MatMul_Add_1d", "m = MatMul(a, w)\n y = Add(m, c)", {"c": normal(80, scale=20)}),
        ("MatMul_Add_2d", "m = MatMul(a, w)\n y = Add(c, m)", {"c": normal(48, 80, scale=20)}),
        ("MatMul_Mul", "s = Constant<value = float {0.3}>()\n m = MatMul(a, w)\n y = Mul(m, s)", {}),
        ("MatMul_Div", "s = Constant<value = float {3.3}>()\n m = MatMul(a, w)\n y = Div(m, s)", {}),
        ("Mul_MatMul", "s = Constant<value = float {0.3}>()\n m = Mul(a, s)\n y = MatMul(m, w)", {}),
        ("MatMul_Add_Relu", "m = MatMul(a, w)\n b = Add(m, c)\n y = Relu(b)", {"c": normal(80, scale=20)}),
    ):  # fmt: skip
        yield text_case(f"fused_{name}", "Gemm" if "Gemm" in name else "MatMul", body, {"a": a, "w": w, **more})
    x = normal(4, 24, 96, scale=2)
    yield text_case("fused_Silu", "decomposed", "s = Sigmoid(x)\n y = Mul(x, s)", {"x": x})
    yield text_case("fused_QuickGelu", "decomposed", "k = Constant<value = float {1.702}>()\n m = Mul(x, k)\n s = Sigmoid(m)\n y = Mul(x, s)", {"x": x})
    yield text_case("fused_GeluNew", "decomposed", """
        half = Constant<value = float {0.5}>()\n three = Constant<value = float {3}>()\n k = Constant<value = float {0.044715}>()
        r = Constant<value = float {0.7978845608}>()\n one = Constant<value = float {1}>()
        p = Pow(x, three)\n q = Mul(p, k)\n a = Add(x, q)\n m = Mul(a, r)\n t = Tanh(m)\n u = Add(t, one)\n h = Mul(x, half)\n y = Mul(h, u)""", {"x": x})
    gelu_first = """ r = Constant<value = float {1.41421354}>()\n one = Constant<value = float {1}>()\n half = Constant<value = float {0.5}>()
        d = Div(x, r)\n e = Erf(d)\n a = Add(e, one)\n h = Mul(x, half)\n y = Mul(h, a)"""
    yield text_case("fused_Gelu_half_first", "decomposed", gelu_first, {"x": x})
    yield text_case("fused_Gelu_times", "decomposed", gelu_first.replace("1.41421354", "0.70710677").replace("Div", "Mul"), {"x": x})
    yield text_case("fused_SkipLayerNorm", "decomposed", "x = Add(x0, k)\n" + _LAYER_NORM.format(eps="1e-5", n="n") + _SCALED,
                    {"x0": x, "k": normal(4, 24, 96), "g": normal(96), "b": normal(96)})
    yield text_case("fused_SkipLayerNorm_op", "decomposed", "x = Add(x0, s)\n y = LayerNormalization(x, g, b)",
                    {"x0": x, "s": normal(4, 24, 96), "g": normal(96), "b": normal(96)})
    rms = """ two = Constant<value = float {2}>()\n eps = Constant<value = float {1e-5}>()\n axes = Constant<value = int64[1] {-1}>()
        p = Pow(x, two)\n m = ReduceMean<keepdims = 1>(p, axes)\n e = Add(m, eps)\n r = Sqrt(e)\n d = Div(x, r)\n y = Mul(d, g)"""
    for scale in (1.0, 300.0):
        yield text_case(f"fused_RMSNorm_{scale:g}", "decomposed", rms, {"x": normal(4, 24, 96, scale=scale), "g": normal(96)})
        yield text_case(f"fused_RMSNorm_reciprocal_{scale:g}", "decomposed",
                        rms.replace("d = Div(x, r)", "i = Reciprocal(r)\n d = Mul(x, i)"), {"x": normal(4, 24, 96, scale=scale), "g": normal(96)})
        norm = _LAYER_NORM.format(eps="1e-5", n="n")
        yield text_case(f"fused_LayerNorm_gamma_{scale:g}", "decomposed", norm + " y = Mul(n, g)", {"x": normal(4, 24, 96, scale=scale), "g": normal(96)})
        wide = "x = Cast<to = 1>(x0)\n" + norm.replace("Constant <value = float[1] {2}> ()", "Cast<to = 1>(two0)")
        wide = wide.replace("eps = Constant", "eps0 = Constant").replace("var = ReduceMean", "eps = Cast<to = 1>(eps0)\n var = ReduceMean")
        wide = wide.replace("mean = ", "two0 = Constant <value = float[1] {2}> ()\n mean = ", 1) if "two0 = " not in wide else wide
        wide = wide.replace(" two = Cast<to = 1>(two0)\n", "").replace(" sq = ", " two = Cast<to = 1>(two0)\n sq = ")
        yield text_case(f"fused_LayerNorm_casts_{scale:g}", "decomposed", wide + " nh = Cast<to = 10>(n)\n s = Mul(nh, g)\n y = Add(s, b)",
                        {"x0": normal(4, 24, 96, scale=scale), "g": normal(96), "b": normal(96)})
    yield text_case("fused_BiasSoftmax", "decomposed", "a = Add(q, m)\n y = Softmax(a)", {"q": normal(2, 4, 32, 32, scale=5), "m": normal(2, 1, 1, 32, scale=5)})
    image = normal(2, 16, 20, 20)
    weights = {"w": normal(12, 16, 3, 3, scale=0.2), "cb": normal(12)}
    folds = {
        "ConvBN": ("c = Conv(x, w, cb)\n y = BatchNormalization(c, s, b, m, v)",
                   {"s": normal(12), "b": normal(12), "m": normal(12), "v": np.abs(normal(12)) + np.float16(0.1)}),
        "ConvBN_no_bias": ("c = Conv(x, w)\n y = BatchNormalization(c, s, b, m, v)",
                           {"s": normal(12), "b": normal(12), "m": normal(12), "v": np.abs(normal(12)) + np.float16(0.1)}),
        "ConvMul": ("c = Conv(x, w, cb)\n y = Mul(c, k)", {"k": normal(12, 1, 1)}),
        "ConvAdd": ("c = Conv(x, w, cb)\n y = Add(c, k)", {"k": normal(12, 1, 1, scale=5)}),
        "ConvAdd_no_bias": ("c = Conv(x, w)\n y = Add(c, k)", {"k": normal(1, 12, 1, 1, scale=5)}),
    }  # fmt: skip
    for name, (body, more) in folds.items():
        held = {k: v for k, v in {**weights, **more}.items() if not (k == "cb" and "cb" not in body)}
        case = text_case(f"fold_{name}", "Conv", body, {"x": image, **held}, 15)
        yield _with_weights(case, list(held))


def _with_weights(case: Case, names: list[str]) -> Case:
    """Make initializers of some inputs."""
    model = onnx.load_from_string(case.model)
    kept = [value for value in model.graph.input if value.name not in names]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    model.graph.initializer.extend(numpy_helper.from_array(case.feeds[0][name], name) for name in names)
    feeds = [{k: v for k, v in feed.items() if k not in names} for feed in case.feeds]
    return Case(case.name, case.op, model.SerializeToString(), feeds)


def _shaped(normal: Any) -> Iterator[Case]:
    """Convolutions and resizes of other shapes."""
    for name, attributes, x, w in (
        ("dilated", "dilations = [2,2]", normal(1, 8, 20, 20), normal(8, 8, 3, 3)), ("grouped", "group = 4", normal(1, 16, 20, 20), normal(32, 4, 3, 3)),
        ("3d", "", normal(1, 4, 8, 9, 10), normal(6, 4, 3, 3, 3)), ("1d", "", normal(2, 32, 100), normal(16, 32, 7)),
        ("deep", "pads = [1,1,1,1]", normal(1, 256, 14, 14), normal(64, 256, 3, 3)), ("large", "", normal(1, 64, 7, 7, scale=30), normal(64, 64, 7, 7, scale=3)),
    ):  # fmt: skip
        for opset in (17, 22):
            yield text_case(f"shaped_Conv_{name}_{opset}", "Conv", f"y = Conv<{attributes}>(x, w, b)".replace("<>", ""),
                            {"x": x, "w": w, "b": normal(w.shape[0], scale=10)}, opset)
    for mode in ("linear", "cubic", "nearest"):
        yield text_case(f"Resize_{mode}", "Resize", f's = Constant<value_floats = [1.0, 1.0, 1.7, 2.3]>()\n y = Resize<mode = "{mode}">(x, , s)',
                        {"x": normal(1, 3, 20, 20, scale=10)}, 13)
    yield text_case("Clip", "Clip", "a = Constant<value = float {-0.3}>()\n b = Constant<value = float {1.7}>()\n y = Clip(x, a, b)", {"x": normal(64, 768)})


def _recurrent(normal: Any) -> Iterator[Case]:
    for op, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1)):
        for direction, d in (("forward", 1), ("bidirectional", 2)):
            for hidden, steps in ((8, 5), (64, 40), (256, 160)):
                scale = 1 / np.sqrt(hidden)
                w, r, b = (normal(d, gates * hidden, 40, scale=scale), normal(d, gates * hidden, hidden, scale=scale),
                           normal(d, 2 * gates * hidden, scale=scale))  # fmt: skip
                inits = [numpy_helper.from_array(v, n) for n, v in (("w", w), ("r", r), ("b", b))]
                more = {"linear_before_reset": 1} if op == "GRU" else {}
                outs = ["y", "h", "c"][: 3 if op == "LSTM" else 2]
                node = helper.make_node(op, ["x", "w", "r", "b"], outs, hidden_size=hidden, direction=direction, **more)
                graph = helper.make_graph(
                    [node], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT16, [steps, 3, 40])],
                    [helper.make_tensor_value_info(name, TensorProto.FLOAT16, None) for name in outs], inits,
                )  # fmt: skip
                model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
                for scale_x in (1.0, 0.05):
                    yield Case(f"{op}_{direction}_{hidden}_{scale_x:g}", op, model.SerializeToString(), [{"x": normal(steps, 3, 40, scale=scale_x)}])


def _contrib(normal: Any) -> Iterator[Case]:
    x, g, b = normal(2, 64, 768, scale=2), normal(768), normal(768)
    ms = {
        "Gelu": ("y = com.microsoft.Gelu(x)", {"x": x}),
        "FastGelu": ("y = com.microsoft.FastGelu(x)", {"x": x}),
        "FastGelu_bias": ("y = com.microsoft.FastGelu(x, b)", {"x": x, "b": b}),
        "QuickGelu": ("y = com.microsoft.QuickGelu<alpha = 1.702>(x)", {"x": x}),
        "BiasGelu": ("y = com.microsoft.BiasGelu(x, b)", {"x": x, "b": b}),
        "SkipLayerNormalization": ("y = com.microsoft.SkipLayerNormalization(x, s, g, b, c)",
                                   {"x": x, "s": normal(2, 64, 768), "g": g, "b": b, "c": b}),
        "SkipLayerNormalization_large": ("y = com.microsoft.SkipLayerNormalization(x, s, g, b)",
                                         {"x": normal(2, 64, 768, scale=300), "s": normal(2, 64, 768, scale=300), "g": g, "b": b}),
        "SkipSimplifiedLayerNormalization": ("y = com.microsoft.SkipSimplifiedLayerNormalization(x, s, g)",
                                             {"x": x, "s": normal(2, 64, 768), "g": g}),
        "SimplifiedLayerNormalization": ("y = SimplifiedLayerNormalization<axis = -1, epsilon = 1e-6, stash_type = 1>(x, g)", {"x": x, "g": g}),
        "FusedMatMul": ("y = com.microsoft.FusedMatMul<alpha = 0.125, transB = 1>(a, c)", {"a": normal(8, 32, 64), "c": normal(8, 32, 64)}),
        "BiasSoftmax": ("y = com.microsoft.BiasSoftmax<axis = 3, is_inner_broadcast = 0>(q, m)",
                        {"q": normal(2, 4, 32, 32, scale=5), "m": normal(2, 1, 1, 32, scale=5)}),
        "MultiHeadAttention": ("y = com.microsoft.MultiHeadAttention<num_heads = 12>(q, k, v)",
                               {"q": normal(2, 64, 768, scale=2), "k": normal(2, 64, 768, scale=2), "v": x}),
        "Attention": ("y = com.microsoft.Attention<num_heads = 12>(x, w, c)",
                      {"x": x, "w": normal(768, 2304, scale=0.04), "c": normal(2304)}),
        "BiasSplitGelu": ("y = com.microsoft.BiasSplitGelu(z, d)", {"z": normal(2, 64, 2560), "d": normal(2560)}),
        "GroupNorm": ("y = com.microsoft.GroupNorm<epsilon = 1e-5, groups = 32, activation = 1, channels_last = 1>(i, p, q)",
                      {"i": normal(1, 8, 8, 320, scale=30), "p": normal(320).astype(np.float32), "q": normal(320).astype(np.float32)}),
        "BiasAdd": ("y = com.microsoft.BiasAdd(i, p, j)", {"i": normal(2, 64, 320), "p": normal(320), "j": normal(2, 64, 320)}),
        "RotaryEmbedding": ("y = com.microsoft.RotaryEmbedding(q, t, cc, ss)",
                            {"q": normal(1, 4, 16, 64), "t": np.arange(16, dtype=np.int64)[None], "cc": normal(32, 32), "ss": normal(32, 32)}),
    }  # fmt: skip
    for name, (body, feeds) in ms.items():
        try:
            yield text_case(f"ms_{name}", name.split("_")[0], body, feeds)
        except Exception as error:
            print("no case", name, error)


def _bf16(normal: Any) -> Iterator[Case]:
    a, b = normal(64, 768), normal(64, 768)
    bodies = {
        "Add": "y = Add(a, b)", "Mul": "y = Mul(a, b)", "Div": "y = Div(a, b)", "Exp": "y = Exp(a)", "Tanh": "y = Tanh(a)",
        "Sigmoid": "y = Sigmoid(a)", "Erf": "y = Erf(a)", "Softmax": "y = Softmax(a)", "Gelu": "y = Gelu(a)", "Sqrt": "p = Abs(a)\n y = Sqrt(p)",
        "MatMul": "t = Transpose<perm = [1, 0]>(b)\n y = MatMul(a, t)", "ReduceMean": "x = Constant<value = int64[1] {1}>()\n y = ReduceMean(a, x)",
    }  # fmt: skip
    for op, body in bodies.items():
        yield text_case(f"bf16_{op}", op, body, {"a": a, "b": b}, 22, bf16=True)
    yield text_case("bf16_LayerNormalization", "LayerNormalization", "y = LayerNormalization(x, g, b)",
                    {"x": normal(64, 768, scale=10), "g": normal(768), "b": normal(768)}, 22, bf16=True)
    yield text_case("bf16_decomposed_LayerNorm", "decomposed", _LAYER_NORM.format(eps="1e-5", n="n") + _SCALED,
                    {"x": normal(64, 768, scale=10), "g": normal(768), "b": normal(768)}, 22, bf16=True)
    yield text_case("bf16_Conv", "Conv", "y = Conv(x, w)", {"x": normal(2, 16, 28, 28), "w": normal(32, 16, 3, 3)}, 22, bf16=True)
