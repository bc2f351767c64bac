"""Runs that train nothing: pretrained baselines and noise, from the config to the report."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ofq.config import Workspace
from ofq.runs.folder import RunFolder
from ofq.training import models
from ofq.training.data.source import load

from tests.support.own_process import run_ofq

MICRO = "micro_deit_patch2_8"
METHOD = """
statsq+noise:
  label: StatsQ, noise
  weight_quantizer: statsq
  noise: {boundary_range: 0.1, samples: 5}
statsq+noise_control:
  label: StatsQ, noise elsewhere
  weight_quantizer: statsq
  noise: {boundary_range: 0.1, samples: 5, weights: others}
"""

pytestmark = pytest.mark.slow


def finish(root, *parts):
    """Do the study's runs whose names have one of the parts; the runs in order."""
    runs = Workspace(root).grid("tiny").runs()
    chosen = [name for name in runs if any(part in name for part in parts)]
    for name in chosen:
        done = run_ofq(root, "train", "--no-track", name)
        assert done.returncode == 0, done.stderr
    return chosen


@pytest.fixture(scope="module")
def noisy(tmp_path_factory, make_checkout):
    """A checkout with a trained model, and noise injected into it; and the three runs' names."""
    root = make_checkout(tmp_path_factory.mktemp("noisy"))
    (root / "config/methods/noise.yaml").write_text(METHOD)
    study = root / "config/studies/tiny.yaml"
    text = study.read_text().replace(
        "[lsq, statsq+qkr+cga]", "[statsq, statsq+noise, statsq+noise_control]"
    )
    text = text.replace("seeds: [0, 1]", "seeds: [0]").replace("[accuracy,", "[noise_injection,")
    study.write_text(text)
    recipe = root / "config/recipes/small.yaml"  # of another precision, the same model is another
    recipe.write_text(recipe.read_text().replace("  qat: {", "  qat: {precision: bf16, "))
    return root, finish(root, "fp", "w2a2")


def folder_of(root, name):
    return RunFolder(root / "results/runs" / name)


def test_noise_is_measured_draw_by_draw_beside_the_trained_model(noisy):
    root, (_, trained, *others) = noisy
    assert [name.split("-")[2] for name in others] == ["noise0.1", "noise0.1_control"]
    for name in others:
        folder = folder_of(root, name)
        plain, *draws = folder.rows("noise")
        result = folder.result()
        assert plain["top1"] == pytest.approx(folder_of(root, trained).result()["top1"])
        assert plain["changed"] == 0
        top1 = np.array([row["top1"] for row in draws])
        assert len(top1) == 5
        assert len({row["loss"] for row in draws}) == 5
        assert result["top1"] == pytest.approx(top1.mean())
        assert result["top1_without"] == plain["top1"]
        assert result["top1_best"] == top1.max()
        assert result["better"] == pytest.approx(100 * (top1 > plain["top1"]).mean())
        assert 1 < result["changed"] < 20
        own, parents = (
            load_file(folder_of(root, n).path / "model.safetensors") for n in (name, trained)
        )
        assert all(torch.equal(own[key], parents[key]) for key in parents)


def test_interrupted_noise_goes_on_after_its_last_draw(noisy, tmp_path):
    root, (*_, name) = noisy
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    folder = folder_of(copy, name)
    whole = folder.rows("noise")
    for path in (*folder.path.glob("*.parquet"), folder.path / "result.json"):
        path.unlink()
    shutil.rmtree(folder.path / "sealed")
    # as after a crash between the last record and the final files, and one draw less
    kept = "".join(json.dumps(row) + "\n" for row in whole[:4])
    (folder.path / "noise.jsonl").write_text(kept)
    done = run_ofq(copy, "train", "--no-track", name)
    assert done.returncode == 0, done.stderr
    assert folder.rows("noise") == whole
    assert len(folder.rows("metrics")) == 1
    assert [e for e in folder.events() if e["event"] == "resumed"][-1]["step"] == 4
    assert run_ofq(copy, "doctor", name).returncode == 0


def test_report_tells_of_noise(noisy):
    root, _ = noisy
    done = run_ofq(root, "report", "tiny")
    assert done.returncode == 0, done.stderr
    report = root / "reports/tiny"
    assert (report / "figures/noise_injection.svg").exists()
    lines = (report / "noise.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * 5
    assert "StatsQ, noise elsewhere" in (report / "table.md").read_text()
    assert "the model that training ended on" in (report / "index.html").read_text()


def test_pretrained_weights_are_the_baseline_and_are_evaluated(checkout):
    torch.manual_seed(1)
    model = models.build(MICRO, 10).eval()
    save_file(model.state_dict(), checkout / "start.safetensors")
    recipe = checkout / "config/recipes/small.yaml"
    text = recipe.read_text().replace("  fp: {", "  # fp: {")
    recipe.write_text(f"{text}\npretrained: start.safetensors\n")
    for seed, name in enumerate(finish(checkout, "/fp-")):
        data = load("digits", MICRO, seed)
        with torch.no_grad():
            right = model(data.test_inputs).argmax(-1) == data.test_targets
        folder = folder_of(checkout, name)
        assert folder.result()["top1"] == pytest.approx(100 * right.double().mean().item())
        assert np.array_equal(folder.correct(), right.numpy())
        assert "start.safetensors" in folder.provenance()["inputs"]
    assert run_ofq(checkout, "report", "tiny").returncode == 0
    assert "Full precision" in (checkout / "reports/tiny/table.md").read_text()


def test_fixed_evaluation_set_takes_one_baseline_for_all_seeds(checkout):
    recipe = checkout / "config/recipes/small.yaml"
    text = recipe.read_text().replace("  fp: {", "  # fp: {").replace("digits", "imagenet")
    recipe.write_text(f"{text}\npretrained: true\n")
    (cell,) = (c for c in Workspace(checkout).grid("tiny").cells if c.method == "fp")
    assert len(cell.runs) == 1


def test_noise_on_data_without_classes_is_refused(checkout):
    (checkout / "config/methods/noise.yaml").write_text(METHOD)
    recipe, study = (checkout / f"config/{n}.yaml" for n in ("recipes/small", "studies/tiny"))
    recipe.write_text(
        "dataset: toy_regression\nmodels: [toy_regression_4]\n"
        "stages: {qat: {epochs: 1, batch_size: 8, lr: 0.01}}\n"
    )
    text = study.read_text().replace("[lsq, statsq+qkr+cga]", "[statsq+noise]")
    study.write_text(text.replace(MICRO, "toy_regression_4"))
    done = run_ofq(checkout, "runs", "tiny")
    assert done.returncode == 2
    assert "'statsq+noise' injects noise" in done.stderr
    assert "allowed: a classification" in done.stderr
