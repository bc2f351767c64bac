"""Whatever befalls a trainer, the run ends as if nothing had; or it is refused with a reason."""

import random
import shutil
import signal
import subprocess

import pytest

from ofq.runs.folder import sha256

from tests.support.lab import STEPS, assert_same, mirrored_differences, wait_for
from tests.support.own_process import run_ofq

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(900)]

MOMENTS = random.Random(20230723)
"""A fixed seed chooses the moments at which faults strike."""


def some_step(stage):
    return MOMENTS.randrange(1, STEPS[stage])


def kinds(folder):
    return [event["event"] for event in folder.events()]


# An annealed stage has all that a quantized one has, and annealing; `make soak` kills both.
def test_killed_twice_at_random_steps(lab, undisturbed):
    lab.forget("cga")
    first, second = sorted(MOMENTS.sample(range(1, STEPS["cga"]), 2))
    for moment in (first, second):
        killed = lab.train("cga", fault=("kill_at_step", moment))
        assert killed.returncode == -signal.SIGKILL
        assert lab.folder("cga").state() == "interrupted"
    assert lab.train("cga").returncode == 0
    assert_same(lab.folder("cga"), undisturbed.folder("cga"))
    events = lab.folder("cga").events()
    lost = [event for event in events if event["event"] == "lost"]
    assert len(lost) == 2
    assert all("ended without a word" in event["cause"] for event in lost)
    assert lab.folder("cga").result()["attempts"] == 3
    assert mirrored_differences(lab.folder("cga"), lab.root / "results") == []


def test_killed_while_writing_a_checkpoint(lab, undisturbed):
    lab.forget("cga")
    killed = lab.train("cga", fault=("kill_in_save", some_step("cga")))
    assert killed.returncode == -signal.SIGKILL
    checkpoints = lab.folder("cga").path / "checkpoint"
    assert list(checkpoints.glob(".*.tmp")), "a torn file was to be left"
    done = lab.train("cga")
    assert done.returncode == 0
    assert_same(lab.folder("cga"), undisturbed.folder("cga"))


def test_terminated_at_a_random_step_saves_leaves_with_75_and_says_how_to_go_on(lab, undisturbed):
    lab.forget("qat")
    left = lab.train("qat", fault=("terminate_at_step", some_step("qat")))
    assert left.returncode == 75
    assert f"stopped by SIGTERM; `ofq train {lab.runs['qat'].id}` goes on" in left.stderr
    assert lab.folder("qat").state() == "interrupted"
    assert lab.train("qat").returncode == 0
    assert_same(lab.folder("qat"), undisturbed.folder("qat"))


def test_stages_of_a_few_seconds_over_many_retries_end_as_one_go(lab, undisturbed):
    """The time limit makes the trainer save and leave; how early, test_pace proves."""
    lab.forget("cga")
    attempts = 0
    while not lab.folder("cga").complete():
        left = lab.train("cga", "--time-limit", "0.15", fault=("slow_steps", 0.5))
        assert left.returncode in (0, 75), left.stdout + left.stderr
        attempts += 1
        # each moves on by a step at least, or by one of three evaluations
        assert attempts <= STEPS["cga"] + 3
    assert attempts > 1
    assert_same(lab.folder("cga"), undisturbed.folder("cga"))
    left = [event for event in lab.folder("cga").events() if event["event"] == "interrupted"]
    assert {event["cause"] for event in left} == {"the time limit"}


def damage_by_truncating(path):
    path.write_bytes(path.read_bytes()[:-1000])


def damage_by_a_flipped_bit(path):
    content = bytearray(path.read_bytes())
    content[MOMENTS.randrange(len(content))] ^= 1 << MOMENTS.randrange(8)
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [damage_by_truncating, damage_by_a_flipped_bit])
def test_damaged_checkpoint_is_passed_over_with_a_loud_line(lab, undisturbed, damage):
    lab.forget("cga")
    lab.train("cga", fault=("terminate_at_step", 20))
    newest = max((lab.folder("cga").path / "checkpoint").glob("*.pt"))
    damage(newest)
    done = lab.train("cga")
    assert done.returncode == 0
    assert "warning: checkpoint" in done.stdout
    assert f"{newest.name} is damaged" in done.stdout
    assert_same(lab.folder("cga"), undisturbed.folder("cga"))


def test_second_trainer_leaves_and_names_the_first(lab, undisturbed):
    lab.forget("cga")
    first = lab.start("cga", fault=("slow_steps", 0.2))
    wait_for(lambda: lab.folder("cga").state() == "running")
    second = lab.train("cga")
    assert second.returncode == 75
    assert f"is being written by process {first.pid} on " in second.stderr
    assert first.wait() == 0
    assert_same(lab.folder("cga"), undisturbed.folder("cga"))


def test_second_trainer_waits_if_asked_and_finds_the_run_complete(lab, undisturbed):
    lab.forget("cga")
    first = lab.start("cga", fault=("slow_steps", 0.2))
    wait_for(lambda: lab.folder("cga").state() == "running")
    second = lab.train("cga", "--wait")
    assert second.returncode == 0
    assert f"waiting for process {first.pid}" in second.stdout
    assert "is already complete" in second.stdout
    assert first.wait() == 0
    assert_same(lab.folder("cga"), undisturbed.folder("cga"))
    assert lab.folder("cga").result()["attempts"] == 1


def test_owner_that_lost_its_lock_stops_before_it_writes(lab, undisturbed):
    """As a host that was suspended while another took its place."""
    lab.forget("cga")
    first = lab.start("cga", fault=("stop_at_step", 12))
    wait_for(lambda: stopped(first.pid))
    (lock,) = lab.folder("cga").path.glob("lock-*.json")
    lock.rename(lock.with_name("lock-2.json"))  # what a successor's lock would do
    lock.with_name("lock-2.json").write_text(
        '{"host": "n1", "pid": 1, "slurm_job": null, "machine": "m", "born": "1", "token": "t"}'
    )
    before = {p: p.read_bytes() for p in lab.folder("cga").path.rglob("*") if p.is_file()}
    first.send_signal(signal.SIGCONT)
    _, told = first.communicate(timeout=60)
    assert first.returncode == 75
    assert "taken over by process 1 on n1" in told
    after = {p: p.read_bytes() for p in lab.folder("cga").path.rglob("*") if p.is_file()}
    assert after == before
    (lab.folder("cga").path / "lock-2.json").unlink()
    assert lab.train("cga").returncode == 0
    assert_same(lab.folder("cga"), undisturbed.folder("cga"))


def test_clock_that_jumps_there_and_back_changes_nothing(lab, undisturbed):
    lab.forget("qat")
    done = lab.train("qat", "--time-limit", "10", fault=("jump_at_step", "15,40"))
    assert done.returncode == 0
    assert_same(lab.folder("qat"), undisturbed.folder("qat"))
    assert 0 < lab.folder("qat").result()["seconds"] < 600


@pytest.fixture
def small_disk(lab, tmp_path):
    """A function that moves a stage's folder to a file system of a few kilobytes."""
    mounted = []

    def mount(stage, kilobytes, *options):
        path = lab.folder(stage).path
        path.mkdir(exist_ok=True)
        flags = ",".join([f"size={kilobytes}k", *options])
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", flags, "tmpfs", str(path)], check=False
        )
        if done.returncode:
            pytest.skip("mounting a small file system needs root")
        mounted.append(path)
        return path

    yield mount
    for path in mounted:
        subprocess.run(["umount", str(path)], check=True)


def test_full_disk_during_a_checkpoint(lab, undisturbed, small_disk):
    """Training goes on without the checkpoint; once there is room, all is as it should be."""
    lab.forget("cga")
    path = small_disk("cga", 9000)
    ballast = path / "ballast"
    assert lab.train("cga", fault=("terminate_at_step", 6)).returncode == 75
    free = shutil.disk_usage(path).free
    ballast.write_bytes(bytes(free - 200_000))  # room for the rows of a table, not for a checkpoint
    left = lab.train("cga", fault=("terminate_at_step", 11))
    assert "no checkpoint at step 7" in left.stdout
    assert "No space left on device" in left.stdout
    assert left.returncode == 75
    assert "No space left on device" in left.stderr
    assert "mend that, and `ofq train" in left.stderr
    ballast.unlink()
    assert lab.train("cga").returncode == 0
    assert_same(lab.folder("cga"), undisturbed.folder("cga"))


def test_full_disk_during_a_metric_write(lab, undisturbed, small_disk):
    lab.forget("cga")
    ballast = small_disk("cga", 9000) / "ballast"
    left = lab.train("cga", fault=("fill_at_step", 11))
    refused = lab.train("cga")
    for ended in (left, refused):
        assert ended.returncode == 75
        assert f"{lab.folder('cga').path.name}" in ended.stderr
        assert "No space left on device; mend that, and `ofq train" in ended.stderr
        assert "Traceback" not in ended.stderr + ended.stdout
    ballast.unlink()
    assert lab.train("cga").returncode == 0
    assert_same(lab.folder("cga"), undisturbed.folder("cga"))


def test_full_disk_at_the_end_counts_no_second_twice(lab, undisturbed):
    lab.forget("cga")
    assert lab.train("cga", fault=("fail_at_the_end", 0.5)).returncode == 75
    finished, interrupted = lab.folder("cga").events()[-2:]
    assert (finished["event"], interrupted["event"]) == ("finished", "interrupted")
    assert (
        0.5
        <= interrupted["seconds"]
        == pytest.approx(interrupted["time"] - finished["time"], abs=0.1)
    )
    assert lab.train("cga").returncode == 0
    assert_same(lab.folder("cga"), undisturbed.folder("cga"))


def test_run_keeps_on_record_what_it_began_with(lab):
    lab.forget("cga")
    assert lab.train("cga", fault=("terminate_at_step", 6)).returncode == 75
    parent, began = lab.runs["qat"].id, lab.folder("cga").provenance()["inputs"]
    weights = lab.folder("qat").path / "model.safetensors"
    weights.unlink()  # a link, to which nothing may be added
    shutil.copy(lab.folder("fp").path / "model.safetensors", weights)
    left = lab.train("cga", fault=("terminate_at_step", 9))
    assert f"warning: {parent} isn't what this run began with" in left.stdout
    assert kinds(lab.folder("cga")).count("warning") == 1
    record = lab.folder("cga").provenance()
    assert record["inputs"] == began
    assert "origin" not in record["attempts"][0]
    assert record["attempts"][1]["origin"]["inputs"][parent] == sha256(weights)
    examined = run_ofq(lab.root, "doctor", lab.runs["cga"].id)
    assert "isn't what the run was made from (SHA-256)" in examined.stdout


def test_read_only_results_folder_is_refused_before_anything_starts(lab, small_disk):
    lab.forget("cga")
    small_disk("cga", 100, "ro")
    refused = lab.train("cga")
    assert refused.returncode == 2
    assert "can't write the run folder: Read-only file system" in refused.stderr
    assert "mend its permissions, or set 'results'" in refused.stderr


def test_divergence_is_recorded_and_not_repeated_blindly(lab):
    recipe = lab.root / "config" / "recipes" / "disturbed.yaml"
    recipe.write_text(recipe.read_text().replace("lr: 1.0e-4, min_lr", "lr: 1e30, min_lr"))
    lab = type(lab)(lab.root)
    failed = lab.train("cga")
    assert failed.returncode == 3
    assert f"{lab.runs['cga'].id} failed: step 2: " in failed.stderr
    folder = lab.folder("cga")
    assert folder.state() == "failed"
    assert folder.events()[-1]["cause"].startswith("step 2: ")
    checkpoints = sorted(path.name for path in (folder.path / "checkpoint").iterdir())
    again = lab.train("cga")
    assert again.returncode == 3
    assert "failed before, with this same code: step 2: " in again.stderr
    assert kinds(folder).count("opened") == 1
    assert lab.train("cga", "--again").returncode == 3
    assert kinds(folder).count("opened") == 2
    assert sorted(path.name for path in (folder.path / "checkpoint").iterdir()) == checkpoints


def test_checkpoint_is_saved_on_request(lab, undisturbed):
    """By another process, which the running one needn't be on the same host as."""
    lab.forget("cga")
    site = lab.root / "config" / "config.yaml"
    site.write_text(site.read_text().replace("1e-9", "1000"))
    first = lab.start("cga", fault=("slow_steps", 0.8))
    wait_for(lambda: lab.folder("cga").progress().get("step", 0) > 0)
    before = set((lab.folder("cga").path / "checkpoint").glob("*.json"))
    asked = run_ofq(lab.root, "save", lab.runs["cga"].id)
    assert asked.returncode == 0, asked.stderr
    assert set((lab.folder("cga").path / "checkpoint").glob("*.json")) > before
    assert first.wait() == 0
    assert_same(lab.folder("cga"), undisturbed.folder("cga"))


def test_kept_checkpoints_stay_and_others_are_removed(lab, undisturbed):
    assert not (undisturbed.folder("cga").path / "checkpoint").exists()
    lab.forget("cga")
    assert lab.train("cga", "--keep").returncode == 0
    assert len(list((lab.folder("cga").path / "checkpoint").glob("*.pt"))) == 2


def stopped(pid):
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "T"


@pytest.mark.parametrize("kept", [None, 0, 1])
def test_run_that_lost_rows_which_its_checkpoint_counts_on_is_not_trained_on(
    lab, undisturbed, kept
):
    lab.forget("fp")
    assert lab.train("fp", fault=("terminate_at_step", 20)).returncode == 75
    path = lab.folder("fp").path / "metrics.jsonl"
    rows = path.read_text()
    assert rows.count("\n") == 2
    if kept is None:
        path.unlink()
    else:
        path.write_text("".join(rows.splitlines(keepends=True)[:kept]))
    refused = lab.train("fp")
    assert refused.returncode == 2
    assert (
        f"metrics.jsonl: has {kept or 0} rows, but not the first 2 as checkpoint" in refused.stderr
    )
    assert "Traceback" not in refused.stderr
    path.write_text(rows)
    assert lab.train("fp").returncode == 0
    assert_same(lab.folder("fp"), undisturbed.folder("fp"))


def test_run_does_not_begin_from_weights_that_its_parent_did_not_end_with(lab):
    lab.forget("qat")
    damage_by_a_flipped_bit(lab.folder("fp").path / "model.safetensors")
    refused = lab.train("qat")
    assert refused.returncode == 2
    assert "model.safetensors: isn't what was written" in refused.stderr
    assert not lab.folder("qat").path.joinpath("run.json").exists()
