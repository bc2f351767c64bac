"""Kinds a, b, c: StatsQ, and LSQ of weights and activations."""

import pytest
import torch
from torch import Tensor

from ofq.errors import UserError
from ofq.quantization import LSQ, StatsQ
from ofq.quantization.layers import Shifted
from ofq.quantization.quantizers.lsq import ImageLSQ
from ofq.quantization.released import convert_released_state

from tests.golden.case import EXACT, FORWARD, GRADIENT, Case, assert_close

# released class → axis of the scales when it is per channel
_AXES = {
    "LsqQuantizer": -2,
    "LsqQuantizer4v": -1,
    "LsqQuantizer_only_headwise": 1,
    "LsqQuantizerWeight": 0,
    "LsqQuantizer4Conv2d": 0,
    "LsqQuantizer4head_input": None,
}


def statsq(case: Case) -> None:
    """Output, scale, codes and gradient; a row of zeros stays zero (released code: NaN)."""
    for group in case.groups(r"b\d+"):
        bits = int(group[1:])
        if bits < 2:
            _refused(case, group, StatsQ)
            continue
        weight = case[f"{group}.weight"].requires_grad_()
        gradient = case[f"{group}.grad_out"]
        quantizer = StatsQ(bits)
        quantized = quantizer(weight)
        quantized.backward(gradient)
        theirs = case[f"{group}.out"]
        zero = (weight == 0).all(-1)
        assert torch.equal(theirs.isnan().any(-1), zero)
        assert not quantized[zero].any()
        assert_close(quantized[~zero], theirs[~zero], FORWARD, f"{group}.out")
        case.compare(f"{group}.scale", quantizer.scale(weight).reshape(-1), FORWARD)
        if f"{group}.codes" in case:
            case.compare(f"{group}.codes", quantizer.codes(weight), EXACT)
        assert weight.grad is not None
        case.compare(f"{group}.grad_weight", weight.grad, GRADIENT)


def lsq(case: Case) -> None:
    """The initial scale, then output and gradients for each scale that the case gives."""
    for group in case.groups(r"b\d+"):
        bits = int(group[1:])
        if bits < 2:
            _refused(case, group, LSQ)
            continue
        quantizer = _lsq(case, bits)
        x = case[f"{group}.x"]
        quantizer.initialize(x)
        case.compare(f"{group}.s_init", quantizer.scale, FORWARD)
        if f"{group}.signed" in case:
            case.compare(f"{group}.signed", torch.tensor([float(quantizer.signed)]), EXACT)
        for variant in _variants(case, group):
            quantizer.scale.data = case[f"{group}.s_{variant}"].clone()
            output, x_gradient = _run(quantizer, x, case[f"{group}.grad_out"])
            case.compare(f"{group}.out_{variant}", output, FORWARD)
            case.compare(f"{group}.grad_x_{variant}", x_gradient, GRADIENT)
            assert quantizer.scale.grad is not None
            case.compare(f"{group}.grad_s_{variant}", quantizer.scale.grad, GRADIENT)


def shifted_lsq(case: Case) -> None:
    """LSQ between two learnable shifts."""
    signed = not case.settings["all_positive"]
    for group in case.groups(r"b\d+"):
        x = case[f"{group}.x"]
        quantizer = Shifted(LSQ(int(group[1:]), -2, signed), x.shape[-1])
        state = case.under(f"{group}.state")
        converted = convert_released_state(state, _Inputs(quantizer)).state
        quantizer.before.data = converted["input_quantizer.before"]
        quantizer(x)
        case.compare(f"{group}.s_init", quantizer.quantizer.scale, FORWARD)
        _Inputs(quantizer).load_state_dict(converted)
        output, x_gradient = _run(quantizer, x, case[f"{group}.grad_out"])
        case.compare(f"{group}.out", output, FORWARD)
        case.compare(f"{group}.grad_x", x_gradient, GRADIENT)
        for name, ours in (
            ("input_quant_fn.s", quantizer.quantizer.scale),
            ("move_b4.bias", quantizer.before),
            ("move_aft.bias", quantizer.after),
        ):
            assert ours.grad is not None
            case.compare(f"{group}.grad.{name}", ours.grad, GRADIENT)


class _Inputs(torch.nn.Module):
    """Owner of an input quantizer, as far as names go."""

    def __init__(self, quantizer: Shifted) -> None:
        super().__init__()
        self.input_quantizer = quantizer


def _lsq(case: Case, bits: int) -> LSQ:
    kwargs = case.settings["kwargs"]
    if case.class_name == "LsqQuantizer4img":
        return ImageLSQ(bits)
    axis = _AXES[case.class_name] if kwargs.get("per_channel", True) else None
    return LSQ(bits, axis, signed=not kwargs.get("all_positive", False))


def _variants(case: Case, group: str) -> list[str]:
    return [v for v in ("init", "pert", "tiny") if f"{group}.s_{v}" in case]


def _run(quantizer: torch.nn.Module, x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Output, and gradient of the input."""
    quantizer.zero_grad()
    x = x.detach().clone().requires_grad_()
    output = quantizer(x)
    output.backward(gradient)
    assert x.grad is not None
    return output, x.grad


def _refused(case: Case, group: str, quantizer: type[StatsQ] | type[LSQ]) -> None:
    with pytest.raises(UserError, match="bits; allowed: 2 to 8"):
        quantizer(int(group[1:]))
    case.ignore(rf"{group}\..*", "one bit: level −1.5 in StatsQ, no gradient in LSQ; refused here")
