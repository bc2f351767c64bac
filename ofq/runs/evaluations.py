"""Runs that only evaluate existing weights; they are recorded like trainings."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ofq.config import Run, Workspace
from ofq.config.run import NoiseRun, PretrainedRun, ReleasedRun, training_of
from ofq.runs import inputs
from ofq.runs.attempt import Attempt
from ofq.runs.recorder import note_unreadable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from ofq.training.distributed import SingleProcess
    from ofq.training.evaluation import LabelledImages
    from ofq.training.objective import Evaluation


@dataclass(frozen=True)
class Outcome:
    """Final model and metrics of a run.

    Attributes:
        model: Its model.
        metrics: Its last row of metrics.
        primary: Name of the main metric.
        correct: Whether each evaluation image is classified correctly, (images,); None for a
            regression or injected noise.
        history: The oscillation tracker's history, for a stage that goes on from this run.
    """

    model: "nn.Module"
    metrics: dict[str, Any]
    primary: str
    correct: "NDArray[np.bool_] | None"
    history: "dict[str, Tensor] | None" = None


@dataclass
class _Evaluation:
    """An evaluation in progress: its run, attempt, console and device."""

    workspace: Workspace
    run: Run
    attempt: Attempt
    console: Console
    group: "SingleProcess"
    named: set[str] = field(default_factory=set)

    @cached_property
    def images(self) -> "LabelledImages":
        """Evaluation images, preprocessed as for the training that the run builds on."""
        from ofq.training import evaluation
        from ofq.training.data.images import files_of

        config, parent = self.run.config, self.run.parent
        files = files_of(self.workspace, self.run, self._on_unreadable)
        if files is None:
            return evaluation.in_memory(inputs.arrays(self.workspace, config))
        training = training_of(parent.config) if parent else None
        return evaluation.image_files(
            files,
            config.model,
            training.images if training else None,
            args=config.constructor_args,
            about=config.data,
        )

    def measure(self, model: "nn.Module") -> "Evaluation":
        """Evaluate a model: its measures, and which images it classifies correctly.

        The precision is that of the training that the run builds on.
        """
        from ofq.training import evaluation

        training = training_of(self.run.parent.config) if self.run.parent else None
        return evaluation.evaluate(
            model,
            self.images,
            self.console,
            self.attempt.stop,
            self.group,
            training.precision if training else "fp32",
        )

    def of(self, model: "nn.Module", **facts: Any) -> Outcome:
        """Evaluate a model and record the result."""
        self.attempt.folder.rewind(None)
        self.attempt.folder.event("started", **facts)
        evaluation = self.measure(model)
        metrics = self.record(evaluation.measures, 0)
        return Outcome(model, metrics, "top1", evaluation.correct)

    def record(self, measures: dict[str, float], step: int) -> dict[str, Any]:
        """Record measures as those of epoch 0, before any training."""
        metrics = {"epoch": 0, "step": step, "time": time.time(), **measures}
        self.attempt.folder.append("metrics", [metrics])
        return metrics

    def _on_unreadable(self, name: str) -> None:
        if name not in self.named:
            self.named.add(name)
            note_unreadable(self.attempt, self.console, name)


def _released(task: _Evaluation) -> Outcome:
    """Evaluate a checkpoint in the authors' layout."""
    from ofq.training.importing import import_released

    config = task.run.config
    assert isinstance(config, ReleasedRun)
    path, classes = task.workspace.own_file(config.checkpoint), task.images.classes
    imported = import_released(
        path, config.model, config.quantization, classes, args=config.constructor_args
    )
    dropped = {reason: len(names) for reason, names in imported.reasons().items()}
    return task.of(imported.model, dropped=dropped)


def _pretrained(task: _Evaluation) -> Outcome:
    """Evaluate the full-precision weights that quantized training starts from."""
    from ofq.training.build import full_precision

    config, weights = task.run.config, inputs.pretrained(task.workspace, task.run.config)
    assert isinstance(config, PretrainedRun)
    return task.of(full_precision(config, task.images.classes, weights))


def _noise(task: _Evaluation) -> Outcome:
    """Evaluate a trained model without noise, then with each draw; resume after the last one."""
    from ofq.quantization.noise import NOISES, NoiseInjection
    from ofq.training.build import trained
    from ofq.training.data.augmentation import randomness_of

    config, folder, attempt = task.run.config, task.attempt.folder, task.attempt
    assert isinstance(config, NoiseRun)
    weights, settings = inputs.weights(task.workspace, task.run.parent), config.noise
    assert weights is not None
    model = trained(config, task.images.classes, weights)
    noisy = copy.deepcopy(model)
    noise = NoiseInjection(noisy, settings.boundary_range, NOISES[settings.weights]())
    rows, total = folder.rows("noise"), settings.samples + 1
    if [row.get("step") for row in rows] != list(range(len(rows))):  # some are lost
        folder.rewind(None)
        rows = []
    folder.event("resumed" if rows else "started", step=len(rows), total=total)
    attempt.begin(len(rows), total)
    for step in range(len(rows), total):
        with randomness_of(config.seed, step):
            changed = noise.inject() if step else 0.0
        measures = task.measure(noisy).measures
        rows.append({"step": step, "changed": changed, **measures})
        folder.append("noise", rows[-1:])
        attempt.step(step + 1)
    folder.rewind(total - 1)
    return Outcome(model, task.record(_over_draws(rows), total), "top1", None)


def _over_draws(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return means over the draws, and their comparison with the model without noise."""
    plain, *draws = rows
    better = sum(row["top1"] > plain["top1"] for row in draws)
    return {
        **{key: fmean(row[key] for row in draws) for key in ("top1", "loss", "changed")},
        "images": plain["images"],
        "top1_without": plain["top1"],
        "top1_best": max(row["top1"] for row in draws),
        "better": 100 * better / len(draws),
    }


_KINDS: dict[str, Callable[[_Evaluation], Outcome]] = {
    "released": _released,
    "fp": _pretrained,
    "noise": _noise,
}


def evaluate(
    workspace: Workspace, run: Run, attempt: Attempt, console: Console, group: "SingleProcess"
) -> Outcome:
    """Execute a run that has no training, in its opened folder.

    Args:
        workspace: Holds the run's parents.
        run: The run.
        attempt: The attempt.
        console: Where to show progress.
        group: This process, whose device is used.

    Raises:
        UserError: Something that the run needs is missing or invalid.
        TryAgain: It was interrupted.
    """
    return _KINDS[run.config.stage](_Evaluation(workspace, run, attempt, console, group))
