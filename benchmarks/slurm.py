"""Measure the master's overhead on a Slurm cluster, per job and in memory.

Three workflows of equally many jobs run in turn on one temporary cluster: the suite's, with sleeps
in place of training, once as submitted jobs and once as short ones, and a bare workflow with the
Slurm plugin's default settings, the plugin's own minimum. The n-th job to start sleeps equally long
in each of them. The overhead of a job is the time from its selection by the master to the
detection of its end, minus the time of the job's own command. If there are more jobs than the nodes
have cores, it includes waiting in the queue.

    python benchmarks/slurm.py [--jobs 12] [--seconds 20] [--rounds 3] [--json FILE]
"""

import argparse
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from machine import keep  # noqa: E402

from tests.support.checkouts import Checkout  # noqa: E402
from tests.support.cluster import Cluster  # noqa: E402

# in place of training: logs its times, and writes the files that the workflow requires
FAKE = """
began=$(date +%s.%N)
mkdir -p turns
turn=0
until mkdir turns/$turn 2> /dev/null; do turn=$((turn + 1)); done
sleep $((turn * 7 % (2 * {seconds} + 1)))
mkdir -p "$1" && touch "$1"/result.json "$1"/model.safetensors "$1"/metrics.parquet
echo "$1 $began $(date +%s.%N)" >> trace
"""
BARE = """
rule all:
    input: [f"results/runs/{{n}}/result.json" for n in range({jobs})]
    default_target: True

rule train:
    output: "results/runs/{{n}}/result.json"
    resources: mem_mb=500, runtime=30
    shell: "bash fake.sh results/runs/{{wildcards.n}}"

localrules: all
"""


@dataclass(frozen=True)
class Measured:
    """Cost of one workflow.

    Attributes:
        overhead: Seconds per job outside the job's own command.
        wall: Total seconds.
        memory: The master's resident megabytes, sampled once a second.
        twice: Number of jobs that ran more than once.
    """

    overhead: float
    wall: float
    memory: list[int]
    twice: int


def lay_suite(folder: Path, cluster: Cluster, jobs: int, seconds: int, resources: str) -> None:
    """Set up the suite's workflow with a sleep in place of training."""
    checkout = Checkout(folder, cluster)
    checkout.toy("many", f"{resources}, mem_mb: 500", seeds=jobs)
    rule = folder / "workflow/rules/train.smk"
    text, count = re.subn("ofq train ", "bash fake.sh results/runs/", rule.read_text())
    assert count, f"{rule} doesn't run 'ofq train' any more"
    rule.write_text(text)
    checkout.write("fake.sh", FAKE.format(seconds=seconds))


def lay_bare(folder: Path, jobs: int, seconds: int) -> None:
    """Set up a workflow of as many jobs, without the suite."""
    (folder / "Snakefile").write_text(BARE.format(jobs=jobs))
    (folder / "fake.sh").write_text(FAKE.format(seconds=seconds))


def measure(folder: Path, cluster: Cluster, jobs: int, *options: str) -> Measured:
    """Run a workflow and monitor its master."""
    command = [sys.executable, "-m", "snakemake", *options]
    began = time.time()
    master = subprocess.Popen(
        command, cwd=folder, env=cluster.environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    memory: list[int] = []
    watch = threading.Thread(target=lambda: memory.extend(_memory(master)))
    watch.start()
    assert master.stdout is not None
    selected, noticed, rule, lines = 0.0, 0.0, "", []
    for line in master.stdout:
        lines.append(line)
        if match := re.match(r"(?:local)?rule (\w+):", line):
            rule = match[1]
        elif line.startswith("    jobid: ") and rule.startswith("train"):
            selected += time.time()
        elif line.startswith("Finished jobid") and "train" in line:
            noticed += time.time()
    assert master.wait() == 0, "".join(lines)
    watch.join()
    trace = [line.split() for line in (folder / "trace").read_text().splitlines()]
    own = sum(float(end) - float(start) for _, start, end in trace)
    twice = len(trace) - len({name for name, *_ in trace})
    assert len(trace) - twice == jobs
    return Measured((noticed - selected - own) / jobs, time.time() - began, memory, twice)


def _memory(process: subprocess.Popen[str]) -> Iterator[int]:
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        if match := re.search(r"VmRSS:\s+(\d+)", status.read_text()):
            yield round(int(match[1]) / 1024)
        time.sleep(1)


def compare(folder: Path, jobs: int, seconds: int) -> dict[str, Measured]:
    """Run the three workflows on a new cluster.

    Returns:
        The cost of each, by name; the bare one first.
    """
    cluster = Cluster(folder / "cluster")
    for name in ("bare", "submitted", "short"):
        (folder / name).mkdir()
    lay_bare(folder / "bare", jobs, seconds)
    lay_suite(folder / "submitted", cluster, jobs, seconds, "runtime: 30")
    lay_suite(folder / "short", cluster, jobs, seconds, "runtime: 5")
    default = ("--executor", "slurm", "--jobs", "500")
    profile = ("--profile", "slurm", "many", "--until", "train", "train_short")
    try:
        cluster.up()
        return {
            "bare workflow": measure(folder / "bare", cluster, jobs, *default),
            "suite, submitted": measure(folder / "submitted", cluster, jobs, *profile),
            "suite, short runs": measure(folder / "short", cluster, jobs, *profile),
        }
    finally:
        cluster.down()


def _summary(name: str, rounds: list[dict[str, Measured]]) -> dict[str, float]:
    """Return medians over the rounds; each ratio is to the bare workflow of the same round."""

    def median(of: Callable[[Measured, Measured], float]) -> float:
        return statistics.median(of(r[name], r["bare workflow"]) for r in rounds)

    return {
        "overhead": median(lambda own, _: own.overhead),
        "overhead_over_bare": median(lambda own, bare: own.overhead / bare.overhead),
        "wall": median(lambda own, _: own.wall),
        "wall_over_bare": median(lambda own, bare: own.wall / bare.wall),
        "memory_midway": median(lambda own, _: own.memory[len(own.memory) // 2]),
        "memory_at_end": median(lambda own, _: own.memory[-1]),
        "twice": max(r[name].twice for r in rounds),
    }


def main() -> None:
    """Print overheads and their ratios to the bare workflow's, and save them if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=12)
    parser.add_argument("--seconds", type=int, default=20, help="mean length of a job")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    options = parser.parse_args()
    rounds = []
    for _ in range(options.rounds):
        folder = Path(tempfile.mkdtemp(prefix="slurm"))
        try:
            rounds.append(compare(folder, options.jobs, options.seconds))
        finally:
            shutil.rmtree(folder)
    print(
        f"{options.jobs} jobs of {options.seconds} s on average on two virtual nodes of 8 cores; "
        f"medians of {options.rounds} rounds"
    )
    figures = {name: _summary(name, rounds) for name in rounds[0]}
    for name, figure in figures.items():
        print(
            f"{name:18} overhead {figure['overhead']:6.1f} s/job  "
            f"ratio {figure['overhead_over_bare']:4.2f}   wall {figure['wall']:6.1f} s  "
            f"ratio {figure['wall_over_bare']:4.2f}   master {figure['memory_midway']:.0f} MB "
            f"midway, {figure['memory_at_end']:.0f} MB at the end   "
            f"ran twice: {figure['twice']:.0f}"
        )
    each = [{name: asdict(measured) for name, measured in r.items()} for r in rounds]
    settings = {"jobs": options.jobs, "seconds": options.seconds}
    keep(options.json, {**settings, "workflows": figures, "rounds": each})


if __name__ == "__main__":
    main()
