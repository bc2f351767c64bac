"""Trainings of the tiny study's runs, in pieces if wanted, and how their ends compare."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import ofq
from ofq.config import ProbeConfig, Workspace
from ofq.quantization import low_bit_weights
from ofq.stopping import Interrupted, StopRequest
from ofq.training.build import Inputs, build
from ofq.training.checkpoint import CheckpointStore
from ofq.training.distributed import SINGLE_PROCESS, SingleProcess
from ofq.training.trainer import Session
from ofq.training.weights import save_weights

RECORDING = ProbeConfig(weights=6, sample=16, histograms=2, activations=2)


class Recorder:
    """Keeps what training reports; asks it to stop after some step."""

    def __init__(self, stop: StopRequest, stop_after: int | None = None):
        self.rows, self.layers, self.began = [], [], []
        self.saves, self.warnings, self.tables = [], [], {}
        self.stop, self.stop_after = stop, stop_after

    def begin(self, done, total, recorded):
        self.began.append(done)
        self.rows = [row for row in self.rows if row["step"] <= recorded]
        self.layers = [row for row in self.layers if row["step"] <= recorded]
        self.tables = {
            table: [row for row in rows if row["step"] <= recorded]
            for table, rows in self.tables.items()
        }

    def step(self, step):
        if step == self.stop_after:
            self.stop.cause = "SIGTERM"

    def epoch(self, metrics, layers):
        self.rows.append(metrics)
        self.layers += layers

    def recorded(self, table, rows):
        self.tables.setdefault(table, []).extend(rows)

    def saved(self, step):
        self.saves.append(step)

    def warn(self, text):
        self.warnings.append(text)


class Trainings:
    """Trains stages of the tiny study with all that they build on.

    Args:
        checkout: The study's workspace.
        folder: Where checkpoints and weights go.
        process: What computes.
        recorder: Who hears of each training.
        **settings: Hyperparameters that differ from the study's.
    """

    def __init__(
        self,
        checkout: Path,
        folder: Path,
        group: SingleProcess = SINGLE_PROCESS,
        recorder: type[Recorder] = Recorder,
        **settings: object,
    ):
        self.grid = Workspace(checkout).grid("tiny")
        self.folder, self.group, self.settings = folder, group, settings
        self.recorder = recorder
        self.weights: dict[str, Path] = {}
        self.number = itertools.count()

    def __call__(
        self,
        part: str,
        stops: Sequence[int] = (),
        folder: str = "whole",
        recording: ProbeConfig = RECORDING,
        later: ProbeConfig | None = None,
        compiled: bool = False,
    ) -> tuple[Recorder, Path]:
        """Train the run whose name has a part, stopped after some steps and gone on with."""
        found = next(run for name, run in self.grid.runs().items() if part in name)
        for needed in found.needs():
            if needed.id not in self.weights:
                parent = f"parent{next(self.number)}"
                self.weights[needed.id] = self(needed.id, folder=parent)[1]
        paths = [None if r is None else self.weights[r.id] for r in (found.parent, found.teacher)]
        recorder = self.recorder(StopRequest())
        checkpoints = CheckpointStore(self.folder / folder)
        trainer = None
        for stop_after in [*stops, None]:
            recorder.stop.cause, recorder.stop_after = None, stop_after
            wanted = later if later and trainer else recording
            training = found.config.training.model_copy(update={"probes": wanted, **self.settings})
            session = Session(recorder, checkpoints, recorder.stop, group=self.group)
            config = replace(found.config, training=training)
            trainer = build(config, Inputs(*paths), session, compiled=compiled)
            try:
                trainer.run()
            except Interrupted:
                assert trainer.step == stop_after
        path = self.folder / f"{folder}.safetensors"
        save_weights(trainer.model, path)
        return recorder, path


def annealed(model: nn.Module, compiled: bool) -> tuple[list[Tensor], ofq.OscillationTracker]:
    """What four steps by random gradients under CGA leave, and the tracker that saw them."""
    torch.manual_seed(1)
    tracker = ofq.OscillationTracker(model)
    annealing = ofq.ConfidenceGuidedAnnealing(model, 0.1)
    if compiled:
        ofq.compile(model, tracker, annealing)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(4):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        annealing.step(optimizer)
        tracker.update()
    codes = [w.quantizer.codes(w.latent()) for w in low_bit_weights(model)]
    return [*model.parameters(), *tracker.state_dict().values(), *codes], tracker


def without_times(rows):
    return [{key: value for key, value in row.items() if key != "time"} for row in rows]


def same_weights(one: Path, other: Path) -> bool:
    a, b = load_file(one), load_file(other)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
