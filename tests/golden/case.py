"""One golden case: its description, its tensors, and the account of what was done with each."""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

FOLDER = Path(os.environ.get("OFQ_GOLDEN") or Path(__file__).parents[2].parent / "shared/golden")

FORWARD = 1e-5
GRADIENT = 1e-4
HEAD_SCALE_GRADIENT = 5e-4
EXACT = 0.0

_HEAD_SCALE = re.compile(r"(^|\.)head\w*\.input_quant_fn\.s$")


class Case:
    """A case and its tensors; a check must use, or ignore with a reason, every one of them.

    Args:
        entry: The case's entry in ``INDEX.json``.
        folder: Where its files lie.
    """

    def __init__(self, entry: Mapping[str, Any], folder: Path = FOLDER) -> None:
        self.name: str = entry["case"]
        self.description: dict[str, Any] = json.loads((folder / entry["json"]).read_text())
        self.settings: dict[str, Any] = self.description.get("settings", {})
        self.source: str = self.description.get("official_source", "")
        self._noise = _noise(self.description.get("noise_gradients", ""))
        stored = load_file(folder / entry["file"]) if entry.get("file") else {}
        about = self.description.get("tensors", {})
        # in the description's order; integers and masks are stored as float32
        self._tensors = {n: stored[n].to(getattr(torch, about[n]["orig_dtype"])) for n in about}
        self._open = set(about) | set(stored)

    @property
    def class_name(self) -> str:
        """The released class or function that computed the case."""
        return re.split(r"[ ,(;]", self.source.rpartition(":")[2])[0]

    @property
    def left(self) -> list[str]:
        """Tensors that nothing has used so far."""
        return sorted(self._open)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def __getitem__(self, name: str) -> Tensor:
        """A tensor, which thereby counts as used."""
        self._open.discard(name)
        return self._tensors[name]

    def under(self, prefix: str) -> dict[str, Tensor]:
        """All tensors ``prefix.NAME`` as NAME."""
        names = [n for n in self._tensors if n.startswith(f"{prefix}.")]
        return {n.removeprefix(f"{prefix}."): self[n] for n in names}

    def names(self, pattern: str) -> list[str]:
        """All names that match a pattern as a whole."""
        return [n for n in self._tensors if re.fullmatch(pattern, n)]

    def groups(self, pattern: str) -> list[str]:
        """The distinct beginnings of names that match a pattern, in order: ``b2``, ``step1``."""
        found = (re.match(rf"({pattern})\.", n) for n in self._tensors)
        return list(dict.fromkeys(match[1] for match in found if match))

    def ignore(self, pattern: str, reason: str) -> None:
        """Leave out the tensors whose whole name matches; the reason is for whoever reads it."""
        assert reason
        self._open -= {n for n in self._open if re.fullmatch(pattern, n)}

    def compare(self, name: str, ours: Tensor, tolerance: float, scale: float = 0.0) -> None:
        """Assert that max|ours − theirs| / max|theirs| (or ``scale``) is within the tolerance."""
        assert_close(ours, self[name], tolerance, name, scale)

    def is_noisy(self, name: str) -> bool:
        """Whether the case calls this parameter's gradient rounding noise, if only in part."""
        return any(re.search(rf"(^|\.){re.escape(n)}$", name) for n in self._noise)

    def compare_gradients(self, prefix: str, ours: Mapping[str, Tensor]) -> None:
        """Assert that gradients, by released name, are those under the prefix.

        Some are rounding noise in the channels where no key is clipped, perhaps in all of them.
        These are measured against a hundredth of the largest gradient, if that is more than theirs.
        """
        largest = max(float(self._tensors[n].abs().max()) for n in self.names(rf"{prefix}\..*"))
        for name, gradient in ours.items():
            assert_close(
                gradient,
                self[f"{prefix}.{name}"],
                HEAD_SCALE_GRADIENT if _HEAD_SCALE.search(name) else GRADIENT,
                f"gradient of {name}",
                largest / 100 if self.is_noisy(name) else 0.0,
            )


def assert_close(
    ours: Tensor, theirs: Tensor, tolerance: float, name: str, scale: float = 0.0
) -> None:
    """Assert equality up to ``tolerance``, relative to the largest magnitude or ``scale``."""
    assert ours.shape == theirs.shape, f"{name}: {tuple(ours.shape)}, not {tuple(theirs.shape)}"
    ours, theirs = ours.detach().double(), theirs.double()
    assert torch.isfinite(ours).all(), f"{name} isn't finite"
    difference = float((ours - theirs).abs().max())
    allowed = tolerance * max(float(theirs.abs().max()), scale)
    assert difference <= allowed, f"{name}: off by {difference:.3g}, allowed {allowed:.3g}"


def entries(folder: Path = FOLDER) -> Iterator[dict[str, Any]]:
    """The entries of the folder's index."""
    return iter(json.loads((folder / "INDEX.json").read_text())["cases"])


def unlisted(folder: Path = FOLDER) -> set[str]:
    """Cases in the folder that its index doesn't name."""
    listed = {entry["json"] for entry in entries(folder)}
    return {path.name for path in folder.glob("*.json")} - listed - {"INDEX.json"}


def grouped(names: Iterable[str], pattern: str) -> list[str]:
    """The distinct first groups of a pattern's matches, in order."""
    found = (re.match(pattern, n) for n in names)
    return list(dict.fromkeys(match[1] for match in found if match))


def _noise(text: str) -> list[str]:
    """Names of parameters in the sentence that says which gradients are noise."""
    return re.findall(r"(?<![\w.])(?:\*\.)?([\w.]+\.bias)\b", text)
