"""Kind j: names, shapes and decay of released checkpoints."""

import timm
import torch
from torch import Tensor, nn

import ofq
from ofq.config import Training
from ofq.quantization.layers import QuantizedLinear
from ofq.quantization.released import convert_released_state, released_names
from ofq.training.optimization import make_optimizer

from tests.golden.case import Case
from tests.golden.models import load_full_precision

_TORCHVISION = {
    "swin_t": "swin_tiny_patch4_window7_224",
    "swin_s": "swin_small_patch4_window7_224",
    "swin_b": "swin_base_patch4_window7_224",
}


def layout(case: Case) -> None:
    """A checkpoint of this layout loads before calibration, strictly, and then runs.

    Afterwards calibration finds the same number of scales everywhere, quantized layers are where
    the released code has them, and the same parameters decay.
    """
    about = case.description
    full = timm.create_model(_TORCHVISION.get(about["arch"], about["arch"]))
    load_full_precision(full, _zeros(about["fp_state_dict"]))
    model = ofq.quantize(
        full, about["weight_bits"], about["input_bits"], qkr=about["qk_reparam"]
    ).eval()
    state = {n: t + 1 for n, t in _zeros(about["quantized_state_dict"]).items()}
    _check_decay(case, model)
    released = convert_released_state({f"module.{n}": t for n, t in state.items()}, model)
    model.load_state_dict(released.state)
    images = torch.zeros(1, 3, *model.patch_embed.img_size)
    with torch.no_grad():
        assert torch.isfinite(model(images)).all()
    ofq.calibrate(model, images + torch.rand(images.shape))
    assert convert_released_state(state, model).state.keys() == released.state.keys()
    _check_dropped(case, released.dropped)
    _check_quantized_modules(case, model)


def _zeros(entries: list[dict[str, object]]) -> dict[str, Tensor]:
    return {
        e["name"]: torch.zeros(e["shape"], dtype=getattr(torch, e["dtype"].removeprefix("torch.")))
        for e in entries
    }


def _check_dropped(case: Case, dropped: list[tuple[str, str]]) -> None:
    """What is dropped never trains there, or trains on rounding noise."""
    about = {e["name"]: e for e in case.description["quantized_state_dict"]}
    for name, reason in dropped:
        name = name.removeprefix("module.")
        assert not about[name]["requires_grad"] or "softmax cancels" in reason


def _check_quantized_modules(case: Case, model: nn.Module) -> None:
    """Each module that the released code replaced holds quantized parts of ours."""
    quantized = [n for n, m in model.named_modules() if hasattr(m, "weight_quantizer")]
    assert any(isinstance(m, QuantizedLinear) for m in model.modules())
    places = [p for ours in released_names(case.description["qmodules"]).values() for p in ours]
    for place in places:
        assert any(name == place or name.startswith(f"{place}.") for name in quantized), place
    for name in quantized:
        assert any(name == place or name.startswith(f"{place}.") for place in places), name


def _check_decay(case: Case, model: nn.Module) -> None:
    largest = max(group["weight_decay"] for group in case.description["optimizer_groups"])
    training = Training(epochs=1, batch_size=1, lr=1e-3, weight_decay=largest)
    groups = make_optimizer(model, training).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    theirs = {e["name"]: e["weight_decay"] for e in case.description["quantized_state_dict"]}
    for name, places in released_names(theirs).items():
        if theirs[name] is not None:
            assert all(decay[id(model.get_parameter(p))] == theirs[name] for p in places), name
