"""Every mistake gives one message that names file, key, value and what is allowed."""

import os
import time

import pytest

from ofq.config.files import read_yaml
from ofq.errors import UserError

from tests.support.own_process import run_ofq

STUDY = "config/studies/tiny.yaml"
RECIPE = "config/recipes/small.yaml"
METHODS = "config/methods/known.yaml"

MISTAKES = {
    "unknown method": (STUDY, "[lsq,", "[lsqq,", ["methods", "'lsqq'", "did you mean 'lsq'", "statsq"]),
    "unknown model": (STUDY, "models: [micro", "models: [macro", ["models", "'macro_deit", "micro_deit"]),
    "unknown recipe": (STUDY, "recipe: small", "recipe: smal", ["recipe", "'smal'", "small"]),
    "bits below 2": (STUDY, "W2A2", "W1A2", ["bits", "W1A2", "1 bits", "2 to 8"]),
    "bits above 8": (STUDY, "W2A2", "W2A9", ["bits", "W2A9", "9 bits", "32"]),
    "bits of another form": (STUDY, "W2A2", "2/2", ["bits", "2/2", "W2A2"]),
    "misspelled key": (STUDY, "seeds:", "seed:", ["'seed'", "did you mean 'seeds'", "methods"]),
    "seed given twice": (STUDY, "seeds: [0, 1]", "seeds: [0, 1, 0]", ["seeds", "0 given twice"]),
    "no seeds": (STUDY, "seeds: [0, 1]", "seeds: []", ["seeds", "empty"]),
    "syntax error": (STUDY, "seeds: [0, 1]", "seeds: [0, 1", ["tiny.yaml:", "not valid YAML"]),
    "key given twice": (STUDY, "seeds: [0, 1]", "seeds: [0]\nseeds: [1]", ["tiny.yaml:", '"seeds"']),
    "misspelled hyperparameter": (RECIPE, "batch_size", "batchsize", ["stages.fp.batchsize", "batch_size"]),
    "negative rate": (RECIPE, "lr: 2.0e-3", "lr: -1", ["stages.fp.lr", "-1", "greater than 0"]),
    "rate below its floor": (RECIPE, "lr: 1.0e-3,", "lr: 1.0e-5,", ["stages.qat", "min_lr", "above lr"]),
    "unknown stage": (RECIPE, "cga: {", "cgaa: {", ["stages", "cgaa", "'fp', 'qat' or 'cga'"]),
    "override of an unknown model": (RECIPE, "stages:", "overrides: [{match: {model: micro}, set: {lr: 1}}]\nstages:", ["overrides.0.match", "no model 'micro'", "micro_deit_patch2_8"]),
    "override of a stage without bits": (RECIPE, "stages:", "overrides: [{match: {stage: fp, bits: W2A2}, set: {lr: 1}}]\nstages:", ["overrides.0.match", "no bits"]),
    "override of an unknown key": (RECIPE, "stages:", "overrides: [{match: {}, set: {lrr: 1}}]\nstages:", ["key 'overrides.0.set': unknown hyperparameter 'lrr'", "'lr'", "(line 4)"]),
    "method's full precision": (METHODS, "weight_quantizer: lsq}", "weight_quantizer: lsq, training: {fp: {lr: 1}}}", ["training.fp", "'qat' or 'cga'"]),
    "seed as text": (STUDY, "seeds: [0, 1]", "seeds: ['0', 1]", ["seeds.0", "valid integer"]),
    "query and key by another word": (METHODS, "qkr: true", "qkr: yes", ["qkr", "'yes'", "lowrank"]),
    "unknown data set": (RECIPE, "dataset: digits", "dataset: digit", ["'digit'", "did you mean 'digits'"]),
    "unknown data set of a study": (STUDY, "recipe: small", "recipe: small\ndataset: digit", ["tiny.yaml: key 'dataset'", "'digit'", "did you mean 'digits'"]),
    "distillation without a teacher": (RECIPE, "  fp: {", "  #fp: {", ["'qat' distils", "no 'fp' stage", "'pretrained'", "allowed"]),
    "weights beside their own training": (RECIPE, "stages:", "pretrained: a.pth\nstages:", ["'pretrained'", "'a.pth'", "stage 'fp'", "allowed"]),
    "weights of another kind": (RECIPE, "stages:\n  fp:", "pretrained: a.bin\nstages:\n  #", ["'pretrained'", "'a.bin'", "true", ".safetensors, .pth, .pt"]),
    "annealing without its stage": (RECIPE, "  cga: {", "  #cga: {", ["'statsq+qkr+cga'", "'cga'"]),
    "annealing of unquantized weights": (STUDY, "W2A2", "W32A2", ["W32A2", "'statsq+qkr+cga'", "no quantized weights"]),
    "boundary range of half a step": (METHODS, "0.005", "0.5", ["boundary_range", "0.5", "less than 0.5"]),
    "unknown quantizer": (METHODS, "weight_quantizer: lsq", "weight_quantizer: lsk", ["'lsk'", "lsq", "module"]),
    "method called like the baseline": (METHODS, "\nlsq:", "\nfp:", ["'fp'", "baseline"]),
    "seed too large": (STUDY, "seeds: [0, 1]", "seeds: [0, 4294967296]", ["seeds.1", "less than"]),
    "unknown study listed": ("config/config.yaml", "[tiny]", "[tinny]", ["'tinny'", "tiny"]),
    "unknown figure": (STUDY, "accuracy", "acuracy", ["figures: unknown figure 'acuracy'", "did you mean 'accuracy'", "accuracy_against_bits"]),
    "unknown baseline": (STUDY, "figures:", "baselines: [lsqq]\nfigures:", ["tiny.yaml: key 'baselines'", "'lsqq'", "did you mean 'lsq'", "statsq+qkr+cga"]),
    "baseline given twice": (STUDY, "figures:", "baselines: [lsq, lsq]\nfigures:", ["baselines", "lsq given twice"]),
    "unknown reference": (STUDY, "figures:", "references: [none]\nfigures:", ["references", "'none'"]),
    "label of two lines": (METHODS, "label: LSQ,", 'label: "L\\nSQ",', ["method 'lsq'", "'label'", r"'L\nSQ'", "one line"]),
    "label with a line separator": (METHODS, "label: LSQ,", 'label: "L\\u2028SQ",', ["'label'", "one line"]),
    "label with a tab": (METHODS, "label: LSQ,", 'label: "L\\tSQ",', ["'label'", "one line"]),
    "label that a terminal obeys": (METHODS, "label: LSQ,", 'label: "L\\e[2JSQ",', ["'label'", r"holds \x1b", "control"]),
    "label that runs backwards": (METHODS, "label: LSQ,", 'label: "L\\u202eSQ",', ["'label'", r"holds \u202e"]),
    "empty label": (METHODS, "label: LSQ,", 'label: " ",', ["'label'", "one line"]),
    "title of two lines": (STUDY, "title: A tiny study", "title: |\n  A\n  study", ["'title'", "one line"]),
    "description that a terminal obeys": (STUDY, "description: For tests.", 'description: "a\\x07b"', ["'description'", r"holds \x07"]),
    "expectation that a terminal obeys": (STUDY, "figures:", 'expectations: ["a\\x9bb"]\nfigures:', ["'expectations.0'", r"holds \x9b"]),
    "model's name of two lines": (STUDY, "models: [micro_deit_patch2_8]", 'models: ["micro\\n"]', ["'models.0'", "allowed in a name"]),
    "more processes than a machine bears": (RECIPE, "stages:", "resources: {fp: {workers: 100000}}\nstages:", ["resources.fp.workers", "100000", "less than or equal to 256"]),
    "crop that takes the machine's memory": (RECIPE, "lr: 2.0e-3", "lr: 2.0e-3, images: {crop_pct: 1.0e-9}", ["images.crop_pct", "greater than or equal to 0.1"]),
    "policy of which timm takes a part": (RECIPE, "lr: 2.0e-3", "lr: 2.0e-3, images: {augmentation: {policy: rand-m9-mstd0.5-x}}", ["augmentation.policy", "rand-m9-mstd0.5-x", "allowed: a policy"]),
    "policy without its number": (RECIPE, "lr: 2.0e-3", "lr: 2.0e-3, images: {augmentation: {policy: rand-mX}}", ["augmentation.policy", "allowed: a policy"]),
    "model that reads another file": (RECIPE, "stages:", "model_args: {checkpoint_path: a.pth}\nstages:", ["key 'model_args'", "checkpoint_path", "allowed: what its constructor takes"]),
    "model of endless blocks": (RECIPE, "stages:", "model_args: {depth: 1000000000}\nstages:", ["key 'model_args'", "depth", "up to 65,536"]),
    "not a mapping": (METHODS, None, "- lsq\n", ["known.yaml", "mapping", "list"]),
}  # fmt: skip


def ofq(checkout, *arguments):
    return run_ofq(checkout, *arguments, env=os.environ | {"COLUMNS": "200"})


def is_one_clear_error(done, words):
    assert done.returncode == 2, done
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 10
    for word in words:
        assert word in done.stderr


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_in_a_file_is_explained(checkout, name):
    from ofq.config import Workspace
    from ofq.errors import UserError

    path, old, new, words = MISTAKES[name]
    text = (checkout / path).read_text()
    assert old is None or old in text
    (checkout / path).write_text(new if old is None else text.replace(old, new, 1))
    workspace = Workspace(checkout)
    with pytest.raises(UserError) as caught:
        workspace.grid(workspace.site.studies[0])
    message = str(caught.value)
    assert path.rpartition("/")[2] in message or "tiny.yaml" in message
    for word in words:
        assert word in message
    assert len(message.splitlines()) <= 3


def test_two_files_with_a_method_of_one_name_are_both_named(checkout):
    (checkout / "config/methods/mine.yaml").write_text("lsq: {label: Mine, weight_quantizer: lsq}")
    (checkout / "config/methods/ours.yaml").write_text("lsq: {label: Ours, weight_quantizer: lsq}")
    done = ofq(checkout, "runs", "tiny")
    is_one_clear_error(done, ["mine.yaml", "ours.yaml", "'lsq'", "known.yaml"])


def test_broken_methods_are_of_no_concern_to_studies_without_them(checkout):
    (checkout / "config/methods/zz.yaml").write_text("mine: {label: Mine}\n")
    assert ofq(checkout, "runs", "tiny").returncode == 0
    study = checkout / STUDY
    study.write_text(study.read_text().replace("[lsq,", "[mine,"))
    is_one_clear_error(ofq(checkout, "runs", "tiny"), ["zz.yaml", "'mine'", "weight_quantizer"])


def test_unknown_study_lists_the_known_ones(checkout):
    is_one_clear_error(ofq(checkout, "runs", "tinny"), ["'tinny'", "tiny"])


def test_unknown_run_is_an_error(checkout):
    is_one_clear_error(ofq(checkout, "train", "digits/none"), ["digits/none"])
    assert not (checkout / "results").exists()


def test_folder_without_config_is_explained(tmp_path):
    is_one_clear_error(ofq(tmp_path, "report", "tiny"), ["config/config.yaml", "checkout"])


def test_run_whose_parent_is_not_trained_names_the_command(checkout):
    runs = ofq(checkout, "runs", "tiny").stdout.split()[::2]
    qat, fp = (next(run for run in runs if part in run) for part in ("w2a2-lsq-s0", "fp-s0"))
    is_one_clear_error(ofq(checkout, "train", qat), [f"ofq train {fp}"])
    assert not (checkout / "results").exists()


def test_results_folder_that_cannot_be_made_is_explained(checkout):
    # a file where the folder should be fails for root too, unlike a folder without write permission
    run = ofq(checkout, "runs", "tiny").stdout.split()[0]
    (checkout / "results").write_text("")
    is_one_clear_error(ofq(checkout, "train", run), ["results", "config/config.yaml"])


def test_broken_study_does_not_stop_the_runs_of_another(checkout):
    from ofq.config import Workspace

    (checkout / "config/studies/broken.yaml").write_text("title: [")
    workspace = Workspace(checkout)
    run = next(iter(workspace.grid("tiny").runs()))
    assert workspace.find(run)[1] == ["tiny"]


BOMBS = {
    "aliases of aliases": (
        "a0: &a0 [x, x]\n"
        + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)),
        "more than 50,000 values",
    ),
    "merges of merges": (
        "a0: &a0 {k: 1, l: 2}\n"
        + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 12)),
        "more than 50,000 values",
    ),
    "an alias in itself": ("a: &a [*a]", "an alias within what it stands for"),
    "lists in lists": ("a: " + "[" * 5000, "nested deeper than 40 levels"),
    "mappings in mappings": ("".join(f"{' ' * n}a:\n" for n in range(300)), "nested deeper"),
    "an integer of 5,000 digits": ("a: " + "9" * 5000, "an integer of more than 64 bits"),
    "an integer of 8,000 hex digits": ("a: 0x" + "f" * 8000, "an integer of more than 64 bits"),
    "300,000 letters": ("a: " + "x" * 300_000, "larger than 256 KiB"),
    "a key that is a list": ("{[a]: {b: c}, {d: e}: 1}", "not valid YAML"),
    "an object of Python's": ("a: !!python/object/apply:os.system [x]", "not valid YAML"),
    "a byte of Latin-1": (b"a: \xe9", "not valid YAML"),
    "a zero byte": ("a: \0", "not valid YAML"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_yaml_that_no_config_needs_is_refused_at_once(tmp_path, name):
    from ofq.errors import UserError

    content, message = BOMBS[name]
    path = tmp_path / "x.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    began = time.process_time()
    with pytest.raises(UserError, match=message) as caught:
        read_yaml(path)
    assert time.process_time() - began < 5
    assert str(caught.value).isprintable()
    assert str(caught.value).startswith(str(path))


def test_aliases_within_bounds_are_followed(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("fp: &base {lr: 1e-3, epochs: 2}\nqat: {<<: *base, lr: 0.5}\n")
    assert read_yaml(path)["qat"] == {"lr": 0.5, "epochs": 2}


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000, str(2**65), "{", "\0", ""])
def test_json_that_no_record_has_is_refused(text):
    from ofq.errors import UserError
    from ofq.values import read_json

    with pytest.raises(UserError, match="a record: not valid JSON"):
        read_json(text, "a record")


def test_study_of_too_many_trainings_is_refused_before_it_is_expanded(checkout):
    from ofq.config import Workspace
    from ofq.errors import UserError

    path = checkout / STUDY
    path.write_text(path.read_text().replace("seeds: [0, 1]", f"seeds: {list(range(30_000))}"))
    text = (checkout / STUDY).read_text().replace("bits: [W2A2]", "bits: [W2A2, W4A4]")
    path.write_text(text)
    with pytest.raises(UserError, match=r"120,000 trainings .*; allowed: 100,000"):
        Workspace(checkout).grid("tiny")


def test_study_cannot_extend_a_file_outside_config(checkout):
    from ofq.config import Workspace
    from ofq.errors import UserError

    (checkout / "secret.yaml").write_text("title: Secret\n")
    (checkout / STUDY).write_text("extends: ../../secret\n")
    with pytest.raises(UserError, match="unknown study"):
        Workspace(checkout).study("tiny")


def test_text_of_a_config_is_printed_without_what_a_terminal_obeys(checkout):
    path = checkout / STUDY
    path.write_text(path.read_text().replace("A tiny study", '"\\e[2Jtitle"'))
    done = ofq(checkout, "studies")
    assert "\x1b" not in done.stdout
    assert r"\x1b[2Jtitle" in done.stdout
    path.write_text(path.read_text().replace("recipe: small", 'recipe: "\\e]0;x\\a"'))
    done = ofq(checkout, "runs", "tiny")
    assert done.returncode == 2
    assert "\x1b" not in done.stderr


def test_names_of_several_lines_are_told_in_one(checkout):
    from ofq.config import Workspace

    workspace = Workspace(checkout)
    for ask in (workspace.study, workspace.find):
        with pytest.raises(UserError, match=r"'a b\\x1b'") as caught:
            ask("a\nb\x1b")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3), ("1.5E+2", 150.0), (".5", 0.5), ("-3", -3), ("0o17", 15), ("0x1F", 31),
        (".inf", float("inf")), ("on", "on"), ("no", "no"), ("yes", "yes"), ("y", "y"),
        ("true", True), ("False", False), ("~", None), ("null", None), ("", None),
        ("2024-02-30", "2024-02-30"), ("2024-02-03", "2024-02-03"), ("1_000", "1_000"),
        ("12:30:45", "12:30:45"), ("017", 17), ("W2A2", "W2A2"), ("1e", "1e"),
    ],
)  # fmt: skip
def test_plain_values_are_read_as_yaml_1_2_has_them(tmp_path, text, value):
    path = tmp_path / "x.yaml"
    path.write_text(f"a: {text}\n")
    found = read_yaml(path)["a"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("text", ["a: 1\nb: 2\na: 3\n", "a: {b: 1, b: 2}", "a:\n  1: x\n  1: y\n"])
def test_key_that_is_given_twice_is_refused_with_its_line(tmp_path, text):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"x\.yaml:\d: found duplicate key .*give each key once"):
        read_yaml(path)
