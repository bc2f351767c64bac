"""Measure time and peak memory of a quantized training step, relative to full precision.

Steps are those of the package's trainings (its optimizer, CGA and tracker, blocks compiled, on a
GPU captured as CUDA graphs). Each case runs in its own process, which reports its peak memory; all
are timed in turn, round after round, so that the ratios don't depend on the machine's speed.

    python benchmarks/step.py [--model deit_tiny_patch16_224] [--depth BLOCKS] [--batch 8]
                              [--rounds 8] [--threads 2] [--precision fp32] [--device cpu]
                              [--jobs 1] [--table components] [--json FILE]

`--table techniques` measures each technique against oscillation over LSQ, not compiled.
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
from ofq.config import Training
from ofq.quantization import Technique, make_technique
from ofq.quantization.techniques.base import techniques
from ofq.training.data.source import Batch, Data
from ofq.training.distributed import SingleProcess, seed_everything
from ofq.training.models import build
from ofq.training.objective import Classification, Distillation
from ofq.training.teacher import Teacher
from ofq.training.trainer import GraphedTrainer, Session, Trainer

TRAINING = Training(epochs=1, batch_size=8, lr=1e-5, weight_decay=0.05)


@dataclass(frozen=True)
class Case:
    """Components of a training step; at W2A2, except for full precision."""

    quantizer: str | None = None
    qkr: bool = False
    cga: bool = False
    tracked: bool = False
    taught: bool = False
    compiled: bool = True
    technique: str | None = None


COMPONENTS = {
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

OPTIONS: dict[str, dict[str, float]] = {
    "bin_regularization": {"start": 0.0},  # from the first step on
    "dampening": {"strength": 1e-3},
    "transition_rate": {"target": 0.002, "adaptation": 0.01},
    "weight_average": {"decay": 0.99},
}
"""Options of techniques that need some, or would do nothing at the start."""

TECHNIQUES = {
    "LSQ, not compiled": Case("lsq", compiled=False),
    **{name: Case("lsq", compiled=False, technique=name) for name in sorted(techniques)},
}
CASES = COMPONENTS | TECHNIQUES

TEACHER = "the teacher's answer alone"
WARM_UP = 3
PER_ROUND = {"cpu": 1, "cuda": 10}


def training_step(options: argparse.Namespace, case: Case) -> Callable[[], object]:
    """Return a function that makes one training step."""
    device = torch.device(options.device)
    seed_everything(0)
    args = {"depth": options.depth} if options.depth else {}
    model: nn.Module = build(options.model, 1000, args=args).to(device)
    images = torch.randn(options.batch, 3, 224, 224, device=device)
    labels = torch.randint(0, 1000, (options.batch,), device=device)
    objective = Distillation(make_teacher(options)) if case.taught else Classification()
    if case.quantizer:
        model = ofq.quantize(model, 2, 2, case.quantizer, case.qkr)
        ofq.calibrate(model, images)
    used: list[Technique] = [ofq.ConfidenceGuidedAnnealing(model)] if case.cga else []
    if case.technique:
        used.append(make_technique(case.technique, model, OPTIONS.get(case.technique, {})))
    kind = GraphedTrainer if case.compiled and device.type == "cuda" else Trainer
    trainer = kind(
        model.train(),
        Data(images, labels, images, labels, classes=1000, seed=0),
        objective,
        used,
        TRAINING.model_copy(
            update={"batch_size": options.batch, "precision": options.precision, "epochs": 100_000}
        ),
        Session(group=SingleProcess(device)),
        compiled=case.compiled,
        tracked=case.tracked,
    )
    return lambda: trainer.train_step(Batch(images, labels))


def make_teacher(options: argparse.Namespace) -> Teacher:
    """Return a teacher as trainings have it, of the student's architecture and precision."""
    device = torch.device(options.device)
    model = build(options.model, 1000).to(device)
    return Teacher(model, options.precision, captured=options.device == "cuda")


def teacher_step(options: argparse.Namespace) -> Callable[[], object]:
    """Return a function that computes teacher logits once."""
    teacher = make_teacher(options)
    images = torch.randn(options.batch, 3, 224, 224, device=options.device)
    return lambda: teacher.logits(images)


def serve(options: argparse.Namespace) -> None:
    """Print the peak memory of a case's first steps, then the seconds of a step per line read."""
    torch.set_num_threads(options.threads)
    run = (
        teacher_step(options)
        if options.case == TEACHER
        else training_step(options, CASES[options.case])
    )
    for _ in range(WARM_UP):
        run()
    wait_for(options.device)
    print(own_peak(options.device), flush=True)
    count = PER_ROUND[options.device]
    for _ in sys.stdin:
        began = time.perf_counter()
        for _ in range(count):
            run()
        wait_for(options.device)
        print((time.perf_counter() - began) / count, flush=True)


def wait_for(device: str) -> None:
    """Wait until a device has finished all of its work."""
    if device == "cuda":
        torch.cuda.synchronize()


def own_peak(device: str) -> float:
    """Return this process's peak memory in GB: resident (without its parent's), or the GPU's."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    status = Path("/proc/self/status").read_text()
    kilobytes = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return int(kilobytes) / 1e6


class Server:
    """Process of one case (:func:`serve`)."""

    def __init__(self, options: argparse.Namespace, case: str) -> None:
        command = [sys.executable, __file__, "--case", case]
        for name in ("model", "depth", "batch", "threads", "precision", "device"):
            command += [f"--{name}", str(getattr(options, name))]
        self.group = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def number(self) -> float:
        """Return the next number that the process prints."""
        assert self.group.stdout is not None
        return float(self.group.stdout.readline())

    def seconds(self) -> float:
        """Return the seconds of one more step."""
        assert self.group.stdin is not None
        print("step", file=self.group.stdin, flush=True)
        return self.number()

    def end(self) -> None:
        """Close the process's input, and wait for its end."""
        self.group.communicate()


def measured(options: argparse.Namespace) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Return the seconds of each case's steps, timed in turn, and its peak memory in GB."""
    servers: dict[str, Server] = {}
    memory: dict[str, float] = {}
    cases = [*TECHNIQUES] if options.table == "techniques" else [*COMPONENTS, TEACHER]
    for first in range(0, len(cases), options.jobs):
        starting = cases[first : first + options.jobs]
        servers |= {case: Server(options, case) for case in starting}
        memory |= {case: servers[case].number() for case in starting}
    times: dict[str, list[float]] = {case: [] for case in cases}
    for _ in range(options.rounds):
        for case, server in servers.items():
            times[case].append(server.seconds())
    for server in servers.values():
        server.end()
    return times, memory


def report(
    options: argparse.Namespace, times: dict[str, list[float]], memory: dict[str, float]
) -> None:
    """Print ratios to full precision, or to LSQ: medians over the ratios of each round.

    On a GPU the former are to compiled full precision, which is much faster there than uncompiled.
    """
    base = "full precision" if options.device == "cpu" else "full precision, compiled"
    base = "LSQ, not compiled" if options.table == "techniques" else base
    figures = {}
    print(
        f"{options.model}, {options.depth or 'all'} blocks, batch {options.batch}, "
        f"{options.device}, {options.threads} threads, W2A2, {options.precision}"
    )
    print(f"{'case':<30}{'ms':>9}{'ratio':>8}{'memory GB':>11}{'ratio':>8}")
    for case, own in times.items():
        ratio = statistics.median(a / b for a, b in zip(own, times[base], strict=True))
        figures[case] = {"time_ratio": round(ratio, 3)}
        line = f"{case:<30}{1000 * statistics.median(own):>9.1f}{ratio:>8.2f}"
        if case in CASES:
            share = memory[case] / memory[base]
            figures[case]["memory_ratio"] = round(share, 3)
            line += f"{memory[case]:>11.2f}{share:>8.2f}"
        print(line)
    settings = {
        key: getattr(options, key) for key in ("model", "depth", "batch", "precision", "rounds")
    }
    keep(options.json, {**settings, "device": options.device, "base": base, "cases": figures})


def main() -> None:
    """Print the table, and save the figures if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="deit_tiny_patch16_224")
    parser.add_argument("--depth", type=int, default=0, help="number of blocks; 0 for the model's")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="fp32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--jobs", type=int, default=1, help="cases that are prepared at once")
    parser.add_argument("--table", choices=["components", "techniques"], default="components")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument("--case", choices=[*CASES, TEACHER], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        serve(options)
    else:
        report(options, *measured(options))


if __name__ == "__main__":
    main()
