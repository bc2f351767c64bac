"""Models that can't be built, quantized or fed are refused before anything is trained."""

import time

import pytest

from ofq.config import Quantization
from ofq.errors import UserError
from ofq.training import models

from tests.support.own_process import run_ofq

MICRO = "micro_deit_patch2_8"
WAY = Quantization(bits="W2A2", weight_quantizer="statsq")
REFUSED = {
    "convnext_atto": "can't quantize a ConvNeXt",
    "vit_base_patch16_siglip_224": "can't quantize attn_pool.q",
    "beit_base_patch16_224": "can't quantize a Beit",
    "nosuch_vit": "unknown model 'nosuch_vit'",
    "deit_tinny_patch16_224": "deit_tiny_patch16_224",
    "test_vit.nonsense": "no weights called 'nonsense'; allowed: test_vit, test_vit.r160_in1k",
    f"{MICRO}.nonsense": "no weights called 'nonsense'",
    "hf-hub:timm/vit": "lies outside timm",
    "local-dir:/models/vit": "lies outside timm",
    "": "unknown model ''",
}


def refusal(*arguments, **options):
    with pytest.raises(UserError) as caught:
        models.check(*arguments, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("name", REFUSED)
def test_model_that_cannot_be_quantized_is_refused_by_name(name):
    text = refusal(name, [("w", WAY)], "r.yaml: key 'models'")
    assert text.startswith(f"r.yaml: key 'models': {name}: ")
    assert REFUSED[name] in text


@pytest.mark.parametrize(
    ("name", "dataset", "words"),
    [
        ("deit_tiny_patch16_224", "digits", "3 x 224 x 224, but digits are 1 x 8 x 8"),
        ("toy_regression_4", "digits", "a classifier of images"),
        (MICRO, "toy_regression", "toy_regression_N"),
        ("toy_regression_0", "toy_regression", "toy_regression_N"),
    ],
)
def test_model_that_does_not_take_the_data_is_refused(name, dataset, words):
    assert words in refusal(name, [], "r.yaml", dataset=dataset)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"options": {"faktor": 2.0}}, "unknown option 'faktor'; allowed: factor, gradient"),
        (
            {"weight_quantizer": "lsq", "options": {"faktor": 2.0}},
            "unknown option 'faktor'; allowed: factor",
        ),
        ({"weight_quantizer": "lsq", "options": {"factor": -1.0}}, "factor -1.0"),
        ({"weight_quantizer": "lsq", "options": {"factor": float("nan")}}, "factor nan"),
        ({"weight_quantizer": "lsk"}, "unknown weight quantizer 'lsk'"),
        ({"layers": {"blocks.9.*": "W4A4"}}, "'blocks.9.*' matches no layer"),
        ({"module": "no_such_module"}, "can't import 'no_such_module'"),
    ],
)
def test_way_to_quantize_that_cannot_be_is_refused_with_its_source(changes, words):
    way = WAY.model_copy(update=changes)
    text = refusal(MICRO, [("ok", WAY), ("study.yaml: 'mine' at W2A2", way)], "r.yaml")
    assert text.startswith("study.yaml: 'mine' at W2A2: ")
    assert words in text


@pytest.mark.parametrize(
    "name",
    [
        "deit_small_distilled_patch16_224",
        "vit_huge_patch14_224.untrained",
        "swin_tiny_patch4_window7_224",
        "deit_tiny_patch16_224.fb_in1k",
        MICRO,
    ],
)
def test_model_that_can_be_quantized_passes_in_little_time(name):
    ways = [("w", WAY.model_copy(update={"qkr": qkr})) for qkr in (False, True, "lowrank")]
    began = time.process_time()
    models.check(name, ways, "r.yaml")
    assert time.process_time() - began < 5  # building vit_huge really takes more


def test_toy_regression_passes():
    way = Quantization(bits="W2A32", weight_quantizer="statsq")
    models.check("toy_regression_4", [("w", way)], "r.yaml", dataset="toy_regression")


@pytest.mark.parametrize("stage", ["fp", "qat"])
@pytest.mark.parametrize("model", ["convnext_atto", "nosuch_vit", "test_vit.nonsense"])
def test_training_is_refused_before_anything_is_written(checkout, model, stage):
    for name in ("recipes/small.yaml", "studies/tiny.yaml"):
        path = checkout / "config" / name
        path.write_text(path.read_text().replace(MICRO, model))
    runs = run_ofq(checkout, "runs", "tiny").stdout.split()[::2]
    run = runs[0] if stage == "fp" else next(name for name in runs if "w2a2" in name)
    done = run_ofq(checkout, "train", "--no-track", run)
    assert done.returncode == 2
    assert done.stdout == ""
    text = " ".join(done.stderr.split())
    assert f"config/recipes/small.yaml: key 'models': {model}: " in text
    assert "Traceback" not in text
    assert not (checkout / "results").exists()


def test_full_precision_run_is_refused_for_the_sake_of_its_methods(checkout):
    path = checkout / "config/methods/known.yaml"
    wrong = "weight_quantizer: lsq, options: {faktor: 2}}"
    path.write_text(path.read_text().replace("weight_quantizer: lsq}", wrong))
    run = run_ofq(checkout, "runs", "tiny").stdout.split()[0]
    done = run_ofq(checkout, "train", "--no-track", run)
    assert done.returncode == 2
    text = " ".join(done.stderr.split())
    assert "config/studies/tiny.yaml: 'lsq' at W2A2: weight quantizer 'lsq'" in text
    assert not (checkout / "results").exists()


def test_run_that_another_study_shares_goes_on_without_the_wrong_one(checkout):
    path = checkout / "config/methods/known.yaml"
    wrong = "weight_quantizer: lsq, options: {faktor: 2}}"
    path.write_text(path.read_text().replace("weight_quantizer: lsq}", wrong))
    sound = (checkout / "config/studies/tiny.yaml").read_text().replace("[lsq, ", "[statsq, ")
    (checkout / "config/studies/sound.yaml").write_text(sound)
    run = run_ofq(checkout, "runs", "sound").stdout.split()[0]
    assert run_ofq(checkout, "train", "--no-track", run).returncode == 0


@pytest.mark.parametrize("command", ["eval", "import-checkpoint"])
def test_commands_refuse_the_model_first(tmp_path, command):
    (tmp_path / "a.pth").write_bytes(b"")
    rest = ["--data", "digits"] if command == "eval" else ["--out", "b.safetensors"]
    options = ["--model", "convnext_atto", "--bits", "W2A2", *rest]
    done = run_ofq(tmp_path, command, "a.pth", *options)
    assert done.returncode == 2
    assert "--model: convnext_atto: can't quantize a ConvNeXt" in " ".join(done.stderr.split())
