"""What checks of layers, attention and models share: states, gradients and activations by name."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ofq.quantization import LSQ
from ofq.quantization.layers import Passthrough
from ofq.quantization.released import convert_released_state, released_names

from tests.golden.case import FORWARD, GRADIENT, Case

CANCELLED = r"(.*\.)?(move_k_aft|move_qkx_aft)\.bias"
"""Shifts that softmax cancels: we don't have them, and their gradients are rounding noise."""


def load(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a released state; every tensor must find its place, and every place its tensor."""
    module.load_state_dict(convert_released_state(state, module).state)


def by_released_name(names: list[str], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under released names, those kept in parts put together, dropped ones left out."""
    kept = {n: parts for n, parts in released_names(names).items() if parts}
    return {
        n: torch.cat([ours[p] for p in parts]) if parts[1:] else ours[parts[0]]
        for n, parts in kept.items()
    }


def check_initial_scales(
    case: Case,
    module: nn.Module,
    state: Mapping[str, Tensor],
    call: Callable[[Tensor], Tensor] | None = None,
    prefix: str = "state",
) -> None:
    """Assert that calibration on ``x_init`` gives the state's scales, then load the state.

    The state is loaded first, for the weights and shifts that the scales depend on. ``call`` runs
    the module where that takes more than its own call; ``prefix`` is the state's in the case.
    """
    load(module, state)
    forget_scales(module)
    with torch.no_grad():
        (call or module)(case["x_init"])
    scales = [n for n in state if n.endswith("_fn.s") or n.endswith("signed")]
    ours = by_released_name(scales, module.state_dict())
    for name, scale in ours.items():
        case.compare(f"{prefix}.{name}", scale.float().reshape(-1), FORWARD)
    load(module, state)


def forget_scales(module: nn.Module) -> None:
    """Make every LSQ, of activations and weights, take its scales from what it sees next."""
    for submodule in module.modules():
        if isinstance(submodule, LSQ):
            submodule.reset()


def check_gradients(case: Case, module: nn.Module, prefix: str = "grad") -> None:
    """Assert that the gradients of all parameters are the case's."""
    case.ignore(rf"{prefix}\.{CANCELLED}", "shifts that softmax cancels")
    names = [n.removeprefix(f"{prefix}.") for n in case.names(rf"{prefix}\..*")]
    gradients = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    case.compare_gradients(prefix, by_released_name(names, gradients))


def check_forward_and_backward(
    case: Case, module: nn.Module, call: Callable[[Tensor], Tensor] | None = None
) -> None:
    """Assert that output and gradients for ``x`` and ``grad_out`` are the case's."""
    x = case["x"].clone().requires_grad_()
    module.zero_grad()
    output = (call or module)(x)
    case.compare("out", output, FORWARD)
    output.backward(case["grad_out"])
    assert x.grad is not None
    case.compare("grad_x", x.grad, GRADIENT)
    check_gradients(case, module)


class Recorder:
    """Keeps inputs and outputs of the submodules that a case has captured activations of.

    Args:
        module: Our module.
        names: Released names of submodules.
    """

    def __init__(self, module: nn.Module, names: list[str]) -> None:
        self.seen: dict[str, tuple[Tensor, Tensor]] = {}
        for name, places in released_names(names).items():
            module.get_submodule(places[0]).register_forward_hook(self._keep(name))

    def _keep(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            self.seen[name] = inputs[0], output - _folded(*inputs[1:])

        return hook


def _folded(followers: Sequence[Passthrough] = ()) -> Tensor | int:
    """The next quantizers' shifts, which our layer adds by its bias and the released one later."""
    shifts = [q.before for q in followers if q.before is not None]
    return torch.cat(shifts) if shifts else 0


def check_activations(case: Case, recorder: Recorder) -> None:
    """Assert that what the recorder has seen is what the case captured, heads apart or together."""
    for name, (given, output) in recorder.seen.items():
        for end, ours in ((".in", given), (".out", output), ("", output)):
            if f"act.{name}{end}" in case:
                theirs = case[f"act.{name}{end}"]
                case.compare(f"act.{name}{end}", _like(ours, theirs.shape), FORWARD)


def _like(x: Tensor, shape: torch.Size) -> Tensor:
    """Ours keeps heads in the last dimension or apart, where the released code does otherwise."""
    if x.ndim == len(shape):
        return x
    if len(shape) == 4:  # (B, N, C) to (B, H, N, d)
        return x.unflatten(-1, (shape[1], -1)).transpose(1, 2)
    return x.flatten(1, 2)  # (B, N, H, C) to (B, N·H, C)
