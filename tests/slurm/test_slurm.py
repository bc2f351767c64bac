"""The workflow on a real Slurm cluster: real daemons, a real queue, fake GPUs."""

import json
import os
import signal
import time
from collections.abc import Callable

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.support.checkouts import Checkout
from tests.support.cluster import NODES, within

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.timeout(600),
]
GPUS = 4  # of the two nodes together


def eventually(condition: Callable[[], bool], seconds: float = 60) -> bool:
    """Whether something comes true in time."""
    return within(seconds, condition)


@pytest.fixture
def checkout(cluster, tmp_path):
    checkout = Checkout(tmp_path, cluster)
    yield checkout
    checkout.clear()


def seen(checkout: Checkout) -> list[dict[str, str]]:
    """What each job of a gated run was given."""
    return [json.loads(path.read_text()) for path in checkout.folder.glob("seen-*.json")]


def jobs_of_results(checkout: Checkout) -> set[str]:
    """The Slurm jobs that made the results."""
    records = [path.with_name("events.jsonl").read_text() for path in checkout.results()]
    return {json.loads(text.splitlines()[0])["slurm_job"] for text in records} - {None}


def test_study_is_built_to_its_report(checkout):
    checkout.digits("small")
    status, output = checkout.run("small")
    assert status == 0, output
    assert (checkout.folder / "reports/small/index.html").exists()
    assert len(jobs_of_results(checkout)) == 2
    assert list((checkout.folder / "logs/slurm").glob("efficiency_report_*.csv"))


def test_jobs_queue_for_gpus_and_each_sees_its_own(checkout):
    checkout.toy("many", "gpu: 1", methods="gated", seeds=GPUS + 1)
    workflow = checkout.start("many", "--until", "train")
    assert eventually(lambda: len(seen(checkout)) == GPUS, seconds=120)
    assert len(checkout.cluster.queue("--states=PENDING")) == 1
    given = {(facts["SLURMD_NODENAME"], facts["CUDA_VISIBLE_DEVICES"]) for facts in seen(checkout)}
    assert given == {(node, gpu) for node in ("n0", "n1") for gpu in ("0", "1")}
    checkout.write("gate", "")
    output, _ = workflow.communicate()
    assert workflow.returncode == 0, output
    assert len(checkout.results()) == GPUS + 1


def test_interrupted_master_cancels_its_jobs_and_goes_on_with_them_when_started_again(checkout):
    checkout.toy("long", "gpu: 1", methods="gated")
    checkout.toy("short", "runtime: 5", methods="gated", model="toy_regression_4")
    targets = ("long", "short", "--until", "train", "train_short")
    workflow = checkout.start(*targets)
    assert eventually(lambda: len(seen(checkout)) == 2, seconds=120)
    assert len(checkout.cluster.queue()) == 2
    os.killpg(workflow.pid, signal.SIGINT)
    assert eventually(lambda: not checkout.cluster.queue())
    workflow.communicate(timeout=60)
    assert workflow.returncode != 0
    checkout.write("gate", "")
    status, output = checkout.run(*targets)
    assert status == 0, output
    assert len(checkout.results()) == 2


def wait_for_start(checkout: Checkout) -> str:
    """Wait until the only run has begun, and tell its job's id."""
    assert eventually(lambda: len(seen(checkout)) == 1, seconds=120)
    [[job, *_]] = checkout.cluster.queue()
    return job


def running(checkout: Checkout) -> int:
    return len(checkout.cluster.queue("--states=RUNNING"))


def test_cancelled_job_goes_on_in_another_that_waits_for_the_old_process(checkout):
    checkout.toy("one", "gpu: 1", methods="gated")
    workflow = checkout.start("one", "--until", "train")
    job = wait_for_start(checkout)
    checkout.cluster.command("scancel", job)
    assert eventually(lambda: running(checkout) == 1 and checkout.cluster.queue()[0][0] != job)
    assert len(seen(checkout)) == 1
    checkout.write("gate", "")
    output, _ = workflow.communicate()
    assert workflow.returncode == 0, output
    assert checkout.events().count("opened") == 2
    assert checkout.events()[-1] == "finished"


def test_jobs_of_a_killed_master_are_not_doubled(checkout):
    checkout.toy("one", "gpu: 1", methods="gated")
    workflow = checkout.start("one", "--until", "train")
    wait_for_start(checkout)
    os.killpg(workflow.pid, signal.SIGKILL)
    status, output = checkout.run("one", "--until", "train")
    assert status != 0
    assert "--unlock" in output
    assert checkout.run("--unlock")[0] == 0
    workflow = checkout.start("one", "--until", "train")
    assert eventually(lambda: running(checkout) == 2)
    checkout.write("gate", "")
    output, _ = workflow.communicate()
    assert workflow.returncode == 0, output
    assert len(seen(checkout)) == 1
    assert checkout.events().count("opened") == 1
    assert len(checkout.results()) == 1


def test_run_outlives_its_node_s_daemon_and_is_written_by_one_trainer(checkout):
    checkout.toy("one", "gpu: 1", methods="gated")
    workflow = checkout.start("one", "--until", "train")
    wait_for_start(checkout)
    [[_, _, node, _]] = checkout.cluster.queue()
    checkout.cluster.kill_node(node)
    try:
        other = [n for n in NODES if n != node]
        assert eventually(lambda: [j[2] for j in checkout.cluster.queue("-t", "R")] == other, 120)
        checkout.write("gate", "")
        output, _ = workflow.communicate()
    finally:
        checkout.cluster.start_node(node)
    assert workflow.returncode == 0, output
    assert len(seen(checkout)) == 1
    assert checkout.events().count("opened") == 1
    assert len(checkout.results()) == 1


def test_run_that_needs_more_than_its_time_limit_ends_identical(checkout, tmp_path_factory):
    checkout.toy("one", "gpu: 1, runtime: 1", methods="slow")
    status, output = checkout.run("one", "--until", "train")
    assert status == 0, output
    assert checkout.events().count("resumed") >= 1
    undisturbed = Checkout(tmp_path_factory.mktemp("undisturbed"), checkout.cluster)
    undisturbed.toy("one", "gpu: 1", methods="slow")
    undisturbed.write("fast", "")
    [result] = checkout.results()
    undisturbed.train_here(str(result.parent.relative_to(checkout.folder / "results/runs")))
    [other] = undisturbed.results()
    weights = "model.safetensors"
    assert result.with_name(weights).read_bytes() == other.with_name(weights).read_bytes()


def test_run_on_two_nodes_goes_on_after_an_interruption_and_ends_as_on_one_device(
    checkout, tmp_path_factory
):
    checkout.toy("wide", "gpu: 1", methods="slow")
    [run] = checkout.runs("wide")
    checkout.submit_to_two_nodes(run)
    assert eventually(lambda: "started" in checkout.events(), 120)
    [[job, _, nodes, _]] = checkout.cluster.queue()
    assert nodes == "n[0-1]"
    time.sleep(2)  # some steps of 0.5 s
    checkout.cluster.command("scancel", "--signal=TERM", job)
    assert eventually(lambda: not checkout.cluster.queue())
    assert checkout.events()[-1] == "interrupted"
    checkout.write("fast", "")
    checkout.submit_to_two_nodes(run)
    assert eventually(lambda: checkout.events()[-1] == "finished", 120)
    assert "resumed" in checkout.events()
    alone = Checkout(tmp_path_factory.mktemp("alone"), checkout.cluster)
    alone.toy("wide", "gpu: 1", methods="slow")
    alone.write("fast", "")
    alone.train_here(run)
    weights, expected = (
        load_file(c.results()[0].with_name("model.safetensors")) for c in (checkout, alone)
    )
    for name, tensor in expected.items():
        np.testing.assert_allclose(weights[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def troubled(cluster, tmp_path_factory):
    """A workflow with a run that fails, two that Slurm rejects, and one that is well."""
    checkout = Checkout(tmp_path_factory.mktemp("troubled"), cluster)
    checkout.toy("well", "gpu: 1")
    checkout.toy("broken", "gpu: 1", methods="broken")
    checkout.toy("greedy", "gpu: 16", methods="statsq")
    checkout.toy("lost", "runtime: 5", model="toy_regression_4")
    nowhere = ("--set-resources", "train_short:slurm_partition=nowhere")
    options = (*nowhere, "--retries", "0", "--until", "train", "train_short")
    status, output = checkout.run("well", "broken", "greedy", "lost", *options)
    assert status != 0
    return checkout, output


def test_failing_job_shows_its_log_and_the_log_s_path(troubled):
    _, output = troubled
    assert "this quantizer is broken" in output
    assert "logs/train/toy_regression/toy_regression_1/w3a32-broken-s0" in output


def test_rejected_jobs_give_the_reason_before_others_have_ended(troubled):
    _, output = troubled
    rejected, rest = output.split("Requested node configuration is not available", 1)
    assert "Finished jobid" not in rejected
    assert "invalid partition specified: nowhere" in output
    assert "Finished jobid" in rest


def test_troubles_of_some_cells_spare_the_others(troubled):
    checkout, _ = troubled
    assert [path.parent.name[:12] for path in checkout.results()] == ["w3a32-lsq-s0"]


def test_rejected_job_runs_once_its_cause_is_mended(troubled):
    checkout, _ = troubled
    status, output = checkout.run("lost", "--until", "train_short")
    assert status == 0, output
    assert len(checkout.results()) == 2


def test_cluster_without_accounting_runs_long_and_short_jobs(bare_cluster, tmp_path):
    checkout = Checkout(tmp_path, bare_cluster)
    checkout.toy("long", "gpu: 1")
    checkout.toy("short", "runtime: 5", methods="statsq", model="toy_regression_4")
    status, output = checkout.run("long", "short", "--until", "train", "train_short")
    assert status == 0, output
    assert len(jobs_of_results(checkout)) == 2
    assert output.count("has been submitted with SLURM jobid") == 1  # the short one wasn't
