"""Commands print on terminals of any encoding, and start in surroundings that lack something."""

import os
import subprocess
import sys

import pytest

from ofq.config import Workspace

LABEL = "Größe → 4 µ ✓"


@pytest.fixture
def labelled(checkout):
    methods = checkout / "config/methods/known.yaml"
    methods.write_text(methods.read_text().replace("label: LSQ", f"label: '{LABEL}'"), "utf-8")
    study = checkout / "config/studies/tiny.yaml"
    study.write_text(study.read_text().replace("A tiny study", f"A tiny {LABEL}"), "utf-8")
    return checkout


@pytest.fixture
def broken(labelled):
    """The id of a run whose folder has a remedy to print."""
    run = next(iter(Workspace(labelled).grid("tiny").runs()))
    folder = labelled / "results/runs" / run
    folder.mkdir(parents=True)
    (folder / "result.json").write_text("{")
    (folder / "run.json").write_text("{")
    return run


def ofq(folder, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "ofq", *arguments], cwd=folder, capture_output=True,
        env=os.environ | environment, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
@pytest.mark.parametrize(
    "command",
    [
        ["studies"],
        ["status", "tiny"],
        ["plan", "tiny"],
        ["report", "tiny"],
        ["explain", "tiny", "W2A2/lsq"],
        ["--help"],
        ["report", "ünknown"],
    ],
)
def test_no_command_dies_on_what_a_terminal_lacks(labelled, command, encoding):
    done = ofq(labelled, *command, PYTHONIOENCODING=encoding, COLUMNS="200")
    assert b"Traceback" not in done.stderr
    assert b"Error" not in done.stderr
    assert done.stdout or done.stderr
    (done.stdout + done.stderr).decode(encoding)


def test_arrow_before_a_remedy_becomes_ascii(labelled, broken):
    done = ofq(labelled, "doctor", broken, PYTHONIOENCODING="latin-1")
    assert b"Traceback" not in done.stderr
    assert b"-> " in done.stdout


def test_deleted_folder_is_one_line(tmp_path):
    code = (
        "import os, sys; os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone')\n"
        "sys.argv = ['ofq', 'studies']\n"
        "from ofq.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "current folder doesn't exist" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_commands_work_in_an_empty_environment(checkout):
    done = subprocess.run(
        [sys.executable, "-m", "ofq", "runs", "tiny"], cwd=checkout, capture_output=True, env={},
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 8
