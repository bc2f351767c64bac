"""The real workflow on a small study: Snakemake, training, MLflow and the report."""

import json
import shutil

import pytest

from tests.support.own_process import run_ofq, working_in
from tests.support.run_folders import until
from tests.support.tiny import CONFIG
from tests.support.workflow import lay_workflow, snakemake

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A checkout in which the tiny study, with one seed, was built once."""
    checkout = tmp_path_factory.mktemp("checkout")
    for name, text in CONFIG.items():
        path = checkout / "config" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("seeds: [0, 1]", "seeds: [0]"))
    lay_workflow(checkout)
    done = snakemake(checkout)
    assert done.returncode == 0, done.stdout + done.stderr
    # a mirror may outlive its trainer, and what it still writes would be missing from a copy
    until(lambda: not working_in(checkout, "follow"), 600)
    return checkout


@pytest.fixture
def copy(built, tmp_path):
    """A copy of it, whose files keep their times."""
    return shutil.copytree(built, tmp_path / "copy")


def jobs(checkout, *arguments):
    """How many jobs of each rule a dry run would start."""
    done = snakemake(checkout, "--dry-run", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = (done.stdout + done.stderr).split("Job stats:")
    if len(lines) == 1:
        return {}
    rows = [line.split() for line in lines[1].splitlines()[3:]]
    return {row[0]: int(row[1]) for row in rows[: rows.index([])] if row[0] != "total"}


def runs(checkout):
    return {path.parent.name: path for path in checkout.glob("results/runs/*/*/*/result.json")}


def test_one_command_makes_runs_report_and_mirror(built):
    assert len(runs(built)) == 4
    page = built / "reports/tiny"
    assert {"index.html", "table.md", "table.csv", "table.parquet", "figures"} <= {
        p.name for p in page.iterdir()
    }
    from ofq.tracking.mirror import Mirror

    client = Mirror(f"sqlite:///{built / 'results/mlflow.db'}", built).client
    experiment = client.get_experiment_by_name("digits").experiment_id
    found = client.search_runs([experiment], "tags.stage != 'report'")
    assert {run.data.tags["mlflow.runName"] for run in found} == set(runs(built))
    assert {run.info.status for run in found} == {"FINISHED"}
    for run in found:
        result = json.loads(runs(built)[run.data.tags["mlflow.runName"]].read_text())
        assert run.data.metrics["top1"] == result["top1"]


def test_every_number_of_the_table_comes_from_a_run_folder(built):
    import csv

    rows = list(csv.DictReader((built / "reports/tiny/runs.csv").open()))
    results = [json.loads(path.read_text()) for path in runs(built).values()]
    cells = {r["id"]: r["top1"] for r in results}
    assert {row["run"]: float(row["top1"]) for row in rows} == {
        row["run"]: cells[row["run"]] for row in rows
    }


def test_building_again_does_nothing_and_says_so(built):
    done = snakemake(built)
    assert "Nothing to be done" in done.stdout + done.stderr
    assert jobs(built, "tiny") == {}


def test_deleted_report_is_regenerated_without_training(copy):
    before = (copy / "reports/tiny/index.html").read_bytes()
    shutil.rmtree(copy / "reports")
    assert jobs(copy) == {"all": 1, "report_tiny": 1}
    assert snakemake(copy).returncode == 0
    assert (copy / "reports/tiny/index.html").read_bytes() == before


def test_deleted_figure_is_regenerated_without_training(copy):
    figure = copy / "reports/tiny/figures/accuracy.png"
    before = figure.read_bytes()
    figure.unlink()
    assert jobs(copy) == {"all": 1, "report_tiny": 1}
    assert snakemake(copy).returncode == 0
    assert figure.read_bytes() == before


@pytest.mark.parametrize("name", ["measures.tex", "table.parquet"])
def test_deleted_table_is_regenerated_without_training(copy, name):
    table = copy / "reports/tiny" / name
    before = table.read_bytes()
    table.unlink()
    assert jobs(copy) == {"all": 1, "report_tiny": 1}
    assert snakemake(copy).returncode == 0
    assert table.read_bytes() == before


def test_all_reports_are_made_again_of_studies_that_have_their_runs(copy):
    shutil.rmtree(copy / "reports")
    assert jobs(copy, "reports") == {"reports": 1, "report_tiny": 1}
    assert snakemake(copy, "reports").returncode == 0
    assert (copy / "reports/tiny/index.html").exists()
    shutil.rmtree(copy / "reports")
    next((copy / "results/runs").rglob("result.json")).unlink()
    assert "report_tiny" not in jobs(copy, "reports")


def test_figure_without_anything_to_show_does_not_fail_the_report(copy):
    study = copy / "config/studies/tiny.yaml"
    study.write_text(study.read_text().replace("figures: [", "figures: [boundary_range, "))
    done = snakemake(copy)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Without <code>boundary_range</code>" in (copy / "reports/tiny/index.html").read_text()
    assert jobs(copy) == {}


def test_snakemakes_own_report_has_page_and_figures(copy):
    assert snakemake(copy, "--report", "all.html", "tiny").returncode == 0
    text = (copy / "all.html").read_text()
    assert "reports/tiny/index.html" in text
    assert "reports/tiny/figures/accuracy.svg" in text


def test_short_runs_have_a_rule_of_their_own(copy):
    """On a cluster they aren't submitted; here they are trained as all others are."""
    recipe = copy / "config/recipes/small.yaml"
    stages = ", ".join(f"{stage}: {{runtime: 5}}" for stage in ("fp", "qat", "cga"))
    recipe.write_text(recipe.read_text() + f"resources: {{{stages}}}\n")
    shutil.rmtree(copy / "results/runs")
    assert jobs(copy) == {"all": 1, "report_tiny": 1, "train_short": 4}


def test_measured_time_limits_are_asked_for_and_rerun_nothing(copy):
    done = run_ofq(copy, "plan", "tiny", "--write-runtime")
    assert done.returncode == 0, done.stderr
    assert "4 runs, 4 done, 0 to do" in done.stdout
    assert jobs(copy) == {}
    limits = copy / "config/runtimes.yaml"
    limits.write_text(limits.read_text().replace("fp: ", "fp: 1000"))
    shutil.rmtree(copy / "results/runs")
    shown = snakemake(copy, "--dry-run").stdout
    assert shown.count("runtime=1000") == 1


def test_changed_label_rebuilds_the_report_alone(copy):
    path = copy / "config/methods/known.yaml"
    path.write_text(path.read_text().replace("label: OFQ", "label: Ours"))
    assert jobs(copy) == {"all": 1, "report_tiny": 1}


def test_report_does_not_fail_over_the_mirror(copy):
    shutil.rmtree(copy / "reports")
    site = copy / "config/config.yaml"
    site.write_text(site.read_text() + "tracking_uri: http://127.0.0.1:9\n")
    assert snakemake(copy).returncode == 0
    assert (copy / "reports/tiny/index.html").exists()


def test_changed_method_trains_what_depends_on_it_and_keeps_the_old_results(copy):
    old = runs(copy)
    path = copy / "config/methods/known.yaml"
    path.write_text(path.read_text().replace("0.005", "0.01"))
    assert jobs(copy) == {"all": 1, "report_tiny": 1, "train": 1}
    assert snakemake(copy).returncode == 0
    assert len(runs(copy)) == len(old) + 1
    assert set(old) < set(runs(copy))


def test_new_seed_trains_only_itself(copy):
    path = copy / "config/studies/tiny.yaml"
    path.write_text(path.read_text().replace("seeds: [0]", "seeds: [0, 1]"))
    assert jobs(copy) == {"all": 1, "report_tiny": 1, "train": 4}


def test_cosmetic_edits_train_nothing(copy):
    for name in ("recipes/small.yaml", "studies/tiny.yaml", "methods/known.yaml"):
        path = copy / "config" / name
        path.write_text("# a remark\n" + path.read_text())
    (copy / "workflow/rules/train.smk").touch()
    assert jobs(copy) == {"all": 1, "report_tiny": 1}


def test_committed_report_does_not_pass_for_results(copy):
    """A fresh clone has the sample report, but no results: the study must still be trained."""
    shutil.rmtree(copy / "results")
    assert jobs(copy)["train"] == 4


def test_mistake_in_the_config_is_one_message(copy):
    path = copy / "config/studies/tiny.yaml"
    path.write_text(path.read_text().replace("[lsq,", "[lsqq,"))
    done = snakemake(copy)
    assert done.returncode != 0
    shown = done.stdout + done.stderr
    assert "unknown method 'lsqq' (did you mean 'lsq'?" in shown
    assert "tiny.yaml" in shown
    assert "Traceback" not in shown


NAN = """
import ofq


@ofq.register_weight_quantizer("nan")
class Nan(ofq.StatsQ):
    def forward(self, weight):
        return super().forward(weight) * float("nan")
"""


def test_failing_run_shows_its_log_and_spares_the_others(copy):
    (copy / "own.py").write_text(NAN)
    methods = copy / "config/methods/known.yaml"
    methods.write_text(
        methods.read_text() + "nan: {label: NaN, weight_quantizer: nan, module: own}\n"
    )
    study = copy / "config/studies/tiny.yaml"
    study.write_text(study.read_text().replace("[lsq, ", "[nan, statsq, "))
    done = snakemake(copy, "--keep-going")
    assert done.returncode != 0
    assert "logs/train/digits/micro_deit_patch2_8/w2a2-nan-s0" in done.stdout + done.stderr
    assert len(runs(copy)) == 5  # those of before, and statsq


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_mistakes_that_a_training_would_meet_are_told_before_the_first(copy, options):
    shutil.rmtree(copy / "results/runs")
    recipe, study = copy / "config/recipes/small.yaml", copy / "config/studies/tiny.yaml"
    recipe.write_text(
        recipe.read_text().replace("[micro_deit_patch2_8]", "[micro_deit_patch2_8, deit_typo]")
    )
    study.write_text(study.read_text().replace("[micro_deit", "[deit_typo, micro_deit"))
    methods = copy / "config/methods/known.yaml"
    wrong = "weight_quantizer: lsq, options: {faktor: 2}"
    methods.write_text(methods.read_text().replace("weight_quantizer: lsq", wrong))
    done = snakemake(copy, *options)
    assert done.returncode != 0
    shown = done.stdout + done.stderr
    assert "config/recipes/small.yaml: key 'models': deit_typo: unknown model" in shown
    assert "config/studies/tiny.yaml: 'lsq' at W2A2: weight quantizer 'lsq'" in shown
    assert "Traceback" not in shown
    assert not (copy / "results/runs").exists()
    assert snakemake(copy, "--unlock").returncode == 0
