"""What quantization costs: a training step and its peak memory, beside full precision.

Steps are those of the package's trainings (its optimizer, annealing and tracker, blocks compiled).
All cases are timed in turn, round after round, within one run, so that the ratios hold on a machine
of any speed. Each case's peak memory is measured in a process of its own.

    python benchmarks/step.py [--model deit_tiny_patch16_224] [--batch 8] [--rounds 8] [--threads 2]
                              [--precision fp32] [--device cpu] [--json FILE]
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from machine import keep
from torch import nn

import ofq
from ofq.study import Training
from ofq.training.compiling import compile_blocks
from ofq.training.devices import seed_everything
from ofq.training.models import build
from ofq.training.optimization import make_optimizer
from ofq.training.precision import casting
from ofq.training.teacher import Teacher

TRAINING = Training(epochs=1, batch_size=8, lr=1e-5, weight_decay=0.05)


@dataclass(frozen=True)
class Case:
    """What a step consists of; at W2A2, but for full precision."""

    quantizer: str | None = None
    qkr: bool = False
    cga: bool = False
    tracked: bool = False
    taught: bool = False
    compiled: bool = True


CASES = {
    "full precision": Case(compiled=False),
    "full precision, compiled": Case(),
    "StatsQ": Case("statsq"),
    "StatsQ + QKR": Case("statsq", qkr=True),
    "StatsQ + QKR + CGA": Case("statsq", qkr=True, cga=True),
    "StatsQ + QKR + CGA, tracked": Case("statsq", qkr=True, cga=True, tracked=True),
    "the same, taught": Case("statsq", qkr=True, cga=True, tracked=True, taught=True),
    "LSQ": Case("lsq"),
    "StatsQ, not compiled": Case("statsq", compiled=False),
    "StatsQ + QKR, not compiled": Case("statsq", qkr=True, compiled=False),
}


def make_step(options: argparse.Namespace, case: Case) -> Callable[[], None]:
    """A function that makes one training step."""
    device = torch.device(options.device)
    seed_everything(0)
    model: nn.Module = build(options.model, 1000).to(device)
    images = torch.randn(options.batch, 3, 224, 224, device=device)
    labels = torch.randint(0, 1000, (options.batch,), device=device)
    teacher = Teacher(build(options.model, 1000).to(device)) if case.taught else None
    if case.quantizer:
        model = ofq.quantize(model, 2, 2, case.quantizer, case.qkr)
        ofq.calibrate(model, images)
    model.train()
    if case.compiled:
        compile_blocks(model, device)
    optimizer = make_optimizer(model, TRAINING)
    annealing = ofq.ConfidenceGuidedAnnealing(model, compiled=case.compiled) if case.cga else None
    tracker = ofq.OscillationTracker(model, compiled=case.compiled) if case.tracked else None

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with casting(options.precision, device):
            logits = model(images)
        loss = nn.functional.cross_entropy(logits.float(), labels)
        if teacher is not None:
            soft = teacher.answer(images).softmax(-1)
            loss = loss + nn.functional.cross_entropy(logits.float(), soft)
        loss.backward()
        if annealing is not None:
            annealing.step(optimizer)
        else:
            optimizer.step()
        if tracker is not None:
            tracker.update()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def make_answer(options: argparse.Namespace) -> Callable[[], None]:
    """A function that lets a teacher answer once."""
    device = torch.device(options.device)
    teacher = Teacher(build(options.model, 1000).to(device))
    images = torch.randn(options.batch, 3, 224, 224, device=device)

    def answer() -> None:
        teacher.answer(images)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return answer


def peak_memory(options: argparse.Namespace, case: str) -> float:
    """Peak memory of three steps of a case in GB, in a process of its own."""
    command = [sys.executable, __file__, "--memory-of", case]
    for name in ("model", "batch", "threads", "precision", "device"):
        command += [f"--{name}", str(getattr(options, name))]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.splitlines()[-1])


def own_peak(device: str) -> float:
    """Peak memory of this process in GB: resident (without its parent's), or the GPU's."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    status = Path("/proc/self/status").read_text()
    kilobytes = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return int(kilobytes) / 1e6


def timed(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each step, taken in turn; the first two rounds compile and warm up."""
    times: dict[str, list[float]] = {case: [] for case in steps}
    for number in range(rounds + 2):
        for case, step in steps.items():
            began = time.perf_counter()
            step()
            if number > 1:
                times[case].append(time.perf_counter() - began)
    return times


def report(
    options: argparse.Namespace, times: dict[str, list[float]], memory: dict[str, float]
) -> None:
    """Print ratios to full precision: medians over rounds, each round's ratio taken by itself."""
    base = times["full precision"]
    figures = {}
    print(
        f"{options.model}, batch {options.batch}, {options.device}, {options.threads} threads, "
        f"W2A2, {options.precision}"
    )
    print(f"{'case':<30}{'seconds':>9}{'ratio':>8}{'memory GB':>11}{'ratio':>8}")
    for case, own in times.items():
        ratio = statistics.median(a / b for a, b in zip(own, base, strict=True))
        figures[case] = {"time_ratio": round(ratio, 3)}
        line = f"{case:<30}{statistics.median(own):>9.3f}{ratio:>8.2f}"
        if case in memory:
            share = memory[case] / memory["full precision"]
            figures[case]["memory_ratio"] = round(share, 3)
            line += f"{memory[case]:>11.2f}{share:>8.2f}"
        print(line)
    settings = {key: getattr(options, key) for key in ("model", "batch", "precision", "rounds")}
    keep(options.json, {**settings, "device": options.device, "cases": figures})


def main() -> None:
    """Print the table, and keep the figures if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="deit_tiny_patch16_224")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument("--memory-of", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        step = make_step(options, CASES[options.memory_of])
        for _ in range(3):
            step()
        print(own_peak(options.device))
        return
    steps = {name: make_step(options, case) for name, case in CASES.items()}
    times = timed(steps | {"the teacher's answer alone": make_answer(options)}, options.rounds)
    report(options, times, {case: peak_memory(options, case) for case in CASES})


if __name__ == "__main__":
    main()
