"""How much time the suite adds to Snakemake's own: a dry run of a large synthetic study.

The bare workflow has as many jobs and edges, and nothing of this package in its Snakefile. Both are
timed in turn within one run, so that the ratio holds on a machine of any speed.

    python benchmarks/dag.py [--cells 10000] [--rounds 3]
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
METHODS = 4
BITS = ["W2A2", "W3A3", "W4A4", "W8A8"]

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


def build(folder: Path, cells: int) -> None:
    """Lay the suite and the bare workflow of equal size side by side."""
    import json

    from ofq.study import Workspace

    suite, bare = folder / "suite", folder / "bare"
    for name in ("config", "workflow", "profiles"):
        shutil.copytree(ROOT / name, suite / name)
    shutil.copy(ROOT / "Snakefile", suite)
    seeds = ", ".join(str(seed) for seed in range(cells // (METHODS * len(BITS))))
    text = STUDY.format(bits=", ".join(BITS), seeds=seeds)
    (suite / "config/studies/synthetic.yaml").write_text(text)
    grid = Workspace(suite).grid("synthetic")
    number = {run: str(i) for i, run in enumerate(grid.runs())}
    needs = {number[name]: [number[n.id] for n in run.needs()] for name, run in grid.runs().items()}
    last = list(dict.fromkeys(number[run.id] for cell in grid.cells for run in cell.runs))
    shutil.copytree(ROOT / "profiles", bare / "profiles")
    (bare / "Snakefile").write_text(BARE)
    (bare / "jobs.json").write_text(json.dumps({"needs": needs, "last": last}))
    edges = sum(map(len, needs.values())) + 2 * len(last)
    print(f"{sum(len(c.runs) for c in grid.cells)} results, {len(needs)} jobs, {edges} edges")


def dry_run(folder: Path, *target: str) -> float:
    """Seconds of one dry run."""
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "--dry-run", "--quiet", "all"]
    began = time.perf_counter()
    subprocess.run(
        [*command, "--", *target], cwd=folder, check=True, env=os.environ, capture_output=True
    )
    return time.perf_counter() - began


def main() -> None:
    """Print the times and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build(folder, options.cells)
        pairs = [
            (dry_run(folder / "suite", "synthetic"), dry_run(folder / "bare", "all"))
            for _ in range(options.rounds)
        ]
    ratio = statistics.median(ours / bare for ours, bare in pairs)
    for ours, bare in pairs:
        print(f"suite {ours:6.1f} s   bare {bare:6.1f} s   ratio {ours / bare:.2f}")
    print(f"median ratio {ratio:.2f} (goal: at most 1.3)")


if __name__ == "__main__":
    main()
