"""Triton kernels, launched by the modules of :mod:`ofq.quantization.kernels` of the same names.

Their docstrings define what each kernel computes. Tensors are contiguous unless strides are passed;
activations are bf16 or fp16, all other tensors float32; arithmetic is float32. Each program writes
its own partial sums, which are summed afterwards, so that results are the same in every run.

Gradients of attention follow FlashAttention (Dao et al. 2022): tiles of probabilities are
recomputed from each row's denominator (``totals``, a logarithm to base 2). The terms that LSQ adds
need no sum over such a tile either. With probabilities p, codes c, step s, a mask m of the
probabilities inside the range, and the gradient g of the output O = s·c V, softmax's gradient takes
Σ p·m·(V g) = g · O' (``commons``), where O' = (p·m) V (``inner``); the step's is
Σ (c − m·p/s)·(V g) = g · (O − O') / s.
"""
