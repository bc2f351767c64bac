"""The record says what a run came from, and what became of each attempt at it."""

import hashlib
import json
import os
import platform

import numpy
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from ofq.redact import redact
from ofq.runs.record import TRACKER, read_manifest, write_manifest

from tests.support.lab import STEPS

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(900)]


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_inputs_are_the_hashes_of_parent_and_teacher(undisturbed):
    inputs = undisturbed.folder("cga").provenance()["inputs"]
    assert inputs == {
        undisturbed.runs[stage].id: sha256(undisturbed.folder(stage).path / "model.safetensors")
        for stage in ("qat", "fp")
    }


def oscillation(lab, stage):
    return lab.folder(stage).record().table("metrics").column("oscillation_rate").to_pylist()


def test_cga_counts_oscillation_on_from_qat(undisturbed):
    qat, cga = oscillation(undisturbed, "qat"), oscillation(undisturbed, "cga")
    assert cga[0] == qat[-1] > 0


def test_cga_of_a_qat_run_without_a_history_counts_anew_and_says_so(lab):
    for folder in (lab.folder("qat").path, lab.folder("qat").path / "sealed"):
        files = read_manifest(folder)
        del files[TRACKER]
        (folder / TRACKER).unlink()
        write_manifest(folder, files)
    lab.forget("cga")
    done = lab.train("cga")
    assert done.returncode == 0, done.stderr
    assert "oscillation is counted from the start of this stage only" in done.stdout
    assert oscillation(lab, "cga")[0] == 0


def test_data_has_a_fingerprint_of_its_numbers(undisturbed):
    data = undisturbed.folder("fp").provenance()["data"]
    assert (data["name"], data["examples"]) == ("digits", 1797)
    assert data["fingerprint"] == undisturbed.folder("cga").provenance()["data"]["fingerprint"]
    digits = load_digits()
    pixels = (digits.images.astype(numpy.float32) - numpy.float32(4.884)) / numpy.float32(6.017)
    parts = train_test_split(
        numpy.arange(1797), test_size=900, stratify=digits.target, random_state=0
    )
    digest = hashlib.sha256()
    for part in parts:
        digest.update(pixels[part].tobytes())
        digest.update(digits.target[part].astype(numpy.int64).tobytes())
    assert data["fingerprint"] == f"sha256:{digest.hexdigest()}"


def test_attempt_names_code_machine_and_command(undisturbed):
    (attempt,) = undisturbed.folder("qat").provenance()["attempts"]
    assert attempt["host"] == platform.node()
    assert attempt["python"] == platform.python_version()
    assert attempt["packages"]["torch"].startswith("2.13.0")
    assert attempt["packages"]["timm"]
    assert len(attempt["devices"]) == 1
    assert attempt["threads"] == 1
    assert attempt["command"].endswith(f"train --no-track {undisturbed.runs['qat'].id}")
    assert len(attempt["code_sha256"]) == 64


def test_passwords_of_addresses_stay_out_of_the_record(lab):
    command = "ofq train --uri=postgresql://me:sesame@example.org/runs"
    assert redact(command) == "ofq train --uri=postgresql://***@example.org/runs"
    lab.forget("fp")
    environment = {"SLURM_JOB_ID": "99", "SLURM_JWT": "sesame"}
    os.environ.update(environment)
    try:
        assert lab.train("fp").returncode == 0
    finally:
        for name in environment:
            del os.environ[name]
    text = (lab.folder("fp").path / "provenance.json").read_text()
    assert "sesame" not in text
    assert json.loads(text)["attempts"][-1]["slurm"] == {"SLURM_JOB_ID": "99"}


def test_each_interruption_has_its_cause_and_times_add_up(lab):
    lab.forget("qat")
    lab.train("qat", fault=("terminate_at_step", 10))
    lab.train("qat", fault=("kill_at_step", 30))
    assert lab.train("qat").returncode == 0
    events = lab.folder("qat").events()
    assert [event["event"] for event in events] == [
        "opened", "started", "interrupted",
        "opened", "resumed", "lost",
        "opened", "resumed", "taught", "finished",
    ]  # fmt: skip
    assert events[2]["cause"] == "SIGTERM"
    assert [events[4]["step"], events[7]["step"]] == [10, 29]  # killed before step 30 was saved
    assert {event.get("total") for event in events} == {None, STEPS["qat"]}
    result = lab.folder("qat").result()
    assert result["attempts"] == 3
    endings = [events[i]["seconds"] for i in (2, 5, 9)]
    assert all(seconds > 0 for seconds in (endings[0], endings[2]))
    assert result["seconds"] == pytest.approx(sum(endings), abs=0.1)
    assert result["device_hours"] == pytest.approx(sum(endings) / 3600, abs=1e-4)
    assert len(lab.folder("qat").attempts()) == 3
