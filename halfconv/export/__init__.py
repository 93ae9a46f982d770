"""From PyTorch to ONNX: what is exported, by which exporter, and whether the file gives what PyTorch gives."""
