"""What runs beside ONNX Runtime. Imports onnxruntime and numpy only, so that it can be shipped alone."""
