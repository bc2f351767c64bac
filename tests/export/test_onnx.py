"""ONNX files: onnxruntime computes what the fake-quantized model does, from integer codes."""

import json
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import sklearn.datasets
import timm
import torch

import ofq
from ofq.config import Workspace
from ofq.config.datasets import Dataset
from ofq.config.images import Images
from ofq.errors import UserError
from ofq.export.qdq import with_nodes
from ofq.quantization import calibrate, low_bit_weights
from ofq.quantization.quantizers.lsq import LSQ
from ofq.runs.export import _preprocessing
from ofq.training import models
from ofq.training.data.source import load

from tests.support.own_process import run_ofq

MICRO = "micro_deit_patch2_8"
SMALL_SWIN = {
    "img_size": 16, "patch_size": 2, "window_size": 4, "embed_dim": 12, "depths": (2, 2),
    "num_heads": (2, 3), "in_chans": 1,
}  # fmt: skip
IMAGES = load("digits", MICRO, 0).test_inputs[:100]
LARGER = torch.nn.functional.interpolate(IMAGES, 16)

pytestmark = pytest.mark.slow


def trained(model, images, *quantization, **options):
    """A quantized model whose scales aren't as calibration leaves them."""
    torch.manual_seed(0)
    model = ofq.quantize(model, *quantization, **options)
    calibrate(model, images)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, LSQ):
                module.scale *= 0.5 + torch.rand_like(module.scale)
    return model.eval()


def micro(*quantization, **options):
    torch.manual_seed(0)
    return trained(models.build(MICRO, 10), IMAGES, *quantization, **options), IMAGES


def swin():
    torch.manual_seed(0)
    model = timm.create_model("swin_tiny_patch4_window7_224", num_classes=10, **SMALL_SWIN)
    return trained(model, LARGER, 3, 3, "statsq"), LARGER


def answers(path, images):
    session = onnxruntime.InferenceSession(path)
    return session.run(None, {"images": images.numpy()})[0]


def metadata_of(path):
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


@pytest.mark.parametrize(
    "make",
    [
        lambda: micro(4, 4, "lsq"),
        lambda: micro(2, 2, "statsq", True, layer_bits={"blocks.0.*": (8, 8)}),
        swin,
    ],
    ids=["LSQ", "StatsQ + QKR, some at 8 bits", "Swin"],
)
def test_logits_are_those_of_the_model(make, tmp_path):
    (model, images), path = make(), tmp_path / "model.onnx"
    with torch.no_grad():
        expected = model(images).numpy()
    ofq.export_onnx(model, path, metadata={"made": "by a test"})
    found = answers(path, images)
    gaps = np.abs(found - expected).max(axis=1) / np.abs(expected).max()
    # sums in another order may move an activation over a threshold, and all that follows from it
    assert np.median(gaps) < 1e-5
    assert (found.argmax(1) == expected.argmax(1)).mean() > 0.97
    np.testing.assert_allclose(answers(path, images[:1]), found[:1], atol=1e-5)


def test_file_has_integer_codes_and_a_node_for_each_quantizer(tmp_path):
    model, _ = micro(2, 2, "statsq", True)
    path = tmp_path / "model.onnx"
    ofq.export_onnx(model, path, metadata={"made": "by a test"})
    file = onnx.load(path)
    onnx.checker.check_model(file)
    kinds = [node.op_type for node in file.graph.node]
    quantizers = sum(isinstance(module, LSQ) for module in model.modules())
    ends = 2  # whose weights are quantized by LSQ themselves
    assert kinds.count("QuantizeLinear") == quantizers - ends
    weights = sum(1 for _ in low_bit_weights(model)) + ends
    assert kinds.count("DequantizeLinear") == quantizers - ends + weights
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in file.graph.initializer}
    codes = [t for t in tensors.values() if t.dtype == np.int8 and t.ndim > 1]
    assert len(codes) == weights
    assert sum(set(np.unique(t)) == {-3, -1, 1, 3} for t in codes) == weights - ends
    about = metadata_of(path)
    assert (about["bits"], about["weight_quantizer"], about["qkr"]) == ("W2A2", "statsq", "True")
    assert about["made"] == "by a test"


def test_file_says_how_timm_would_make_input_of_images(tmp_path):
    model, _ = swin()
    given = {"mean": [0.5], "std": [0.25], "crop_mode": None}
    ofq.export_onnx(model, tmp_path / "model.onnx", preprocessing=given)
    known = timm.get_pretrained_cfg("swin_tiny_patch4_window7_224")
    assert json.loads(metadata_of(tmp_path / "model.onnx")["preprocessing"]) == {
        "input_size": [1, 16, 16],
        "mean": [0.5],
        "std": [0.25],
        "crop_pct": known.crop_pct,
        "interpolation": known.interpolation,
    }


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"men": [0.5]}, "unknown name 'men'; allowed: mean, std"),
        ({"std": [0.2, 0.3]}, "std has 2 numbers, the images 1 channels"),
    ],
)
def test_preprocessing_of_other_names_or_channels_is_refused(given, said, tmp_path):
    model, _ = micro(2, 2, "statsq")
    with pytest.raises(UserError, match=said):
        ofq.export_onnx(model, tmp_path / "model.onnx", preprocessing=given)
    assert not list(tmp_path.iterdir())


def test_model_whose_weights_are_packed_is_refused(tmp_path):
    model, _ = micro(2, 2, "statsq")
    ofq.save_packed(model, tmp_path / "packed.safetensors", name=MICRO)
    loaded = ofq.load_packed(tmp_path / "packed.safetensors")
    for write in (ofq.export_onnx, ofq.save_packed):
        with pytest.raises(UserError, match=r"none that ofq.load_packed returned"):
            write(loaded, tmp_path / "again")


def test_run_on_image_files_says_how_its_evaluation_makes_input_of_them(checkout):
    run = next(
        run for run in Workspace(checkout).grid("tiny").runs().values() if run.config.stage == "qat"
    )
    images = Images(crop_pct=0.8, interpolation="bilinear")
    config = replace(
        run.config,
        model="deit_tiny_patch16_224",
        data=Dataset(title="Files", size=32, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)),
        training=run.config.training.model_copy(update={"images": images}),
    )
    assert _preprocessing(replace(run, config=config), 10) == {
        "mean": (0.1, 0.2, 0.3),
        "std": (0.4, 0.5, 0.6),
        "crop_pct": 0.8,
        "crop_mode": "center",
        "interpolation": "bilinear",
    }


def test_levels_without_a_node_are_refused():
    @ofq.register_weight_quantizer("uneven")
    class Uneven(ofq.StatsQ):
        """StatsQ with another outermost level."""

        def forward(self, weight):
            values = super().forward(weight)
            return torch.where(values == values.amax(), values * 1.3, values)

    model, _ = micro(2, 2, "uneven")
    with pytest.raises(UserError, match="levels of Uneven aren't evenly spaced around zero"):
        with_nodes(model)


def test_run_is_exported_by_the_command(checkout):
    run = next(n for n in Workspace(checkout).grid("tiny").runs() if "w2a2-lsq-s0" in n)
    parent = next(n for n in Workspace(checkout).grid("tiny").runs() if "/fp-s0" in n)

    for name in (parent, run):
        assert run_ofq(checkout, "train", "--no-track", name).returncode == 0
    done = run_ofq(checkout, "export", run, "--out", "model.onnx")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("wrote model.onnx: ")
    assert len(done.stdout.splitlines()) == 1
    assert answers(checkout / "model.onnx", IMAGES).shape == (100, 10)
    about = metadata_of(checkout / "model.onnx")
    assert (about["run"], about["model"]) == (run, MICRO)
    grey = sklearn.datasets.load_digits().images / 16
    assert json.loads(about["preprocessing"]) == {
        "input_size": [1, 8, 8],
        "mean": [pytest.approx(grey.mean(), rel=1e-3)],
        "std": [pytest.approx(grey.std(), rel=1e-3)],
    }
    done = run_ofq(checkout, "export", parent, "--out", "model.onnx")
    assert done.returncode == 2
    assert "full-precision run" in done.stderr
    done = run_ofq(checkout, "export", run, "--out", "model.onxx")
    assert "expected a .safetensors or .onnx file" in done.stderr
