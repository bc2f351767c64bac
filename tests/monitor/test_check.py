"""All that a study's runs need is checked before the first training, all mistakes at once."""

import json
import subprocess
import sys
import time

import pytest

from ofq.config import Workspace
from ofq.config.targets import Targets
from ofq.errors import UserError
from ofq.monitor.check.passed import FILE
from ofq.monitor.check.study import Remaining, before_start
from ofq.runs.attempt import run_folder
from ofq.runs.folder import RESULT

from tests.support.own_process import run_ofq

MICRO = "micro_deit_patch2_8"
TECHNIQUES = """
import ofq


@ofq.register_technique("shrink")
class Shrink(ofq.Technique):
    def __init__(self, model, factor, only=None):
        super().__init__()
        if factor > 1:
            raise ofq.errors.UserError(f"factor {factor}; allowed: at most 1")
        self.largest = [float(w.latent().max()) for w in ofq.low_bit_weights(model)]
"""
OWN = """
mine: {{label: Mine, weight_quantizer: lsq, module: own, techniques: [{{form: shrink, {options}}}]}}
"""


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def give_unknown_option(checkout):
    wrong = "quantizer: lsq, options: {a: 1}"
    edit(checkout / "config/methods/known.yaml", "quantizer: lsq", wrong)


def mistakes(checkout, *studies):
    return Remaining(Workspace(checkout), studies or ["tiny"]).mistakes()


def missing(checkout):
    return Remaining(Workspace(checkout), ["tiny"]).missing()


def finish_all(checkout):
    workspace = Workspace(checkout)
    for run in workspace.grid("tiny").runs().values():
        folder = run_folder(workspace, run)
        folder.make()
        (folder.path / RESULT).write_text("{}")


@pytest.fixture
def own(checkout, monkeypatch):
    """Gives the study a technique of its own, with options, in a module of this checkout."""
    monkeypatch.chdir(checkout)
    monkeypatch.syspath_prepend(checkout)

    def give(options, module=TECHNIQUES):
        from ofq.quantization.techniques.base import techniques

        sys.modules.pop("own", None)
        techniques.pop("shrink", None)
        (checkout / "own.py").write_text(module)
        (checkout / "config/methods/own.yaml").write_text(OWN.format(options=options))
        edit(checkout / "config/studies/tiny.yaml", "[lsq, ", "[lsq, mine, ")
        return checkout

    yield give
    sys.modules.pop("own", None)


def test_sound_study_has_no_mistakes(checkout):
    assert mistakes(checkout) == []
    assert missing(checkout) == []


@pytest.mark.parametrize(
    ("file", "old", "new", "line"),
    [
        (
            "recipes/small.yaml", MICRO, "nosuch_vit",
            "recipes/small.yaml: key 'models': nosuch_vit: unknown model 'nosuch_vit'; timm has: ",
        ),
        (
            "recipes/small.yaml", MICRO, "convnext_atto",
            "recipes/small.yaml: key 'models': convnext_atto: can't quantize a ConvNeXt",
        ),
        (
            "recipes/small.yaml", "dataset: digits", "dataset: digits\nmodel_args: {img_sice: 8}",
            "small.yaml: key 'models': vit_tiny_patch16_224: timm's vit_tiny_patch16_224 can't be",
        ),
        (
            "recipes/small.yaml", "dataset: digits", "module: nosuch\ndataset: digits",
            "recipes/small.yaml: key 'module': can't import 'nosuch'",
        ),
        (
            "methods/known.yaml", "weight_quantizer: lsq", "weight_quantizer: lsq, options: {a: 1}",
            "studies/tiny.yaml: 'lsq' at W2A2: weight quantizer 'lsq': unknown option 'a'; "
            "allowed: factor, gradient, gradient_factor",
        ),
        (
            "methods/known.yaml", "weight_quantizer: lsq",
            "weight_quantizer: lsq, techniques: [{form: weight_average, decay: 2}]",
            "studies/tiny.yaml: 'lsq' at W2A2: decay 2; allowed: a number above 0, below 1",
        ),
        (
            "methods/known.yaml", "weight_quantizer: lsq",
            "weight_quantizer: dorefa, techniques: [{form: freezing}]",
            "studies/tiny.yaml: 'lsq' at W2A2: freezing compares weights with levels, but the "
            "levels of 'dorefa'",
        ),
        (
            "methods/known.yaml", "cga: {boundary_range: 0.005}",
            "cga: {form: bin_regularization, a: 1}",
            "at W2A2: technique 'bin_regularization': unknown option 'a'; allowed: strength, start",
        ),
        (
            "methods/known.yaml", "weight_quantizer: lsq",
            "weight_quantizer: lsq, activation_options: {a: 1}",
            "studies/tiny.yaml: 'lsq' at W2A2: activation quantizer 'lsq': unknown option 'a'; "
            "allowed: ",
        ),
    ],
)  # fmt: skip
def test_mistake_is_one_line_with_file_key_given_and_allowed(checkout, file, old, new, line):
    if "img_sice" in new:
        for name in ("recipes/small.yaml", "studies/tiny.yaml"):
            edit(checkout / "config" / name, MICRO, "vit_tiny_patch16_224")
    edit(checkout / "config" / file, old, new)
    if old == MICRO:
        edit(checkout / "config/studies/tiny.yaml", MICRO, new)
    [found] = mistakes(checkout)
    assert "\n" not in found
    assert line in found


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ("factor: 0.5, faktor: 2", "unknown option 'faktor'; allowed: factor, only"),
        ("only: 1", "option 'factor' is missing; allowed: factor, only"),
        ("factor: 2.0", "factor 2.0; allowed: at most 1"),
    ],
)
def test_option_that_a_technique_does_not_take_is_told(own, options, line):
    [found] = mistakes(own(options))
    assert "config/studies/tiny.yaml: 'mine' at W2A2: " in found
    assert line in found


def test_technique_that_needs_a_weights_values_is_not_refused(own):
    assert mistakes(own("factor: 0.5")) == []


def test_technique_that_copies_the_model_is_not_refused(checkout):
    edit(checkout / "config/methods/known.yaml", "weight_quantizer: lsq",
         "weight_quantizer: lsq, techniques: [{form: weight_average, decay: 0.9}]")  # fmt: skip
    assert mistakes(checkout) == []


def test_all_mistakes_are_told_at_once_and_shared_ones_once(checkout):
    methods = checkout / "config/methods/known.yaml"
    edit(methods, "weight_quantizer: lsq", "weight_quantizer: lsq, options: {a: 1}")
    edit(methods, "weight_quantizer: statsq\n  qkr", "weight_quantizer: statsq\n  layers: {x: W4A4}"
         "\n  qkr")  # fmt: skip
    edit(checkout / "config/studies/tiny.yaml", "[W2A2]", "[W2A2, W3A3, W4A4]")
    found = mistakes(checkout)
    assert len(found) == 2
    assert "'lsq' at W2A2: " in found[0]
    assert found[0].endswith("(and so in 2 more cells)")
    assert "'x' matches no layer" in found[1]


def test_hub_weights_of_other_classes_are_refused(checkout):
    recipe = checkout / "config/recipes/small.yaml"
    edit(recipe, "  fp: {epochs: 2, batch_size: 64, lr: 2.0e-3}\n", "")
    edit(recipe, "dataset: digits", "dataset: digits\npretrained: true")
    for name in ("recipes/small.yaml", "studies/tiny.yaml"):
        edit(checkout / "config" / name, MICRO, "deit_tiny_patch16_224")
    [found] = mistakes(checkout)
    assert "small.yaml: key 'pretrained': timm's weights of deit_tiny_patch16_224 are" in found
    assert "for 1000 classes, the data set has 10; give a local file" in found


def test_pretrained_file_that_is_not_there_is_told(checkout):
    recipe = checkout / "config/recipes/small.yaml"
    edit(recipe, "  fp: {epochs: 2, batch_size: 64, lr: 2.0e-3}\n", "")
    edit(recipe, "dataset: digits", "dataset: digits\npretrained: weights/none.pth")
    [found] = missing(checkout)
    assert "small.yaml: key 'pretrained' is 'weights/none.pth': no such file" in found
    (checkout / "weights").mkdir()
    (checkout / "weights/none.pth").touch()
    assert missing(checkout) == []


@pytest.mark.parametrize("given", [True, False])
def test_data_that_are_not_there_are_told(checkout, given, monkeypatch):
    monkeypatch.delenv("IMAGENET_DIR", raising=False)
    edit(checkout / "config/recipes/small.yaml", "dataset: digits", "dataset: imagenet")
    site = checkout / "config/config.yaml"
    if given:
        site.write_text(site.read_text() + "data: {imagenet: nowhere}\n")
    [found] = missing(checkout)
    assert "config.yaml: key 'data.imagenet' is" in found
    assert "\n" not in found
    monkeypatch.setenv("IMAGENET_DIR", str(checkout))
    if not given:
        assert missing(checkout) == []


def test_batches_that_cannot_be_split_are_told_at_once(checkout):
    recipe = checkout / "config/recipes/small.yaml"
    recipe.write_text(recipe.read_text() + "resources: {fp: {gpu: 3}, cga: {gpu: 5}}\n")
    [fault] = Remaining(Workspace(checkout), ["tiny"]).faults
    lines = fault.splitlines()
    assert len(lines) == 2
    assert "key 'resources.fp.gpu': micro_deit_patch2_8: batch_size 64 can't be split" in lines[0]
    assert "key 'resources.cga.gpu'" in lines[1]


def test_finished_study_needs_neither_check_nor_data(checkout):
    finish_all(checkout)
    edit(checkout / "config/recipes/small.yaml", "models: [", "module: nosuch\nmodels: [")
    remaining = Remaining(Workspace(checkout), ["tiny"])
    assert (remaining.count, remaining.unknown(), remaining.missing()) == (0, [], [])


# What has passed


def test_what_has_passed_is_known_by_its_content(checkout):
    assert mistakes(checkout) == []
    assert json.loads((checkout / "results" / FILE).read_text())["passed"]
    assert Remaining(Workspace(checkout), ["tiny"]).unknown() == []
    edit(checkout / "config/methods/known.yaml", "label: LSQ", "label: Learned")
    assert Remaining(Workspace(checkout), ["tiny"]).unknown() == []
    edit(checkout / "config/methods/known.yaml", "quantizer: lsq", "quantizer: lsq_statistical")
    assert len(Remaining(Workspace(checkout), ["tiny"]).unknown()) == 1


def test_changed_module_is_checked_again(own):
    checkout = own("factor: 0.5")
    assert mistakes(checkout) == []
    assert Remaining(Workspace(checkout), ["tiny"]).unknown() == []
    (checkout / "own.py").write_text(TECHNIQUES + "# changed\n")
    assert len(Remaining(Workspace(checkout), ["tiny"]).unknown()) == 1


def test_mistakes_are_not_remembered(checkout):
    give_unknown_option(checkout)
    assert len(mistakes(checkout)) == len(mistakes(checkout)) == 1


@pytest.mark.parametrize("content", ["", "[]", '{"passed": 3}', "\0"])
def test_damaged_record_of_what_passed_is_as_none(checkout, content):
    (checkout / "results").mkdir()
    (checkout / "results" / FILE).write_text(content)
    assert mistakes(checkout) == []
    assert Remaining(Workspace(checkout), ["tiny"]).unknown() == []


def test_hundred_cells_are_checked_in_three_seconds(checkout):
    bits = [f"W{w}A{a}" for w in range(2, 7) for a in range(2, 7)]
    study = checkout / "config/studies/tiny.yaml"
    edit(study, "[W2A2]", f"[{', '.join(bits)}]")
    edit(study, "[lsq, ", "[lsq, statsq, statsq+qkr, ")
    began = time.process_time()
    assert mistakes(checkout) == []
    assert time.process_time() - began < 3
    began = time.process_time()
    assert mistakes(checkout) == []
    assert time.process_time() - began < 1


# Commands


def test_command_tells_all_and_exits_by_it(checkout):
    assert "in the way of 8 remaining runs" in run_ofq(checkout, "check").stdout
    give_unknown_option(checkout)
    for command in ("check", "plan"):
        done = run_ofq(checkout, command, "tiny")
        assert done.returncode == 2
        assert done.stderr.startswith("error: config/studies/tiny.yaml: 'lsq' at W2A2: ")
        assert done.stdout == ""


def test_plan_warns_of_data_that_need_not_be_there_yet(checkout):
    edit(checkout / "config/recipes/small.yaml", "dataset: digits", "dataset: imagenet")
    for name in ("recipes/small.yaml", "studies/tiny.yaml"):
        edit(checkout / "config" / name, MICRO, "deit_tiny_patch16_224")
    done = run_ofq(checkout, "plan", "tiny", "--cores", "2")
    assert done.returncode == 0, done.stderr
    assert "warning: config/config.yaml: key 'data.imagenet' is missing" in done.stdout
    assert "8 runs" in done.stdout
    assert run_ofq(checkout, "check", "tiny").returncode == 2
    assert run_ofq(checkout, "check", "tiny", "--elsewhere").returncode == 0


def test_second_check_loads_no_torch(checkout):
    assert mistakes(checkout) == []
    code = (
        "import sys; from ofq.config import Workspace; "
        "from ofq.monitor.check.study import Remaining, before_start; "
        "assert Remaining(Workspace(), ['tiny']).mistakes() == []; "
        "assert [*before_start(Workspace(), ['tiny'], False)] == []; "
        "assert not {'torch', 'timm', 'mlflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=checkout, check=True)


# The start of the workflow


def test_start_of_the_workflow_refuses_all_mistakes(checkout):
    give_unknown_option(checkout)
    edit(checkout / "config/recipes/small.yaml", "dataset: digits", "dataset: imagenet")
    with pytest.raises(UserError) as refused:
        [*before_start(Workspace(checkout), ["tiny"], elsewhere=False)]
    first, second = str(refused.value).splitlines()
    assert "studies/tiny.yaml: 'lsq' at W2A2: " in first
    assert "config.yaml: key 'data.imagenet' is missing" in second


def test_data_of_other_machines_are_warned_of_alone(checkout):
    edit(checkout / "config/recipes/small.yaml", "dataset: digits", "dataset: imagenet")
    assert mistakes(checkout) == []
    [warning] = before_start(Workspace(checkout), ["tiny"], elsewhere=True)
    assert "data.imagenet" in warning


@pytest.mark.parametrize(
    ("words", "asked", "elsewhere"),
    [
        ("--cores 2", ["tiny"], False),
        ("--cores 2 all", ["tiny"], False),
        ("--cores 2 other", ["other"], False),
        ("--cores 2 report_other tiny", ["other", "tiny"], False),
        ("-n other", ["other"], True),
        ("-np other", ["other"], True),
        ("--dry-run", ["tiny"], True),
        ("--profile slurm", ["tiny"], True),
        ("--profile=slurm other", ["other"], True),
        ("--cores 2 reports", [], False),
        ("--cores 2 results/runs/a/b/c/result.json", [], False),
        ("--unlock", [], False),
        ("--report all.html tiny", [], False),
    ],
)
def test_studies_that_a_call_of_the_workflow_asks_for(
    checkout, words, asked, elsewhere, monkeypatch
):
    monkeypatch.delenv("SNAKEMAKE_PROFILE", raising=False)
    (checkout / "config/studies/other.yaml").write_text("extends: tiny\nseeds: [7]\n")
    monkeypatch.chdir(checkout)
    targets = Targets()
    assert targets.asked(words.split()) == asked
    assert targets.elsewhere(words.split()) == elsewhere
