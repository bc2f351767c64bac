"""Mutated packed files give a model of the file's own numbers, or are refused in one line.

Found by these examples, and mended:

- a file whose metadata name a module had it imported;
- a missing tensor, a layer named twice or of a name like ``__class__``, numbers of classes below 0
  or beyond 2^63, and metadata that are no JSON or nested deeply, ended in a trace;
- a small file that names a large model had it built, with gigabytes of weights;
- tensors of another type were converted, empty scales left to the first input, and scales that
  aren't finite taken.
"""

import hashlib
import json
import tempfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from ofq.config import Quantization
from ofq.errors import UserError
from ofq.export.packed import load_packed, save_packed
from ofq.quantization import calibrate
from ofq.training import models

from tests.support.fuzzing import fuzzed
from tests.support.watching import check_message, nothing_touched_outside

MICRO = "micro_deit_patch2_8"
NAMES = [
    "hf_hub:timm/vit_tiny", "hf-hub:../x", "local-dir:/etc", "timm:vit", "vit_7b_patch16_dinov3",
    "vit_giant_patch14_dinov2", "toy_regression_9", "toy_regression_999999999999", "resnet18",
    "toy_regression_²", "__class__", "", "../x", "test_vit.nonsense", "\x1b",
    "deit_tiny_patch16_224",
]  # fmt: skip
NUMBERS = [-1, 0, 1, 2, 9, 10, 11, 33, 1000, 10**6, 2**31, 2**63, 10**30, 10**5000]
LAYERS = ["__class__", "blocks", "forward", "head", "", "a" * 10**5, "blocks.0.attn", "\x1b[2J"]
OTHERS = [None, [], {}, "x", 1.5, True, -1, "[" * 9, float("inf")]
TEXTS = ["", "{}", "[]", "null", "[" * 10**5, "9" * 5000, "{", '"\x1b"', " " * 300_000]
TYPES = [torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.int64, torch.bool]


@dataclass(frozen=True)
class Packed:
    """A packed file's parts, which are too long to be printed."""

    contents: str = field(repr=False)
    tensors: dict[str, Tensor] = field(repr=False)
    digest: str | None = None

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(type(self).__name__)

    def write(self, path: Path) -> None:
        """Write the file, with the hash that its parts have unless another one is given."""
        digest = self.digest or digest_of(self.contents, self.tensors)
        path.write_bytes(save(self.tensors, {"ofq": self.contents, "sha256": digest}))


def digest_of(contents: str, tensors: dict[str, Tensor]) -> str:
    """What a file's metadata say of its parts, by which damage is noticed, but no attack."""
    digest = hashlib.sha256(contents.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@cache
def base(qkr: bool) -> Packed:
    torch.manual_seed(0)
    quantization = Quantization(bits="W2A2", weight_quantizer="statsq", qkr=qkr)
    model = models.quantized(models.build(MICRO, 10), quantization)
    calibrate(model, torch.rand(4, 1, 8, 8))
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "packed.safetensors"
        save_packed(model, path, name=MICRO)
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return Packed(file.metadata()["ofq"], tensors)


def replaced(data: Any, place: list[int], value: Any) -> Any:
    """JSON with another value in one place, which numbers lead to; or with a key left out."""
    if not place or not isinstance(data, dict | list) or not data:
        return value
    keys = list(data) if isinstance(data, dict) else list(range(len(data)))
    key = keys[place[0] % len(keys)]
    changed = dict(data) if isinstance(data, dict) else list(data)
    changed[key] = replaced(data[key], place[1:], value)
    return changed


@st.composite
def described(draw: st.DrawFn) -> Packed:
    """Other metadata."""
    packed = base(draw(st.booleans()))
    data = json.loads(packed.contents)
    kind = draw(st.sampled_from(["model", "classes", "module", "form", "place", "text"]))
    if kind == "model":
        data["model"] = draw(st.sampled_from(NAMES))
    elif kind == "classes":
        data["classes"] = draw(st.sampled_from(NUMBERS))
    elif kind == "module":
        data["quantization"]["module"] = draw(st.sampled_from(["evil", "antigravity", "os.path"]))
        name = draw(st.sampled_from(["statsq", "evil", "lsq", "__init__"]))
        data["quantization"]["weight_quantizer"] = name
        data["quantization"]["options"] = draw(
            st.sampled_from([{}, {"self": 1}, {"bits": 1}, {"factor": float("nan")}, {"x": 1}])
        )
    elif kind == "form":
        form = draw(st.sampled_from(data["weights"]))
        form["layer"] = draw(st.one_of(st.just(form["layer"]), st.sampled_from(LAYERS)))
        form["bits"] = draw(st.sampled_from(NUMBERS))
        form["shape"] = draw(
            st.one_of(st.just(form["shape"]), st.lists(st.sampled_from(NUMBERS), max_size=70))
        )
        data["weights"] += draw(st.sampled_from([[], [form]]))
    elif kind == "place":
        places = st.lists(st.integers(0, 30), min_size=1, max_size=4)
        values = st.one_of(*map(st.sampled_from, (OTHERS, NUMBERS, NAMES, LAYERS)))
        data = replaced(data, draw(places), draw(values))
    else:
        return Packed(draw(st.sampled_from(TEXTS)), packed.tensors)
    with no_limit_of_digits():
        return Packed(json.dumps(data), packed.tensors)


@st.composite
def retyped(draw: st.DrawFn) -> Packed:
    """Other tensors: missing, more, of another shape or type, or of numbers that aren't any."""
    packed = base(draw(st.booleans()))
    tensors = dict(packed.tensors)
    names = sorted(tensors)
    # scales and codes are what the file's own reader looks at
    own = [name for name in names if name.endswith((".codes", ".scale"))]
    name = draw(st.one_of(st.sampled_from(names), st.sampled_from(own)))
    tensor = tensors.pop(name)
    kind = draw(st.sampled_from(["gone", "type", "shape", "empty", "numbers", "more", "name"]))
    if kind == "type":
        tensors[name] = tensor.to(draw(st.sampled_from([t for t in TYPES if t != tensor.dtype])))
    elif kind == "shape":
        tensors[name] = tensor.unsqueeze(draw(st.integers(0, tensor.ndim))).repeat_interleave(
            draw(st.integers(1, 3)), 0
        )
    elif kind == "empty":
        tensors[name] = tensor.flatten()[:0].clone()
    elif kind == "numbers" and tensor.is_floating_point():
        value = draw(st.sampled_from([float("nan"), float("inf"), -1.0, 0.0, 1e38]))
        tensors[name] = torch.full_like(tensor, value)
    elif kind == "numbers":
        tensors[name] = tensor ^ draw(st.sampled_from([1, 127]))
    elif kind == "more":
        tensors[name] = tensor
        tensors[draw(st.sampled_from([*LAYERS[:5], "head.weight"])) or "x"] = torch.zeros(2)
    elif kind == "name":
        tensors[draw(st.sampled_from([f"{name}.codes", f"x{name}", name.upper()]))] = tensor
    return Packed(packed.contents, tensors)


@st.composite
def flipped(draw: st.DrawFn) -> bytes:
    """A file with some bytes changed or cut."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "packed.safetensors"
        base(draw(st.booleans())).write(path)
        content = bytearray(path.read_bytes())
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.one_of(st.integers(0, 40_000), st.integers(0, len(content) - 1)))
        content[place] = draw(st.integers(0, 255))
    return bytes(content[: draw(st.sampled_from([len(content), len(content) // 2, 9, 8, 1, 0]))])


class no_limit_of_digits:
    """Lets Python write integers of any length."""

    def __enter__(self) -> None:
        import sys

        self.limit = sys.get_int_max_str_digits()
        sys.set_int_max_str_digits(0)

    def __exit__(self, *_: object) -> None:
        import sys

        sys.set_int_max_str_digits(self.limit)


@dataclass(frozen=True)
class Damaged:
    """A file of changed bytes."""

    content: bytes = field(repr=False)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(type(self).__name__)

    def write(self, path: Path) -> None:
        """Write it."""
        path.write_bytes(self.content)


FILES = st.one_of(described(), described(), retyped(), flipped().map(Damaged))


def check(file: Packed | Damaged) -> str:
    """Read a packed file, and tell how that ended."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name).resolve()
        path = place / "packed.safetensors"
        file.write(path)
        with nothing_touched_outside(place):
            try:
                model = load_packed(path)
            except UserError as error:
                check_message(str(error))
                return "refused"
        assert [entry.name for entry in place.iterdir()] == ["packed.safetensors"]
    assert type(model).__name__ == "VisionTransformer"
    return "read"


@pytest.mark.parametrize("qkr", [False, True])
def test_a_packed_file_as_it_was_written_is_read(qkr: bool) -> None:
    assert check(base(qkr)) == "read"


@fuzzed(ci=60, long=1000)
@given(FILES)
def test_mutated_packed_files_are_refused_in_one_line_or_read(file: Packed | Damaged) -> None:
    check(file)
