"""A real cluster for the tests."""

from collections.abc import Iterator

import pytest

from tests.support.cluster import Cluster, missing
from tests.support.required import without


@pytest.fixture(scope="session")
def needs_slurm() -> None:
    """Skip where Slurm's packages are missing, unless they are required."""
    if lacking := missing():
        names = ", ".join(lacking)
        without("slurm", f"no Slurm here: {names} not found (docs/cluster.md names the packages)")


@pytest.fixture(scope="session")
def cluster(needs_slurm: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster with accounting."""
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down()


@pytest.fixture(scope="session")
def bare_cluster(needs_slurm: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster without accounting."""
    cluster = Cluster(tmp_path_factory.mktemp("slurm"), accounting=False)
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down()
