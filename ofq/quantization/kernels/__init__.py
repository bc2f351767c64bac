"""Fused GPU kernels for low-bit blocks in half precision.

Each function computes the same result and gradients as a composition of operations elsewhere in the
package (:mod:`ofq.quantization.attention`, :class:`ofq.LSQ`); sums and intermediate results are
float32, some of which autocast would round. :mod:`~ofq.quantization.kernels.fitting` decides where
they may be used. They are written in Triton (:mod:`~ofq.quantization.kernels.triton`), which comes
with PyTorch for CUDA.
"""

from ofq.quantization.kernels.attention import attend
from ofq.quantization.kernels.gelu import gelu_lsq
from ofq.quantization.kernels.logits import attend_logits

__all__ = ["attend", "attend_logits", "gelu_lsq"]
