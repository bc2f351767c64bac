"""Several ranks train on image files, with loading processes, and leave nothing behind."""

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from ofq.config.datasets import locate
from ofq.config.images import Images
from ofq.training.data import loading
from ofq.training.data.images import ImageData, ImageSource, open_images
from ofq.training.data.source import Batch

from tests.support.lab import Lab, assert_same, wait_for
from tests.support.own_process import Forked
from tests.support.pictures import NANO, make_folder, make_shards, make_tars
from tests.support.servers import free_port

START_METHODS = ["fork", "spawn", "forkserver"]
TOLERANCE = 1e-3  # of the way that the weights went
SOON = 20  # seconds in which all of a run's processes must have ended

# Plain SGD, few steps and 8 bits, so that a sum in another order moves little over a rounding
# threshold (test_several_processes.py).
CONFIG = {
    "config/config.yaml": "studies: [disturbed]\ndata: {imagenet: DATA}\n",
    "config/methods/known.yaml": "lsq: {label: LSQ, weight_quantizer: lsq}\n",
    "config/recipes/disturbed.yaml": """
dataset: imagenet
classes: 3
models: [test_vit]
stages:
  fp: {epochs: 1, batch_size: 4, lr: 2.0e-3}
  qat: {epochs: 1, batch_size: 4, optimizer: sgd, lr: 0.02, min_lr: 0.01, distillation: true}
resources:
  qat: {workers: 2}
""",
    "config/studies/disturbed.yaml": """
title: Disturbed
description: For tests.
recipe: disturbed
models: [test_vit]
bits: [W8A8]
methods: [lsq]
seeds: [0]
figures: [accuracy]
""",
}

pytestmark = [pytest.mark.slow, pytest.mark.integration, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> dict[str, Path]:
    """The same images in every layout."""
    root = tmp_path_factory.mktemp("pictures")
    folder = make_folder(root / "folder")
    tars, shards = make_tars(folder, root / "tar"), make_shards(folder, root / "shards")
    return {"folder": folder, "tar": tars, "shards": shards}


def lay_out(root: Path, data: str) -> Lab:
    for name, text in CONFIG.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("DATA", data))
    return Lab(root)


@pytest.fixture(scope="module")
def trained(pictures, tmp_path_factory):
    """Both stages on a layout, trained by one process; once for each."""
    labs: dict[str, Lab] = {}

    def train(layout: str) -> Lab:
        if layout not in labs:
            prefix = "wds/" if layout == "shards" else ""
            lab = lay_out(tmp_path_factory.mktemp(layout), f"{prefix}{pictures[layout]}")
            for stage in ("fp", "qat"):
                done = lab.train(stage)
                assert done.returncode == 0, done.stdout + done.stderr
            labs[layout] = lab
        return labs[layout]

    return train


@pytest.fixture
def copied(trained, tmp_path):
    """A copy of that, in which the quantized stage can be trained again."""

    def copy(layout: str = "folder", name: str = "lab") -> Lab:
        shutil.copytree(trained(layout).root, tmp_path / name)
        lab = Lab(tmp_path / name)
        lab.forget("qat")
        return lab

    return copy


@pytest.fixture(scope="module")
def two(trained, tmp_path_factory) -> Lab:
    """A copy in which two ranks trained the quantized stage on the folder."""
    root = tmp_path_factory.mktemp("two") / "lab"
    shutil.copytree(trained("folder").root, root)
    lab = Lab(root)
    lab.forget("qat")
    done = lab.train("qat", "--devices", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    return lab


def weights(lab: Lab, stage: str) -> dict[str, torch.Tensor]:
    return load_file(lab.folder(stage).path / "model.safetensors")


def apart(some: Lab, others: Lab) -> float:
    """How far two trainings' weights lie apart, as a share of the way that they went."""
    start, ends = weights(some, "fp"), [weights(lab, "qat") for lab in (some, others)]
    assert ends[0].keys() == ends[1].keys()
    shared = [name for name in ends[0] if name in start and ends[0][name].is_floating_point()]
    went = sum(float((ends[0][n] - start[n]).square().sum()) for n in shared) ** 0.5
    pairs = [(tensor.float(), ends[1][name].float()) for name, tensor in ends[0].items()]
    assert went > 0
    return sum(float((a - b).square().sum()) for a, b in pairs) ** 0.5 / went


def at_work(lab: Lab) -> dict[int, int]:
    """Processes that work in a checkout, each with its parent."""
    parents = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            state, parent = (process / "stat").read_text().rpartition(")")[2].split()[:2]
            if state != "Z" and (process / "cwd").samefile(lab.root):
                parents[int(process.name)] = int(parent)
    return parents


def rank_1(lab: Lab, first: int) -> int | None:
    return next((p for p, parent in at_work(lab).items() if parent == first and leads(p)), None)


def leads(process: int) -> bool:
    """Whether it has a session of its own, as ranks have and loading processes haven't."""
    return os.getsid(process) == process


@pytest.mark.parametrize("layout", ["folder", "tar", "shards"])
def test_two_ranks_train_the_weights_of_one(trained, copied, layout):
    lab = copied(layout)
    done = lab.train("qat", "--devices", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 images per step = 2 x 1 x 2" in done.stdout
    assert apart(trained(layout), lab) < TOLERANCE
    wait_for(lambda: not at_work(lab), SOON)


def test_ranks_without_loading_processes_train_the_same(copied, two):
    lab = copied()
    recipe = lab.root / "config/recipes/disturbed.yaml"
    recipe.write_text(recipe.read_text().replace("workers: 2", "workers: 0"))
    done = lab.train("qat", "--devices", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same(lab.folder("qat"), two.folder("qat"))


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_ranks_train_the_same_with_every_start_method(copied, two, tmp_path, method):
    """Of Python's, for their loading processes; fork is the default on Linux up to Python 3.13."""
    (tmp_path / "sitecustomize.py").write_text(
        "import multiprocessing, sys\n"
        "if 'multiprocessing.' not in ' '.join(sys.orig_argv):\n"
        f"    multiprocessing.set_start_method({method!r})\n"
    )
    lab = copied()
    done = subprocess.run(
        [sys.executable, "-m", "ofq", "train", "--no-track", lab.runs["qat"].id, "--devices", "2"],
        cwd=lab.root, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same(lab.folder("qat"), two.folder("qat"))
    wait_for(lambda: not at_work(lab), SOON)


def test_signal_makes_ranks_save_and_leave_nothing_behind(copied, two):
    lab = copied()
    left = lab.train("qat", "--devices", "2", fault=("terminate_at_step", 2))
    assert left.returncode == 75, left.stdout + left.stderr
    assert "stopped by SIGTERM" in left.stderr
    assert "Traceback" not in left.stderr
    wait_for(lambda: not at_work(lab), SOON)
    assert lab.train("qat", "--devices", "2").returncode == 0
    assert_same(lab.folder("qat"), two.folder("qat"))


VICTIMS = {
    "rank 0": (-signal.SIGKILL, ""),
    "rank 1": (75, "rank 1 was killed by SIGKILL"),
    "a worker of rank 0": (75, "a process that loads images was killed"),
    "a worker of rank 1": (75, "a process that loads images was killed"),
}


@pytest.mark.parametrize("victim", VICTIMS)
def test_killed_process_leaves_nothing_behind(copied, victim):
    lab = copied()
    first = lab.start("qat", "--devices", "2", fault=("slow_steps", 1))
    metrics = lab.folder("qat").path / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.read_text(), 120)  # training begins
    second = rank_1(lab, first.pid)
    assert second is not None

    def workers(rank: int) -> list[int]:
        return [p for p, parent in at_work(lab).items() if parent == rank and not leads(p)]

    wait_for(lambda: len(workers(first.pid)) == len(workers(second)) == 2)
    chosen = first.pid if "0" in victim else second
    os.kill(workers(chosen)[0] if "worker" in victim else chosen, signal.SIGKILL)
    code, said = VICTIMS[victim]
    _, told = first.communicate(timeout=60)
    assert first.returncode == code, told
    assert said in told
    assert "Traceback" not in told
    wait_for(lambda: not at_work(lab), SOON)


def started_by_others(lab: Lab, rank: int, port: int, fault=("none", 0)) -> Forked:
    """One of two ranks, as srun starts them."""
    from tests.support import driver

    there = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    env = os.environ | there | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    words = (*fault, "train", "--no-track", lab.runs["qat"].id)
    return Forked(lab.root, *words, env=env, entry=driver.main)


def test_ranks_started_by_others_train_the_same(copied, two):
    lab, port = copied(), free_port()
    started = [started_by_others(lab, rank, port) for rank in (0, 1)]
    said = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    assert_same(lab.folder("qat"), two.folder("qat"))


@pytest.mark.parametrize(
    ("rank", "missing"), [(0, "rank 1 didn't come"), (1, "rank 0 isn't there at 127.0.0.1")]
)
def test_ranks_that_do_not_meet_in_time_are_told_in_one_line(copied, rank, missing):
    alone = started_by_others(copied(), rank, free_port(), fault=("meet_within", 2))
    _, told = alone.communicate(timeout=60)
    assert alone.returncode == 75
    assert "the ranks of this run didn't meet within" in told
    assert missing in told
    assert len(told.splitlines()) == 1


def handles(process: int, number: int) -> bool:
    status = Path(f"/proc/{process}/status").read_text()
    caught = re.search(r"SigCgt:\t(\w+)", status)
    return caught is not None and bool(int(caught[1], 16) >> (number - 1) & 1)


@pytest.mark.parametrize("rank", [0, 1])
def test_signal_ends_the_wait_for_other_ranks(copied, rank):
    lab = copied()
    alone = started_by_others(lab, rank, free_port(), fault=("meet_within", 300))
    wait_for(lambda: handles(alone.pid, signal.SIGUSR1))
    alone.send_signal(signal.SIGTERM)
    assert alone.wait(SOON) == 75


def test_port_that_is_taken_is_named(copied):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        first = started_by_others(copied(), 0, port)
        _, told = first.communicate(timeout=60)
    assert first.returncode == 75
    assert f"the ranks can't meet at 127.0.0.1, port {port}: Address already in use" in told


def listening(processes: dict[int, int]) -> Iterator[tuple[str, int]]:
    """Address, as the kernel writes it, and port of each socket on which processes listen."""
    inodes = set()
    for process in processes:
        with suppress(OSError):
            for descriptor in Path(f"/proc/{process}/fd").iterdir():
                with suppress(OSError):
                    inodes.update(re.findall(r"socket:\[(\d+)\]", os.readlink(descriptor)))
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                address, _, port = fields[1].partition(":")
                yield address, int(port, 16)


def bother(port: int) -> None:
    """Talk to a port as a scanner does, and as a client of another run's store."""
    for words in (b"", b"GET / HTTP/1.0\r\n\r\n", bytes(64), b"\xff" * 4096):
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as other:
            other.sendall(words)


def meddle(port: int) -> None:
    """Write keys that some run's ranks might use."""
    from datetime import timedelta

    store = TCPStore("127.0.0.1", port, wait_for_workers=False, timeout=timedelta(seconds=5))
    for prefix in ("", "default_pg/", "default_pg/0//cpu//", "/worker/attempt_0/", "ofq/0/0/"):
        for key in ("init/", "validate/", "rank 0", "rank 1", "0", "1", "rank_0", "worker"):
            store.set(prefix + key, "1")


def test_ranks_on_one_machine_listen_there_only_and_bear_foreign_clients(copied, two):
    lab = copied()
    first = lab.start("qat", "--devices", "2", fault=("slow_steps", 1))
    found: set[tuple[str, int]] = set()
    events = lab.folder("qat").path / "events.jsonl"
    while first.poll() is None:
        for address, port in set(listening(at_work(lab))) - found:
            # gloo itself may hang on what others send in the moments in which its ranks connect
            if found and not (events.exists() and '"started"' in events.read_text()):
                continue
            bother(port)
            if not found:  # the store comes first, before its ranks do
                meddle(port)
            found.add((address, port))
        time.sleep(0.05)
    out, told = first.communicate()
    assert first.returncode == 0, out + told
    assert len(found) >= 3  # the store, and gloo in both ranks
    assert {address for address, _ in found} == {"0100007F"}  # 127.0.0.1
    assert_same(lab.folder("qat"), two.folder("qat"))


LOADING = """
import json, multiprocessing, os, signal, sys
from pathlib import Path

if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    from tests.runs.test_ranks_on_images import digest, images
    batches = images(Path(sys.argv[2]), workers=2).train_batches(0, 6)
    found = digest([next(batches) for _ in range(3)])
    workers = [child.pid for child in multiprocessing.active_children()]
    print(json.dumps([found, workers]), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def images(folder: Path, workers: int) -> ImageData:
    return open_images(ImageSource(locate(str(folder), folder), workers), Images(), NANO, seed=0)


def digest(batches: Iterable[Batch]) -> str:
    found = hashlib.sha256()
    for inputs, labels, _ in batches:
        found.update(inputs.numpy().tobytes() + labels.numpy().tobytes())
    return found.hexdigest()


@pytest.mark.parametrize("method", START_METHODS)
def test_every_start_method_loads_the_same_and_leaves_no_orphan(pictures, tmp_path, method):
    script = tmp_path / "loading.py"
    script.write_text(LOADING)
    command = [sys.executable, str(script), method, str(pictures["folder"])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    found, workers = json.loads(done.stdout)
    assert found == digest(images(pictures["folder"], workers=0).train_batches(0, 6))
    assert len(workers) == 2
    wait_for(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers), 3)


class HeldStream:
    """A stream whose lock another thread held as this process forked."""

    def __init__(self, stream) -> None:
        self.stream = stream
        self.owner = os.getpid()

    def write(self, text: str) -> int:
        self.flush()
        return self.stream.write(text)

    def flush(self) -> None:
        while os.getpid() != self.owner:
            time.sleep(1)


def test_loading_ends_whatever_stream_was_being_written_as_it_began(pictures, monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, HeldStream(getattr(sys, name)))
    source, began = images(pictures["folder"], workers=2), time.monotonic()
    assert len(list(source.train_batches(0, 6))) == 3
    assert not any(worker.is_alive() for worker in loading._started)
    assert time.monotonic() - began < 4  # torch waits 5 s for a worker that doesn't end


def test_loading_begins_while_another_thread_reads_input(pictures, monkeypatch):
    """As long as that thread reads what no forked process has a lock of: a descriptor."""
    reading, writing = os.pipe()
    reader = threading.Thread(target=os.read, args=(reading, 1), daemon=True)
    reader.start()
    assert len(list(images(pictures["folder"], workers=2).train_batches(0, 6))) == 3
    os.write(writing, b"x")
    reader.join()
