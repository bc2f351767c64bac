"""Measure the overhead of recording and checkpointing per training step, and of saving checkpoints.

The step is DeiT-T's at W2A2 with StatsQ and QKR, student only. Each step has the check for bad
losses, the timing and the progress record; checkpoints are at the site's default interval, and an
epoch's rows as often here, though an epoch of ImageNet takes longer. Probes of single weights are
those of the recipe `imagenet`, recorded at few of its steps. All are timed in turn within one run.

    python benchmarks/recording.py [--rounds 10] [--threads 2] [--json FILE]
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import keep
from rich.console import Console
from step import Case, training_step
from torch import nn

import ofq
from ofq.config import ProbeConfig
from ofq.config.schema import Site
from ofq.runs.attempt import Attempt, Options
from ofq.runs.folder import RunFolder
from ofq.runs.progress import Lines
from ofq.runs.recorder import Recorder
from ofq.stopping import StopRequest
from ofq.training.checkpoint import CheckpointStore
from ofq.training.checks import LossWatch, first_bad_parameter, zero_variance
from ofq.training.models import build
from ofq.training.pace import Pace
from ofq.training.probes import Probes

EPOCHS, STEPS_PER_EPOCH = 310, 2287  # DeiT-T's QAT by the recipe `imagenet`
STEP = argparse.Namespace(model="deit_tiny_patch16_224", batch=8, device="cpu", precision="fp32")
ROWS = 60  # layers and roles of a DeiT
COLUMNS = 20  # measures of an epoch


def seconds(action: Callable[[], object]) -> float:
    """Return the seconds that an action takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def trained(name: str) -> tuple[nn.Module, dict[str, Any]]:
    """Return a quantized model, and its whole resumable state with AdamW's moments."""
    model = ofq.quantize(build(name, 1000), 2, 2, "statsq", True)
    images = torch.randn(2, 3, 224, 224)
    ofq.calibrate(model, images)
    optimizer = torch.optim.AdamW(model.parameters())
    model(images).sum().backward()
    optimizer.step()
    tracker = ofq.OscillationTracker(model)
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "tracker": tracker.state_dict(),
    }
    return model, state


def plain_write(path: Path, content: bytes) -> None:
    """Write bytes and wait until they are on the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def recordings_of(model: nn.Module) -> Probes:
    """Return the probes of the recipe `imagenet`, prepared for the last step of an epoch."""
    probes = Probes(
        model, ProbeConfig(weights=12, sample=128, histograms=5), EPOCHS, STEPS_PER_EPOCH
    )
    probes.before_step(STEPS_PER_EPOCH - probes.window + 1)
    return probes


def megabytes(probes: Probes) -> float:
    """Return the size of all rows that the probes of a run record, as JSON lines."""
    tables = [probes.take(epoch, epoch * STEPS_PER_EPOCH) for epoch in range(EPOCHS + 1)]
    rows = (row for found in tables for table in found.values() for row in table)
    return sum(len(json.dumps(row)) + 1 for row in rows) / 1e6


def recording(folder: Path, rounds: int) -> tuple[dict[str, float], dict[str, float]]:
    """Return the shares of a DeiT-T step that recording and checkpointing take, in percent.

    Returns:
        The shares, over a whole run; and, for probes of single weights, the share of a step that
        records them, and the size of a run's rows in MB.
    """
    step = training_step(STEP, Case("statsq", qkr=True))
    model, state = trained("deit_tiny_patch16_224")
    run = RunFolder(folder / "run")
    run.make()
    attempt = Attempt(run, StopRequest(), Options())
    recorder = Recorder(attempt, Lines(Console(quiet=True), 1), Console(quiet=True))
    watch, pace = LossWatch(torch.device("cpu")), Pace()
    store = CheckpointStore(run.path / "checkpoint")
    metrics = {"epoch": 1, **{f"measure {i}": i / 7 for i in range(COLUMNS)}}
    layers = [{**metrics, "layer": f"blocks.{i}"} for i in range(ROWS)]
    loss = torch.tensor(1.0)
    probes = recordings_of(model)

    def every_step() -> None:
        with pace.measure("step"):
            watch.observe(loss, 1)
        recorder.step(1)
        pace.fits("step")
        pace.save_due()

    def every_save() -> None:
        watch.first_bad_step()
        first_bad_parameter(model)
        zero_variance(model)
        store.save(1, state)

    def recorded_step() -> None:
        probes.before_step(STEPS_PER_EPOCH)
        probes.after_step(STEPS_PER_EPOCH)

    step()
    times = [
        (
            seconds(step),
            seconds(every_step),
            seconds(every_save),
            seconds(lambda: recorder.epoch(metrics, layers)),
            seconds(recorded_step),
        )
        for _ in range(rounds)
    ]
    whole, each, save, rows, weights = map(statistics.median, zip(*times, strict=True))
    interval = 60 * Site.model_fields["checkpoint_minutes"].default
    return {
        "per step": 100 * each / whole,
        "checkpoints": 100 * save / interval,
        "rows": 100 * rows / interval,
        "single weights": 100 * weights / whole * probes.window / STEPS_PER_EPOCH,
    }, {"percent_of_recorded_step": 100 * weights / whole, "megabytes": megabytes(probes)}


def saving(folder: Path, rounds: int) -> float:
    """Return the time of saving DeiT-S with AdamW's state, relative to a plain write as large."""
    _, state = trained("deit_small_patch16_224")
    store = CheckpointStore(folder / "checkpoint")
    store.save(0, state)
    size = next(store.folder.glob("*.pt")).stat().st_size
    content = os.urandom(size)
    ratios = []
    for number in range(1, rounds + 1):
        plain = seconds(lambda: plain_write(folder / "plain", content))
        saved = seconds(lambda number=number: store.save(number, state))  # type: ignore[misc]
        ratios.append(saved / plain)
    return statistics.median(ratios)


def main() -> None:
    """Print the figures, and save them if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    # in the checkout, since /tmp may be in memory
    with tempfile.TemporaryDirectory(dir=Path(__file__).parents[1]) as name:
        shares, weights = recording(Path(name), options.rounds)
        ratio = saving(Path(name), options.rounds)
    for part, share in shares.items():
        print(f"{part:<14} {share:.3f} % of a DeiT-T step")
    print(f"{'together':<14} {sum(shares.values()):.3f} % (goal: at most 2 %)")
    print(
        f"single weights: {weights['percent_of_recorded_step']:.1f} % of a step that records them, "
        f"{weights['megabytes']:.1f} MB of rows in a run"
    )
    print(f"saving DeiT-S with AdamW's state: {ratio:.2f} x a plain write (goal: at most 2)")
    figures = {
        "percent_of_step": shares,
        "single_weights": weights,
        "save_over_plain_write": ratio,
    }
    keep(options.json, figures)


if __name__ == "__main__":
    main()
