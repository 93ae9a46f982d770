"""ONNX node tests that halfconv refuses, or that half precision cannot answer, with a reason each."""

# Refused with a one-line HalfconvError, FP32 inputs and outputs kept.
REFUSED: dict[str, str] = {}

# Converted, but the right answer is not within 2e-2: half precision cannot hold what the test is about.
BEYOND_HALF: dict[str, str] = {}

# The same, when inputs and outputs are half.
REFUSED_WITH_HALF_IO: dict[str, str] = {}
_ROUNDED_INPUT = "the input itself, rounded to half, has another answer"
BEYOND_HALF_WITH_HALF_IO: dict[str, str] = {
    "test_ai_onnx_ml_tree_ensemble_set_membership": f"{_ROUNDED_INPUT}: 1.2 is compared with members of a set",
    "test_dynamicquantizelinear_min_adjusted": f"{_ROUNDED_INPUT}: a value lies between two integers",
    "test_dynamicquantizelinear_min_adjusted_expanded": f"{_ROUNDED_INPUT}: a value lies between two integers",
    "test_logsoftmax_large_number": f"{_ROUNDED_INPUT}: 10000 to 10003 are all 10000 in half",
    "test_logsoftmax_large_number_expanded": f"{_ROUNDED_INPUT}: 10000 to 10003 are all 10000 in half",
    "test_logsoftmax_large_number_expanded_ver18": f"{_ROUNDED_INPUT}: 10000 to 10003 are all 10000 in half",
    "test_nonmaxsuppression_iou_threshold_boundary": f"{_ROUNDED_INPUT}: the overlap is exactly the threshold",
    "test_reduce_prod_default_axes_keepdims_example": "the answer, 4.8e8, is beyond the largest half",
    "test_softmax_large_number": f"{_ROUNDED_INPUT}: 10000 to 10003 are all 10000 in half",
    "test_softmax_large_number_expanded": f"{_ROUNDED_INPUT}: 10000 to 10003 are all 10000 in half",
    "test_softmax_large_number_expanded_ver18": f"{_ROUNDED_INPUT}: 10000 to 10003 are all 10000 in half",
}
