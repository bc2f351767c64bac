"""Runs that one command trains end as runs of a command each, whatever befalls one of them."""

import itertools
import os
import signal

import pytest

import ofq.runs.chain
from ofq.cli import main

from tests.support.lab import assert_same, wait_for
from tests.support.own_process import run_ofq

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def later(lab):
    """The options that name the second and the third stage after the first."""
    return [lab.runs[stage].id for stage in ("qat", "cga")]


def test_chain_that_is_killed_and_stopped_goes_on_and_ends_as_separate_commands(
    lab, undisturbed, later
):
    lab.forget("fp")
    lab.forget("cga")
    runs = [lab.runs["fp"].id, *later]
    killed = lab.train("fp", *later, fault=("kill_at_step", 10))
    assert killed.returncode == 128 + signal.SIGKILL
    assert f"{runs[0]}: its process was killed by SIGKILL" in killed.stderr
    assert f"`ofq train {' '.join(runs)}` goes on from here" in killed.stderr
    assert lab.folder("fp").state() == "interrupted"
    assert not lab.folder("cga").path.exists()

    stopped = lab.start("fp", *later, fault=("slow_steps", 0.2))
    wait_for(lambda: lab.folder("fp").state() == "running")
    stopped.send_signal(signal.SIGUSR1)
    _, errors = stopped.communicate()
    assert stopped.returncode == 75
    assert f"stopped by SIGUSR1; `ofq train {runs[0]}` goes on from here" in errors
    assert not lab.folder("cga").path.exists()

    done = lab.train("fp", *later)
    assert done.returncode == 0
    assert f"{later[0]} is already complete" in done.stdout
    for stage in ("fp", "cga"):
        assert_same(lab.folder(stage), undisturbed.folder(stage))
    begun = ("opened", "started", "resumed")
    assert [e["event"] for e in lab.folder("fp").events() if e["event"] not in begun] == [
        *("lost", "interrupted", "finished")
    ]


def test_run_of_a_chain_whose_first_process_is_killed_saves_and_leaves(lab, undisturbed, later):
    lab.forget("cga")
    first = lab.start("qat", later[1], fault=("slow_steps", 0.2))
    wait_for(lambda: lab.folder("cga").state() == "running")
    first.send_signal(signal.SIGKILL)
    wait_for(lambda: lab.folder("cga").state() == "interrupted")
    assert lab.folder("cga").events()[-1]["cause"] == "the end of its parent process"
    assert lab.train("cga").returncode == 0
    assert_same(lab.folder("cga"), undisturbed.folder("cga"))


def main_with_code_that_changes() -> None:
    """The command, whose code changes while its first run trains."""
    versions = itertools.chain(["old", "old"], itertools.repeat("new"))
    ofq.runs.chain.code_sha256 = lambda: next(versions)
    main()


def test_chain_stops_before_a_run_that_code_of_another_version_would_train(lab, later):
    lab.forget("qat")
    runs = [lab.runs["fp"].id, later[0]]
    left = run_ofq(lab.root, "train", "--no-track", *runs, entry=main_with_code_that_changes)
    assert left.returncode == 75
    assert f"the code has changed since this command began; `ofq train {later[0]}`" in left.stderr
    assert not lab.folder("qat").path.exists()


def test_several_runs_are_refused_where_all_ranks_are_started_at_once(lab, later):
    ranks = os.environ | {"RANK": "0", "WORLD_SIZE": "2"}
    refused = run_ofq(lab.root, "train", "--no-track", lab.runs["fp"].id, *later, env=ranks)
    assert refused.returncode == 2
    assert "torchrun and srun start one run at a time" in refused.stderr
