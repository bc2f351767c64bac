"""Quantized convolution of a convolutional network, depthwise and pointwise ones included."""

from collections.abc import Mapping

import torch.nn.functional as F
from timm.layers import Conv2dSame
from timm.layers.padding import pad_same
from torch import Tensor, nn

from ofq.quantization.layers import HasQuantizedWeight, Passthrough


def role_of(conv: nn.Conv2d) -> str:
    """Return the role of a convolution's weights: depthwise, pointwise or conv (all others)."""
    if conv.groups == conv.in_channels and conv.groups > 1:
        return "depthwise"
    return "pointwise" if conv.kernel_size == (1, 1) and conv.groups == 1 else "conv"


class QuantizedConvolution(nn.Module, HasQuantizedWeight):
    """Convolution that quantizes its input and its weight.

    Its weight is a matrix (out, in/groups · h · w), a row for each output channel, so that every
    weight quantizer and technique sees it as a linear layer's. Padding adds zeros to the quantized
    input, which are levels of it.

    Args:
        conv: The layer to quantize; weight and bias keep dtype, device and ``requires_grad``.
        weight_quantizer: A :class:`WeightQuantizer` of the matrix, or an identity.
        input_quantizer: A :class:`Unshifted`, or an identity.
        roles: Rows of each role; empty for the first layer.
    """

    def __init__(
        self,
        conv: nn.Conv2d,
        weight_quantizer: nn.Module,
        input_quantizer: Passthrough,
        roles: Mapping[str, slice],
    ) -> None:
        super().__init__()
        self.weight = weight_matrix(conv)
        self.bias = conv.bias
        self.weight_quantizer = weight_quantizer
        self.input_quantizer = input_quantizer
        self.roles = roles
        self.in_channels = conv.in_channels
        self.kernel_size = conv.kernel_size
        self.stride, self.dilation, self.groups = conv.stride, conv.dilation, conv.groups
        self.pads_same = isinstance(conv, Conv2dSame)
        self.padding = (0, 0) if self.pads_same else conv.padding

    def latent_weight(self) -> Tensor:
        """Return the weight (out, in/groups · h · w)."""
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, H, W) to (B, out, H', W')."""
        x = self.input_quantizer(x)
        if self.pads_same:  # as TensorFlow does, by the size of the input
            x = pad_same(x, self.kernel_size, self.stride, self.dilation)
        matrix = self.weight_quantizer(self.weight)
        kernel = matrix.view(len(matrix), self.in_channels // self.groups, *self.kernel_size)
        return F.conv2d(x, kernel, self.bias, self.stride, self.padding, self.dilation, self.groups)

    def extra_repr(self) -> str:
        """Return channels, kernel, stride and groups for the module's repr."""
        return (
            f"{self.in_channels}, {len(self.weight)}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, groups={self.groups}"
        )


def weight_matrix(conv: nn.Conv2d) -> nn.Parameter:
    """Return a convolution's weight as a parameter (out, in/groups · h · w)."""
    return nn.Parameter(conv.weight.detach().flatten(1), requires_grad=conv.weight.requires_grad)
