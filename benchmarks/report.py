"""Measure time and memory of `ofq report` on synthetic studies, by the number of runs.

A study has four bit-widths and four methods, and as many seeds as make up the runs; each run has
the records of four epochs of a model with four blocks. The figures are those of the study `main`.

    python benchmarks/report.py [--runs 100 1000 10000] [--json FILE]
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from growth import exponent
from machine import keep

from ofq.config import Run, Workspace
from ofq.runs.folder import REPORTED

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.support import synthetic  # noqa: E402

BITS = ["W2A2", "W3A3", "W4A4", "W8A8"]
METHODS = synthetic.STUDY["methods"]
PER_SEED = 1 + len(BITS) * len(METHODS)
GOAL = {"runs": 10_000, "seconds": 30, "gigabytes": 2, "exponent": 1}


@dataclass(frozen=True)
class Cost:
    """Cost of one report.

    Attributes:
        runs: Number of runs that it is made from.
        seconds: Run time of the command.
        gigabytes: Peak of resident memory.
    """

    runs: int
    seconds: float
    gigabytes: float


def fill(workspace: Workspace) -> int:
    """Write the run folders, and return their number.

    The first seed's folders are written as by a trainer; the others get copies of their tables,
    and results of their own.
    """
    first: dict[tuple[object, ...], Path] = {}
    runs = workspace.grid("small").runs().values()
    for run in runs:
        config = run.config
        kind = (config.stage, config.bits, tuple(config.parts()))
        if kind in first:
            _copy(first[kind], workspace, run)
        else:
            first[kind] = synthetic.write_run(workspace, run, synthetic.default_top1(run)).path
    return len(runs)


def _copy(source: Path, workspace: Workspace, run: Run) -> None:
    folder = workspace.results / "runs" / run.id
    folder.mkdir(parents=True)
    for name in REPORTED:
        if (source / name).exists():
            shutil.copyfile(source / name, folder / name)
    marks = synthetic.right(run)
    np.save(folder / "correct.npy", np.packbits(marks))
    result = json.loads((source / "result.json").read_text())
    result |= {"id": run.id, "top1": synthetic.default_top1(run), "correct": int(marks.sum())}
    (folder / "result.json").write_text(json.dumps(result))
    synthetic.vouch(folder)


def measure(folder: Path, runs: int) -> Cost:
    """Make a study of about the given number of runs, and measure its report."""
    seeds = list(range(round(runs / PER_SEED)))
    figures = Workspace(ROOT).study("main").figures
    workspace = synthetic.make_workspace(folder, bits=BITS, seeds=seeds, figures=figures)
    count = fill(workspace)
    began = time.perf_counter()
    command = [sys.executable, "-m", "ofq", "report", "small"]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    if status != 0:
        raise SystemExit(f"ofq report failed with {runs} runs")
    return Cost(count, seconds, usage.ru_maxrss / 1024**2)


def main() -> None:
    """Print the costs and their growth, and save them if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, nargs="+", default=[100, 1_000, 10_000])
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    options = parser.parse_args()
    costs = []
    for runs in options.runs:
        with tempfile.TemporaryDirectory() as name:
            costs.append(measure(Path(name), runs))
        print("{runs:6} runs   {seconds:6.1f} s   {gigabytes:5.2f} GB".format(**asdict(costs[-1])))
    growth = exponent([c.runs for c in costs], [c.seconds for c in costs])
    print(f"growth exponent {growth:.2f}")
    print("goal: {runs} runs in {seconds} s and {gigabytes} GB, exponent {exponent}".format(**GOAL))
    figures = {"costs": [asdict(cost) for cost in costs], "exponent": growth, "goal": GOAL}
    keep(options.json, figures)


if __name__ == "__main__":
    main()
