"""Measure the effect of tracking on training, which should only be a bounded wait at the end.

One short training on digits is run by `ofq train` with tracking off, with a server that accepts
connections but never responds, and with SQLite, in turn within one run. The comparison covers the
time to the first step, the median step, the time from the first step to the last (evaluations and
records included), and the time from the last step to the end of the process.

    python benchmarks/tracking.py [--rounds 5] [--epochs 15] [--json FILE]
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from machine import keep

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("start", "step", "training", "end")

CONFIG = {
    "config.yaml": "studies: [short]\n",
    "methods/lsq.yaml": "lsq: {label: LSQ, weight_quantizer: lsq}\n",
    "recipes/short.yaml": """
dataset: digits
models: [micro_deit_patch2_8]
stages:
  fp: {epochs: EPOCHS, batch_size: 32, lr: 2.0e-3}
  qat: {epochs: 1, batch_size: 32, lr: 1.0e-3}
""",
    "studies/short.yaml": """
title: Short
description: For the benchmark.
recipe: short
models: [micro_deit_patch2_8]
bits: [W2A2]
methods: [lsq]
seeds: [0]
figures: [accuracy]
""",
}

TRAINER = """
import json, sys, time
from ofq.cli import main
from ofq.runs.recorder import Recorder

times, step = [], Recorder.step

def timed(self, number):
    times.append(time.monotonic())
    step(self, number)

Recorder.step = timed
try:
    main()
finally:
    with open("times.json", "w") as file:
        json.dump(times, file)
"""


def train(folder: Path, epochs: int, uri: str | None) -> dict[str, float]:
    """Return the seconds of one training, by part.

    Args:
        folder: Working folder.
        epochs: Number of epochs.
        uri: Tracking URI; None for no tracking, empty for SQLite.
    """
    from ofq.config import Workspace

    for name, text in CONFIG.items():
        path = folder / "config" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("EPOCHS", str(epochs)))
    run = next(iter(Workspace(folder).grid("short").runs()))
    tracked = ["--no-track"] if uri is None else []
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": uri or ""}
    began = time.monotonic()
    subprocess.run(
        [sys.executable, "-c", TRAINER, "train", run, *tracked],
        cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    ended = time.monotonic()
    times = json.loads((folder / "times.json").read_text())
    return {
        "start": times[0] - began,
        "step": statistics.median(after - before for before, after in pairwise(times)),
        "training": times[-1] - times[0],
        "end": ended - times[-1],
    }


def compare(rounds: int, epochs: int) -> dict[str, list[dict[str, float]]]:
    """Return the times of all ways of tracking, measured in turn."""
    with socket.socket() as hung:
        hung.bind(("127.0.0.1", 0))
        hung.listen(64)
        ways = {"off": None, "hung": f"http://127.0.0.1:{hung.getsockname()[1]}", "sqlite": ""}
        times: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, uri in ways.items():
                with tempfile.TemporaryDirectory() as name:
                    times[way].append(train(Path(name), epochs, uri))
                shown = "   ".join(f"{p} {times[way][-1][p]:8.4f} s" for p in PARTS)
                print(f"{way:<7} {shown}", flush=True)
    return times


def main() -> None:
    """Print times and ratios, and save them if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    options = parser.parse_args()
    times = compare(options.rounds, options.epochs)
    figures = {}
    for way, rounds in times.items():
        medians = {part: statistics.median(r[part] for r in rounds) for part in PARTS}
        ratios = {
            part: statistics.median(
                r[part] / off[part] for r, off in zip(rounds, times["off"], strict=True)
            )
            for part in PARTS
        }
        figures[way] = {"seconds": medians, "over_off": ratios}
        shown = "   ".join(f"{part} x {ratios[part]:.2f}" for part in PARTS)
        print(f"median ratio to off, {way:<7} {shown}")
    keep(options.json, {"rounds": options.rounds, "tracking": figures})


if __name__ == "__main__":
    main()
