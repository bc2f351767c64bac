"""What a low-bit block computes in one kernel on a GPU, in half precision.

Each function is what others of the package compose (:mod:`ofq.quantization.attention`,
:class:`ofq.LSQ`), with the same gradients; sums and intermediate results are float32, some of which
autocast would round. :mod:`~ofq.quantization.kernels.fitting` tells where they may be used. The
kernels are Triton's (:mod:`~ofq.quantization.kernels.triton`), which comes with PyTorch for CUDA.
"""

from ofq.quantization.kernels.attention import attend
from ofq.quantization.kernels.gelu import gelu_lsq
from ofq.quantization.kernels.logits import attend_logits

__all__ = ["attend", "attend_logits", "gelu_lsq"]
