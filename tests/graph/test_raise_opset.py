"""Raising a model to opset 22: the graph may change, the answers may not."""

from __future__ import annotations

import re
from collections import defaultdict

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.defs import OpSchema

from halfconv.errors import UnsupportedModel
from halfconv.graph.prepare import prepare
from halfconv.graph.raise_opset import BF16_OPSET, RAISING, REDUCTIONS, raise_opset
from tests import zoo
from tests.graph import model
from tests.runtime_helpers import difference, run

RNG = np.random.default_rng(5)
FEEDS = {
    "x": RNG.normal(size=(2, 3, 4)).astype(np.float32),
    "i": RNG.normal(size=(1, 2, 4, 6)).astype(np.float32),
    "r": np.array([[0, 0, 3, 2], [1, 1, 5, 3]], np.float32),
    "n": np.zeros(2, np.int64),
    "g": RNG.uniform(-1, 1, (1, 3, 3, 2)).astype(np.float32),
    "s": np.array([[1, 0], [0, 2]], np.int64),
    "d": RNG.normal(size=(1, 8, 1)).astype(np.float32),
}
TYPES = {
    "x": "float[2,3,4]", "i": "float[1,2,4,6]", "r": "float[2,4]", "n": "int64[2]", "g": "float[1,3,3,2]", "s": "int64[2,2]",
    "d": "float[1,8,1]",
}  # fmt: skip
CONSTANTS = (
    "<float[4] up = {1, 1, 2, 3}, float[4] down = {1, 1, 0.5, 0.5}, float[4] odd = {1, 1, 1.5, 2.3}, float[0] none = {},"
    " int64[4] size = {1, 2, 7, 9}, float[8] roi = {0, 0, 0, 0, 1, 1, 1, 1},"
    " float[2] one = {1, 1}, float[2] zero = {0, 0}, int64[2] at = {1, 0}>"
)


def old(body: str, opset: int) -> onnx.ModelProto:
    """A model of an old opset: inputs are the names in `FEEDS` that the body reads, outputs `y` and `z`."""
    reads = sorted({name for name in TYPES if any(f"{before}{name}{after}" in body for before in "( " for after in ",)")})
    proto = ir.to_proto(
        model(f"({', '.join(f'{TYPES[name]} {name}' for name in reads)}) => (float[2] y) {CONSTANTS} {{ {body} }}", opset=opset)
    )
    proto.ir_version = 7
    made = [name for name in ("y", "z") if re.search(rf"\b{name}(, \w)? =", body)]
    del proto.graph.output[:]
    for name in made:
        proto.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return onnx.shape_inference.infer_shapes(proto)


def raised(source: onnx.ModelProto) -> onnx.ModelProto:
    made = ir.from_proto(source)
    prepare(made, fuse=False)
    raise_opset(made, "m.onnx")
    assert made.opset_imports[""] == BF16_OPSET and made.ir_version >= 10
    prepare(made, fuse=False)
    return ir.to_proto(made)


SAME = [
    (7, "y = Upsample <mode = \"nearest\", scales = [1.0, 1.0, 2.0, 3.0]> (i)"),
    (7, "y = BatchNormalization(i, one, zero, zero, one)"),
    (7, "y = Dropout <ratio = 0.4> (x)"),
    (8, "y = Upsample <mode = \"linear\", scales = [1.0, 1.0, 2.0, 2.0]> (i)"),
    (8, "y = Upsample <mode = \"nearest\", scales = [1.0, 1.0, 1.5, 2.3]> (i)"),
    (9, "y = Upsample <mode = \"nearest\"> (i, up)"),
    (9, "y = Upsample <mode = \"linear\"> (i, odd)"),
    (9, "y = Pad <pads = [0, 1, 1, 0, 0, 2], value = 2.5> (x)"),
    (9, "y = Pad <mode = \"reflect\", pads = [0, 1, 1, 0, 0, 2]> (x)"),
    (9, "y = Clip <min = -0.5, max = 0.75> (x)"),
    (9, "y = Slice <starts = [1, 0], ends = [3, 2], axes = [1, 2]> (x)"),
    (9, "y, k = TopK <k = 2, axis = 2> (x)"),
    (10, "y = Resize <mode = \"nearest\"> (i, up)"),
    (10, "y = Resize <mode = \"nearest\"> (i, odd)"),
    (10, "y = Resize <mode = \"nearest\"> (i, down)"),
    (10, "y = Resize <mode = \"linear\"> (i, up)"),
    (10, "y = Resize <mode = \"linear\"> (i, down)"),
    (10, "y = RoiAlign <output_height = 2, output_width = 2, sampling_ratio = 2, spatial_scale = 1.0> (i, r, n)"),
    (10, "y = AveragePool <kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1> (i)"),
    (10, "y = MaxPool <kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1, dilations = [1, 1]> (i)"),
    (11, "y = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1], ceil_mode = 1, count_include_pad = 1> (i)"),
    (11, "y = LpPool <kernel_shape = [2, 2], p = 2> (i)"),
    (11, "y = Resize <mode = \"nearest\"> (i, roi, up)"),
    (11, "y = Resize <mode = \"nearest\"> (i, roi, none, size)"),
    (11, "y = Resize <mode = \"linear\", coordinate_transformation_mode = \"align_corners\"> (i, none, odd)"),
    (11, "y = Resize <mode = \"linear\", coordinate_transformation_mode = \"pytorch_half_pixel\"> (i, roi, none, size)"),
    (11, "y = Resize <mode = \"cubic\", cubic_coeff_a = -0.75, exclude_outside = 1> (i, none, up)"),
    (11, "y = Resize <coordinate_transformation_mode = \"tf_crop_and_resize\", mode = \"linear\"> (i, roi, up)"),
    (11, "y = Dropout <ratio = 0.5> (x)"),
    (11, "y = Softmax (x)"),
    (11, "y = Softmax <axis = 0> (x)"),
    (11, "y = Softmax <axis = -2> (x)"),
    (12, "y = LogSoftmax <axis = 1> (x)"),
    (12, "y = Hardmax <axis = 1> (x)"),
    (12, "y = Softmax <axis = 2> (x)"),
    (12, "a = Softmax <axis = 1> (x)\n y = Add(a, x)\n z = Relu(a)"),
    (12, "y = ReduceSum <axes = [1], keepdims = 0> (x)"),
    (12, "y, z = Split <axis = 2, split = [1, 3]> (x)"),
    (12, "y, z = Split <axis = 2> (x)"),
    (12, "a = Unsqueeze <axes = [0, 2]> (x)\n y = Squeeze <axes = [0]> (a)"),
    (13, "y = Resize <mode = \"nearest\"> (i, none, none, size)"),
    (13, "y, z = Split <axis = 2> (x)"),
    (14, "y = BatchNormalization(i, one, zero, zero, one)"),
    (15, "y = RoiAlign <mode = \"max\", output_height = 2, output_width = 2> (i, r, n)"),
    (16, "y = GridSample <mode = \"bilinear\"> (i, g)"),
    (16, "y = GridSample <mode = \"bicubic\", align_corners = 1> (i, g)"),
    (16, "y = GridSample (i, g)"),
    (17, "y = DFT (d)"),
    (17, "y = DFT <axis = 1, onesided = 1> (d)"),
    *(
        (17, f"y = {name} <axes = [0, 2], keepdims = {keep}> (x)")
        for keep in (0, 1)
        for name in REDUCTIONS
        if name != "ReduceLogSum"
    ),
    (13, "y = ReduceMean (x)"),
    (17, "a = Abs(x)\n y = ReduceLogSum <axes = [-1]> (a)"),
    (18, "y = AveragePool <kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1> (i)"),
    (18, "y = ReduceMean (x)"),
    (20, "y = Elu(x)"),
    (21, "y = Softplus(x)"),
]  # fmt: skip


@pytest.mark.parametrize("opset,body", SAME, ids=[f"{opset}-{body.split('=', 1)[1].strip()}" for opset, body in SAME])
def test_the_answers_stay(opset: int, body: str) -> None:
    source = old(body, opset)
    made = raised(source)
    onnx.checker.check_model(made, full_check=True)
    feeds = {value.name: FEEDS[value.name] for value in source.graph.input if value.name in FEEDS}
    if "RoiAlign" in body:
        made.opset_import[0].version = 21  # the CPU provider has no kernel of 22, which differs in types only
    before, after = run(source, [feeds]), run(made, [feeds])
    assert before.loads and after.loads, (before.failure, after.failure)
    for name, want in before.outputs[0].items():
        assert not difference(after.outputs[0][name], want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "opset,body,named",
    [
        (6, "y = Relu(x)", "opset 6"),
        (9, "y, m = Dropout(x)\n z = Cast <to = 1> (m)", "Dropout"),
        (10, "t = Cast <to = 1> (size)\n y = Resize <mode = \"nearest\"> (i, t)", "Resize"),
        (11, "y = GlobalLpPool(i)", "GlobalLpPool"),
        (11, "y = Resize <coordinate_transformation_mode = \"tf_half_pixel_for_nn\"> (i, roi, up)", "Resize"),
    ],
)  # fmt: skip
def test_what_has_no_equal_is_refused_with_its_name(opset: int, body: str, named: str) -> None:
    made = ir.from_proto(old(body, opset))
    with pytest.raises(UnsupportedModel) as refused:
        raise_opset(made, "m.onnx")
    message = str(refused.value)
    assert named in message and "opset 22" in message and "try: " in message and "\n" not in message
    assert made.opset_imports[""] == opset


def test_a_branch_is_raised_too() -> None:
    text = (
        "(float[2,3,4] x, bool c) => (float[?,?,?] y) { y = If(c) <then_branch = g () => (float[2,3,4] t) "
        "{ t = Softmax <axis = 1> (x) }, else_branch = h () => (float[2,1,4] e) { e = ReduceMean <axes = [1]> (x) }> }"
    )
    source = ir.to_proto(model(text, opset=12))
    source.ir_version = 7
    made = raised(source)
    onnx.checker.check_model(made, full_check=True)
    for flag in (True, False):
        feeds = [{"x": FEEDS["x"], "c": np.array(flag)}]
        np.testing.assert_allclose(run(made, feeds).outputs[0]["y"], run(source, feeds).outputs[0]["y"], rtol=1e-6)


# --- every change of every step is known -------------------------------------------------------------------------------

#: Operator -> why its new inputs and attributes change nothing for a node that was written before.
HARMLESS = {
    "ArgMax": "an attribute whose default is what was before",
    "ArgMin": "an attribute whose default is what was before",
    "AveragePool": "attributes whose defaults are what was before",
    "Bernoulli": "only types",
    "Cast": "an attribute for FP8",
    "CastLike": "an attribute for FP8",
    "Constant": "other forms of constants",
    "DepthToSpace": "an attribute whose default is what was before",
    "DequantizeLinear": "attributes for scales that are no scalars",
    "GRU": "an attribute whose default is what was before",
    "GatherND": "an attribute whose default is what was before",
    "LSTM": "an attribute whose default is what was before",
    "LpPool": "attributes whose defaults are what was before",
    "MaxPool": "attributes whose defaults are what was before, and an output",
    "QuantizeLinear": "attributes for scales that are no scalars",
    "RNN": "an attribute whose default is what was before",
    "Reshape": "an attribute whose default is what was before",
    "ScatterElements": "an attribute whose default is what was before",
    "ScatterND": "an attribute whose default is what was before",
    "Shape": "attributes whose defaults are what was before",
}
#: The same for one step.
HARMLESS_AT = {
    (10, "TopK"): "attributes whose defaults are what was before",
    (17, "Pad"): "an input that may be left out",
    (18, "Resize"): "attributes whose defaults are what was before",
}


def _form(schema: OpSchema) -> tuple[object, ...]:
    attributes = {name: (str(a.type), str(a.default_value)) for name, a in schema.attributes.items()}
    return schema.deprecated, attributes, [p.name for p in schema.inputs], len(schema.outputs)


@pytest.mark.parametrize("step", range(7, BF16_OPSET))
def test_every_operator_that_a_step_changes_is_known(step: int) -> None:
    history: dict[str, dict[int, OpSchema]] = defaultdict(dict)
    for schema in onnx.defs.get_all_schemas_with_history():
        if not schema.domain:
            history[schema.name][schema.since_version] = schema
    changed = set()
    for name, versions in history.items():
        before = [version for version in versions if version <= step]
        if before and step + 1 in versions and _form(versions[max(before)]) != _form(versions[step + 1]):
            changed.add(name)
    known = set(RAISING[step]) | set(HARMLESS) | {name for at, name in HARMLESS_AT if at == step}
    assert changed <= known


@pytest.mark.slow
@pytest.mark.parametrize("key", ["rapidocr_cls", "silero_vad", "dnsmos_p808", "magika", "efficientnet_lite0", "light_shufflenet"])
def test_a_raised_real_model_gives_the_same_answers(key: str) -> None:
    source = onnx.load(zoo.model(key))
    made = raised(source)
    onnx.checker.check_model(made, full_check=True)
    feeds = zoo.samples(key)[:2]
    before, after = run(source, feeds), run(made, feeds)
    assert after.loads, after.failure
    for want, got in zip(before.outputs, after.outputs, strict=True):
        for name, value in want.items():
            scale = float(np.abs(value).max(initial=0.0)) if value.dtype.kind == "f" else 0.0
            assert not difference(got[name], value, rtol=1e-4, atol=1e-5 * max(scale, 1.0))
