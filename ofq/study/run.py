"""Runs and cells: what they are, and how a run gets its name.

A run is identified by its resolved config, its parent's identity included, so equal runs of
different cells and studies are one run, and a changed hyperparameter makes a new one.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ofq.study.fields import Stage
from ofq.study.files import Strict
from ofq.study.method import Annealing, Band, Noise, Quantization, Stabilizer
from ofq.study.stage import Resources, Training

FORMAT = 1
"""Raised whenever the same config would train to other numbers, which makes every run new."""


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides what a run computes; nothing that doesn't.

    ``quantization`` is None for full-precision runs; ``stabilizer`` is set in stage ``qat`` only,
    ``annealing`` in stage ``cga`` and after it, ``noise`` in stage ``noise`` only; ``parent`` and
    ``teacher`` are hashes of other runs. ``pretrained`` is :data:`~ofq.study.config.HUB` or a
    file; ``checkpoint`` is a file in the authors' layout, set in stage ``released`` only. What has
    no ``training`` is an evaluation.
    """

    dataset: str
    model: str
    stage: Stage
    seed: int
    training: Training | None
    quantization: Quantization | None = None
    scale_lr: float = 1.0
    stabilizer: Stabilizer | None = None
    annealing: Annealing | None = None
    parent: str | None = None
    teacher: str | None = None
    pretrained: str | None = None
    checkpoint: str | None = None
    noise: Noise | None = None

    @property
    def bits(self) -> str | None:
        """Weight and activation bits; None for full-precision runs."""
        return self.quantization.bits if self.quantization else None

    @property
    def module(self) -> str | None:
        """The module of the user's own that registers the weight quantizer, if one does."""
        return self.quantization.module if self.quantization else None

    def payload(self, *, brief: bool = False) -> dict[str, Any]:
        """The config as plain JSON data; if brief, without what is at its default."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        plain = {
            key: value.payload(brief=brief) if isinstance(value, Strict) else value
            for key, value in values.items()
        }
        if brief:
            fields = self.__dataclass_fields__
            plain = {k: v for k, v in plain.items() if values[k] != fields[k].default}
        return {"format": FORMAT, **plain}

    def digest(self) -> str:
        """Eight hex digits of the SHA-256 of the config's canonical JSON.

        What is at its default isn't hashed, so that a new option leaves old runs their names; if
        a default changes its meaning, :data:`FORMAT` must be raised.
        """
        text = json.dumps(self.payload(brief=True), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def techniques(self) -> list[str]:
        """Names of the techniques, in the order in which methods' names have them."""
        if self.quantization is None:
            return ["fp"]
        quantization, qkr = self.quantization, self.quantization.qkr
        names = [quantization.weight_quantizer]
        names += ["qkr"] if qkr is True else [f"qkr_{qkr}"] if qkr else []
        names += [self.stabilizer.form] if self.stabilizer else []
        if isinstance(self.annealing, Band):
            released = "_released" if self.annealing.rule == "as_released" else ""
            names.append(f"cga{self.annealing.boundary_range:g}{released}")
        elif self.annealing is not None:
            names.append(f"cga_{self.annealing.form}")
        if self.noise is not None:
            control = "_control" if self.noise.weights == "others" else ""
            names.append(f"noise{self.noise.boundary_range:g}{control}")
        return names

    def slug(self) -> str:
        """The part of the run's name that people read, such as ``w2a2-statsq-qkr-s0``."""
        bits = [self.bits.lower()] if self.bits else []
        return "-".join([*bits, *self.techniques(), f"s{self.seed}"])


@dataclass(frozen=True)
class Run:
    """One job: a training, or an evaluation.

    Attributes:
        config: What it computes.
        id: Its folder below ``results/runs``, such as
            ``digits/micro_deit_patch2_8/w2a2-statsq-s0-3f9a1c2b``.
        parent: The run whose weights it starts from.
        teacher: The full-precision run that teaches it.
        resources: What its job asks the scheduler for.
    """

    config: RunConfig
    id: str
    parent: "Run | None"
    teacher: "Run | None"
    resources: Resources

    def chain(self) -> Iterator["Run"]:
        """The run and all that it builds on, last stage first."""
        yield self
        if self.parent is not None:
            yield from self.parent.chain()

    def needs(self) -> list["Run"]:
        """The runs whose weights must exist before this one can start."""
        wanted = (self.parent, self.teacher)
        return list({run.id: run for run in wanted if run is not None}.values())


@dataclass(frozen=True)
class Cell:
    """One number of a table: a model at some bits under some method, over the seeds.

    For the full-precision baseline ``bits`` is ``FP`` and ``method`` is ``fp``.
    """

    dataset: str
    model: str
    bits: str
    method: str
    label: str
    runs: tuple[Run, ...]

    @property
    def place(self) -> tuple[str, str, str]:
        """Model, bits and method: where it stands in its study."""
        return self.model, self.bits, self.method


@dataclass(frozen=True)
class Grid:
    """A study's cells.

    Attributes:
        study: The study's name.
        cells: Full-precision baselines first, then models × bits × methods in the study's order.
    """

    study: str
    cells: tuple[Cell, ...]

    def runs(self) -> dict[str, Run]:
        """All runs by id, shared ones once, parents before children."""
        found: dict[str, Run] = {}
        for cell in self.cells:
            for run in cell.runs:
                for link in reversed(list(run.chain())):
                    found.setdefault(link.id, link)
        return found


def describe(run: Run) -> dict[str, Any]:
    """What a run folder's ``run.json`` holds: the run's identity and its whole config."""
    return {
        "id": run.id,
        "method": "+".join(run.config.techniques()),
        "config": run.config.payload(),
        "parent": run.parent.id if run.parent else None,
        "teacher": run.teacher.id if run.teacher else None,
    }
