"""Activation quantizers with shifts, and quantized linear, convolution and MLP layers."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ofq.errors import UserError
from ofq.quantization import kernels as fused
from ofq.quantization.activations import ActivationQuantizer
from ofq.quantization.kernels import fitting
from ofq.quantization.products import Linear, Product, shift_channels
from ofq.quantization.quantizers.base import WeightQuantizer, weight_quantizers
from ofq.quantization.quantizers.lsq import LSQ


@dataclass(frozen=True)
class QuantizedWeight:
    """Low-bit weight of a model, as CGA and the oscillation tracker see it.

    Attributes:
        layer: The layer's name within the model.
        roles: Rows of each role (q, k, v, proj, fc1, fc2, qk, reduction; of a convolutional network
            conv, depthwise, pointwise).
        quantizer: Its quantizer.
        owner: The layer, whose ``latent_weight()`` is the weight before quantization.
    """

    layer: str
    roles: Mapping[str, slice]
    quantizer: WeightQuantizer
    owner: "HasQuantizedWeight"

    def latent(self) -> Tensor:
        """Return the weight before quantization."""
        return self.owner.latent_weight()


@dataclass(frozen=True)
class QuantizedActivation:
    """Quantized activation of a model.

    Attributes:
        layer: Name of the layer that quantizes it.
        role: q, k, v, qk (QKR's merged activation) or probabilities in an attention; else whose
            input it is: attention input, proj input, fc1 input, fc2 input, reduction input, first
            input, last input.
        name: Its name within the model.
        quantizer: Its quantizer.
    """

    layer: str
    role: str
    name: str
    quantizer: ActivationQuantizer


class HasQuantizedWeight:
    """Mixin of layers with a quantized weight; CGA and the tracker handle those with roles."""

    roles: Mapping[str, slice]
    weight_quantizer: nn.Module

    def latent_weight(self) -> Tensor:
        """Return the weight before quantization, rows first."""
        raise NotImplementedError


def own_parameter(values: Tensor, trainable: bool | None = None) -> nn.Parameter:
    """Copy a part of a parameter into a new parameter of the same dtype and device.

    Args:
        values: The part.
        trainable: Whether it requires a gradient; None to follow ``values``.
    """
    trainable = values.requires_grad if trainable is None else trainable
    return nn.Parameter(values.detach().clone(), requires_grad=trainable)


def wrapper_of(model: nn.Module) -> str | None:
    """Return the name of a model's wrapper (``torch.compile`` or a parallel class), or None."""
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        return type(model).__name__
    return "torch.compile" if isinstance(getattr(model, "_orig_mod", None), nn.Module) else None


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside ``torch.compile``, DistributedDataParallel and DataParallel."""
    while wrapper_of(model) is not None:
        model = getattr(model, "_orig_mod", None) or model.module  # type: ignore[assignment]
    return model


def quantized_model(model: nn.Module, why: str = "") -> nn.Module:
    """Unwrap a quantized model.

    Args:
        model: The model.
        why: Prefix of the error's message.

    Raises:
        UserError: The model has no quantized layer.
    """
    model = unwrapped(model)
    if not any(isinstance(module, HasQuantizedWeight) for module in model.modules()):
        raise UserError(
            f"{why}the {type(model).__name__} isn't quantized; call ofq.quantize(model, ...) and "
            "use the model that it returns"
        )
    return model


def low_bit_weights(model: nn.Module) -> Iterator[QuantizedWeight]:
    """Yield the low-bit weights of a model in forward order; first and last layers have none."""
    for name, module in unwrapped(model).named_modules():
        if not isinstance(module, HasQuantizedWeight) or not module.roles:
            continue
        if isinstance(module.weight_quantizer, WeightQuantizer):
            yield QuantizedWeight(name, module.roles, module.weight_quantizer, module)


def parameter_weights(model: nn.Module) -> list[QuantizedWeight]:
    """Return the low-bit weights that are parameters themselves, not products of parameters.

    QKR's merged weight is a product, whose entries can't be changed one by one.
    """
    return [w for w in low_bit_weights(model) if isinstance(w.latent(), nn.Parameter)]


def with_latent_levels(weights: Iterable[QuantizedWeight], technique: str) -> list[QuantizedWeight]:
    """Return weights for a technique that compares them with levels, or sets them to levels.

    Args:
        weights: Low-bit weights.
        technique: The technique's name, for the error.

    Raises:
        UserError: A weight that equals a level of its quantizer need not have that level's code.
    """
    weights = list(weights)
    for weight in weights:
        if not weight.quantizer.latent_levels:
            kind = weight_quantizers.name_of(weight.quantizer)
            raise UserError(
                f"{technique} compares weights with levels, but the levels of '{kind}' "
                f"({weight.layer}) aren't values of its weights; allowed: weight quantizers whose "
                "levels are, such as lsq and statsq"
            )
    return weights


def quantized_activations(model: nn.Module) -> Iterator[QuantizedActivation]:
    """Yield the quantized activations of a model in forward order, first and last included."""
    modules = dict(unwrapped(model).named_modules())
    for name, module in modules.items():
        layer, _, part = name.rpartition(".")
        if isinstance(module, Unshifted):
            module = module.quantizer
        elif part != "probability_quantizer" or not isinstance(module, ActivationQuantizer):
            continue
        yield QuantizedActivation(layer, _activation_role(modules[layer], part), name, module)


def _activation_role(owner: nn.Module, part: str) -> str:
    kind = part.removesuffix("_quantizer")
    if kind != "input":
        return {"z": "qk", "probability": "probabilities"}.get(kind, kind)
    roles = list(owner.roles) if isinstance(owner, HasQuantizedWeight) else ["q", "k", "v"]
    if not roles:
        return "last input" if isinstance(owner, nn.Linear) else "first input"
    return f"{roles[0]} input" if len(roles) == 1 else "attention input"


class Passthrough(nn.Module):
    """Identity for an activation that stays in floating point; base class of quantized ones.

    Attributes:
        before: The shift before the quantizer, flat; None without one.
    """

    before: nn.Parameter | None

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("before", None)

    def forward(self, x: Tensor) -> Tensor:
        """Shift and quantize an activation."""
        return self.shifted(x)

    def shifted(self, x: Tensor) -> Tensor:
        """Quantize an ``x`` that already includes ``before``, as part of a layer's bias."""
        return x

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Apply a linear map to the quantized activation."""
        return Linear.forward(self(x), weight, bias)

    def product(self, product: type[Product], x: Tensor, *others: Tensor | None) -> Tensor:
        """Return the product of ``self.shifted(x)`` with other tensors."""
        return product.forward(self.shifted(x), *others)


class Unshifted(Passthrough):
    """Activation quantizer without shifts, as in a convolutional network: Q(x).

    Args:
        quantizer: The quantizer.
    """

    def __init__(self, quantizer: ActivationQuantizer) -> None:
        super().__init__()
        self.quantizer = quantizer

    def shifted(self, x: Tensor) -> Tensor:
        """Quantize an ``x`` that already includes ``before``, if there is one."""
        return self.quantizer(x)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Apply a linear map to the quantized activation."""
        return self.product(Linear, x, weight, bias)

    def product(self, product: type[Product], x: Tensor, *others: Tensor | None) -> Tensor:
        """Return the product of ``self.shifted(x)`` with other tensors."""
        return self.quantizer.product(product, x, *others)


class PreShifted(Unshifted):
    """Activation quantizer behind one learnable shift: Q(x + before).

    For keys, and QKR's merged activation: a shift after the quantizer would add the same number to
    every logit of a query, which softmax cancels, so its gradient would be rounding noise.

    Args:
        quantizer: The quantizer.
        shape: Shape of the shift; broadcasts against the activation.
    """

    def __init__(self, quantizer: ActivationQuantizer, *shape: int) -> None:
        super().__init__(quantizer)
        self.shape = shape
        # flat, because optimizers exempt one-dimensional parameters from weight decay
        self.before = nn.Parameter(torch.zeros(math.prod(shape)))

    def forward(self, x: Tensor) -> Tensor:
        """Shift and quantize an activation."""
        assert self.before is not None
        return self.shifted(x + self.before.view(self.shape))

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Apply a linear map to the shifted and quantized activation."""
        return Linear.forward(self(x), weight, bias)


class Shifted(PreShifted):
    """Activation quantizer between two learnable shifts: Q(x + before) + after.

    The shifts start at zero and are trained (released code: ``move_b4``, ``move_aft``).

    Args:
        quantizer: The quantizer.
        shape: Shape of each shift; broadcasts against the activation.
    """

    def __init__(self, quantizer: ActivationQuantizer, *shape: int) -> None:
        super().__init__(quantizer, *shape)
        self.after = nn.Parameter(torch.zeros(math.prod(shape)))

    def shifted(self, x: Tensor) -> Tensor:
        """Quantize an ``x`` that already includes ``before``, then add ``after``."""
        return super().shifted(x) + self.after.view(self.shape)

    def product(self, product: type[Product], x: Tensor, *others: Tensor | None) -> Tensor:
        """Return the product of ``self.shifted(x)`` with other tensors."""
        return product.forward(self.shifted(x), *others)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Apply a linear map to the quantized activation, with ``after`` folded into its bias."""
        assert self.before is not None
        bias = self.bias_with_after(weight, bias)
        return self.quantizer.product(Linear, shift_channels(x, self.before), weight, bias)

    def bias_with_after(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the bias of a linear map behind this quantizer, plus the map of ``after``."""
        shift = weight @ self.after
        return shift if bias is None else bias + shift


def shifted_bias(bias: Tensor | None, *quantizers: Passthrough) -> Tensor | None:
    """Add to a bias the first shifts of the quantizers that the output is split between."""
    shifts: list[Tensor] = [q.before for q in quantizers if q.before is not None]
    if not shifts:
        return bias
    shift = torch.cat(shifts)
    return shift if bias is None else bias + shift


class QuantizedLinear(nn.Linear, HasQuantizedWeight):
    """Linear layer that quantizes its input and its weight.

    It uses the parameters of the layer it replaces.

    Args:
        linear: The layer to quantize.
        weight_quantizer: A :class:`WeightQuantizer`, or an identity.
        input_quantizer: An activation quantizer.
        roles: Rows of each role; empty for the first and last layers.
    """

    def __init__(
        self,
        linear: nn.Linear,
        weight_quantizer: nn.Module,
        input_quantizer: Passthrough,
        roles: Mapping[str, slice],
    ) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.weight_quantizer = weight_quantizer
        self.input_quantizer = input_quantizer
        self.roles = roles

    def latent_weight(self) -> Tensor:
        """Return the weight (out, in)."""
        return self.weight

    def forward(self, x: Tensor, followers: Sequence[Passthrough] = ()) -> Tensor:
        """Map (..., in) to (..., out).

        Args:
            x: The input.
            followers: Quantizers that the output is split between; the bias includes their first
                shifts, at no cost.
        """
        weight = self.weight_quantizer(self.weight)
        return self.input_quantizer.linear(x, weight, shifted_bias(self.bias, *followers))

    def takes_gelu(self, x: Tensor) -> bool:
        """Return whether :meth:`of_gelu` applies; not with hooks, which need GELU's output."""
        quantizer = self.input_quantizer
        hooks = (
            self._forward_hooks,
            self._forward_pre_hooks,
            self._backward_hooks,
            self._backward_pre_hooks,
        )
        if any(hooks) or not fitting.fits(x) or not isinstance(quantizer, Shifted):
            return False
        return fitting.ready(quantizer.quantizer, axis=-2)

    def of_gelu(self, x: Tensor) -> Tensor:
        """Apply the layer to GELU(x), with GELU and the input's quantizer in one kernel."""
        quantizer = self.input_quantizer
        assert isinstance(quantizer, Shifted)
        assert quantizer.before is not None
        weight = self.weight_quantizer(self.weight)
        lsq = quantizer.quantizer
        assert isinstance(lsq, LSQ)  # the kernel supports no other quantizer
        quantized = fused.gelu_lsq(x, quantizer.before, lsq)
        return F.linear(quantized, weight, quantizer.bias_with_after(weight, self.bias))


class QuantizedMlp(nn.Module):
    """MLP of a transformer: two quantized layers with GELU between them, and dropout behind each.

    Args:
        fc1, fc2: The layers.
        drop1, drop2: The dropouts.
    """

    def __init__(
        self, fc1: QuantizedLinear, fc2: QuantizedLinear, drop1: nn.Dropout, drop2: nn.Dropout
    ) -> None:
        super().__init__()
        self.fc1, self.fc2 = fc1, fc2
        self.drop1, self.drop2 = drop1, drop2

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., C) to (..., C)."""
        x = self.fc1(x)
        if self.fc2.takes_gelu(x) and not (self.training and self.drop1.p):
            return self.drop2(self.fc2.of_gelu(x))
        return self.drop2(self.fc2(self.drop1(F.gelu(x))))


class ImageMlp(QuantizedMlp):
    """MLP of Swin on rows and columns of the image: activation scales are per column.

    timm's input has flattened positions; torchvision's, and so the released code's, hasn't.

    Args:
        mlp: The MLP whose layers it uses.
        width: Columns of the image.
    """

    def __init__(self, mlp: QuantizedMlp, width: int) -> None:
        super().__init__(mlp.fc1, mlp.fc2, mlp.drop1, mlp.drop2)
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H·W, C) to (B, H·W, C)."""
        return super().forward(x.unflatten(1, (-1, self.width))).flatten(1, 2)


def wrong_size(given: Sequence[int], wanted: Sequence[int], patch: Sequence[int]) -> UserError:
    """Return the error for images whose size (H, W) isn't the one that a model is quantized for."""
    (height, width), (rows, columns) = given, wanted
    tokens = [(h // patch[0]) * (w // patch[1]) for h, w in (given, wanted)]
    return UserError(
        f"images: {height} x {width}, which are {tokens[0]} patches; this model's scales and "
        f"shifts are for {rows} x {columns}, {tokens[1]} patches; allowed: the size at which the "
        f"model was made (timm.create_model(..., img_size=({height}, {width})) makes another)"
    )


class QuantizedConv2d(nn.Conv2d, HasQuantizedWeight):
    """Convolution of patches (the patch embedding) that quantizes its input and its weight.

    Patches don't overlap, so the convolution is computed as a linear map of each patch, whose
    gradients cost a fraction of a general convolution's.

    Args:
        conv: The layer to quantize, whose parameters it uses.
        weight_quantizer: A :class:`WeightQuantizer`, or an identity.
        input_quantizer: A :class:`Shifted`, or an identity.
    """

    def __init__(
        self, conv: nn.Conv2d, weight_quantizer: nn.Module, input_quantizer: nn.Module
    ) -> None:
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            conv.dilation,  # type: ignore[arg-type]
            conv.groups,
            bias=False,
            device="meta",
        )
        self.weight, self.bias = conv.weight, conv.bias
        self.weight_quantizer = weight_quantizer
        self.input_quantizer = input_quantizer
        self.roles = {}

    def latent_weight(self) -> Tensor:
        """Return the weight (out, in, h, w)."""
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, H, W) to (B, out, H', W')."""
        height, width = self.kernel_size
        fixed = getattr(self.input_quantizer, "shape", x.shape[2:])
        if tuple(x.shape[2:]) != tuple(fixed):
            raise wrong_size(x.shape[2:], fixed, self.kernel_size)
        patches = self.input_quantizer(x).unflatten(3, (-1, width)).unflatten(2, (-1, height))
        patches_BHWC = patches.permute(0, 2, 4, 1, 3, 5).flatten(3)
        weight = self.weight_quantizer(self.weight).flatten(1)
        return nn.functional.linear(patches_BHWC, weight, self.bias).permute(0, 3, 1, 2)
