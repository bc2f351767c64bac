"""Kind h: whole DeiTs (plain and distilled) and Swins."""

from collections.abc import Mapping

import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import ofq
from ofq.quantization.released import AsReleased, released_names, timm_name
from ofq.training.objective import distillation_loss

from tests.golden.case import FORWARD, Case, grouped
from tests.golden.parity import Recorder, check_activations, check_gradients, check_initial_scales


def model(case: Case) -> None:
    """Logits in both modes, loss, all gradients, activations; and the full-precision model's."""
    full = full_precision(case, case.under("fp"))
    load_full_precision(full, case.under("fp"))
    case.compare("fp_logits_eval", full.eval()(case["x"]), FORWARD)
    made = quantized(case, full, case.settings["qk_reparam"])
    check_all_weights_are_copied(full, made)
    state = case.under("state")
    check_initial_scales(case, made.eval(), state)
    recorder = Recorder(made, grouped(case.under("act"), r"(.*)$"))
    case.compare("logits_eval", made(case["x"]), FORWARD)
    if case.settings["qk_reparam_type"]:
        ofq.ConfidenceGuidedAnnealing(made, case.settings["boundaryRange"], AsReleased(made))
    made.train()
    outputs = made(case["x"])
    for name, output in _named(outputs).items():
        case.compare(name, output, FORWARD)
    loss = distillation_loss(outputs, case["target"], case["teacher_logits"])
    case.compare("loss", loss, FORWARD)
    loss.backward()
    check_gradients(case, made)
    check_activations(case, recorder)


def full_precision(case: Case, state: Mapping[str, Tensor]) -> nn.Module:
    """timm's model of the case's sizes; distilled if the state has a distillation token."""
    sizes = case.settings["model"]
    common = {
        "img_size": sizes["img"],
        "patch_size": sizes["patch"],
        "num_classes": sizes["classes"],
        "embed_dim": sizes["dim"],
    }
    if case.settings["kind"] == "swin":
        return SwinTransformer(
            **common,
            depths=tuple(sizes["depths"]),
            num_heads=tuple(sizes["heads"]),
            window_size=sizes["window"],
            drop_path_rate=0.0,
        )
    common |= {"depth": sizes["depth"], "num_heads": sizes["heads"]}
    if "dist_token" not in state:
        return VisionTransformer(**common)
    made = VisionTransformerDistilled(**common)
    made.set_distilled_training(True)
    return made


def load_full_precision(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a full-precision state of the released code's models, strictly."""
    swin = isinstance(model, SwinTransformer)
    model.load_state_dict(
        {timm_name(n, swin): t for n, t in state.items() if "relative_position_index" not in n}
    )


def quantized(case: Case, model: nn.Module, qkr: bool) -> nn.Module:
    """The model quantized as the case's was."""
    bits = case.settings["weight_bits"], case.settings["input_bits"]
    return ofq.quantize(model, *bits, qkr=qkr)


def check_all_weights_are_copied(full: nn.Module, made: nn.Module) -> None:
    """Every full-precision tensor is found again; the released code forgets some."""
    ours = made.state_dict()
    for name, theirs in full.state_dict().items():
        for place, rows in _places(name, theirs, ours):
            assert torch.equal(ours[place], rows), name


def _places(name: str, theirs: Tensor, ours: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    """Where a full-precision tensor, or each part of it, lies in the quantized model."""
    renamed = released_names([name])[name]
    owner, _, leaf = name.rpartition(".qkv.")
    if not owner or renamed[0] in ours:
        return [(renamed[0], theirs)]
    q, k, v = theirs.chunk(3)
    places = [(f"{owner}.scores.v.{leaf}", v)]
    if leaf == "weight":  # QKR has no query and key biases
        merged = f"{owner}.scores.merged"
        places += [(f"{merged}.q_weight", q), (f"{merged}.k_weight", k)]
    return places


def _named(outputs: Tensor | tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    if isinstance(outputs, Tensor):
        return {"train_out": outputs}
    return {"train_out.cls": outputs[0], "train_out.dist": outputs[1]}
