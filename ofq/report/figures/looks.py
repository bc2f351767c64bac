"""Looks of methods: colour, marker, fill and line style say what a method is, in every study.

The hue says which weight quantizer, the marker which form of QKR, the fill whether an annealing
stage follows. Methods that share all three have other shades of the hue, and those with another
form of annealing or a technique during QAT another line style as well.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np
from matplotlib.colors import to_hex, to_rgb

from ofq.config.method import CgaConfig, Method
from ofq.values import parse_bits

RELEASED_RANGE = CgaConfig().boundary_range
"""OFQ's boundary range, that of the released scripts, in quantization steps."""

HUES = {
    "lsq": "#0072B2",
    "statsq": "#D55E00",
    "lsq_statistical": "#009E73",
    "statsq_learned": "#AA4499",
    "statsq_moments": "#C09A00",
    "lsqplus": "#3D4FB8",
    "ewgs": "#4D9221",
    "dorefa": "#B2182B",
}
"""Hue of each built-in weight quantizer."""

_OWN_HUES = ("#7B61D9", "#6E8B00", "#12A5B8", "#E0699A")  # of users' quantizers, by their names
_MARKERS: dict[bool | str, str] = {False: "o", True: "s", "lowrank": "D"}
_DASHES: dict[bool | str, Any] = {
    False: "-",
    True: (0, (5, 1.5)),
    "lowrank": (0, (5, 1.2, 1.2, 1.2)),
}
_FORMS: dict[str, Any] = {
    "ratio": (0, (8, 1.5, 1.2, 1.5)),
    "freeze_all": (0, (2.5, 1)),
    "no_freeze": (0, (1.2, 1.2)),
    "freezing": (0, (1.2, 1.2)),
    "dampening": (0, (3, 1, 1, 1, 1, 1)),
    "bin_regularization": (0, (3, 1, 3, 1, 1, 1)),
    "oscillation_inducing": (0, (1, 2.5)),
    "transition_rate": (0, (6, 2, 2, 2)),
    "weight_average": (0, (10, 2)),
}
_OWN_FORM: Any = (0, (8, 1.2, 3, 1.2))

_RUNGS = 2  # shades of siblings on either side of the middle one, before they get closer
_RUNG = 0.35
_LIGHTEST, _DARKEST = 0.65, 0.55  # most of white and of black in a shade

# of what isn't a method, so that a colour's meaning doesn't depend on the study either
_BITS = ("#440154", "#2E6E8E", "#35B779", "#B5A800", "#E8601C", "#882E72", "#777777")  # from 2
_ROLES = {
    "q": "#0072B2",
    "k": "#D55E00",
    "qk": "#000000",
    "v": "#009E73",
    "proj": "#CC79A7",
    "fc1": "#E69F00",
    "fc2": "#56B4E9",
}
_OTHERS = ("#8C564B", "#7F7F7F", "#BCBD22", "#17BECF", "#9467BD")


@dataclass(frozen=True)
class Look:
    """Style of one curve or set of dots.

    Attributes:
        color: Its colour.
        marker: Its marker.
        linestyle: Its line style.
        filled: Whether its markers are filled; else they are white inside.
    """

    color: str
    marker: str = "o"
    linestyle: Any = "-"
    filled: bool = True

    @property
    def line(self) -> dict[str, Any]:
        """Keyword arguments for a line without markers."""
        return {"color": self.color, "linestyle": self.linestyle}

    @property
    def marks(self) -> dict[str, Any]:
        """Keyword arguments for markers, which a line may connect."""
        inside = self.color if self.filled else "white"
        return {"color": self.color, "marker": self.marker, "markerfacecolor": inside}


def looks(methods: Mapping[str, Method]) -> dict[str, Look]:
    """Return a look for each method by what its config says; no two have the same colour.

    Args:
        methods: The methods' configs by name.
    """
    hues = _hues({method.weight_quantizer for method in methods.values()})
    taken: dict[tuple[str, bool | str, bool], set[float]] = {}
    found: dict[str, Look] = {}
    # the plainest first, so that it gets the middle of the hue whatever its place in the study
    for name, method in sorted(methods.items(), key=lambda item: (_settings(item[1]), item[0])):
        family = (hues[method.weight_quantizer], method.qkr, method.cga is not None)
        rung = _free_rung(_wanted_rung(method), taken.setdefault(family, set()))
        taken[family].add(rung)
        shade = _RUNG * rung + _offset(method)
        found[name] = Look(
            _shaded(family[0], shade), _MARKERS[method.qkr], _dashes(method), family[2]
        )
    return {name: found[name] for name in methods}


def bits_looks(bits: Collection[str]) -> dict[str, Look]:
    """Return a look for each bit-width: the hue by weights, lighter for other activations."""
    found = {}
    for name in bits:
        weights, activations = parse_bits(name)
        shade = 0.0 if activations == weights else min(activations, 9) / 10
        found[name] = Look(_shaded(_BITS[min(weights - 2, len(_BITS) - 1)], shade))
    return found


def role_looks(roles: Collection[str]) -> dict[str, Look]:
    """Return a look for each role of a weight matrix; unknown ones share a few other colours."""
    others = sorted(set(roles) - set(_ROLES))
    colours = {role: _OTHERS[i % len(_OTHERS)] for i, role in enumerate(others)} | _ROLES
    return {role: Look(colours[role]) for role in roles}


def _hues(quantizers: Collection[str]) -> dict[str, str]:
    """Return each quantizer's hue; a user's own has one by its name, the next if it's taken."""
    hues = {name: HUES[name] for name in quantizers if name in HUES}
    for name in sorted(name for name in quantizers if name not in HUES):
        first = crc32(name.encode()) % len(_OWN_HUES)
        order = [*_OWN_HUES[first:], *_OWN_HUES[:first]]
        hues[name] = next((hue for hue in order if hue not in hues.values()), order[0])
    return hues


def _settings(method: Method) -> int:
    """Return the number of settings in which a method differs from the defaults."""

    def count(value: Any) -> int:
        if isinstance(value, dict):
            return 1 + sum(count(part) for part in value.values())
        if isinstance(value, list | tuple):
            return 1 + sum(count(part) for part in value)
        return 1

    return count(method.model_dump(exclude_defaults=True, exclude={"label", "module", "tuned"}))


def _wanted_rung(method: Method) -> float:
    """Return the shade of what sets a method apart from its plain sibling: − darker, + lighter."""
    rung = 0.0
    if isinstance(method.cga, CgaConfig):
        rung -= round(2 * math.log2(method.cga.boundary_range / RELEASED_RANGE))
    elif method.cga is not None:
        rung += 1
    if method.noise is not None:
        rung += 1 if method.noise.weights == "oscillating" else 2
    if method.training:
        rung += 1
    if method.options or method.techniques:
        rung -= 1
    if method.scale_lr != 1:
        rung += 1
    return min(max(rung, -_RUNGS), _RUNGS)


def _free_rung(wanted: float, taken: Collection[float]) -> float:
    """Return the nearest free rung of a ladder that gets finer as it fills."""
    step = 1.0
    while True:
        ladder = np.arange(-_RUNGS, _RUNGS + step / 2, step).tolist()
        free = [rung for rung in ladder if rung not in taken]
        if free:
            return float(min(free, key=lambda rung: (abs(rung - wanted), rung)))
        step /= 2


def _offset(method: Method) -> float:
    """Return a little of shade, by QKR and annealing, so that no colour comes twice."""
    return 0.12 * (2 * list(_MARKERS).index(method.qkr) + (method.cga is not None) - 2.5)


def _shaded(hue: str, shade: float) -> str:
    """Mix a hue with white (shade up to 1) or with black (down to −1)."""
    end, most = (1.0, _LIGHTEST) if shade > 0 else (0.0, _DARKEST)
    rgb = np.array(to_rgb(hue))
    red, green, blue = rgb + (end - rgb) * most * abs(shade)
    return to_hex((red, green, blue))


def _dashes(method: Method) -> Any:
    forms = [technique.form for technique in method.techniques]
    if method.cga is not None and not isinstance(method.cga, CgaConfig):
        forms.append(method.cga.form)
    return _FORMS.get(forms[0], _OWN_FORM) if forms else _DASHES[method.qkr]
