"""Kind f, and the trajectories of kind h: masks, and optimizer steps under annealing."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

import ofq
from ofq.config import Training
from ofq.quantization import LSQ, StatsQ, low_bit_weights
from ofq.quantization.layers import QuantizedLinear, Shifted
from ofq.quantization.released import AsReleased, released_names
from ofq.quantization.techniques.cga import AsPaper
from ofq.training.objective import distillation_loss
from ofq.training.optimization import make_optimizer

from tests.golden import models
from tests.golden.case import EXACT, FORWARD, GRADIENT, Case, grouped
from tests.golden.parity import CANCELLED, by_released_name, check_initial_scales, load


def masks(case: Case) -> None:
    """The frozen entries, exact; ours also train near thresholds beyond the codes that occur."""
    for group in case.groups(r"b\d+"):
        quantizer = StatsQ(int(group[1:]))
        position = quantizer.position(case[f"{group}.weight"])
        codes = position.round()
        outside = (position < codes.min()) | (position > codes.max())
        for name in case.names(rf"{group}\.br.*\.mask"):
            boundary_range = float(name.removeprefix(f"{group}.br").removesuffix(".mask"))
            released = AsReleased(nn.Module()).trainable(position, boundary_range, quantizer)
            case.compare(name, ~released, EXACT)
            ours = AsPaper().trainable(position, boundary_range, quantizer)
            assert torch.equal(ours & ~outside, released & ~outside)


def trajectory(case: Case) -> None:
    """Loss, masks, gradients and parameters of each step, from the state before the first."""
    model, state = _start(case)
    if "x_init" in case:
        check_initial_scales(case, model, state, prefix="state0")
    load(model, state)
    rule = AsReleased(model)
    annealing = ofq.ConfidenceGuidedAnnealing(model, case.settings["boundaryRange"], rule)
    optimizer = _optimizer(case, model)
    unrecorded = 0
    for step in case.groups(r"step\d+"):
        case.ignore(rf"{step}\.(grad|after)\.{CANCELLED}", "shifts that softmax cancels")
        loss = _loss(case, step, model.train()(case[f"{step}.x"]))
        case.compare(f"{step}.loss", loss, FORWARD)
        optimizer.zero_grad()
        loss.backward()
        frozen = _check_masks(case, step, model)
        before = _copies(model, list(frozen))
        _check_and_take_over_gradients(case, step, model, excluding=list(frozen))
        _check_annealing_step(case, step, model, list(frozen), partial(annealing.step, optimizer))
        unrecorded += not case.names(rf"{step}\.grad\..*")
        _check_parameters(case, step, model, unrecorded)
        for name, weight in _copies(model, list(frozen)).items():
            assert torch.equal(weight[frozen[name]], before[name][frozen[name]])


def _check_annealing_step(
    case: Case, step: str, model: nn.Module, names: list[str], take: Callable[[], None]
) -> None:
    """Take the step; check gradients of annealed weights, and what the optimizer made of them."""
    stepped: list[dict[str, Tensor]] = []
    hook = register_optimizer_step_post_hook(lambda *_: stepped.append(_copies(model, names)))
    take()
    hook.remove()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    if case.names(rf"{step}\.grad\..*"):
        case.compare_gradients(f"{step}.grad", by_released_name(names, gradients))
    for name in names:
        if f"{step}.before_restore.{name}" in case:
            case.compare(f"{step}.before_restore.{name}", stepped[0][name], FORWARD)


def _check_parameters(case: Case, step: str, model: nn.Module, unrecorded: int) -> None:
    """Assert that the parameters after the step are the case's.

    AdamW carries a gradient's tolerance into steps of size lr, so that is the scale where it
    exceeds the parameter's own. Where a gradient was noise in a step whose gradients the case
    doesn't record, the released code went somewhere by at most lr, and so do we.
    """
    lr = case.settings["lr"]
    after = case.under(f"{step}.after")
    for name, ours in _copies(model, list(after)).items():
        scale = lr * int(step.removeprefix("step")) * GRADIENT / FORWARD
        if case.is_noisy(name):
            scale = max(scale, 2 * lr * unrecorded / FORWARD)
        case.compare(f"{step}.after.{name}", ours, FORWARD, scale)


def _check_and_take_over_gradients(
    case: Case, step: str, model: nn.Module, excluding: list[str]
) -> None:
    """Compare gradients, then use the case's: AdamW makes steps of ±lr even of rounding noise."""
    names = [n.removeprefix(f"{step}.grad.") for n in case.names(rf"{step}\.grad\..*")]
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    ours = by_released_name([n for n in names if n not in excluding], gradients)
    if ours:
        case.compare_gradients(f"{step}.grad", ours)
    for name, places in released_names(list(ours)).items():
        for place, part in zip(places, case[f"{step}.grad.{name}"].chunk(len(places)), strict=True):
            gradients[place].copy_(part)


def _check_masks(case: Case, step: str, model: nn.Module) -> dict[str, Tensor]:
    """Assert that the same weights are annealed, and the same entries frozen; give the masks."""
    rule = AsReleased(model)
    weights = {f"{w.layer}.weight": w for w in low_bit_weights(model) if rule.anneals(w)}
    theirs = {name: mask.bool() for name, mask in case.under(f"{step}.mask").items()}
    assert {places[0] for places in released_names(theirs).values()} == weights.keys()
    for name, weight in by_released_name(list(theirs), weights).items():
        position = weight.quantizer.position(weight.latent())
        ours = ~rule.trainable(position, case.settings["boundaryRange"], weight.quantizer)
        assert torch.equal(ours, theirs[name]), f"{step}.mask.{name}"
    return theirs


def _copies(model: nn.Module, names: list[str]) -> dict[str, Tensor]:
    parameters = {n: p.detach().clone() for n, p in model.named_parameters()}
    return by_released_name(names, parameters)


def _optimizer(case: Case, model: nn.Module) -> Optimizer:
    """Ours, which must decay the parameters that the case's optimizer decays, and no other."""
    training = Training(
        epochs=1,
        batch_size=len(case["step1.x"]),
        lr=case.settings["lr"],
        weight_decay=case.settings["weight_decay"],
    )
    optimizer = make_optimizer(model, training)
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    for group in case.description["optimizer_groups"]:
        for places in released_names(group["params"]).values():
            for place in places:
                assert decay[id(model.get_parameter(place))] == group["weight_decay"], place
    return optimizer


def _start(case: Case) -> tuple[nn.Module, dict[str, Tensor]]:
    """The model, its scales still unset, and the released state before the first step."""
    state = case.under("state0")
    if isinstance(case.settings["model"], str):
        return _toy(case, state), state
    full = models.full_precision(case, state)
    return models.quantized(case, full, qkr=any("qkx" in n for n in state)), state


def _loss(case: Case, step: str, outputs: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    if f"{step}.teacher_logits" not in case:
        return F.mse_loss(outputs, case[f"{step}.target"])
    return distillation_loss(outputs, case[f"{step}.target"], case[f"{step}.teacher_logits"])


class _Toy(nn.Module):
    """fc2(GELU(fc1(x))), the layers at the places that the case's names for them have here."""

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.places = list(layers)
        for place, layer in layers.items():
            owner: nn.Module = self
            *path, last = place.split(".")
            for part in path:
                if not hasattr(owner, part):
                    owner.add_module(part, nn.Module())
                owner = owner.get_submodule(part)
            owner.add_module(last, layer)

    def forward(self, x: Tensor) -> Tensor:
        first, second = (self.get_submodule(place) for place in self.places)
        return second(F.gelu(first(x)))


def _toy(case: Case, state: Mapping[str, Tensor]) -> nn.Module:
    weights, activations = case.settings["weight_bits"], case.settings["input_bits"]
    layers = {}
    for name, signed in zip(grouped(state, r"(.*)\.weight$"), (True, False), strict=True):
        out, into = state[f"{name}.weight"].shape
        layers[released_names([name])[name][0]] = QuantizedLinear(
            nn.Linear(into, out),
            StatsQ(weights),
            Shifted(LSQ(activations, -2, signed), into),
            {name: slice(0, out)},
        )
    return _Toy(layers)
