"""A study trained once without any disturbance, and copies of it to disturb."""

import shutil

import pytest
from lab import Lab, build


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory) -> Lab:
    """All three stages, trained in one go each."""
    return build(tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture
def lab(undisturbed, tmp_path) -> Lab:
    """A copy of it, whose stages can be trained again."""
    shutil.copytree(undisturbed.root, tmp_path / "lab")
    return Lab(tmp_path / "lab")
