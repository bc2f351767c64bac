"""Runs and cells, and the identity of a run.

A run is identified by its resolved config, its parent's identity included, so equal runs of
different cells and studies are one run, and a changed hyperparameter makes a new one.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from ofq.config.datasets import Dataset
from ofq.config.fields import Stage
from ofq.config.files import Strict
from ofq.config.method import Annealing, CgaConfig, Noise, QatTechnique, Quantization
from ofq.config.stage import Resources, Training

IMAGE_FILES = Dataset(title="Image files")

FORMAT = 1
"""Version of the run format; raised whenever the same config would train to other results."""


@dataclass(frozen=True, kw_only=True)
class _Run:
    """Base class of run configs: everything that decides what a run computes, and no more.

    Attributes:
        dataset, model: Their names.
        seed: Decides initial weights, data order and augmentation.
        data: Config of the data set.
        model_args: Arguments of the model's constructor beside the number of classes.
        model_module: The module of the user's own that registers the model, if one is named.
    """

    stage: ClassVar[Stage]

    dataset: str
    model: str
    seed: int
    data: Dataset = IMAGE_FILES
    model_args: dict[str, bool | int | float | str] = field(default_factory=dict)
    model_module: str | None = None

    @property
    def constructor_args(self) -> dict[str, bool | int | float | str]:
        """Arguments of the model's constructor: the recipe's, and the data set's image size."""
        size = {} if self.data.size is None else {"img_size": self.data.size}
        return {**size, **self.model_args}

    @property
    def bits(self) -> str | None:
        """Weight and activation bits; None for full-precision runs."""
        return None

    @property
    def modules(self) -> tuple[str, ...]:
        """Modules of the user's own that register what the run needs."""
        return tuple(dict.fromkeys(filter(None, (self.data.module, self.model_module))))

    def payload(self, *, brief: bool = False) -> dict[str, Any]:
        """Return the config as plain JSON data; if brief, without defaults.

        All kinds of runs have the same keys, those of other kinds at their defaults.
        """
        shared = {"dataset": self.dataset, "model": self.model, "stage": self.stage}
        values = shared | {"seed": self.seed} | _KEYS | vars(self)
        del values["model_module"]
        data = values.pop("data").payload(brief=True)
        if data.get("source") == self.dataset:  # a data set that is its own source
            del data["source"]
        values |= {"data": data} if data else {}
        if not values["model_args"]:
            del values["model_args"]
        techniques = values.pop("techniques", ())
        if len(techniques) == 1:  # has its own key, since run ids date from when there was only one
            values["stabilizer"] = techniques[0]
        elif techniques:
            values["techniques"] = techniques
        plain = {key: _plain(value, brief) for key, value in values.items()}
        if brief:
            absent = {k for k in _KEYS if values[k] == _KEYS[k] and k != "training"}
            plain = {key: value for key, value in plain.items() if key not in absent}
        return {"format": FORMAT, **plain}

    def digest(self) -> str:
        """Return eight hex digits of the SHA-256 of the config's canonical JSON.

        Defaults aren't hashed, so that a new option leaves the ids of old runs unchanged; if a
        default changes its meaning, :data:`FORMAT` must be raised.
        """
        text = json.dumps(self.payload(brief=True), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def parts(self) -> list[str]:
        """Return the parts of the run's method, in the order of its name."""
        return ["fp"]

    def slug(self) -> str:
        """Return the readable part of the run's name, such as ``w2a2-statsq-qkr-s0``."""
        bits = [self.bits.lower()] if self.bits else []
        return "-".join([*bits, *self.parts(), f"s{self.seed}"])


@dataclass(frozen=True, kw_only=True)
class _Quantized(_Run):
    """Base class of runs of a quantized model.

    Attributes:
        quantization: Quantization of the model.
    """

    quantization: Quantization

    @property
    def bits(self) -> str:
        """Weight and activation bits."""
        return self.quantization.bits

    @property
    def modules(self) -> tuple[str, ...]:
        """Modules of the user's own that register what the run needs."""
        named = (self.quantization.module, *super().modules)
        return tuple(dict.fromkeys(filter(None, named)))

    def parts(self) -> list[str]:
        """Return the names of quantizer, QKR and techniques."""
        qkr = self.quantization.qkr
        names = ["qkr"] if qkr is True else [f"qkr_{qkr}"] if qkr else []
        return [self.quantization.weight_quantizer, *names]


@dataclass(frozen=True, kw_only=True)
class FullPrecisionRun(_Run):
    """Training in full precision, from fresh weights."""

    stage: ClassVar[Stage] = "fp"

    training: Training


@dataclass(frozen=True, kw_only=True)
class PretrainedRun(_Run):
    """Evaluation of the pretrained weights that QAT starts from.

    Attributes:
        pretrained: :data:`~ofq.config.schema.HUB`, or a file.
    """

    stage: ClassVar[Stage] = "fp"

    pretrained: str


@dataclass(frozen=True, kw_only=True)
class _QuantizedTraining(_Quantized):
    """Base class of both stages of quantized training.

    Attributes:
        training: Hyperparameters.
        scale_lr: Factor on the learning rate of learned weight scales.
        parent: Hash of the run whose weights it starts from; None if there is none.
        teacher: Hash of the full-precision run that is its teacher; None if there is none.
        pretrained: Weights of its start or its teacher, in place of runs.
    """

    training: Training
    scale_lr: float = 1.0
    parent: str | None = None
    teacher: str | None = None
    pretrained: str | None = None


@dataclass(frozen=True, kw_only=True)
class QatRun(_QuantizedTraining):
    """Quantization-aware training.

    Attributes:
        techniques: Techniques against oscillation, in order.
    """

    stage: ClassVar[Stage] = "qat"

    techniques: tuple[QatTechnique | Annealing, ...] = ()

    def parts(self) -> list[str]:
        """Return the names of quantizer, QKR and techniques."""
        return [*super().parts(), *(technique.form for technique in self.techniques)]


@dataclass(frozen=True, kw_only=True)
class CgaRun(_QuantizedTraining):
    """Training after QAT: CGA, a variant of it, or a control.

    Attributes:
        annealing: The config of CGA, its variant or the control.
    """

    stage: ClassVar[Stage] = "cga"

    annealing: Annealing

    def from_fresh_weights(self) -> QatRun:
        """Return a run of the same steps that needs no other run's weights, to be timed."""
        shared = {field.name: getattr(self, field.name) for field in fields(self)}
        for key in ("annealing", "parent", "teacher", "pretrained"):
            del shared[key]
        return QatRun(**shared, techniques=(self.annealing,))

    def parts(self) -> list[str]:
        """Return the names of quantizer, QKR and CGA."""
        return [*super().parts(), *_annealing_part(self.annealing)]


@dataclass(frozen=True, kw_only=True)
class NoiseRun(_Quantized):
    """Evaluation of a trained model with injected noise.

    Attributes:
        noise: Its settings.
        annealing: CGA config of the run that it evaluates, if it had any.
        parent: Hash of that run.
    """

    stage: ClassVar[Stage] = "noise"

    noise: Noise
    parent: str
    annealing: Annealing | None = None

    def parts(self) -> list[str]:
        """Return the names of quantizer, QKR, CGA and noise."""
        control = "_control" if self.noise.weights == "others" else ""
        noise = f"noise{self.noise.boundary_range:g}{control}"
        return [*super().parts(), *_annealing_part(self.annealing), noise]


@dataclass(frozen=True, kw_only=True)
class ReleasedRun(_Quantized):
    """Evaluation of a checkpoint in the authors' layout.

    Attributes:
        checkpoint: Its file.
    """

    stage: ClassVar[Stage] = "released"

    checkpoint: str


QuantizedTraining = QatRun | CgaRun
TrainedRun = FullPrecisionRun | QatRun | CgaRun
RunConfig = TrainedRun | PretrainedRun | NoiseRun | ReleasedRun

_KEYS: dict[str, Any] = {
    "training": None,
    "quantization": None,
    "scale_lr": 1.0,
    "stabilizer": None,
    "annealing": None,
    "parent": None,
    "teacher": None,
    "pretrained": None,
    "checkpoint": None,
    "noise": None,
}
"""Keys that only some kinds of runs have, with their values in the others."""


def _plain(value: Any, brief: bool) -> Any:
    if isinstance(value, tuple):
        return [_plain(item, brief) for item in value]
    return value.payload(brief=brief) if isinstance(value, Strict) else value


def _annealing_part(annealing: Annealing | None) -> list[str]:
    if isinstance(annealing, CgaConfig):
        released = "_released" if annealing.rule == "as_released" else ""
        return [f"cga{annealing.boundary_range:g}{released}"]
    return [] if annealing is None else [f"cga_{annealing.form}"]


def quantization_of(config: RunConfig) -> Quantization | None:
    """Return the quantization of a run's model; None in full precision."""
    return getattr(config, "quantization", None)


def training_of(config: RunConfig) -> Training | None:
    """Return a run's hyperparameters; None for an evaluation."""
    return config.training if isinstance(config, TrainedRun) else None


@dataclass(frozen=True)
class Run:
    """One job: a training, or an evaluation.

    Attributes:
        config: Its config.
        id: Its folder below ``results/runs``, such as
            ``digits/micro_deit_patch2_8/w2a2-statsq-s0-3f9a1c2b``.
        parent: The run whose weights it starts from.
        teacher: The full-precision run that is its teacher.
        resources: Resources that its job requests.
    """

    config: RunConfig
    id: str
    parent: "Run | None"
    teacher: "Run | None"
    resources: Resources

    def chain(self) -> Iterator["Run"]:
        """Yield the run and all that it builds on, last stage first."""
        yield self
        if self.parent is not None:
            yield from self.parent.chain()

    def needs(self) -> list["Run"]:
        """Return the runs whose weights must exist before this one can start."""
        wanted = (self.parent, self.teacher)
        return list({run.id: run for run in wanted if run is not None}.values())


@dataclass(frozen=True)
class Cell:
    """Cell of a table: a model at given bits under one method, over the seeds.

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
        """Model, bits and method: its position in the study."""
        return self.model, self.bits, self.method


@dataclass(frozen=True)
class Grid:
    """Cells of a study.

    Attributes:
        study: The study's name.
        cells: Full-precision baselines first, then models × bits × methods in the study's order.
    """

    study: str
    cells: tuple[Cell, ...]

    def runs(self) -> dict[str, Run]:
        """Return all runs by id, shared ones once, parents before children."""
        runs: dict[str, Run] = {}
        for cell in self.cells:
            for run in cell.runs:
                for link in reversed(list(run.chain())):
                    runs.setdefault(link.id, link)
        return runs


def describe(run: Run) -> dict[str, Any]:
    """Return the content of a run folder's ``run.json``: the run's identity and its config."""
    return {
        "id": run.id,
        "method": "+".join(run.config.parts()),
        "config": run.config.payload(),
        "parent": run.parent.id if run.parent else None,
        "teacher": run.teacher.id if run.teacher else None,
    }
