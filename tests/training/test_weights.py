"""Files that are no weights are refused in one line that names what they seem to be."""

import fractions
import gzip
import io
import json
import os
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load, save_file

import ofq
from ofq.config import Quantization
from ofq.errors import UserError
from ofq.models.loading import safetensors_bytes
from ofq.training import models
from ofq.training.importing import import_released
from ofq.training.weights import load_weights, read_weights, save_weights

from tests.support.own_process import run_ofq

MICRO = "micro_deit_patch2_8"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 22000000\n"


class Runs:
    """What pickle would run a command for."""

    def __reduce__(self):
        return os.system, ("touch ran",)


def saved(content, **options):
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def archive(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, data in members.items():
            file.writestr(f"x/{name}", data)
    return buffer.getvalue()


def packed_in(mode, data):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as file:
        file.addfile(tarfile.TarInfo("a.pth"), io.BytesIO())
    return buffer.getvalue() + data


def arrays(save, *arguments, **named):
    buffer = io.BytesIO()
    save(buffer, *arguments, **named)
    return buffer.getvalue()


def script():
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), buffer)
    return buffer.getvalue()


def flipped(data, place):
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


GOOD = {"a": torch.arange(1000.0)}
FILE = saved(GOOD)
LEGACY = saved(GOOD, _use_new_zipfile_serialization=False)
HEADER = json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
TENSORS = len(HEADER).to_bytes(8, "little") + HEADER + bytes(16)

FOREIGN = {
    "page.pth": (b"<!DOCTYPE html>\n<html>Sign in</html>", "HTML"),
    "page.safetensors": (b"\n <html>", "HTML"),
    "denied.pt": (b"<?xml version='1.0'?><Error/>", "XML page"),
    "empty.pth": (b"", "an empty file"),
    "empty.safetensors": (b"", "an empty file"),
    "pointer.pth": (LFS, "Git LFS pointer"),
    "pointer.safetensors": (LFS, "git lfs pull"),
    "half.pth": (FILE[: len(FILE) // 2], "cut off"),
    "most.pth": (FILE[:-10], "cut off"),
    "start.pth": (FILE[:3], "cut off"),
    "old.pth": (LEGACY[: len(LEGACY) // 2], "cut off"),
    "old-start.pth": (LEGACY[:30], "cut off"),
    "half.safetensors": (TENSORS[: len(HEADER) // 2], "bytes are missing"),
    "most.safetensors": (TENSORS[:-3], "cut off"),
    "flip.pth": (flipped(FILE, FILE.index(GOOD["a"].numpy().tobytes()) + 9), "checksum"),
    "vast.safetensors": ((2**60).to_bytes(8, "little") + HEADER, "no known kind"),
    "header.safetensors": ((9).to_bytes(8, "little") + b"{nothing}", "cut off or damaged"),
    "class.pth": (saved({"a": fractions.Fraction(1, 2)}), "needs fractions.Fraction"),
    "model.pth": (saved(torch.nn.Linear(2, 2)), "needs torch.nn.modules.linear.Linear"),
    "code.pth": (saved(Runs()), "needs posix.system"),
    "plain.pth": (pickle.dumps({"a": 1}), "pickle that torch.save didn't write"),
    "code2.pth": (pickle.dumps(Runs()), "pickle that torch.save didn't write"),
    "old-pickle.pth": (pickle.dumps({"a": 1}, 0), "text that begins with"),
    "readme.pth": (archive(readme="hello"), "zip archive without weights"),
    "nothing.pth": (archive(), "zip archive without weights"),
    "script.pt": (script(), "TorchScript"),
    "list.pth": (saved([1, 2]), "holds no weights"),
    "numbers.pth": (saved({"a": 1}), "holds no weights"),
    "meta.pth": (saved({"a": torch.ones(2, device="meta")}), "'a' isn't a plain tensor"),
    "sparse.pth": (saved({"a": torch.eye(2).to_sparse()}), "'a' isn't a plain tensor"),
    "nested.pth": (
        saved({"a": torch.nested.as_nested_tensor([torch.ones(1), torch.ones(2)])}),
        "'a' isn't a plain tensor",
    ),
    "complex.pth": (saved({"a": torch.ones(2) + 0j}), "'a' isn't a plain tensor"),
    "tensors.pth": (TENSORS, "rename it to .safetensors"),
    "torch.safetensors": (FILE, "torch.save"),
    "array.pth": (arrays(np.save, np.ones(3)), "NumPy array"),
    "arrays.pth": (arrays(np.savez, a=np.ones(3)), "NumPy arrays"),
    "gzip.pth": (gzip.compress(FILE), "gzip"),
    "tar.pth": (packed_in("w", FILE), "tar archive"),
    "list.pt": (b'["a"]', "text that begins with"),
    "noise.pth": (bytes(range(150, 250)), "no known kind"),
    "zeros.safetensors": (bytes(1000), "no known kind"),
    "picture.pth": (b"\x89PNG\r\n\x1a\n" + bytes(9), "PNG image"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_file_that_holds_no_weights_is_named_for_what_it_is(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    data, words = FOREIGN[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError) as caught:
        read_weights(tmp_path / name)
    text = str(caught.value)
    assert text.startswith(f"{tmp_path / name}: ")
    assert words in text
    assert "\n" not in text
    assert len(text) < len(str(tmp_path)) + 330
    assert not (tmp_path / "ran").exists()


def test_what_is_no_file_is_named(tmp_path):
    (tmp_path / "folder.pth").mkdir()
    os.mkfifo(tmp_path / "pipe.pth")
    for name, words in (
        ("folder.pth", "a folder"),
        ("pipe.pth", "not a regular file"),
        ("none.pth", "no such file"),
    ):
        with pytest.raises(UserError, match=f"{name}: {words}"):
            read_weights(tmp_path / name)


@pytest.mark.parametrize("name", ["a.pth", "a.pt", "a.bin", "a.pth.tar"])
@pytest.mark.parametrize("data", [FILE, LEGACY])
def test_files_of_torch_save_are_read(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    assert torch.equal(read_weights(tmp_path / name)["a"], GOOD["a"])


def test_file_without_checksums_is_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(GOOD, tmp_path / "a.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(read_weights(tmp_path / "a.pth")["a"], GOOD["a"])


@pytest.mark.parametrize("start", [b"PK", b"\x80\x02", b"\x1f\x8b", b"<\x02", b"BZh"])
def test_safetensors_are_read_whatever_bytes_the_size_of_their_header_has(tmp_path, start):
    size = int.from_bytes(start, "little")
    header = HEADER + b" " * (size - len(HEADER))
    (tmp_path / "a.safetensors").write_bytes(size.to_bytes(8, "little") + header + bytes(16))
    assert torch.equal(read_weights(tmp_path / "a.safetensors")["a"], torch.zeros(4))


@pytest.fixture
def own(tmp_path):
    """A folder with quantized weights of this package, in all the ways they are saved."""
    model = ofq.quantize(models.build(MICRO, 10), qkr=True)
    ofq.calibrate(model, torch.rand(4, 1, 8, 8))
    save_weights(model, tmp_path / "own.safetensors")
    save_file(model.state_dict(), tmp_path / "plain.safetensors")
    torch.save(model.state_dict(), tmp_path / "own.pth")
    return tmp_path


@pytest.mark.parametrize("name", ["own.safetensors", "plain.safetensors", "own.pth"])
def test_own_weights_need_no_import(own, name):
    command = ["import-checkpoint", name, "--model", MICRO, "--bits", "W2A2", "--qkr"]
    done = run_ofq(own, *command, "--classes", "10", "--out", "out.safetensors")
    assert done.returncode == 2
    assert done.stdout == ""
    text = " ".join(done.stderr.split())
    assert f"{name}: quantized weights of this package" in text
    assert f"`ofq eval {name} --model {MICRO} --bits W2A2 --qkr" in text
    assert not (own / "out.safetensors").exists()


def test_weights_of_another_layout_are_named(own):
    full = models.build(MICRO, 10)
    with pytest.raises(UserError, match=r"another model .quantized weights of this package"):
        load_weights(full, own / "own.pth")
    torch.save({"blocks.0.attn.proj.lsqw_fn.s": torch.ones(2)}, own / "theirs.pth")
    with pytest.raises(UserError, match="import-checkpoint"):
        load_weights(full, own / "theirs.pth")
    torch.save(full.state_dict(), own / "full.pth")
    way = Quantization(bits="W2A2", weight_quantizer="statsq", qkr=True)
    with pytest.raises(UserError, match="'pretrained'"):
        import_released(own / "full.pth", MICRO, way, 10)


def test_shared_shift_of_a_wrong_shape_is_told(own):
    way = Quantization(bits="W2A2", weight_quantizer="statsq")
    for shift in (torch.tensor(1.0), torch.ones(7)):
        torch.save({"blocks.0.attn.move_qkv_b4.bias": shift}, own / "theirs.pth")
        with pytest.raises(UserError, match=r"wrong shape: blocks.0.attn.move_qkv_b4.bias"):
            import_released(own / "theirs.pth", MICRO, way, 10)


def test_pretrained_page_is_refused_before_a_folder_is_made(checkout):
    (checkout / "start.pth").write_bytes(FOREIGN["page.pth"][0])
    recipe = checkout / "config/recipes/small.yaml"
    text = recipe.read_text().replace("  fp: {", "  # fp: {")
    recipe.write_text(f"{text}\npretrained: start.pth\n")
    run = run_ofq(checkout, "runs", "tiny").stdout.split()[0]
    done = run_ofq(checkout, "train", "--no-track", run)
    assert done.returncode == 2
    assert "start.pth: an HTML or XML page" in " ".join(done.stderr.split())
    assert not (checkout / "results/runs" / run / "run.json").exists()


def test_same_weights_are_the_same_bytes_whatever_their_metadata():
    tensors = {"a": torch.arange(5.0), "ä.b": torch.ones(2, 3, dtype=torch.int8)}
    about = {f"key {n}": "é\n" * n for n in range(6)}
    files = {safetensors_bytes(tensors, about) for _ in range(20)}
    assert len(files) == 1
    loaded = load(files.pop())
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
