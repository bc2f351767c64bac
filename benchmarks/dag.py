"""Measure the suite's overhead in Snakemake dry runs, by the number of jobs.

The bare workflow has as many jobs and edges, and nothing of this package in its Snakefile. Both are
timed in turn within one run, so that the ratio doesn't depend on the machine's speed.

    python benchmarks/dag.py [--jobs 100 1000 10000] [--rounds 3] [--json FILE]
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from growth import exponent
from machine import keep

from ofq.config import Workspace

ROOT = Path(__file__).resolve().parents[1]
METHODS = 4
BITS = ["W2A2", "W3A3", "W4A4", "W8A8"]
PER_SEED = 1 + METHODS * len(BITS)

STUDY = """
title: Synthetic
description: For the benchmark.
recipe: digits
models: [micro_deit_patch2_8]
bits: [{bits}]
methods: [lsq, statsq, statsq+qkr, statsq+qkr+cga]
seeds: [{seeds}]
figures: [accuracy]
"""

BARE = """
import json
with open("jobs.json") as file:
    jobs = json.load(file)

rule all:
    input: [f"out/{{job}}/a" for job in jobs["last"]], "report"
    default_target: True

rule report:
    input: [f"out/{{job}}/a" for job in jobs["last"]]
    output: "report"
    shell: "touch {output}"

rule train:
    input: lambda wildcards: [ancient(f"out/{{n}}/b") for n in jobs["needs"][wildcards.job]]
    output: "out/{job}/a", "out/{job}/b", "out/{job}/c"
    log: "logs/{job}.log"
    threads: lambda wildcards: 1
    resources:
        mem_mb=lambda wildcards: 1500,
        runtime=lambda wildcards: 10,
        gpu=lambda wildcards: 0,
    shell: "touch {output}"
""".replace("{{", "{").replace("}}", "}")


@dataclass(frozen=True)
class Cost:
    """Time of a dry run.

    Attributes:
        jobs, edges: Size of the workflow's graph.
        suite: Seconds of the suite's workflow, median over the rounds.
        ratio: Time relative to the bare workflow, median over the rounds.
    """

    jobs: int
    edges: int
    suite: float
    ratio: float


def build(folder: Path, jobs: int) -> tuple[int, int]:
    """Set up the suite and a bare workflow of equal size; return the numbers of jobs and edges."""
    suite, bare = folder / "suite", folder / "bare"
    for name in ("config", "workflow", "profiles"):
        shutil.copytree(ROOT / name, suite / name)
    shutil.copy(ROOT / "Snakefile", suite)
    seeds = ", ".join(str(seed) for seed in range(round(jobs / PER_SEED)))
    text = STUDY.format(bits=", ".join(BITS), seeds=seeds)
    (suite / "config/studies/synthetic.yaml").write_text(text)
    grid = Workspace(suite).grid("synthetic")
    number = {run: str(i) for i, run in enumerate(grid.runs())}
    needs = {number[name]: [number[n.id] for n in run.needs()] for name, run in grid.runs().items()}
    last = list(dict.fromkeys(number[run.id] for cell in grid.cells for run in cell.runs))
    shutil.copytree(ROOT / "profiles", bare / "profiles")
    (bare / "Snakefile").write_text(BARE)
    (bare / "jobs.json").write_text(json.dumps({"needs": needs, "last": last}))
    return len(needs), sum(map(len, needs.values())) + 2 * len(last)


def dry_run(folder: Path, *target: str) -> float:
    """Return the seconds of one dry run."""
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "--dry-run", "--quiet", "all"]
    began = time.perf_counter()
    subprocess.run(
        [*command, "--", *target], cwd=folder, check=True, env=os.environ, capture_output=True
    )
    return time.perf_counter() - began


def measure(folder: Path, jobs: int, rounds: int) -> Cost:
    """Time both workflows with about the given number of jobs."""
    count, edges = build(folder, jobs)
    pairs = [
        (dry_run(folder / "suite", "synthetic"), dry_run(folder / "bare", "all"))
        for _ in range(rounds)
    ]
    suite = statistics.median(ours for ours, _ in pairs)
    return Cost(count, edges, suite, statistics.median(ours / bare for ours, bare in pairs))


def main() -> None:
    """Print the times, their ratios and their growth, and save them if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, nargs="+", default=[100, 1_000, 10_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    options = parser.parse_args()
    costs = []
    for jobs in options.jobs:
        with tempfile.TemporaryDirectory() as name:
            costs.append(measure(Path(name), jobs, options.rounds))
        template = "{jobs:6} jobs {edges:6} edges   suite {suite:6.1f} s   ratio {ratio:.2f}"
        print(template.format(**asdict(costs[-1])))
    growth = exponent([c.jobs for c in costs], [c.suite for c in costs])
    print(f"growth exponent {growth:.2f}; goal: a ratio of at most 1.3 for the largest")
    keep(options.json, {"costs": [asdict(cost) for cost in costs], "exponent": growth})


if __name__ == "__main__":
    main()
