import ofq.quantization  # noqa: F401 - before timm, whose torchvision may lack its extension
