import json
import shutil
from pathlib import Path

import pytest

from ofq.config import Workspace
from ofq.errors import UserError
from ofq.report import explain

from tests.support import synthetic


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = synthetic.make_workspace(tmp_path_factory.mktemp("own"))
    synthetic.fill(workspace)
    return workspace


def test_number_leads_to_runs_commits_and_commands(own: Workspace) -> None:
    name = "W2A2/statsq+qkr+cga"
    [cell] = [c for c in own.grid("small").cells if f"{c.bits}/{c.method}" == name]
    text = explain(own, "small", name)
    assert text.startswith("StatsQ + QKR + CGA (OFQ), W2A2, micro, study small\n")
    for run in cell.runs:
        assert (
            f"seed {run.config.seed}: {synthetic.default_top1(run):.2f} "
            f"({synthetic.right(run).sum()} of 900 images)" in text
        )
        assert " > ".join(link.id for link in reversed(list(run.chain()))) in text
        assert f"snakemake --cores 2 results/runs/{run.id}/result.json" in text
    assert text.count("0123456789abcdef") == 3


def test_outside_a_checkout_it_is_said_that_nothing_can_be_trained(own: Workspace) -> None:
    told = "This is no checkout of the suite"
    assert told in explain(own, "small", "W2A2/statsq")
    (own.root / "Snakefile").touch()
    assert told not in explain(own, "small", "W2A2/statsq")


def test_recipe_s_differences_and_mlflow_s_runs_are_told(tmp_path: Path) -> None:
    workspace = synthetic.make_workspace(tmp_path, seeds=[0])
    synthetic.fill(workspace)
    [run] = workspace.grid("small").cells[1].runs
    folder = workspace.results / "runs" / run.id
    (folder / "mirror.json").write_text(json.dumps({"sqlite:///x": {"run_id": "ab12"}}))
    record = json.loads((folder / "provenance.json").read_text())
    difference = {"key": "lr", "published": 1.0, "ours": 2.0, "source": "S"}
    record["recipe"] = {"published": "T", "differences": [difference], "deviations": []}
    record["attempts"].append({"commit": "fedcba", "diff": "-", "untracked": []})
    (folder / "provenance.json").write_text(json.dumps(record))
    synthetic.vouch(folder)
    text = explain(workspace, "small", "W2A2/lsq")
    assert "recipe differs: qat: lr: 2.0 (published: 1.0; S)" in text
    assert "0123456789abcdef fedcba-dirty\n" in text
    assert "ab12" in text
    assert "recipe differs" not in explain(workspace, "small", "W2A2/statsq")


def test_number_of_a_chain_has_the_origin_of_every_stage(tmp_path: Path) -> None:
    workspace = synthetic.make_workspace(tmp_path, seeds=[0])
    synthetic.fill(workspace)
    [cell] = [c for c in workspace.grid("small").cells if c.method.endswith("cga")][:1]
    followed = {"published": "T", "differences": [], "deviations": []}
    difference = {"key": "lr", "published": 1.0, "ours": 2.0, "source": "S"}
    origins = {
        "qat": (followed | {"differences": [difference]}, {"commit": "ab", "diff": "-"}),
        "cga": (followed, {"commit": None, "diff": ""}),
    }
    for run in list(cell.runs[0].chain())[:2]:
        recipe, attempt = origins[run.config.stage]
        path = workspace.results / "runs" / run.id / "provenance.json"
        path.write_text(json.dumps({"recipe": recipe, "attempts": [attempt | {"untracked": []}]}))
        synthetic.vouch(path.parent)
    text = explain(workspace, "small", f"{cell.bits}/{cell.method}")
    assert "commit:         0123456789abcdef ab-dirty none\n" in text
    assert "recipe differs: qat: lr: 2.0 (published: 1.0; S)\n" in text


def test_one_seed_s_accuracy_has_the_interval_of_its_images(tmp_path: Path) -> None:
    workspace = synthetic.make_workspace(tmp_path, seeds=[0])
    synthetic.fill(workspace, lambda run: 90.0)
    # Wilson's, of 810 in 900, by its formula
    assert "90.00 (one seed; 95 % interval over its images 87.87 to 91.79)" in explain(
        workspace, "small", "W2A2/lsq"
    )


def test_missing_seeds_are_told_with_the_reason(tmp_path: Path) -> None:
    workspace = synthetic.make_workspace(tmp_path)
    synthetic.fill(workspace)
    [cell] = [c for c in workspace.grid("small").cells if (c.bits, c.method) == ("W4A4", "lsq")]
    shutil.rmtree(workspace.results / "runs" / cell.runs[1].id)
    assert "1 of 3 seeds are missing (not run)" in explain(workspace, "small", "W4A4/lsq")


def test_unknown_cell_is_refused_with_those_that_there_are(own: Workspace) -> None:
    with pytest.raises(UserError, match=r"has no cell 'W2A2/statq' \(did you mean 'W2A2/statsq'"):
        explain(own, "small", "W2A2/statq")


def test_cells_of_several_models_are_named_with_the_model(tmp_path: Path) -> None:
    workspace = synthetic.make_workspace(tmp_path, models=["micro", "macro"], seeds=[0])
    synthetic.fill(workspace)
    assert explain(workspace, "small", "macro/W2A2/lsq").startswith("LSQ, W2A2, macro,")
