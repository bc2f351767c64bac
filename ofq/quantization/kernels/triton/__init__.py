"""Triton kernels, launched by the modules of :mod:`ofq.quantization.kernels` of the same names.

Those say what each kernel computes. Tensors are contiguous unless strides are given, activations
bf16 or fp16 and everything else float32; arithmetic is float32. Each program writes sums of its
own, which are added up afterwards, so that they are the same in every run.

Attention's gradients follow FlashAttention's (Dao et al. 2022): tiles of probabilities are computed
again, from each row's denominator (``totals``, a logarithm to base 2). What LSQ adds needs no sum
over such a tile either. With probabilities p, codes c, step s, a mask m of the probabilities inside
the range, and the gradient g of the output O = s·c V, softmax's gradient takes Σ p·m·(V g) = g · O'
(``commons``), where O' = (p·m) V (``inner``); the step's is Σ (c − m·p/s)·(V g) = g · (O − O') / s.
"""
