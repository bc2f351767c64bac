import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ofq.config import Quantization, Training, Workspace
from ofq.config.run import QatRun
from ofq.errors import UserError


def test_all_methods_of_a_seed_share_its_full_precision_run(checkout):
    runs = Workspace(checkout).grid("tiny").runs().values()
    qat = [run for run in runs if run.config.stage == "qat"]
    assert len(qat) == 4
    assert {run.parent.id for run in qat if run.config.seed == 0} == {
        run.id for run in runs if run.config.stage == "fp" and run.config.seed == 0
    }


def test_annealed_cell_starts_from_the_qat_run_that_the_plain_cell_ends_with(checkout):
    path = checkout / "config/studies/tiny.yaml"
    path.write_text(path.read_text().replace("[lsq,", "[statsq+qkr,"))
    plain, annealed = Workspace(checkout).grid("tiny").cells[1:]
    assert [run.parent for run in annealed.runs] == list(plain.runs)


def test_studies_share_equal_runs(checkout):
    study = (checkout / "config/studies/tiny.yaml").read_text()
    (checkout / "config/studies/other.yaml").write_text(
        study.replace("seeds: [0, 1]", "seeds: [1, 2]")
    )
    workspace = Workspace(checkout)
    one, other = (set(workspace.grid(name).runs()) for name in ("tiny", "other"))
    assert {run for run in one if "-s1-" in run} == one & other
    assert workspace.find(next(iter(one & other)))[1] == ["other", "tiny"]


def test_changed_hyperparameter_changes_only_the_runs_that_depend_on_it(checkout):
    before = Workspace(checkout).grid("tiny").runs()
    path = checkout / "config/methods/known.yaml"
    path.write_text(path.read_text().replace("0.005", "0.01"))
    after = Workspace(checkout).grid("tiny").runs()
    assert {run.config.stage for name, run in before.items() if name not in after} == {"cga"}
    assert len(before) == len(after)


def test_changed_first_stage_changes_everything_built_on_it(checkout):
    before = Workspace(checkout).grid("tiny").runs()
    path = checkout / "config/recipes/small.yaml"
    path.write_text(path.read_text().replace("lr: 2.0e-3", "lr: 2.5e-3"))
    assert not set(before) & set(Workspace(checkout).grid("tiny").runs())


def test_what_is_recorded_changes_no_run(checkout):
    before = Workspace(checkout).grid("tiny").runs()
    path = checkout / "config/recipes/small.yaml"
    text = path.read_text().replace("{epochs: 2,", "{recording: {weights: 3}, epochs: 2,")
    path.write_text(text)
    after = Workspace(checkout).grid("tiny").runs()
    assert list(before) == list(after)
    assert any(run.config.training.probes.weights for run in after.values())
    for name, run in after.items():
        assert run.config.payload() == before[name].config.payload()


def test_cosmetic_edit_changes_no_run(checkout):
    before = Workspace(checkout).grid("tiny").runs()
    for name in ("recipes/small.yaml", "studies/tiny.yaml", "methods/known.yaml"):
        path = checkout / "config" / name
        text = path.read_text().replace("2.0e-3", "0.002").replace("label: OFQ", "label: Ours")
        path.write_text("# a remark\n" + text.replace("A tiny study", "Another title"))
    path = checkout / "config/recipes/small.yaml"
    path.write_text(path.read_text() + "resources:\n  qat: {threads: 2}\n")
    assert list(before) == list(Workspace(checkout).grid("tiny").runs())


def test_override_applies_to_what_it_matches_only(checkout):
    path = checkout / "config/recipes/small.yaml"
    path.write_text(
        path.read_text() + "overrides:\n- match: {stage: qat, bits: W4A4}\n  set: {lr: 5.0e-4}\n"
    )
    study = checkout / "config/studies/tiny.yaml"
    study.write_text(study.read_text().replace("[W2A2]", "[W2A2, W4A4]"))
    rates = {
        (run.config.stage, run.config.bits): run.config.training.lr
        for run in Workspace(checkout).grid("tiny").runs().values()
    }
    assert rates[("qat", "W4A4")] == 5e-4
    assert rates[("qat", "W2A2")] == 1e-3
    assert rates[("cga", "W4A4")] == 1e-4


def test_run_ids_are_those_of_earlier_versions(checkout):
    """Ids are an interface: a change here orphans every result that users have."""
    assert list(Workspace(checkout).grid("tiny").runs())[:3] == [
        "digits/micro_deit_patch2_8/fp-s0-1dadb5e9",
        "digits/micro_deit_patch2_8/fp-s1-31eb281c",
        "digits/micro_deit_patch2_8/w2a2-lsq-s0-3d478fac",
    ]


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from(["lsq", "statsq"]), st.booleans()),
        min_size=2,
        max_size=8,
    )
)
def test_two_configs_have_one_digest_only_if_they_are_equal(settings):
    training = Training(epochs=1, batch_size=1, lr=1.0)
    configs = [
        QatRun(
            dataset="digits",
            model="m",
            seed=seed,
            training=training,
            quantization=Quantization(bits="W2A2", weight_quantizer=quantizer, qkr=qkr),
        )
        for seed, quantizer, qkr in settings
    ]
    for one in configs:
        for other in configs:
            assert (one.digest() == other.digest()) == (one == other)


@pytest.mark.parametrize("module", ["ofq", "ofq.config", "ofq.config.targets", "ofq.cli"])
def test_parsing_imports_neither_torch_nor_mlflow(module):
    heavy = "{'torch', 'timm', 'mlflow', 'pandas', 'matplotlib'}"
    code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_override_merges_mappings_and_matches_lists(checkout):
    path = checkout / "config/recipes/small.yaml"
    path.write_text(
        path.read_text()
        + "overrides:\n"
        + "- {match: {bits: [W2A2, W3A3], stage: qat}, set: {teacher: {precision: bf16}}}\n"
        + "- {match: {bits: W3A3}, set: {lr: 5.0e-4}}\n"
    )
    study = checkout / "config/studies/tiny.yaml"
    study.write_text(study.read_text().replace("[W2A2]", "[W2A2, W3A3, W4A4]"))
    found = {
        run.config.bits: (run.config.training.teacher.precision, run.config.training.lr)
        for run in Workspace(checkout).grid("tiny").runs().values()
        if run.config.stage == "qat"
    }
    assert found == {"W2A2": ("bf16", 1e-3), "W3A3": ("bf16", 5e-4), "W4A4": ("fp32", 1e-3)}


def test_images_of_data_that_come_ready_are_refused(checkout):
    path = checkout / "config/recipes/small.yaml"
    path.write_text(path.read_text() + "overrides:\n- {match: {}, set: {images: {repeats: 2}}}\n")
    with pytest.raises(
        UserError, match=r"'images'.*'digits' comes ready.*allowed.*source is 'images'"
    ):
        Workspace(checkout).grid("tiny")


def test_study_takes_what_it_leaves_out_from_the_one_that_it_extends(checkout):
    (checkout / "config/studies/other.yaml").write_text("extends: tiny\nseeds: [5]\n")
    (checkout / "config/studies/third.yaml").write_text("extends: other\ntitle: Third\n")
    workspace = Workspace(checkout)
    base, third = workspace.study("tiny"), workspace.study("third")
    assert third == base.model_copy(update={"extends": "other", "title": "Third", "seeds": [5]})
    assert [path.stem for path in workspace.study_files("third")] == ["third", "other", "tiny"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: tinny\n", "key 'extends': unknown study 'tinny' (did you mean 'tiny'"),
        ("extends: other\n", "key 'extends': 'other' extends this study itself"),
        ("extends: tiny\nsedes: [1]\n", "unknown key 'sedes' (did you mean 'seeds'"),
    ],
)
def test_wrong_extension_is_explained(checkout, text, message):
    path = checkout / "config/studies/other.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        Workspace(checkout).study("other")
    assert message in str(error.value)
    assert str(error.value).startswith(str(path))


def test_evaluation_asks_for_what_one_device_of_qat_does_unless_the_recipe_says(checkout):
    recipe = checkout / "config/recipes/small.yaml"
    lines = [line for line in recipe.read_text().splitlines() if not line.startswith("  fp:")]
    asked = "qat: {threads: 40, mem_mb: 160000, runtime: 600, gpu: 4, workers: 9, compile: true}"
    lines += ["pretrained: start.safetensors", "resources:", f"  {asked}"]
    recipe.write_text("\n".join(lines))

    def baseline():
        runs = Workspace(checkout).grid("tiny").runs().values()
        found = next(run for run in runs if run.config.stage == "fp").resources
        return found.gpu, found.threads, found.mem_mb, found.runtime, found.compile

    assert baseline() == (1, 10, 40000, 600, False)
    recipe.write_text("\n".join([*lines, "  fp: {threads: 3, runtime: 20}"]))
    assert baseline() == (0, 3, 2000, 20, False)


def test_method_is_tried_at_its_bits_alone(checkout):
    path = checkout / "config/studies/tiny.yaml"
    whole = [cell.place for cell in Workspace(checkout).grid("tiny").cells]
    bits, method = whole[-1][1:]
    path.write_text(path.read_text().replace(f"bits: [{bits}]", f"bits: [{bits}, W4A4]"))
    path.write_text(f"{path.read_text()}only: {{{method}: [W4A4]}}\n")
    found = [cell.place for cell in Workspace(checkout).grid("tiny").cells]
    assert {place for place in found if place[2] == method} == {(whole[-1][0], "W4A4", method)}
    assert whole[-1] not in found
    assert set(whole[:-1]) < set(found)


@pytest.mark.parametrize(
    ("only", "message"),
    [
        ("{statq: [W2A2]}", r"only: unknown method 'statq'"),
        ("{lsq: [W8A8]}", r"only\.lsq: W8A8 is not among the study's bits; allowed: W"),
        ("{lsq: []}", r"'only\.lsq'"),
    ],
)
def test_what_only_names_must_be_in_the_grid(checkout, only, message):
    path = checkout / "config/studies/tiny.yaml"
    path.write_text(f"{path.read_text()}only: {only}\n")
    with pytest.raises(UserError, match=message):
        Workspace(checkout).grid("tiny")
