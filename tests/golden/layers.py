"""Kind d: quantized linear layers, the MLP, the 8-bit patch embedding and head."""

from torch import nn

from ofq.quantization import LSQ
from ofq.quantization.layers import QuantizedConv2d, QuantizedLinear, Shifted
from ofq.quantization.quantizers.base import make_weight_quantizer
from ofq.quantization.quantizers.lsq import ImageLSQ

from tests.golden.case import Case, grouped
from tests.golden.parity import (
    Recorder,
    check_activations,
    check_forward_and_backward,
    check_initial_scales,
)

_END_BITS = 8


def layer(case: Case) -> None:
    """Initial scales, output and all gradients of one layer."""
    made = _convolution(case) if case.class_name == "LSQ_QConv2d" else _linear(case)
    check_initial_scales(case, made, case.under("state"))
    check_forward_and_backward(case, made)


def mlp(case: Case) -> None:
    """Initial scales, output, all gradients and every activation of fc1, GELU, fc2."""
    state = case.under("state")
    made = nn.Sequential()
    for name, signed in (("fc1", True), ("act", None), ("fc2", False)):
        if signed is None:
            made.add_module(name, nn.GELU())
        else:
            out, into = state[f"{name}.weight"].shape
            made.add_module(name, _quantized(case, nn.Linear(into, out), signed))
    recorder = Recorder(made, grouped(case.under("act"), r"(.*)\.(?:in|out)$"))
    check_initial_scales(case, made, state)
    check_forward_and_backward(case, made)
    check_activations(case, recorder)


def _linear(case: Case) -> QuantizedLinear:
    out, into = case["state.weight"].shape
    signed = case.settings.get("symmetric", True)
    return _quantized(case, nn.Linear(into, out), signed)


def _quantized(case: Case, linear: nn.Linear, signed: bool) -> QuantizedLinear:
    head = case.class_name == "LSQ_QLinear4head"
    bits = case.settings["input_bits"]
    method = "lsq" if "lsqw_fn" in " ".join(case.description["modules"]) else "statsq"
    inputs = LSQ(bits, None if head else -2, signed)
    return QuantizedLinear(
        linear,
        make_weight_quantizer(method, case.settings["weight_bits"], linear.weight),
        Shifted(inputs, linear.in_features),
        roles={},
    )


def _convolution(case: Case) -> QuantizedConv2d:
    out, channels, *kernel = case["state.weight"].shape
    image = case["x"].shape[-2:]
    conv = nn.Conv2d(channels, out, tuple(kernel), stride=tuple(kernel))
    return QuantizedConv2d(
        conv,
        make_weight_quantizer("lsq", _END_BITS, conv.weight),
        Shifted(ImageLSQ(_END_BITS), *image),
    )
