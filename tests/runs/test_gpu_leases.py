"""Leases of GPUs among real processes, with devices that exist in name only."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import uuid
from collections import defaultdict
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest

from ofq.config import Workspace
from ofq.errors import UserError
from ofq.runs import gpu_leases as leases
from ofq.runs.gpu_leases import NoDevice, devices, lease

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.timeout(900)

JOB = """
import json, os, subprocess, sys, time
from ofq.runs.gpu_leases import lease
count, seconds, name = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
held = lease(count, name, tell=lambda text: print(text, flush=True))
began = time.monotonic()
if "fork" in sys.argv and os.fork() == 0:
    time.sleep(600)
    os._exit(0)
if "start" in sys.argv:
    subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL)
if "share" in sys.argv:
    subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL, pass_fds=held.descriptors)
print("has", os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
time.sleep(seconds)
print("used", json.dumps([held.devices, began, time.monotonic()]), flush=True)
"""


@pytest.fixture
def machine(monkeypatch):
    """Four devices that no other test has; their names."""
    names = [f"GPU-{uuid.uuid4()}" for _ in range(4)]
    monkeypatch.setenv(leases.VISIBLE, ",".join(names))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setattr(leases, "_QUEUE", names[0] + "-queue")
    yield names
    for name in names:
        for path in Path(f"/tmp/ofq-leases-{os.getuid()}").glob(f"*{name}*"):
            path.unlink()


@pytest.fixture
def start(machine):
    """Starts jobs in processes and groups of their own, which end with the test."""
    started = []

    def job(count, seconds, name="job", *how):
        script = JOB.replace("from ofq.runs.gpu_leases import lease", textwrap.dedent(f"""
            from ofq.runs import gpu_leases as leases
            leases._QUEUE = {leases._QUEUE!r}
            lease = leases.lease"""))  # fmt: skip
        command = [sys.executable, "-c", script, str(count), str(seconds), name, *how]
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        started.append(process)
        return process

    yield job
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def has(process):
    """The devices of a job, once it has them; and what it said before."""
    said = []
    for line in process.stdout:
        if line.startswith("has "):
            return line.split()[1].split(","), said
        said.append(line.strip())
    raise AssertionError(f"ended without devices: {said}")


def used(process):
    output, _ = process.communicate(timeout=60)
    return json.loads(output.split("used ")[1])


def overlaps(uses):
    """The devices that two of (devices, begin, end) had at once."""
    by_device = defaultdict(list)
    for names, began, ended in uses:
        for name in names:
            by_device[name].append((began, ended))
    return [
        name
        for name, times in by_device.items()
        if any(end > begin for (_, end), (begin, _) in pairwise(sorted(times)))
    ]


def most_at_once(uses):
    """The largest number of devices that were in use at one moment."""
    changes = sorted(
        change
        for names, began, ended in uses
        for change in ((began, len(names)), (ended, -len(names)))
    )
    level = highest = 0
    for _, change in changes:
        level += change
        highest = max(highest, level)
    return highest


@pytest.mark.slow
@pytest.mark.integration
def test_jobs_of_one_and_two_gpus_never_share_one_and_all_end(start, machine):
    counts = [1, 2, 1, 1, 2, 2, 1, 4, 1, 2]
    jobs = [start(count, 0.3) for count in counts]
    uses = [used(job) for job in jobs]
    assert [len(names) for names, *_ in uses] == counts
    assert overlaps(uses) == []
    assert {name for names, *_ in uses for name in names} == set(machine)
    assert most_at_once(uses) == 4


@pytest.mark.integration
def test_lease_of_a_killed_owner_is_free_at_once(start):
    first = start(4, 600, "first run")
    assert len(has(first)[0]) == 4
    second = start(1, 600, "second run")
    said = second.stdout.readline()
    assert "leased are " in said
    assert f"to process {first.pid}, first run" in said
    first.kill()
    assert len(has(second)[0]) == 1
    second.kill()
    second.wait()
    third = start(4, 0)
    given, said = has(third)
    assert len(given) == 4
    assert said == []  # at its first look, without waiting


@pytest.mark.integration
@pytest.mark.parametrize(("how", "keeps"), [("fork", True), ("share", True), ("start", False)])
def test_processes_of_a_run_keep_its_devices_and_other_programs_do_not(start, how, keeps):
    first = start(4, 600, "run", how)
    has(first)
    first.kill()
    first.wait()
    said = start(1, 0).stdout.readline()
    assert said.startswith("waiting for 1 of the GPUs" if keeps else "has ")


@pytest.mark.integration
def test_job_for_many_is_not_overtaken_by_jobs_for_few(start):
    holder = start(1, 600, "holder")
    has(holder)
    large = start(4, 0.2, "large")
    large.stdout.readline()  # it says what it waits for
    small = start(1, 0)
    assert f"behind process {large.pid}, large" in small.stdout.readline()
    holder.kill()
    assert used(small)[1] >= used(large)[2]


def test_request_to_stop_ends_the_waiting(start):
    has(start(4, 600, "holder"))
    with pytest.raises(NoDevice, match=r"stopped by SIGTERM.*process \d+, holder") as left:
        lease(2, "run", lambda: "SIGTERM")
    assert left.value.exit_code == 75


def test_what_is_leased_is_all_that_cuda_sees(machine):
    held = lease(2, "run")
    assert held.devices == machine[:2]
    assert os.environ[leases.VISIBLE] == ",".join(machine[:2])
    for descriptor in held.descriptors:
        os.close(descriptor)


@pytest.mark.parametrize(
    ("given", "found"),
    [("0,1,2,3", ["0", "1", "2", "3"]), ("2", ["2"]), (" 1, 0", ["1", "0"]), ("", []),
     ("-1", []), ("0,-1,1", ["0"]), ("NoDevFiles", []),
     ("GPU-5f,MIG-GPU-5f/1/0", ["GPU-5f", "MIG-GPU-5f/1/0"])],
)  # fmt: skip
def test_devices_are_those_that_cuda_would_use(monkeypatch, given, found):
    monkeypatch.setenv(leases.VISIBLE, given)
    assert devices() == found


def test_devices_of_the_machine_without_the_variable(monkeypatch):
    monkeypatch.delenv(leases.VISIBLE, raising=False)
    monkeypatch.setattr(leases, "gpus", lambda: ["NVIDIA A"] * 3)
    assert devices() == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("count", "variables"),
    [(0, {}), (1, {leases.VISIBLE: ""}), (2, {"RANK": "0"})],
)
def test_nothing_is_leased_without_need(machine, monkeypatch, count, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    before = os.environ[leases.VISIBLE]
    assert lease(count, "run").devices == []
    assert os.environ[leases.VISIBLE] == before


def test_more_than_there_are_is_refused(machine):
    with pytest.raises(UserError, match="run asks for 5 GPUs; this process may use 4"):
        lease(5, "run")


def test_steps_of_slurm_have_leases_of_their_own(machine, monkeypatch):
    held = []
    for job, step in [("7", "0"), ("7", "1"), ("8", "0")]:
        monkeypatch.setenv("SLURM_JOB_ID", job)
        monkeypatch.setenv("SLURM_STEP_ID", step)
        monkeypatch.setenv(leases.VISIBLE, machine[0])
        held.append(lease(1, "run", lambda: "impatience"))
    assert [one.devices for one in held] == [[machine[0]]] * 3
    monkeypatch.setenv(leases.VISIBLE, machine[0])
    with pytest.raises(NoDevice):
        lease(1, "run", lambda: "impatience")
    for one in held:
        os.close(one.descriptors[0])


def test_folder_of_somebody_else_is_refused(machine, monkeypatch, tmp_path):
    monkeypatch.setattr(leases, "_ROOT", tmp_path)
    (tmp_path / f"ofq-leases-{os.getuid()}").symlink_to(tmp_path)
    with pytest.raises(UserError, match="not a folder of yours"):
        lease(1, "run")


RECIPE = """
dataset: toy_regression
models: [toy_regression_4]
stages:
  qat: {epochs: 2, batch_size: 16, optimizer: sgd, lr: 0.05, min_lr: 0.05}
resources:
  qat: {gpu: 1}
"""
STUDY = """
title: Fake devices
description: For tests.
recipe: toy
models: [toy_regression_4]
bits: [W3A32]
methods: [lsq, statsq]
seeds: [0, 1, 2]
figures: [loss]
"""


@pytest.mark.slow
@pytest.mark.integration
def test_run_without_its_gpu_waits_in_good_order(checkout, monkeypatch):
    """It has the run's folder, and nothing else; asked to stop, it leaves no trace."""
    device = f"GPU-{uuid.uuid4()}"
    monkeypatch.setenv(leases.VISIBLE, device)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    (checkout / "config/recipes/toy.yaml").write_text(RECIPE)
    (checkout / "config/studies/leased.yaml").write_text(STUDY)
    run = next(iter(Workspace(checkout).grid("leased").runs()))
    command = [sys.executable, "-m", "ofq", "train", "--no-track", run]
    held = lease(1, "somebody")
    monkeypatch.setenv(leases.VISIBLE, device)
    waiting = subprocess.Popen(
        command, cwd=checkout, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    said = waiting.stdout.readline()
    assert f"waiting for 1 of the GPUs {device}" in said
    assert f"{device} to process {os.getpid()}, somebody" in said
    waiting.terminate()
    _, error = waiting.communicate(timeout=60)
    assert waiting.returncode == 75
    assert "stopped by SIGTERM, while waiting for" in error
    folder = checkout / "results/runs" / run
    assert not [path for path in folder.iterdir() if path.suffix == ".json"]
    os.close(held.descriptors[0])
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "result.json").read_text())["attempts"] == 1
    for path in Path(f"/tmp/ofq-leases-{os.getuid()}").glob(f"{device}*"):
        path.unlink()


# A run of this method that has its device goes on once four have theirs; a check has none.
GATED = """
import os, time
from pathlib import Path
import ofq

@ofq.register_weight_quantizer("gated")
class Gated(ofq.StatsQ):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        device = os.environ["CUDA_VISIBLE_DEVICES"]
        if "," in device:
            return
        Path(f"has-{device}").touch()
        end = time.monotonic() + 300
        while len([*Path().glob("has-*")]) < 4 and time.monotonic() < end:
            time.sleep(0.1)
"""
METHOD = "gated: {label: Waits for others, weight_quantizer: gated, module: gated}\n"


@pytest.mark.slow
@pytest.mark.integration
def test_workflow_spreads_its_runs_over_the_devices(checkout, machine):
    (checkout / "gated.py").write_text(GATED)
    (checkout / "config/methods/gated.yaml").write_text(METHOD)
    (checkout / "config/recipes/toy.yaml").write_text(RECIPE)
    six = STUDY.replace("[lsq, statsq]", "[gated]").replace("[0, 1, 2]", "[0, 1, 2, 3, 4, 5]")
    (checkout / "config/studies/leased.yaml").write_text(six)
    for name in ("Snakefile", "workflow", "profiles"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, checkout / name)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "leased", "--cores", "16", "--resources", "gpu=4"],
        cwd=checkout, env=os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    uses = []
    for record in checkout.glob("results/runs/*/*/*/provenance.json"):
        (attempt,) = json.loads(record.read_text())["attempts"]
        events = (record.parent / "events.jsonl").read_text().splitlines()
        ended = json.loads(events[-1])["time"]
        uses.append((attempt["visible_gpus"].split(","), attempt["started"], ended))
    assert [len(names) for names, *_ in uses] == [1] * 6
    assert overlaps(uses) == []
    assert {names[0] for names, *_ in uses} == set(machine)
    assert most_at_once(uses) == 4
