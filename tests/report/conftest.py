from pathlib import Path

import pytest

from ofq.config import Workspace
from ofq.report import build
from ofq.report.collect import Records, collect

from tests.support import synthetic


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    made = synthetic.make_workspace(tmp_path_factory.mktemp("digits"))
    synthetic.fill(made)
    return made


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    figures = ["loss", "trajectories", "accuracy", "oscillation_over_training"]
    made = synthetic.make_workspace(
        tmp_path_factory.mktemp("toy"),
        "toy_regression",
        bits=["W2A32"],
        methods=["lsq", "statsq"],
        figures=figures,
    )
    synthetic.fill(made)
    return made


@pytest.fixture(scope="session")
def records(workspace: Workspace) -> Records:
    return collect(workspace, "small")


@pytest.fixture(scope="session")
def report(workspace: Workspace) -> Path:
    return build(workspace, "small", workspace.reports / "small").parent
