"""Models in memory as files of packed weights or ONNX, and models from packed files."""
