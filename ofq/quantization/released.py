"""Checkpoint layout of the authors' released code, and CGA with its deviations from the paper.

Names and shapes are those of commit 7ed37d1: a timm 0.5.4 DeiT, or torchvision's Swin, with layers
replaced by quantized ones. Differences from our layout beyond names:

- there query, key and value share one shift before their quantizers (``move_qkv_b4``), here each
  has its own;
- there shifts that softmax cancels are parameters, whose gradient is rounding noise; here there are
  none;
- there StatsQ has a parameter (``clip_val``) that nothing reads;
- there the first forward pass creates the scales, so a checkpoint loaded before it loses them
  silently; here their number is taken from the checkpoint;
- Swin's patch-merging reductions have a bias that the full-precision model lacks: there it starts
  at random, here at zero.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from ofq.errors import UserError, some
from ofq.quantization.attention import MergedQueryKey
from ofq.quantization.layers import QuantizedWeight
from ofq.quantization.quantizers.base import WeightQuantizer, near_threshold
from ofq.quantization.techniques.cga import AsPaper

# parts of a released name → ours; where one is a prefix of another, the longer one comes first
_PARTS = {
    # quantized linear layers and the patch embedding (``qlinear.py``)
    "input_quant_fn": "input_quantizer.quantizer",
    "move_b4.bias": "input_quantizer.before",
    "move_aft.bias": "input_quantizer.after",
    "lsqw_fn": "weight_quantizer.lsq",
    # attention, separate query and key (``attention.py``, ``swin_attention_and_mlp.py``)
    "qkv": "scores.qkv",
    "quan_a_q_fn": "scores.q_quantizer.quantizer",
    "quan_a_k_fn": "scores.k_quantizer.quantizer",
    "move_q_aft.bias": "scores.q_quantizer.after",
    # attention with QKR
    "quant_x_4_qkv.input_quant_fn": "scores.input_quantizer.quantizer",
    "quant_x_4_qkv.move_b4.bias": "scores.input_quantizer.before",
    "quant_x_4_qkv.move_aft.bias": "scores.input_quantizer.after",
    "quant_x_4_qkv": "scores.input_quantizer",
    "q.weight": "scores.merged.q_weight",
    "k.weight": "scores.merged.k_weight",
    "qk_quant": "scores.merged.weight_quantizer",
    "quan_a_qkx_fn": "scores.z_quantizer.quantizer",
    "move_qkx_b4.bias": "scores.z_quantizer.before",
    "v": "scores.v",
    "v_quant": "scores.v.weight_quantizer",
    "move_v_b4.bias": "scores.v_quantizer.before",
    # either attention
    "quan_a_v_fn": "scores.v_quantizer.quantizer",
    "move_v_aft.bias": "scores.v_quantizer.after",
    "quan_a_softmax_fn": "probability_quantizer",
    "relative_position_bias_table": "bias.table",
    # state of LSQ
    "s": "scale",
    "signed": "has_negative",
}
_PART = re.compile(rf"(?<![^.])({'|'.join(map(re.escape, _PARTS))})(?![^.])")

_SHARED_SHIFT = "move_qkv_b4.bias"

DROPPED = {
    "clip_val": "StatsQ's scale is a statistic; nothing reads this parameter",
    "move_k_aft.bias": "it adds the same to all logits of a query, which softmax cancels",
    "move_qkx_aft.bias": "it adds the same to all logits of a query, which softmax cancels",
    "relative_position_index": "it follows from the window size",
}
"""Tensors of a released checkpoint that have no effect on the model, with the reason."""


@dataclass(frozen=True)
class ReleasedState:
    """Released checkpoint in our layout.

    Attributes:
        state: State dict for ``load_state_dict``.
        dropped: Name and reason of each tensor that was left out.
    """

    state: dict[str, Tensor]
    dropped: list[tuple[str, str]]


def convert_released_state(state: Mapping[str, Tensor], model: nn.Module) -> ReleasedState:
    """Convert a released checkpoint to a quantized model's layout; refuse missing or extra tensors.

    Args:
        state: Tensors under the released names (``state_dict`` of the file), with or without a
            leading ``module.``.
        model: A quantized model, or a part of one that the names are relative to. It needn't be
            calibrated: then the numbers of activation scales are taken from the checkpoint.

    Raises:
        UserError: Tensors are missing, left over or of another shape; the first few are listed.
    """
    names = released_names(state)
    sources = {ours: name for name, all_ours in names.items() for ours in all_ours}
    wanted = model.state_dict()
    converted = {
        ours: part
        for name, all_ours in names.items()
        for ours, part in zip(all_ours, _split(state[name], len(all_ours)), strict=True)
    }
    shared = [n for n in converted if n in wanted]
    problems = {
        "missing": [n for n in wanted if n not in converted],
        "left over": sorted({sources[n] for n in converted if n not in wanted}),
        "of a wrong shape": [
            f"{sources[n]} {tuple(converted[n].shape)} for {tuple(wanted[n].shape)}"
            for n in shared
            if not _fits(converted[n], wanted[n])
        ],
    }
    if any(problems.values()):
        summary = "; ".join(f"{what}: {some(which)}" for what, which in problems.items() if which)
        raise UserError(f"this checkpoint doesn't fit the model (bits, QKR, size): {summary}")
    return ReleasedState(
        {n: _as(converted[n], wanted[n]) for n in shared},
        [(name, DROPPED[_leaf(name)]) for name, ours in names.items() if not ours],
    )


def released_names(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Map each released tensor or module to our names: none if dropped, three if split."""
    names = list(names)
    swin = any(re.match(r"(module\.)?features\.", name) for name in names)
    return {name: _our_names(timm_name(name, swin)) for name in names}


def timm_name(name: str, swin: bool) -> str:
    """Return timm's name of a full-precision tensor or module of the released code.

    Args:
        name: A name of timm 0.5.4's DeiT, or of torchvision's Swin.
        swin: Whether it is of Swin.
    """
    name = name.removeprefix("module.")
    if not swin:
        return name
    name = re.sub(r"^head(?=\.|$)", "head.fc", name)
    name = re.sub(r"(?<=\.mlp\.)([03])(?=\.)", lambda m: {"0": "fc1", "3": "fc2"}[m[1]], name)
    return re.sub(r"^features\.(\d+)(\.[02](?=\.|$))?", _swin_place, name)


def _swin_place(match: re.Match[str]) -> str:
    # torchvision numbers embedding, stage, merging, stage, …; timm's merging begins the next layer
    number, part = int(match[1]), match[2] or ""
    if number == 0:
        return "patch_embed" + {".0": ".proj", ".2": ".norm", "": ""}[part]
    return f"layers.{number // 2}.{'blocks' if number % 2 else 'downsample'}{part}"


def _our_names(name: str) -> tuple[str, ...]:
    if _leaf(name) in DROPPED:
        return ()
    if _leaf(name) == _SHARED_SHIFT:
        owner = name.removesuffix(_SHARED_SHIFT)
        return tuple(f"{owner}scores.{part}_quantizer.before" for part in "qkv")
    return (_PART.sub(lambda match: _PARTS[match[0]], name),)


def _leaf(name: str) -> str:
    """Return the last part of a name, with the part before it if the last is only ``bias``."""
    *rest, last = name.split(".")
    return f"{rest[-1]}.{last}" if rest and last == "bias" else last


def _split(tensor: Tensor, parts: int) -> tuple[Tensor, ...]:
    if parts > 1 and (tensor.ndim == 0 or len(tensor) % parts):
        return (tensor,) * parts  # of a wrong shape, which is reported with the others
    return tensor.chunk(parts) if parts > 1 else (tensor,) * parts


def _fits(tensor: Tensor, wanted: Tensor) -> bool:
    if wanted.numel() == 0:  # a scale before calibration
        return tensor.ndim == 1 and tensor.numel() > 0
    return tensor.shape == wanted.shape or (wanted.ndim == 0 and tensor.numel() == 1)


def _as(tensor: Tensor, wanted: Tensor) -> Tensor:
    tensor = tensor.to(wanted.dtype)
    return tensor if wanted.numel() == 0 else tensor.reshape(wanted.shape)


class AsReleased(AsPaper):
    """Rule of CGA in the released code, which differs from the paper in three points.

    It excludes QKR's merged weight (its mask acts on a detached tensor); it matches no layer of a
    Swin without QKR (so CGA has no weight, which is an error here); and a threshold counts only
    between the lowest and the highest code that some weight of the matrix has now.

    Args:
        model: The quantized model to apply CGA to.
    """

    def __init__(self, model: nn.Module) -> None:
        merged = any(isinstance(module, MergedQueryKey) for module in model.modules())
        self._matches_names = merged or not isinstance(model, SwinTransformer)

    def anneals(self, weight: QuantizedWeight) -> bool:
        """Return whether CGA applies to a weight: not if merged, nor in a Swin without QKR."""
        return self._matches_names and not isinstance(weight.owner, MergedQueryKey)

    def trainable(
        self, position: Tensor, boundary_range: float, quantizer: WeightQuantizer
    ) -> Tensor:
        """Return the mask of entries near thresholds between codes that occur."""
        lowest, highest = torch.aminmax(position.round())
        return near_threshold(position, boundary_range, lowest, highest)
