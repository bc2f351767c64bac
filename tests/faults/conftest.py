"""A study trained once without any disturbance, and copies of it to disturb."""

import fcntl
import os
import shutil

import pytest

from tests.support.lab import Lab, build


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory) -> Lab:
    """All three stages, trained in one go each, once for all of pytest's processes."""
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "undisturbed"
    with open(f"{root}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not root.exists():  # all of it or nothing: a build may fail
            begun = root.with_name("begun")
            shutil.rmtree(begun, ignore_errors=True)
            build(begun)
            begun.rename(root)
        return Lab(root)


@pytest.fixture
def lab(undisturbed, tmp_path) -> Lab:
    """A copy of it, whose stages can be trained again."""
    shutil.copytree(undisturbed.root, tmp_path / "lab")
    return Lab(tmp_path / "lab")
