"""More cases for `bench/simulation_cases.py`: what ONNX Runtime fuses, recurrent networks, its own operators, BF16."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bench.simulation_cases import Case, text_case

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


def fused_cases() -> Iterator[Case]:
    """Yield the cases."""
    random = np.random.default_rng(1)

    def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
        return (random.standard_normal(shape) * scale).astype(np.float16)

    yield from _decomposed(normal)
    yield from _fused(normal)
    yield from _recurrent(normal)
    yield from _contrib(normal)
    yield from _bf16(normal)


def _decomposed(normal: Any) -> Iterator[Case]:
    """Norms and GELUs, whole and in parts."""
    gb = {"g": normal(192), "b": normal(192)}
    for scale in (1.0, 300.0, 1e-3):
        big = {"x": normal(16, 192, scale=scale), **gb}
        yield text_case(f"LayerNormalization_{scale:g}", "LayerNormalization", "y = LayerNormalization(x, g, b)", big)
        yield text_case(
            f"RMSNormalization_{scale:g}", "RMSNormalization", "y = RMSNormalization(x, g)", {"x": big["x"], "g": gb["g"]}, 23
        )
        for eps in ("1e-5", "1e-12"):
            norm = _LAYER_NORM.format(eps=eps, n="n")
            yield text_case(f"decomposed_LayerNorm_{scale:g}_{eps}", "decomposed", norm + _SCALED, big)
            yield text_case(
                f"decomposed_LayerNorm_plain_{scale:g}_{eps}", "decomposed", _LAYER_NORM.format(eps=eps, n="y"), {"x": big["x"]}
            )
            static = norm.replace(
                "axes = Constant",
                f"g = Constant <value = float[192] {{{','.join(f'{v:g}' for v in gb['g'])}}}> ()\n"
                f" b = Constant <value = float[192] {{{','.join(f'{v:g}' for v in gb['b'])}}}> ()\n axes = Constant",
            )
            yield text_case(f"decomposed_LayerNorm_static_{scale:g}_{eps}", "decomposed", static + _SCALED, {"x": big["x"]})
        yield text_case(f"decomposed_Gelu_{scale:g}", "decomposed", _GELU, {"x": big["x"]})
        yield text_case(f"decomposed_FastGelu_{scale:g}", "decomposed", _FAST_GELU, {"x": np.clip(big["x"], -50, 50)})
    yield text_case("bias_Gelu", "decomposed", "x = Add(x0, b)\n" + _GELU, {"x0": normal(4, 16, 192), "b": normal(192)})


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
    for m, k, n in ((1, 7, 80), (2, 64, 80), (64, 768, 80), (16, 64, 4), (16, 3072, 80), (300, 64, 3)):
        sized = {"a": normal(m, k), "w": normal(k, n), "c": normal(n, scale=20)}
        yield text_case(f"sized_Gemm_{m}_{k}_{n}", "Gemm", "y = Gemm(a, w, c)", sized)
    for length in (16, 128):
        heads = [normal(1, 2, length, 64, scale=2), normal(1, 2, length, 64, scale=2), normal(1, 2, length, 64)]
        flat = [value.transpose(0, 2, 1, 3).reshape(1, length, 128) for value in heads]
        four, three = (dict(zip("qkv", side, strict=True)) for side in (heads, flat))
        yield text_case(f"Attention_{length}", "Attention", "y = Attention(q, k, v)", four, 23)
        yield text_case(
            f"Attention_mask_{length}", "Attention", "y = Attention(q, k, v, m)", {**four, "m": normal(length, length)}, 23
        )
        yield text_case(f"Attention_causal_{length}", "Attention", "y = Attention<is_causal = 1>(q, k, v)", four, 23)
        ms = "y = com.microsoft.MultiHeadAttention<num_heads = 2>(q, k, v"
        yield text_case(f"ms_MultiHeadAttention_{length}", "MultiHeadAttention", ms + ")", three)
        yield text_case(
            f"ms_MultiHeadAttention_bias_{length}", "MultiHeadAttention", ms + ",,,a)", {**three, "a": normal(1, 2, length, length)}
        )
    x = normal(4, 24, 96, scale=2)
    yield text_case("fused_Silu", "decomposed", "s = Sigmoid(x)\n y = Mul(x, s)", {"x": x})
    yield text_case(
        "fused_QuickGelu",
        "decomposed",
        "k = Constant<value = float {1.702}>()\n m = Mul(x, k)\n s = Sigmoid(m)\n y = Mul(x, s)",
        {"x": x},
    )
    yield text_case(
        "fused_GeluNew",
        "decomposed",
        """
        half = Constant<value = float {0.5}>()\n three = Constant<value = float {3}>()\n k = Constant<value = float {0.044715}>()
        r = Constant<value = float {0.7978845608}>()\n one = Constant<value = float {1}>()
        p = Pow(x, three)\n q = Mul(p, k)\n a = Add(x, q)\n m = Mul(a, r)\n t = Tanh(m)
        u = Add(t, one)\n h = Mul(x, half)\n y = Mul(h, u)""",
        {"x": x},
    )
    gelu_first = """ r = Constant<value = float {1.41421354}>()\n one = Constant<value = float {1}>()
        half = Constant<value = float {0.5}>()
        d = Div(x, r)\n e = Erf(d)\n a = Add(e, one)\n h = Mul(x, half)\n y = Mul(h, a)"""
    yield text_case("fused_Gelu_half_first", "decomposed", gelu_first, {"x": x})
    yield text_case(
        "fused_Gelu_times", "decomposed", gelu_first.replace("1.41421354", "0.70710677").replace("Div", "Mul"), {"x": x}
    )
    yield text_case(
        "fused_SkipLayerNorm",
        "decomposed",
        "x = Add(x0, k)\n" + _LAYER_NORM.format(eps="1e-5", n="n") + _SCALED,
        {"x0": x, "k": normal(4, 24, 96), "g": normal(96), "b": normal(96)},
    )
    yield text_case(
        "fused_SkipLayerNorm_op",
        "decomposed",
        "x = Add(x0, s)\n y = LayerNormalization(x, g, b)",
        {"x0": x, "s": normal(4, 24, 96), "g": normal(96), "b": normal(96)},
    )
    rms = """ two = Constant<value = float {2}>()\n eps = Constant<value = float {1e-5}>()
        axes = Constant<value = int64[1] {-1}>()
        p = Pow(x, two)\n m = ReduceMean<keepdims = 1>(p, axes)\n e = Add(m, eps)\n r = Sqrt(e)\n d = Div(x, r)\n y = Mul(d, g)"""
    for scale in (1.0, 300.0):
        yield text_case(f"fused_RMSNorm_{scale:g}", "decomposed", rms, {"x": normal(4, 24, 96, scale=scale), "g": normal(96)})
        yield text_case(
            f"fused_RMSNorm_reciprocal_{scale:g}",
            "decomposed",
            rms.replace("d = Div(x, r)", "i = Reciprocal(r)\n d = Mul(x, i)"),
            {"x": normal(4, 24, 96, scale=scale), "g": normal(96)},
        )
        norm = _LAYER_NORM.format(eps="1e-5", n="n")
        yield text_case(
            f"fused_LayerNorm_gamma_{scale:g}",
            "decomposed",
            norm + " y = Mul(n, g)",
            {"x": normal(4, 24, 96, scale=scale), "g": normal(96)},
        )
        wide = "x = Cast<to = 1>(x0)\n" + norm.replace("Constant <value = float[1] {2}> ()", "Cast<to = 1>(two0)")
        wide = wide.replace("eps = Constant", "eps0 = Constant").replace(
            "var = ReduceMean", "eps = Cast<to = 1>(eps0)\n var = ReduceMean"
        )
        wide = wide.replace("mean = ", "two0 = Constant <value = float[1] {2}> ()\n mean = ", 1) if "two0 = " not in wide else wide
        wide = wide.replace(" two = Cast<to = 1>(two0)\n", "").replace(" sq = ", " two = Cast<to = 1>(two0)\n sq = ")
        yield text_case(
            f"fused_LayerNorm_casts_{scale:g}",
            "decomposed",
            wide + " nh = Cast<to = 10>(n)\n s = Mul(nh, g)\n y = Add(s, b)",
            {"x0": normal(4, 24, 96, scale=scale), "g": normal(96), "b": normal(96)},
        )
    yield text_case(
        "fused_BiasSoftmax",
        "decomposed",
        "a = Add(q, m)\n y = Softmax(a)",
        {"q": normal(2, 4, 32, 32, scale=5), "m": normal(2, 1, 1, 32, scale=5)},
    )
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


def _recurrent(normal: Any) -> Iterator[Case]:
    for op, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1)):
        for direction, d in (("forward", 1), ("bidirectional", 2)):
            for hidden, steps in ((8, 5), (64, 40)):
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
                    yield Case(
                        f"{op}_{direction}_{hidden}_{scale_x:g}",
                        op,
                        model.SerializeToString(),
                        [{"x": normal(steps, 3, 40, scale=scale_x)}],
                    )


def _contrib(normal: Any) -> Iterator[Case]:
    x, g, b = normal(2, 16, 192, scale=2), normal(192), normal(192)
    ms = {
        "Gelu": ("y = com.microsoft.Gelu(x)", {"x": x}),
        "FastGelu": ("y = com.microsoft.FastGelu(x)", {"x": x}),
        "FastGelu_bias": ("y = com.microsoft.FastGelu(x, b)", {"x": x, "b": b}),
        "QuickGelu": ("y = com.microsoft.QuickGelu<alpha = 1.702>(x)", {"x": x}),
        "BiasGelu": ("y = com.microsoft.BiasGelu(x, b)", {"x": x, "b": b}),
        "SkipLayerNormalization": ("y = com.microsoft.SkipLayerNormalization(x, s, g, b, c)",
                                   {"x": x, "s": normal(2, 16, 192), "g": g, "b": b, "c": b}),
        "SkipLayerNormalization_large": ("y = com.microsoft.SkipLayerNormalization(x, s, g, b)",
                                         {"x": normal(2, 16, 192, scale=300), "s": normal(2, 16, 192, scale=300), "g": g, "b": b}),
        "SkipSimplifiedLayerNormalization": ("y = com.microsoft.SkipSimplifiedLayerNormalization(x, s, g)",
                                             {"x": x, "s": normal(2, 16, 192), "g": g}),
        "SimplifiedLayerNormalization": ("y = SimplifiedLayerNormalization<axis = -1, epsilon = 1e-6, stash_type = 1>(x, g)",
                                         {"x": x, "g": g}),
        "FusedMatMul": ("y = com.microsoft.FusedMatMul<alpha = 0.125, transB = 1>(a, c)",
                        {"a": normal(8, 32, 64), "c": normal(8, 32, 64)}),
        "BiasSoftmax": ("y = com.microsoft.BiasSoftmax<axis = 3, is_inner_broadcast = 0>(q, m)",
                        {"q": normal(2, 4, 32, 32, scale=5), "m": normal(2, 1, 1, 32, scale=5)}),
        "MultiHeadAttention": ("y = com.microsoft.MultiHeadAttention<num_heads = 3>(q, k, v)",
                               {"q": normal(2, 16, 192, scale=2), "k": normal(2, 16, 192, scale=2), "v": x}),
        "Attention": ("y = com.microsoft.Attention<num_heads = 3>(x, w, c)",
                      {"x": x, "w": normal(192, 576, scale=0.08), "c": normal(576)}),
        "BiasSplitGelu": ("y = com.microsoft.BiasSplitGelu(z, d)", {"z": normal(2, 16, 2560), "d": normal(2560)}),
        "GroupNorm": ("y = com.microsoft.GroupNorm<epsilon = 1e-5, groups = 32, activation = 1, channels_last = 1>(i, p, q)",
                      {"i": normal(1, 8, 8, 320, scale=30), "p": normal(320).astype(np.float32),
                       "q": normal(320).astype(np.float32)}),
        "BiasAdd": ("y = com.microsoft.BiasAdd(i, p, j)", {"i": normal(2, 64, 320), "p": normal(320), "j": normal(2, 64, 320)}),
        "RotaryEmbedding": ("y = com.microsoft.RotaryEmbedding(q, t, cc, ss)",
                            {"q": normal(1, 4, 16, 64), "t": np.arange(16, dtype=np.int64)[None],
                             "cc": normal(32, 32), "ss": normal(32, 32)}),
    }  # fmt: skip
    for name, (body, feeds) in ms.items():
        try:
            yield text_case(f"ms_{name}", name.split("_")[0], body, feeds)
        except Exception as error:
            print("no case", name, error)


def _bf16(normal: Any) -> Iterator[Case]:
    a, b = normal(16, 192), normal(16, 192)
    bodies = {
        "Add": "y = Add(a, b)", "Mul": "y = Mul(a, b)", "Div": "y = Div(a, b)", "Exp": "y = Exp(a)", "Tanh": "y = Tanh(a)",
        "Sigmoid": "y = Sigmoid(a)", "Erf": "y = Erf(a)", "Softmax": "y = Softmax(a)", "Gelu": "y = Gelu(a)",
        "Sqrt": "p = Abs(a)\n y = Sqrt(p)",
        "MatMul": "t = Transpose<perm = [1, 0]>(b)\n y = MatMul(a, t)",
        "ReduceMean": "x = Constant<value = int64[1] {1}>()\n y = ReduceMean(a, x)",
    }  # fmt: skip
    for op, body in bodies.items():
        yield text_case(f"bf16_{op}", op, body, {"a": a, "b": b}, 22, bf16=True)
    yield text_case(
        "bf16_LayerNormalization",
        "LayerNormalization",
        "y = LayerNormalization(x, g, b)",
        {"x": normal(16, 192, scale=10), "g": normal(192), "b": normal(192)},
        22,
        bf16=True,
    )
    yield text_case(
        "bf16_decomposed_LayerNorm",
        "decomposed",
        _LAYER_NORM.format(eps="1e-5", n="n") + _SCALED,
        {"x": normal(16, 192, scale=10), "g": normal(192), "b": normal(192)},
        22,
        bf16=True,
    )
    yield text_case("bf16_Conv", "Conv", "y = Conv(x, w)", {"x": normal(1, 16, 14, 14), "w": normal(32, 16, 3, 3)}, 22, bf16=True)
