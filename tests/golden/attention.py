"""Kind e: attention with query and key apart, with QKR, under annealing, and in Swin's windows."""

from collections.abc import Callable

import torch
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import ofq
from ofq.quantization.attention import MergedQueryKey
from ofq.quantization.released import AsReleased
from ofq.quantization.techniques.cga import AsPaper

from tests.golden.case import GRADIENT, Case, assert_close, grouped
from tests.golden.parity import (
    Recorder,
    by_released_name,
    check_activations,
    check_forward_and_backward,
    check_initial_scales,
)


def attention(case: Case) -> None:
    """Initial scales, output, all gradients and every activation; all weights copied."""
    model, call = _swin(case) if "swin" in case.class_name else _vit(case)
    made = _attention(model)
    _check_all_weights_are_copied(case, made)
    recorder = Recorder(made, grouped(case.under("act"), r"(.*)\.(?:in|out)$"))
    check_initial_scales(case, made, case.under("state"), call)
    if "boundaryRange" in case.settings:
        ofq.ConfidenceGuidedAnnealing(model, case.settings["boundaryRange"], AsReleased(model))
    check_forward_and_backward(case, made, call)
    check_activations(case, recorder)
    if "boundaryRange" in case.settings:
        _check_annealing_of_the_merged_weight(case, model, call)


def _check_annealing_of_the_merged_weight(
    case: Case, model: nn.Module, call: Callable[[Tensor], Tensor]
) -> None:
    """As in the paper, entries of W_qk outside the band pass no gradient; nothing else changes."""
    made = _attention(model)
    merged = next(m for m in made.modules() if isinstance(m, MergedQueryKey))
    weight = merged.latent_weight().detach()
    rule, boundary_range = AsPaper(), case.settings["boundaryRange"]
    mask = rule.trainable(
        merged.weight_quantizer.position(weight), boundary_range, merged.weight_quantizer
    )
    released = _merged_gradient(merged, lambda: call(case["x"]).backward(case["grad_out"]))
    ofq.ConfidenceGuidedAnnealing(model, boundary_range)
    made.zero_grad()
    output = call(case["x"])
    assert_close(output, case["out"], 1e-5, "output under annealing")
    output.backward(case["grad_out"])
    q, k = merged.q_weight, merged.k_weight
    expected = _through_the_product(released * mask, q, k, merged.heads)
    for theirs, parameter in zip(expected, (q, k), strict=True):
        assert parameter.grad is not None
        assert_close(parameter.grad, theirs, GRADIENT, "gradient through the band")
    names = [n for n in case.under("grad") if n not in ("q.weight", "k.weight")]
    ours = by_released_name(names, {n: p.grad for n, p in made.named_parameters()})
    case.compare_gradients("grad", ours)


def _merged_gradient(merged: MergedQueryKey, run: Callable[[], None]) -> Tensor:
    """The gradient that reaches the product of W_q and W_k."""
    seen: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        output.register_hook(seen.append)

    handle = merged.weight_quantizer.register_forward_hook(keep)
    run()
    handle.remove()
    return seen[0]


def _through_the_product(
    gradient: Tensor, q_weight: Tensor, k_weight: Tensor, heads: int
) -> tuple[Tensor, Tensor]:
    """Gradients of W_q and W_k, each (H·d, C), from that of W_q[h]ᵀ W_k[h] stacked, (H·C, C)."""
    g_HCC = gradient.unflatten(0, (heads, -1))
    q_HdC, k_HdC = (w.detach().unflatten(0, (heads, -1)) for w in (q_weight, k_weight))
    return (k_HdC @ g_HCC.transpose(1, 2)).flatten(0, 1), (q_HdC @ g_HCC).flatten(0, 1)


def _check_all_weights_are_copied(case: Case, made: nn.Module) -> None:
    """The released code forgets proj, qkv without QKR, and Swin's position biases."""
    case.ignore("fp.relative_position_index", "follows from the window size")
    ours = {**made.state_dict(), **_query_key_value(made)}
    for name, theirs in case.under("fp").items():
        if name.startswith("qkv."):
            parts = [ours[f"{part}.{name[4:]}"] for part in "qkv" if f"{part}.{name[4:]}" in ours]
            # with QKR there are no query and key biases
            assert torch.equal(torch.cat(parts), theirs[-sum(len(p) for p in parts) :])
        elif name != "relative_position_index":
            assert torch.equal(by_released_name([name], ours)[name], theirs)


def _query_key_value(made: nn.Module) -> dict[str, Tensor]:
    """Rows of query, key and value, whether they are one layer or three."""
    state = made.state_dict()
    if "scores.qkv.weight" in state:
        return {
            f"{part}.{leaf}": rows
            for leaf in ("weight", "bias")
            for part, rows in zip("qkv", state[f"scores.qkv.{leaf}"].chunk(3), strict=True)
        }
    return {
        "q.weight": state["scores.merged.q_weight"],
        "k.weight": state["scores.merged.k_weight"],
        "v.weight": state["scores.v.weight"],
        "v.bias": state["scores.v.bias"],
    }


def _vit(case: Case) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    dim, heads = case.settings["dim"], case.settings["heads"]
    full = VisionTransformer(img_size=8, patch_size=4, embed_dim=dim, depth=1, num_heads=heads)
    _load_full_precision(full.blocks[0].attn, case)
    model = _quantize(full, case)
    return model, model.blocks[0].attn


def _swin(case: Case) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    dim, heads, shift = (case.settings[key] for key in ("dim", "heads", "shift"))
    full = SwinTransformer(
        img_size=tuple(case["x"].shape[1:3]),
        patch_size=1,
        embed_dim=dim,
        depths=(2,),
        num_heads=(heads,),
        window_size=case.settings["window"],
    )
    # the second block of a stage is shifted; one of them is all that is used
    del full.layers[0].blocks[0 if shift else 1]
    block = full.layers[0].blocks[0]
    assert isinstance(block, SwinTransformerBlock)
    assert block.shift_size == (shift, shift)
    _load_full_precision(block.attn, case)
    model = _quantize(full, case)
    return model, model.layers[0].blocks[0]._attn


def _load_full_precision(attention: nn.Module, case: Case) -> None:
    state = {n: t for n, t in case.under("fp").items() if n != "relative_position_index"}
    attention.load_state_dict(state)


def _quantize(model: nn.Module, case: Case) -> nn.Module:
    return ofq.quantize(
        model,
        case.settings["w"],
        case.settings["a"],
        case.settings["kwargs"]["weight_quant_method"],
        qkr="qkreparam" in case.class_name,
    )


def _attention(model: nn.Module) -> nn.Module:
    return next(m for n, m in model.named_modules() if n.endswith(".attn"))
