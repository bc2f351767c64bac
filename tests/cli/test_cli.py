import os
import subprocess
import sys

import pytest

from tests.support import driver
from tests.support.own_process import run_ofq
from tests.support.terminals import read_terminal, start_in_terminal


def first_run(checkout):
    return run_ofq(checkout, "runs", "tiny").stdout.split()[0]


def test_help_names_every_command_and_says_what_comes_next(tmp_path):
    done = run_ofq(tmp_path, "--help", env=os.environ | {"COLUMNS": "120"})
    assert done.returncode == 0
    for word in ("studies", "runs", "train", "report", "track", "snakemake --cores 2"):
        assert word in done.stdout


def test_help_and_expansion_load_nothing_that_takes_seconds(checkout):
    heavy = {"torch", "timm", "mlflow", "pandas", "numpy", "scipy", "sklearn", "matplotlib"}
    for arguments in (["--help"], ["runs", "tiny"]):
        # in a new process: one of `run_ofq`'s has loaded torch already
        command = [sys.executable, "-X", "importtime", "-m", "ofq", *arguments]
        done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=True)
        loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
        assert "ofq.config" in loaded
        assert not heavy & loaded


def test_studies_are_listed_with_the_size_of_their_grids(checkout):
    line = next(line for line in run_ofq(checkout, "studies").stdout.splitlines() if "tiny" in line)
    assert line.split()[:3] == ["tiny", "3", "8"]


def test_what_the_user_typed_is_shown_as_it_is(checkout):
    done = run_ofq(checkout, "runs", "[red]x[/a]")
    assert done.returncode == 2
    assert "'[red]x[/a]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_output_without_a_terminal_is_plain_lines(checkout):
    run = first_run(checkout)
    done = run_ofq(checkout, "train", "--no-track", run)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "training 28 steps"
    assert [line.split()[1] for line in lines[1:4]] == ["0/2", "1/2", "2/2"]
    assert lines[4].startswith(f"finished {run}: top-1 ")
    assert "\x1b" not in done.stdout
    provenance = checkout / "results/runs" / run / "provenance.json"
    before = provenance.read_bytes()
    again = run_ofq(checkout, "train", run)
    assert again.stdout == f"{run} is already complete\n"
    assert provenance.read_bytes() == before


@pytest.mark.slow
def test_terminal_gets_a_progress_bar(checkout):
    process, main = start_in_terminal("train", "--no-track", first_run(checkout), cwd=checkout)
    shown = read_terminal(main)
    assert process.wait() == 0
    assert "━" in shown
    assert "28/28" in shown


@pytest.mark.slow
def test_stopped_run_goes_on_where_it_was(checkout):
    run = first_run(checkout)
    folder = checkout / "results/runs" / run
    train = ("train", "--no-track", run)
    left = run_ofq(checkout, "terminate_at_step", 20, *train, entry=driver.main)
    assert left.returncode == 75
    told = left.stderr.replace("\n", " ")
    assert f"stopped by SIGTERM; `ofq train {run}` goes on from here" in told
    assert not (folder / "result.json").exists()
    done = run_ofq(checkout, *train)
    assert "resuming after step 20" in done.stdout
    rows = (folder / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == 3
    assert (folder / "result.json").exists()
    assert not (folder / "checkpoint").exists()
    events = (folder / "events.jsonl").read_text()
    assert [e in events for e in ("started", "interrupted", "resumed", "finished")] == [True] * 4


@pytest.mark.slow
@pytest.mark.parametrize("printed", ["to a reader that has gone", "to a full disk"])
def test_training_outlasts_what_it_prints_to(checkout, printed):
    run = first_run(checkout)
    command = [sys.executable, "-m", "ofq", "train", "--no-track", run]
    with open("/dev/full", "w") as full:
        gone = subprocess.PIPE if "gone" in printed else full
        process = subprocess.Popen(command, cwd=checkout, stdout=gone, stderr=full)
    if process.stdout is not None:
        process.stdout.close()
    assert process.wait(120) == 0
    assert (checkout / "results/runs" / run / "result.json").exists()
