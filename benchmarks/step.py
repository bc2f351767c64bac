"""What quantization costs: a training step and its peak memory, beside full precision.

All cases are timed in turn, round after round, within one run, so that the ratios hold on a machine
of any speed. Each case's peak memory is measured in a process of its own.

    python benchmarks/step.py [--model deit_tiny_patch16_224] [--batch 8] [--rounds 6] [--threads 2]
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import ofq
from ofq.training.models import build

CASES: dict[str, dict[str, Any]] = {
    "full precision": {},
    "StatsQ": {"weight_quantizer": "statsq"},
    "StatsQ + QKR": {"weight_quantizer": "statsq", "qkr": True},
    "StatsQ + QKR + CGA": {"weight_quantizer": "statsq", "qkr": True, "cga": True},
    "StatsQ + QKR, tracked": {"weight_quantizer": "statsq", "qkr": True, "tracked": True},
    "LSQ": {"weight_quantizer": "lsq"},
}


def make_step(model_name: str, batch: int, options: dict[str, Any]) -> Callable[[], None]:
    """A function that makes one training step, student only, at W2A2."""
    torch.manual_seed(0)
    model: nn.Module = build(model_name, 1000)
    images = torch.randn(batch, 3, 224, 224)
    labels = torch.randint(0, 1000, (batch,))
    if options:
        qkr = options.get("qkr", False)
        model = ofq.quantize(model, 2, 2, options["weight_quantizer"], qkr)
        ofq.calibrate(model, images)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.05)
    annealing = ofq.ConfidenceGuidedAnnealing(model) if options.get("cga") else None
    tracker = ofq.OscillationTracker(model) if options.get("tracked") else None

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(model(images), labels).backward()
        if annealing is None:
            optimizer.step()
        else:
            annealing.step(optimizer)
        if tracker is not None:
            tracker.update()

    return step


def peak_memory(arguments: argparse.Namespace, case: str) -> float:
    """Peak resident memory of three steps of a case, in GB, in a process of its own."""
    command = [sys.executable, __file__, "--memory-of", case, "--model", arguments.model]
    command += ["--batch", str(arguments.batch), "--threads", str(arguments.threads)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def own_peak() -> float:
    """Peak resident memory of this process in GB; unlike ru_maxrss, without its parent's."""
    status = Path("/proc/self/status").read_text()
    kilobytes = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return int(kilobytes) / 1e6


def main() -> None:
    """Print the table, and the figures as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="deit_tiny_patch16_224")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", help="write the figures to this file too")
    parser.add_argument("--memory-of", choices=CASES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        step = make_step(arguments.model, arguments.batch, CASES[arguments.memory_of])
        for _ in range(3):
            step()
        print(own_peak())
        return
    steps = {case: make_step(arguments.model, arguments.batch, o) for case, o in CASES.items()}
    times: dict[str, list[float]] = {case: [] for case in CASES}
    for round_number in range(arguments.rounds + 1):
        for case, step in steps.items():
            began = time.perf_counter()
            step()
            if round_number:
                times[case].append(time.perf_counter() - began)
    report(arguments, times, {case: peak_memory(arguments, case) for case in CASES})


def report(
    arguments: argparse.Namespace, times: dict[str, list[float]], memory: dict[str, float]
) -> None:
    """Print ratios to full precision: medians over rounds, each round's ratio taken by itself."""
    base = times["full precision"]
    figures = {}
    print(f"{arguments.model}, batch {arguments.batch}, {arguments.threads} threads, W2A2, fp32")
    print(f"{'case':<24}{'seconds':>9}{'ratio':>8}{'memory GB':>11}{'ratio':>8}")
    for case, own in times.items():
        ratio = statistics.median(a / b for a, b in zip(own, base, strict=True))
        share = memory[case] / memory["full precision"]
        seconds = statistics.median(own)
        figures[case] = {"time_ratio": round(ratio, 3), "memory_ratio": round(share, 3)}
        print(f"{case:<24}{seconds:>9.3f}{ratio:>8.2f}{memory[case]:>11.2f}{share:>8.2f}")
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(figures, file, indent=2)


if __name__ == "__main__":
    main()
