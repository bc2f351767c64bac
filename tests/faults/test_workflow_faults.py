"""The workflow's master is killed while its jobs run, and started again."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ofq.runs.lock import holder

from tests.support.lab import assert_same, wait_for

pytestmark = [
    pytest.mark.faults,
    pytest.mark.slow,
    pytest.mark.integration,
    pytest.mark.timeout(900),
]

ROOT = Path(__file__).parents[2]


@pytest.fixture
def workflow(lab):
    """The lab with the real workflow in it, and nothing trained but its first stage."""
    for name in ("Snakefile", "workflow", "profiles"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, lab.root / name)
    lab.forget("qat")
    lab.forget("cga")
    return lab


def snakemake(lab, *arguments):
    command = [sys.executable, "-m", "snakemake", "--cores", "2", *arguments]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.Popen(
        command, cwd=lab.root, env=os.environ | {"PATH": path}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def trainer_of(lab, stage):
    """The process that trains a stage, once it says so: it makes its lock, then signs it."""
    owners = []

    def signed():
        held = holder(lab.folder(stage).path)
        if held is not None and held.owner is not None:
            owners.append(held.owner)
        return owners

    wait_for(signed, 120)
    return owners[0].pid


def kill_master_while_running(lab, stage):
    """Kill the master, its job not; the job's process is left standing still."""
    master = snakemake(lab)
    trainer = trainer_of(lab, stage)
    os.kill(trainer, signal.SIGSTOP)
    master.kill()
    master.wait()
    master.stdout.close()  # not read to its end: the orphaned job holds it open
    assert snakemake(lab, "--unlock").wait() == 0
    return trainer


def test_job_that_ended_without_its_master_is_not_trained_again(workflow, undisturbed):
    trainer = kill_master_while_running(workflow, "qat")
    os.kill(trainer, signal.SIGCONT)
    wait_for(lambda: workflow.folder("qat").state() == "done", 120)
    again = snakemake(workflow)
    output, _ = again.communicate()
    assert again.returncode == 0, output
    for stage in ("qat", "cga"):
        assert_same(workflow.folder(stage), undisturbed.folder(stage))
        assert workflow.folder(stage).result()["attempts"] == 1
    assert (workflow.root / "reports/disturbed/index.html").exists()


def test_job_that_still_runs_is_waited_for(workflow, undisturbed):
    trainer = kill_master_while_running(workflow, "qat")
    again = snakemake(workflow)
    log = workflow.root / "logs" / "train" / f"{workflow.runs['qat'].id}.log"
    said = f"waiting for process {trainer}"

    def waits():
        for lock in workflow.folder("qat").path.glob("lock-*.json"):
            os.utime(lock)  # which the trainer can't do now; it isn't to be taken for dead
        # Snakemake deletes the log of the job before, and the new job makes another
        return said in log.read_text()

    wait_for(waits, 120)
    os.kill(trainer, signal.SIGCONT)
    output, _ = again.communicate()
    assert again.returncode == 0, output
    for stage in ("qat", "cga"):
        assert_same(workflow.folder(stage), undisturbed.folder(stage))
        assert workflow.folder(stage).result()["attempts"] == 1


def test_interrupted_job_is_continued_by_a_retry(workflow, undisturbed):
    master = snakemake(workflow, "--retries", "2")
    os.kill(trainer_of(workflow, "qat"), signal.SIGTERM)
    output, _ = master.communicate()
    assert master.returncode == 0, output
    assert_same(workflow.folder("qat"), undisturbed.folder("qat"))
    assert workflow.folder("qat").result()["attempts"] == 2
