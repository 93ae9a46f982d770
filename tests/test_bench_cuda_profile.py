"""What a profile of kernels is made into; the kernels themselves need a GPU."""

from __future__ import annotations

import json

import pytest

from bench import cuda_profile
from bench.cuda_prepare import DEFAULT, case_of
from bench.cuda_profile import OTHER, group_of, shares
from tests.generated import RESULTS


@pytest.mark.parametrize(
    ("kernel", "group"),
    [
        ("nvjet_sm90_hsh_192x128_64x5_1x2_h_bz_coopB_NNT", "matrix products"),
        ("_ZN7cutlass13device_kernelINS_4gemm6kernel13GemmUniversalIN4cute5tupleIJiiiiEEENS1_10collective", "matrix products"),
        ("cublasLt::splitKreduce_kernel<32, 16, int, float, __half, float, __half, false>", "matrix products"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x64_4x1x1", "attention"),
        ("sm90_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc_nhwc_tilesize128x128x64", "convolutions"),
        ("halfconv::depthwise<7, 14>", "depthwise convolutions"),
        ("halfconv::layer_norm", "norms"),
        ("SkipLayerNormKernelSmall<__half, 96u, 8, false>", "norms"),
        ("halfconv::gelu_in_place", "elementwise"),
        ("cudnn::engines_precompiled::nchwToNhwcKernel<__half, __half, float, false, true, ", "changes of layout"),
        ("Memset ", OTHER),
    ],
)
def test_what_a_kernel_is_for(kernel: str, group: str) -> None:
    assert group_of(kernel) == group


def test_shares_are_of_all_kernels_also_of_those_that_are_not_named() -> None:
    row = {"kernel_ms": 1.0, "kernels": [["nvjet_a", 500.0, 2.0], ["nvjet_b", 100.0, 1.0], ["halfconv::layer_norm", 300.0, 1.0]]}
    assert list(shares(row)) == ["matrix products", "norms", OTHER]
    assert shares(row) == pytest.approx({"matrix products": 0.6, "norms": 0.3, OTHER: 0.1})
    assert cuda_profile.said({**row, "kernel_ms": 0.9}) == "matrix products 67%, norms 33%"


def test_names_lose_what_says_nothing() -> None:
    assert cuda_profile.short("void onnxruntime::cuda::_GatherKernel<short>(long, int const*)") == "_GatherKernel<short>"
    assert cuda_profile.short("(x)") == "(x)"


def test_operations_of_a_module_are_counted() -> None:
    # 2 convolutions, 16 x 16 x 16 x (3 x 9) and 8 x 8 x 32 x (16 x 9) products, and 32 x 10 of the last layer; twice, for 3 images
    assert cuda_profile.flops(case_of("tiny_cnn@3")) == 3 * 2 * (16 * 16 * 16 * 27 + 8 * 8 * 32 * 144 + 320)


def test_the_result_is_no_faster_than_what_it_is_compared_with() -> None:
    """A bound that is above what was measured is wrong."""
    content = json.loads((RESULTS.parent / "cuda_profile_h200.json").read_text("utf-8"))
    assert {(row["case"], row["batch"]) for row in content["rows"]} == {(case.key, case.batch) for case in DEFAULT}
    for row in content["rows"]:
        assert 0 < row["bound_ms"] < row["kernel_ms"] and sum(shares(row).values()) == pytest.approx(1, abs=0.01)
