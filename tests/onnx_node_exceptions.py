"""ONNX node tests that halfconv refuses, or that half precision cannot answer, with a reason each."""

# Refused with a one-line HalfconvError, FP32 inputs and outputs kept.
REFUSED: dict[str, str] = {}

# Converted, but the right answer is not within 2e-2: half precision cannot hold what the test is about.
BEYOND_HALF: dict[str, str] = {}

# The same, when inputs and outputs are half.
REFUSED_WITH_HALF_IO: dict[str, str] = {}
BEYOND_HALF_WITH_HALF_IO: dict[str, str] = {}
