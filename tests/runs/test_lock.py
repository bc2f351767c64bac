"""One writer per run folder, whatever becomes of the others."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

from ofq.runs.lock import LockHeld, LockLost, Owner, RunLock, holder

BEAT, SILENCE = 0.05, 600  # a living owner isn't silent for so long, on a busy machine either

HOLDS = """
import sys, time
from pathlib import Path
from ofq.runs.lock import RunLock
lock = RunLock(Path(sys.argv[1]), beat=0.05)
lock.acquire()
print("held", flush=True)
time.sleep(600)
"""


def lock_of(folder, silence=SILENCE, **options):
    return RunLock(folder, beat=BEAT, silence=silence, **options)


@pytest.fixture
def other(tmp_path):
    """Another process that holds the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.fixture
def patient(tmp_path, monkeypatch):
    """Lets a contender wait until the owner's heart beats, however late it does, not for a time."""
    pause = time.sleep

    def until_a_beat(seconds):
        (path,) = tmp_path.glob("lock-*.json")
        before = path.stat().st_mtime_ns
        while path.stat().st_mtime_ns == before:
            pause(BEAT / 5)

    with monkeypatch.context() as patch:
        patch.setattr("ofq.runs.lock.time.sleep", until_a_beat)
        yield patch


def as_of_another_host(folder):
    """Let the lock's owner look like a process of a machine that can't be asked about it."""
    (path,) = folder.glob("lock-*.json")
    facts = json.loads(path.read_text())
    beat = path.stat()
    path.write_text(json.dumps({**facts, "host": "n7", "machine": "another boot"}))
    os.utime(path, ns=(beat.st_atime_ns, beat.st_mtime_ns))
    return path


def test_second_trainer_is_told_who_holds_the_lock(tmp_path, other):
    with pytest.raises(LockHeld, match=rf"is being written by process {other.pid} on .*--wait"):
        lock_of(tmp_path).acquire()
    assert holder(tmp_path).alive()


def test_slurm_job_of_the_owner_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    lock_of(tmp_path).acquire()
    with pytest.raises(LockHeld, match=r"process \d+ on .*, Slurm job 4711"):
        lock_of(tmp_path).acquire()


def test_dead_owner_on_this_host_is_replaced_at_once(tmp_path, other, monkeypatch):
    other.kill()
    other.wait()
    assert not holder(tmp_path).alive()
    monkeypatch.setattr("ofq.runs.lock.time.sleep", lambda seconds: pytest.fail("it waits"))
    lock = lock_of(tmp_path)
    dead = lock.acquire()
    assert dead.owner.pid == other.pid
    assert lock.number == 2
    lock.check()


def test_process_that_got_a_dead_ones_id_is_not_taken_for_it(tmp_path, other):
    path = next(tmp_path.glob("lock-*.json"))
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({**facts, "pid": os.getpid(), "born": "1"}))
    assert lock_of(tmp_path).acquire() is not None


def test_silent_owner_on_another_host_is_replaced_and_a_beating_one_is_not(
    tmp_path, other, patient
):
    as_of_another_host(tmp_path)
    for _ in range(10):
        with pytest.raises(LockHeld, match="on n7"):
            lock_of(tmp_path, silence=0).acquire()
    patient.undo()
    other.send_signal(signal.SIGSTOP)
    os.waitpid(other.pid, os.WUNTRACED)  # until its heart stands still too
    with pytest.raises(LockHeld, match="on n7"):
        lock_of(tmp_path).acquire()
    lock = lock_of(tmp_path, silence=0)
    assert lock.acquire().owner.host == "n7"


@pytest.mark.parametrize("jump", [-3600, 3600])
def test_jump_of_the_clock_kills_no_living_owner(tmp_path, other, patient, jump):
    as_of_another_host(tmp_path)
    clock = time.time
    patient.setattr("ofq.runs.lock.time.time", lambda: clock() + jump)
    with pytest.raises(LockHeld):
        lock_of(tmp_path).acquire()


def test_waiting_ends_when_the_owner_dies(tmp_path, other):
    asked = []

    def waits(held):
        asked.append(held.owner.pid)
        if len(asked) == 3:
            other.kill()
        return True

    lock = lock_of(tmp_path)
    lock.acquire(waits)
    assert set(asked) == {other.pid}
    lock.check()


def test_owner_that_was_replaced_finds_out_before_it_writes(tmp_path):
    lost = threading.Event()
    first = lock_of(tmp_path, on_loss=lost.set)
    first.acquire()
    (path,) = tmp_path.glob("lock-*.json")
    as_of_another_host(tmp_path)  # so that this process isn't asked whether it lives
    first._resting.set()  # its heart stands still, as in a process that is stopped
    first._heart.join()
    second = lock_of(tmp_path, silence=0)
    second.acquire()
    with pytest.raises(LockLost, match="taken over by process"):
        first.check()
    assert not path.exists()
    first._resting.clear()
    first._live()
    assert lost.is_set()
    second.check()


def test_lost_owner_can_not_release_anothers_lock(tmp_path):
    first, second = lock_of(tmp_path), lock_of(tmp_path)
    first.acquire()
    first._owner = replace(first._owner, token="mine no more")
    first.release()
    with pytest.raises(LockHeld):
        second.acquire()


def test_released_lock_is_free_and_its_number_is_not_used_again(tmp_path):
    for number in (1, 2, 3):
        lock = lock_of(tmp_path)
        assert lock.acquire() is None
        assert lock.number == number
        lock.release()
    assert holder(tmp_path) is None
    assert [path.name for path in tmp_path.iterdir()] == ["lock-3.free"]


def test_removed_lock_leaves_no_trace(tmp_path):
    lock = lock_of(tmp_path)
    lock.acquire()
    lock.remove()
    assert list(tmp_path.iterdir()) == []


def test_of_many_contenders_for_a_dead_owners_lock_one_wins(tmp_path, other):
    other.kill()
    other.wait()
    start, won = threading.Barrier(8), []

    def contend():
        lock = lock_of(tmp_path)
        start.wait()
        try:
            lock.acquire()
        except LockHeld:
            return
        won.append(lock)

    threads = [threading.Thread(target=contend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    won[0].check()


def test_file_that_is_being_written_is_held_by_an_unknown_process(tmp_path):
    (tmp_path / "lock-1.json").write_text("")
    with pytest.raises(LockHeld, match="an unknown process"):
        lock_of(tmp_path).acquire()


def test_heartbeat_calls_back(tmp_path):
    beaten = threading.Event()
    lock = lock_of(tmp_path, on_beat=beaten.set)
    lock.acquire()
    assert beaten.wait(60)
    lock.release()


def test_processes_of_this_machine_can_be_asked_about():
    own = Owner.this_process()
    assert not own.gone()
    assert replace(own, born="1").gone()
    assert not replace(own, born="1", machine="another boot").gone()
