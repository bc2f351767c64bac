"""What the files under ``config/`` may say: site, study, recipe and method.

This module imports neither torch nor timm, so that a workflow parses in a moment.
"""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from ofq.study.files import Strict, suggest

TrainedStage = Literal["fp", "qat", "cga"]
Stage = Literal["fp", "qat", "cga", "released"]

WEIGHT_QUANTIZERS = ("lsq", "lsq_statistical", "statsq", "statsq_learned", "statsq_moments")
"""The built-in weight quantizers; a method that names another one also names its ``module``."""

DATASETS = ("digits", "imagenet", "toy_regression")
"""The data sets that a recipe may name."""

EVALUATION_ONLY = ("imagenet",)
"""Those of them on which released checkpoints are evaluated, and nothing is trained yet."""

CLASSIFICATION = ("digits", "imagenet")
"""Those of them whose images have classes."""

HUB = "timm"
"""Stands in a run's config for the pretrained weights that timm's hub has for the model."""

_WEIGHT_FILES = (".safetensors", ".pth", ".pt")

OFF = 32
"""The bit-width that stands for "not quantized"."""

_BITS = re.compile(r"W(\d+)A(\d+)")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


def parse_bits(text: str) -> tuple[int, int]:
    """Split ``W2A4`` into weight bits 2 and activation bits 4 (each 2 to 8, or 32 = off).

    Raises:
        ValueError: Another form, or another bit-width.
    """
    match = _BITS.fullmatch(text)
    if match is None:
        raise ValueError("expected a form like W2A2: weight bits, then activation bits")
    weights, activations = (int(group) for group in match.groups())
    for bits in (weights, activations):
        if bits != OFF and not 2 <= bits <= 8:
            raise ValueError(f"{bits} bits; allowed: 2 to 8, or 32 = not quantized")
    return weights, activations


def _bits(text: str) -> str:
    parse_bits(text)
    return text


def _name(text: str) -> str:
    if not NAME.fullmatch(text):
        raise ValueError("allowed in a name: letters, digits, '_', '-', '.', '+'")
    return text


def _distinct(values: list[Any]) -> list[Any]:
    doubles = sorted({str(v) for v in values if values.count(v) > 1})
    if doubles:
        raise ValueError(f"{', '.join(doubles)} given twice; list each once")
    if not values:
        raise ValueError("empty; list at least one")
    return values


Seed = Annotated[int, Field(ge=0, lt=2**32)]
Bits = Annotated[str, AfterValidator(_bits)]
Name = Annotated[str, AfterValidator(_name)]
Names = Annotated[list[Name], AfterValidator(_distinct)]


class Band(Strict):
    """CGA as the paper has it: only weights near a rounding threshold stay trainable.

    Attributes:
        boundary_range: Half the width of the band around a threshold, in quantization steps.
    """

    form: Literal["band"] = "band"
    boundary_range: Annotated[float, Field(gt=0, lt=0.5)] = 0.005


class Ratio(Strict):
    """CGA in ratio form: by the distances to the nearest and the farthest level.

    Attributes:
        alpha: Factor on the gradients that pass.
        confidence: The ratio itself, or one minus it; docs/methods.md says what each freezes.
    """

    form: Literal["ratio"]
    alpha: Annotated[float, Field(gt=0, le=1)] = 0.9
    confidence: Literal["as_written", "as_intended"] = "as_written"


class Control(Strict):
    """A control beside CGA: all low-bit weights frozen, or none."""

    form: Literal["freeze_all", "no_freeze"]


class Freezing(Strict):
    """Iterative weight freezing during QAT (Nagel et al. 2022), a baseline.

    Attributes:
        start, end: Oscillation frequency above which a weight freezes, annealed by a cosine.
    """

    form: Literal["freezing"]
    start: PositiveFloat = 0.04
    end: PositiveFloat = 0.01


class Dampening(Strict):
    """Oscillation dampening during QAT (Nagel et al. 2022), a baseline.

    Attributes:
        strength: Weight of the penalty at the end, reached from 0 by a cosine.
    """

    form: Literal["dampening"]
    strength: PositiveFloat


def _band_by_default(data: Any) -> Any:
    return {"form": "band", **data} if isinstance(data, dict) else data


Annealing = Annotated[
    Band | Ratio | Control, Field(discriminator="form"), BeforeValidator(_band_by_default)
]
Stabilizer = Annotated[Freezing | Dampening, Field(discriminator="form")]


class Quantization(Strict):
    """How a model is quantized.

    Attributes:
        bits: Of block weights and activations.
        weight_quantizer: How block weights are quantized.
        options: What the quantizer takes beside its bits.
        qkr: Query-key reparameterization: off, merged (True), or in low-rank form.
        ends: Bit-width of patch embedding and heads, weights and activations.
        layers: Other bits for layers whose name in the full-precision model matches a pattern
            (``blocks.0.*``); the last match wins.
        module: A Python module that registers the weight quantizer, for one of the user's own.
    """

    bits: Bits
    weight_quantizer: Name
    options: dict[str, float] = Field(default_factory=dict)
    qkr: bool | Literal["lowrank"] = False
    ends: Bits = "W8A8"
    layers: dict[str, Bits] = Field(default_factory=dict)
    module: str | None = None


class Method(Strict):
    """A named combination of techniques.

    Attributes:
        label: The name that tables and figures print.
        weight_quantizer, options, qkr, ends, layers, module: See :class:`Quantization`.
        scale_lr: Factor on the learning rate of learned weight scales.
        stabilizer: A baseline against oscillation during QAT.
        cga: Settings of the annealing stage after QAT; without it there is no such stage.
        training: Hyperparameters by stage, where the method needs others than the recipe's.
    """

    label: str
    weight_quantizer: Name
    options: dict[str, float] = Field(default_factory=dict)
    qkr: bool | Literal["lowrank"] = False
    ends: Bits = "W8A8"
    layers: dict[str, Bits] = Field(default_factory=dict)
    module: str | None = None
    scale_lr: PositiveFloat = 1.0
    stabilizer: Stabilizer | None = None
    cga: Annealing | None = None
    training: dict[TrainedStage, dict[str, Any]] = Field(default_factory=dict)

    def quantization(self, bits: str) -> Quantization:
        """The method's quantization at some bits."""
        shared = set(Quantization.model_fields) - {"bits"}
        return Quantization(bits=bits, **{name: getattr(self, name) for name in shared})

    @model_validator(mode="after")
    def _parts_are_known(self) -> Self:
        if self.module is None and self.weight_quantizer not in WEIGHT_QUANTIZERS:
            hint = suggest(self.weight_quantizer, list(WEIGHT_QUANTIZERS))
            raise ValueError(
                f"unknown weight_quantizer '{self.weight_quantizer}' ({hint}); "
                "for one of your own, name the Python module that registers it as 'module'"
            )
        for values in self.training.values():
            _check_hyperparameters(values)
        return self


class Training(Strict):
    """Hyperparameters of one stage.

    The learning rate rises linearly from ``warmup_lr`` over ``warmup_epochs``, then falls from
    ``lr`` to ``min_lr`` along a cosine, epoch by epoch; with ``min_lr`` equal to ``lr`` it is
    constant.

    Attributes:
        epochs: Passes over the training set.
        batch_size: Images per optimizer step, over all devices.
        optimizer: AdamW (0.9, 0.999, 1e-8), or plain SGD without momentum.
        lr: Peak learning rate.
        min_lr: Learning rate at the end.
        warmup_epochs: Length of the linear warm-up.
        warmup_lr: Learning rate at its start.
        weight_decay: AdamW's decoupled decay; biases, scales, shifts and embeddings get none.
        distillation: Whether the full-precision parent teaches (soft labels beside hard ones).
        trajectories: Number of weights whose path is recorded at each step (0: none).
    """

    epochs: PositiveInt
    batch_size: PositiveInt
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: PositiveFloat
    min_lr: NonNegativeFloat = 0.0
    warmup_epochs: NonNegativeInt = 0
    warmup_lr: NonNegativeFloat = 1e-6
    weight_decay: NonNegativeFloat = 0.0
    distillation: bool = False
    trajectories: NonNegativeInt = 0

    @model_validator(mode="after")
    def _schedule_is_possible(self) -> Self:
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr {self.min_lr} is above lr {self.lr}")
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs} leaves none of {self.epochs}")
        return self


class Resources(Strict):
    """What one job of a stage asks the scheduler for.

    Attributes:
        threads: CPU cores.
        mem_mb: Memory in megabytes.
        runtime: Minutes.
        gpu: Number of GPUs.
    """

    threads: PositiveInt = 1
    mem_mb: PositiveInt = 2000
    runtime: PositiveInt = 30
    gpu: NonNegativeInt = 0


class Match(Strict):
    """Which runs an override is for; a key left out matches every run."""

    model: str | None = None
    bits: Bits | None = None
    stage: TrainedStage | None = None


class Override(Strict):
    """Hyperparameters that differ for some models, bits or stages; the last match wins."""

    match: Match
    set: dict[str, Any]

    @model_validator(mode="after")
    def _keys_are_hyperparameters(self) -> Self:
        _check_hyperparameters(self.set)
        return self


def _check_hyperparameters(values: dict[str, Any]) -> None:
    known = sorted(Training.model_fields)
    for key in values:
        if key not in known:
            raise ValueError(f"unknown hyperparameter '{key}' ({suggest(key, known)})")


class Contrast(Strict):
    """A comparison that a study is made for.

    Attributes:
        question: What the difference between the two methods answers.
        method, against: Names of two of the study's methods; the difference is the first's number
            minus the second's.
    """

    question: str
    method: Name
    against: Name


class Recipe(Strict):
    """Hyperparameters for a data set and its models, by stage.

    Attributes:
        dataset: The data set.
        models: Names of timm models, or of this package's own.
        stages: Hyperparameters of each stage; none if the recipe's studies only evaluate released
            checkpoints.
        pretrained: Without an ``fp`` stage, the weights that QAT starts from and is taught by:
            in the file, ``true`` for those that timm's hub has for the model (here :data:`HUB`),
            or a local file. Left out, QAT starts from scratch.
        overrides: What differs for some models, bits or stages.
        resources: What a job of each stage asks the scheduler for.
    """

    dataset: str
    models: Names
    stages: dict[TrainedStage, Training] = Field(default_factory=dict)
    pretrained: str | None = None
    overrides: tuple[Override, ...] = ()
    resources: dict[Stage, Resources] = Field(default_factory=dict)

    @field_validator("pretrained", mode="before")
    @classmethod
    def _pretrained_is_a_source(cls, given: Any, info: ValidationInfo) -> str | None:
        if given is None:
            return None
        if "fp" in info.data.get("stages", {}):
            raise ValueError(
                "there is a stage 'fp' already, whose weights QAT starts from; "
                "allowed: one of the two"
            )
        if given is True:
            return HUB
        if not isinstance(given, str) or not given.endswith(_WEIGHT_FILES):
            raise ValueError(
                "allowed: true (timm's weights of the model's name), or a file that ends in "
                + ", ".join(_WEIGHT_FILES)
            )
        return given

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.dataset not in DATASETS:
            raise ValueError(
                f"unknown dataset '{self.dataset}' ({suggest(self.dataset, list(DATASETS))})"
            )
        if self.stages and self.dataset in EVALUATION_ONLY:
            trained = [name for name in DATASETS if name not in EVALUATION_ONLY]
            raise ValueError(
                f"has 'stages' for dataset '{self.dataset}', but training on it isn't offered yet; "
                f"allowed with stages: {', '.join(trained)}; without them, studies of released "
                "checkpoints"
            )
        if self.stages and "qat" not in self.stages:
            raise ValueError("stages lacks 'qat', the stage that every method needs")
        taught = [s for s, t in self.stages.items() if t.distillation]
        if taught and "fp" not in self.stages and self.pretrained is None:
            raise ValueError(
                f"stage '{taught[0]}' distils, but there is no 'fp' stage to teach it, "
                "and no 'pretrained'; allowed: either, or distillation: false"
            )
        return self


class Study(Strict):
    """A grid of cells, with the tables and figures made of it.

    Attributes:
        title: Heading of the report.
        description: What the study asks; opens the report (Markdown-free plain text).
        recipe: Name of the recipe.
        models, bits, methods, seeds: The grid.
        checkpoints: Where given, nothing is trained: a cell's number is that of a file in the
            authors' released layout, by model and bits.
        figures: Names of the report's figures, in order.
        contrasts: The comparisons that the study is made for; left out, each method is compared
            with the one before it and with the first.
        expectations: What is known to hold in this setting, to be set beside what was found.
    """

    title: str
    description: str
    recipe: Name
    models: Names
    bits: Annotated[list[Bits], AfterValidator(_distinct)]
    methods: Names
    seeds: Annotated[list[Seed], AfterValidator(_distinct)]
    figures: Names
    checkpoints: dict[Name, dict[Bits, str]] = Field(default_factory=dict)
    contrasts: tuple[Contrast, ...] = ()
    expectations: tuple[str, ...] = ()


class Site(Strict):
    """``config/config.yaml``: what differs from one machine to the next.

    Attributes:
        studies: What ``snakemake`` builds when it is given no target.
        results: Folder of the run folders and of the embedded MLflow store.
        reports: Folder of the reports.
        tracking_uri: MLflow's store; left out, an SQLite file in ``results``.
        data: Folders of data sets that don't come with the package.
    """

    studies: Names
    results: str = "results"
    reports: str = "reports"
    tracking_uri: str | None = None
    data: dict[Literal["imagenet"], str] = Field(default_factory=dict)
