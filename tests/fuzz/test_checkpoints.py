"""Weights files and resumable checkpoints of all sorts: read as they are, or refused in a line.

Found by it and mended:

- flipped bits in a file of ``torch.save`` gave KeyErrors, IndexErrors and AttributeErrors;
- flipped bits in the head of a safetensors file gave TypeErrors and KeyErrors;
- metadata that wasn't JSON, or not a mapping of texts, gave a trace;
- complex numbers, integers and bools were taken for weights, and lost a part of themselves;
- a checkpoint with a right SHA-256 that held something else gave a trace;
- an HTML page and a file that was cut were told in riddles.
"""

import hashlib
import json
import tempfile
from functools import cache
from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from ofq.config import Quantization
from ofq.errors import UserError
from ofq.quantization import calibrate
from ofq.training import models
from ofq.training.checkpoint import CheckpointStore
from ofq.training.data import source as data
from ofq.training.importing import import_released
from ofq.training.weights import load_weights, read_weights, recorded_facts, save_weights

from tests.support.fuzzing import fuzzed

MICRO = "micro_deit_patch2_8"
BITS = Quantization(bits="W2A2", weight_quantizer="statsq")
PAGE = b"<!DOCTYPE html><html><head><title>404</title></head></html>"


@cache
def model(quantized):
    torch.manual_seed(0)
    made = models.build(MICRO, 10)
    if quantized:
        made = models.quantized(made, BITS)
        calibrate(made, torch.rand(2, 1, 8, 8))
    return made


@cache
def facts():
    return data.describe("digits", data.load("digits", MICRO, 0))


@cache
def written(kind):
    """The content of a sound file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        if kind == "safetensors":
            save_weights(model(quantized=True), path, facts())
        else:
            state = model(quantized=False).state_dict()
            torch.save({"state_dict": state, "state_dict_ema": state, "epoch": 3}, path)
        return path.read_bytes()


damages = st.one_of(
    st.tuples(st.just("cut"), st.floats(0, 1)),
    st.tuples(st.just("flip"), st.lists(st.floats(0, 1), min_size=1, max_size=8)),
    st.tuples(st.just("flip at the start"), st.lists(st.floats(0, 1), min_size=1, max_size=3)),
    st.tuples(st.just("overwrite"), st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=64))),
    st.tuples(st.just("replace"), st.sampled_from([PAGE, b"", b"PK\x03\x04", b"\x80\x02.", b"{}"])),
    st.tuples(st.just("bytes"), st.binary(max_size=64)),
)


def damaged(content, damage):
    kind, how = damage
    changed = bytearray(content)
    if kind == "cut":
        return content[: int(how * len(content))]
    if kind.startswith("flip"):
        reach = 2000 if kind == "flip at the start" else len(content)
        for place in how:
            bit = min(int(place * reach * 8), reach * 8 - 1)
            changed[bit // 8] ^= 1 << bit % 8
        return bytes(changed)
    if kind == "overwrite":
        place, other = how
        at = int(place * len(content))
        changed[at : at + len(other)] = other
        return bytes(changed)
    return how


def refused(function, *arguments):
    """Whether something is refused, in one line; any other exception is a failure."""
    try:
        function(*arguments)
    except UserError as error:
        message = str(error)
    else:
        return False
    assert message.isprintable(), message
    return True


@fuzzed(ci=60, long=800)
@given(st.sampled_from(["safetensors", "pth"]), damages)
def test_damaged_weights_are_read_as_they_are_or_refused(kind, damage):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"weights.{kind}"
        path.write_bytes(damaged(written(kind), damage))
        same = path.read_bytes() == written(kind)
        fresh = models.build(MICRO, 10)
        fresh = models.quantized(fresh, BITS) if kind == "safetensors" else fresh
        outcomes = [
            refused(load_weights, fresh, path),
            refused(recorded_facts, path),
        ]
        if same:
            assert outcomes == [False, False]
        if damage[0] in ("replace", "bytes"):
            assert outcomes[0]
        assert refused(import_released, path, MICRO, BITS, 10)


KINDS = [torch.float64, torch.float16, torch.complex64, torch.int64, torch.bool]
changes = st.one_of(
    st.tuples(st.just("type"), st.sampled_from(KINDS)),
    st.tuples(st.just("shape"), st.sampled_from([(), (0,), (1,), (3, 3)])),
    st.tuples(st.just("missing"), st.none()),
    st.tuples(st.just("name"), st.text(max_size=5)),
    st.tuples(st.just("sparse"), st.none()),
    st.tuples(st.just("meta"), st.none()),
    st.tuples(st.just("no tensor"), st.sampled_from([None, 3, "text", [1.0]])),
)


@fuzzed(ci=40, long=500)
@given(
    st.sampled_from(sorted(model(False).state_dict())),
    changes,
    st.sampled_from([None, "state_dict", "model", "state_dict_ema", "model_ema"]),
    st.sampled_from(["", "module."]),
)
def test_wrong_tensors_are_refused_and_right_ones_loaded(name, change, container, prefix):
    original = model(False).state_dict()
    state = {prefix + key: tensor.clone() for key, tensor in original.items()}
    kind, how = change
    right = kind == "type" and how in (torch.float64, torch.float16)
    key = prefix + name
    if kind == "type":
        state[key] = state[key].to(how)
    elif kind == "shape":
        right = state[key].shape == how
        state[key] = torch.zeros(how) if not right else state[key]
    elif kind == "missing":
        del state[key]
    elif kind == "name":
        state[how] = state.pop(key)
        right = how == key
    elif kind == "sparse":
        state[key] = state[key].to_sparse()
    elif kind == "meta":
        state[key] = state[key].to("meta")
    else:
        state[key] = how
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pth"
        torch.save(state if container is None else {container: state, "epoch": 1}, path)
        fresh = models.build(MICRO, 10)
        assert refused(load_weights, fresh, path) == (not right), change
        if right:
            half = kind == "type" and how == torch.float16
            expected = original[name].half().float() if half else original[name]
            assert torch.equal(fresh.state_dict()[name], expected)


texts = (
    st.sampled_from(["", "{", "null", "[]", "3", '{"a": 1}', '{"rule": 2}', "[" * 3000]) | st.text()
)


@fuzzed(ci=60, long=500)
@given(st.sampled_from(["ofq.quantized", "ofq.data"]), texts)
def test_metadata_of_any_kind_is_read_or_refused(key, text):
    tensors = {name: tensor.contiguous() for name, tensor in model(True).state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        try:
            path.write_bytes(save(tensors, {key: text}))
        except UnicodeEncodeError:
            return
        fresh = models.quantized(models.build(MICRO, 10), BITS)
        refused(load_weights, fresh, path)
        if not refused(recorded_facts, path):
            assert recorded_facts(path) is None
        assert read_weights(path).keys() == tensors.keys()


@fuzzed(ci=60, long=500)
@given(damages, st.booleans())
def test_damaged_checkpoints_are_passed_over_or_refused(damage, hashed_anew):
    """The one before is taken; or, if the SHA-256 was made anew, the file is refused."""
    warnings = []
    with tempfile.TemporaryDirectory() as folder:
        store = CheckpointStore(Path(folder), warn=warnings.append, facts=facts())
        for step in (1, 2):
            store.save(step, {"step": step, "weights": torch.arange(100.0)})
        path = Path(folder) / "step-000000002.pt"
        content = path.read_bytes()
        path.write_bytes(damaged(content, damage))
        same = path.read_bytes() == content
        if hashed_anew:
            manifest = json.loads(path.with_suffix(".json").read_text())
            manifest["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
            path.with_suffix(".json").write_text(json.dumps(manifest))
            if not refused(store.load):
                assert set(store.load()) <= {"step", "weights", "data"} or not same
            return
        state = store.load()
        assert state["step"] == (2 if same else 1)
        assert len(warnings) == (0 if same else 1)
        assert torch.equal(state["weights"], torch.arange(100.0))
