"""A sweep over options: its cells, the choice, and the entry in the method's file."""

import shutil

import pytest

from ofq.config import Workspace
from ofq.errors import UserError
from ofq.report.tuning import choose, write_choice

from tests.support import synthetic

FILE = """# kept
dampening:
  label: Dampening
  weight_quantizer: lsq
  techniques: [{form: dampening, strength: 0.5}]  # kept, too

other: {label: Other, weight_quantizer: statsq}
"""
OPTION = "techniques.dampening.strength"
STRENGTHS = [0.1, 0.001, 0.01]
HELD_OUT = "title: Part\nsource: digits\nclasses: 10\nheld_out: 200\n"


@pytest.fixture
def made(tmp_path):
    def make(**study):
        given = {"methods": ["lsq", "dampening"], "bits": ["W2A2"], "seeds": [0, 1]}
        given |= {"figures": ["accuracy"], "tune": {"dampening": {OPTION: STRENGTHS}}} | study
        synthetic.make_workspace(tmp_path, **given)
        (tmp_path / "config/methods/mine.yaml").write_text(FILE)
        sets = tmp_path / "config/datasets"
        sets.mkdir(exist_ok=True)
        (sets / "part.yaml").write_text(HELD_OUT)
        path = tmp_path / "config/studies/small.yaml"
        if "dataset" not in path.read_text():
            path.write_text(path.read_text().replace('{"title"', '{"dataset": "part", "title"'))
        return Workspace(tmp_path)

    return make


def accuracy(run):
    """0.001 and 0.01 are equally good, 0.1 is worse."""
    techniques = getattr(run.config, "techniques", ())
    strength = techniques[0].strength if techniques else 1
    return synthetic.of_images(80.0 + run.config.seed + (strength < 0.05))


def test_each_value_is_a_cell_with_runs_of_its_own(made):
    cells = {c.method: c for c in made().grid("small").cells}
    assert list(cells) == ["fp", "lsq", *(f"dampening[strength={s}]" for s in STRENGTHS)]
    assert cells["dampening[strength=0.01]"].label == "Dampening, strength 0.01"
    runs = [cells[f"dampening[strength={s}]"].runs[0].config for s in STRENGTHS]
    assert [run.techniques[0].strength for run in runs] == STRENGTHS
    assert len({run.digest() for run in runs}) == 3
    assert {run.dataset for run in runs} == {"part"}


def test_smallest_of_the_best_values_is_chosen_and_written_once(made):
    workspace = made()
    synthetic.fill(workspace, accuracy)
    choice = choose(workspace, "small")[0]
    assert choice.best.values == {OPTION: 0.001}
    means = {v.values[OPTION]: mean for v, mean in choice.tried}
    assert means[0.001] == means[0.01] == pytest.approx(81.5, abs=0.1)
    assert means[0.1] == pytest.approx(80.5, abs=0.1)
    path = write_choice(workspace, choice)
    text = path.read_text()
    assert text.startswith("# kept\ndampening:\n")
    assert "strength: 0.001}]  # kept, too\n  tuned:\n" in text
    assert text.endswith("other: {label: Other, weight_quantizer: statsq}\n")
    again = Workspace(workspace.root)
    tuned = again.methods["dampening"].tuned[OPTION]
    assert (tuned.study, tuned.value, tuned.runs) == ("small", 0.001, 6)
    assert list(tuned.tried) == ["0.1", "0.001", "0.01"]
    assert again.methods["dampening"].techniques[0].strength == 0.001
    # the sweep's own runs stay what they were, and the choice too
    assert set(again.grid("small").runs()) == set(workspace.grid("small").runs())
    assert write_choice(again, choose(again, "small")[0]) is None
    assert path.read_text() == text


def test_nothing_is_chosen_while_a_run_is_missing(made):
    workspace = made()
    synthetic.fill(workspace, accuracy)
    run = workspace.grid("small").cells[-1].runs[1].id
    shutil.rmtree(workspace.results / "runs" / run)
    with pytest.raises(UserError, match=r"1 of its cells .* miss runs .*strength=0\.01"):
        choose(workspace, "small")


@pytest.mark.parametrize(
    ("study", "words"),
    [
        ({"tune": {"damping": {OPTION: [1, 2]}}}, r"tune: unknown method 'damping' \(did you mean"),
        (
            {"tune": {"dampening": {"techniques.dampening.strengh": [1, 2]}}},
            r"unknown option 'techniques.dampening.strengh' \(did you mean '" + OPTION,
        ),
        ({"tune": {"dampening": {OPTION: [0.1, -1.0]}}}, r"strength -1.*-1.0: .*greater than 0"),
        ({"tune": {"dampening": {OPTION: [0.1]}}}, "at least 2"),
        ({"tune": {"dampening": {OPTION: [0.1, 0.1]}}}, "given twice"),
        ({"dataset": "digits"}, "'digits' is evaluated on its test set"),
    ],
)
def test_mistake_in_a_sweep_is_told(made, study, words):
    if study.get("dataset"):
        workspace = made()
        path = workspace.study_path("small")
        path.write_text(path.read_text().replace('"part"', '"digits"'))
        workspace = Workspace(workspace.root)
    else:
        workspace = made(**study)
    with pytest.raises(UserError, match=words):
        workspace.grid("small")


def test_study_without_a_sweep_has_nothing_to_choose(made):
    with pytest.raises(UserError, match="key 'tune' is missing"):
        choose(made(tune={}), "small")
