"""A small workspace of its own for every test that needs one."""

import tests.support.fast_start  # noqa: F401 isort: skip

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

import ofq.quantization  # noqa: F401 - lets timm be imported beside a CPU build of torch
from ofq.starting import started

from tests.support.tiny import CONFIG

# No example fails for a busy machine's slowness, and all runs of the tests try the same ones.
settings.register_profile(
    "ofq", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("ofq")

_OWNER = """
import sys, time
from pathlib import Path
from ofq.runs.lock import RunLock
RunLock(Path(sys.argv[1]), beat=300).acquire()
print("holds it", flush=True)
time.sleep(300)
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the modules that take minutes, so that no process has them left at the end."""
    long = {"slurm", "faults", "integration"}
    items.sort(key=lambda item: long.isdisjoint(mark.name for mark in item.iter_markers()))


def pytest_collection_finish() -> None:
    """Search for garbage as usual from the first test on."""
    started()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """The same random numbers, whichever tests came before."""
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One thread of torch, so that sums have one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def make_checkout() -> Callable[[Path], Path]:
    """Makes a folder with a small ``config/``: a study of two methods, two seeds, short stages."""

    def make(root: Path) -> Path:
        for name, text in CONFIG.items():
            path = root / "config" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return root

    return make


@pytest.fixture
def checkout(tmp_path: Path, make_checkout: Callable[[Path], Path]) -> Path:
    """Such a folder for one test."""
    return make_checkout(tmp_path)


@pytest.fixture
def hold() -> Iterator[Callable[[Path], subprocess.Popen[str]]]:
    """Lets another process hold the lock on a run folder, until it is killed or the test ends."""
    owners = []

    def start(folder: Path) -> subprocess.Popen[str]:
        folder.mkdir(parents=True, exist_ok=True)
        owner = subprocess.Popen(
            [sys.executable, "-c", _OWNER, folder], stdout=subprocess.PIPE, text=True
        )
        owners.append(owner)
        assert owner.stdout is not None
        assert owner.stdout.readline() == "holds it\n"
        return owner

    yield start
    for owner in owners:
        owner.kill()
        owner.communicate()
