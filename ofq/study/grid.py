"""From a study to its cells, and from cells to runs that share their early stages.

A run is identified by its resolved config, its parent's identity included, so equal runs of
different cells and studies are one run, and a changed hyperparameter makes a new one.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ofq.errors import UserError
from ofq.study.config import (
    CLASSIFICATION,
    OFF,
    Annealing,
    Band,
    Method,
    Quantization,
    Recipe,
    Resources,
    Stabilizer,
    Stage,
    Study,
    TrainedStage,
    Training,
    parse_bits,
)
from ofq.study.files import Strict, parse, suggest

FORMAT = 1
"""Raised whenever the same config would train to other numbers, which makes every run new."""


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides what a run computes; nothing that doesn't.

    ``quantization`` is None for full-precision runs; ``stabilizer`` is set in stage ``qat`` only,
    ``annealing`` in stage ``cga`` only; ``parent`` and ``teacher`` are hashes of other runs.
    ``pretrained`` is :data:`~ofq.study.config.HUB` or a file; ``checkpoint`` is a file in the
    authors' layout, set in stage ``released`` only, which has no ``training``.
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

    @property
    def bits(self) -> str | None:
        """Weight and activation bits; None for full-precision runs."""
        return self.quantization.bits if self.quantization else None

    def payload(self, *, brief: bool = False) -> dict[str, Any]:
        """The config as plain JSON data; if brief, without what is at its default."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        plain = {
            key: value.model_dump(exclude_defaults=brief) if isinstance(value, Strict) else value
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
            names.append(f"cga{self.annealing.boundary_range:g}")
        elif self.annealing is not None:
            names.append(f"cga_{self.annealing.form}")
        return names

    def slug(self) -> str:
        """The part of the run's name that people read, such as ``w2a2-statsq-qkr-s0``."""
        bits = [self.bits.lower()] if self.bits else []
        return "-".join([*bits, *self.techniques(), f"s{self.seed}"])


@dataclass(frozen=True)
class Run:
    """One training job.

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


@dataclass
class _Builder:
    """Makes runs of one recipe, each distinct one once."""

    recipe: Recipe
    source: str
    checkpoints: dict[str, dict[str, str]]
    runs: dict[str, Run] = field(default_factory=dict)
    known: dict[tuple[Any, ...], Training] = field(default_factory=dict)
    quantizations: dict[tuple[Any, ...], Quantization] = field(default_factory=dict)

    def training(
        self, stage: TrainedStage, model: str, bits: str | None, method: Method | None
    ) -> Training:
        """A stage's hyperparameters: the recipe's, its overrides, then the method's own."""
        key = (stage, model, bits, id(method))
        if key not in self.known:
            own = method.training.get(stage, {}) if method else {}
            self.known[key] = self._resolve(stage, model, bits, own)
        return self.known[key]

    def _resolve(
        self, stage: TrainedStage, model: str, bits: str | None, own: dict[str, Any]
    ) -> Training:
        values = self.recipe.stages[stage].model_dump()
        facts = {"stage": stage, "model": model, "bits": bits}
        for override in self.recipe.overrides:
            wanted = override.match.model_dump(exclude_none=True)
            if all(facts[key] == value for key, value in wanted.items()):
                values |= override.set
        values |= own
        where = (
            f"{self.source}: stage '{stage}' of {model} at {bits}, by its recipe, the recipe's "
            "overrides and the method's own 'training'"
        )
        return parse(Training, values, where)

    def quantization(self, method: Method, bits: str) -> Quantization:
        key = ("quantization", id(method), bits)
        if key not in self.quantizations:
            self.quantizations[key] = method.quantization(bits)
        return self.quantizations[key]

    def run(self, config: RunConfig, parent: Run | None, teacher: Run | None) -> Run:
        name = f"{config.dataset}/{config.model}/{config.slug()}-{config.digest()}"
        if name not in self.runs:
            resources = self.recipe.resources.get(config.stage, Resources())
            self.runs[name] = Run(config, name, parent, teacher, resources)
        return self.runs[name]

    def fp(self, model: str, seed: int) -> Run | None:
        if "fp" not in self.recipe.stages:
            return None
        config = RunConfig(
            self.recipe.dataset, model, "fp", seed, self.training("fp", model, None, None)
        )
        return self.run(config, None, None)

    def last(self, model: str, bits: str, method: Method, seed: int) -> Run:
        """The last run of a cell's chain: QAT, or CGA after it; or a released checkpoint's."""
        if self.checkpoints:
            return self._released(model, bits, method, seed)
        fp = self.fp(model, seed)
        qat = self._stage("qat", model, bits, method, seed, fp, fp)
        if method.cga is None:
            return qat
        return self._stage("cga", model, bits, method, seed, qat, fp)

    def _stage(
        self,
        stage: TrainedStage,
        model: str,
        bits: str,
        method: Method,
        seed: int,
        parent: Run | None,
        fp: Run | None,
    ) -> Run:
        training = self.training(stage, model, bits, method)
        teacher = fp if training.distillation else None
        if training.distillation and fp is None and self.recipe.pretrained is None:
            raise UserError(
                f"recipe of {self.source}: stage '{stage}' of {model} at {bits} distils, but there "
                "is neither a stage 'fp' nor 'pretrained' to teach it"
            )
        config = RunConfig(
            dataset=self.recipe.dataset,
            model=model,
            stage=stage,
            seed=seed,
            training=training,
            quantization=self.quantization(method, bits),
            scale_lr=method.scale_lr,
            stabilizer=method.stabilizer if stage == "qat" else None,
            annealing=method.cga if stage == "cga" else None,
            parent=parent.config.digest() if parent else None,
            teacher=teacher.config.digest() if teacher else None,
            pretrained=self.recipe.pretrained,
        )
        return self.run(config, parent, teacher)

    def _released(self, model: str, bits: str, method: Method, seed: int) -> Run:
        config = RunConfig(
            dataset=self.recipe.dataset,
            model=model,
            stage="released",
            seed=seed,
            training=None,
            quantization=self.quantization(method, bits),
            checkpoint=self.checkpoints[model][bits],
        )
        return self.run(config, None, None)


def expand(
    name: str, study: Study, recipe: Recipe, methods: dict[str, Method], source: str
) -> Grid:
    """Expand a study into its cells.

    Args:
        name: The study's name.
        study: Its config.
        recipe: The recipe that it names.
        methods: All known methods by name.
        source: The study's file, for errors.

    Raises:
        UserError: The study names something that its recipe or the methods lack, or asks for a
            cell that can't exist.
    """
    _check(study, recipe, methods, source)
    builder = _Builder(recipe, source, study.checkpoints)
    cells = []
    if "fp" in recipe.stages and not study.checkpoints:
        for model in study.models:
            runs = tuple(run for s in study.seeds if (run := builder.fp(model, s)))
            cells.append(Cell(recipe.dataset, model, "FP", "fp", "Full precision", runs))
    for model in study.models:
        for bits in study.bits:
            for key in study.methods:
                method = methods[key]
                runs = tuple(builder.last(model, bits, method, s) for s in study.seeds)
                cells.append(Cell(recipe.dataset, model, bits, key, method.label, runs))
    return Grid(name, tuple(cells))


def _check(study: Study, recipe: Recipe, methods: dict[str, Method], source: str) -> None:
    problems = [
        f"key 'methods': unknown method '{m}' ({suggest(m, sorted(methods))})"
        for m in study.methods
        if m not in methods
    ]
    problems += [
        f"key 'models': recipe '{study.recipe}' has no model '{m}' ({suggest(m, recipe.models)})"
        for m in study.models
        if m not in recipe.models
    ]
    problems += [
        f"key 'contrasts': '{m}' is not among the study's methods ({suggest(m, study.methods)})"
        for contrast in study.contrasts
        for m in (contrast.method, contrast.against)
        if m not in study.methods
    ]
    problems += (_checkpoint_problems if study.checkpoints else _stage_problems)(
        study, recipe, methods
    )
    if problems:
        raise UserError("\n".join(f"{source}: {problem}" for problem in problems))


def _checkpoint_problems(study: Study, recipe: Recipe, methods: dict[str, Method]) -> list[str]:
    """What is wrong with a study of released checkpoints."""
    given = {(model, bits) for model, paths in study.checkpoints.items() for bits in paths}
    wanted = {(model, bits) for model in study.models for bits in study.bits}
    problems = [
        f"key 'checkpoints.{model}.{bits}' is missing: give the file of this cell"
        for model, bits in sorted(wanted - given)
    ]
    problems += [
        f"key 'checkpoints.{model}.{bits}': the study has no such cell "
        f"(models: {', '.join(study.models)}; bits: {', '.join(study.bits)})"
        for model, bits in sorted(given - wanted)
    ]
    if len(study.methods) > 1:
        problems.append(
            f"key 'methods': {', '.join(study.methods)}; with 'checkpoints' allowed: one, that of "
            "the files"
        )
    if study.figures != ["accuracy"]:
        problems.append(
            "key 'figures': with 'checkpoints', which no training led to, allowed: accuracy"
        )
    if recipe.dataset not in CLASSIFICATION:
        problems.append(
            f"key 'checkpoints': recipe '{study.recipe}' is for dataset '{recipe.dataset}'; "
            f"allowed: {', '.join(CLASSIFICATION)}"
        )
    return problems


def _stage_problems(study: Study, recipe: Recipe, methods: dict[str, Method]) -> list[str]:
    """What is wrong between a study's methods and the stages that they need."""
    if not recipe.stages:
        return [
            f"key 'recipe': recipe '{study.recipe}' has no stages to train; give 'checkpoints', "
            "or name another recipe"
        ]
    problems = []
    annealed = [m for m in study.methods if m in methods and methods[m].cga]
    if annealed and "cga" not in recipe.stages:
        problems.append(
            f"key 'methods': '{annealed[0]}' ends with CGA, but recipe '{study.recipe}' has no "
            f"stage 'cga' (it has: {', '.join(recipe.stages)})"
        )
    held = [m for m in study.methods if m in annealed or (m in methods and methods[m].stabilizer)]
    problems += [
        f"key 'bits': at {bits} there are no quantized weights that '{held[0]}' could "
        "hold; give weight bits of 2 to 8, or leave the method out"
        for bits in study.bits
        if held and parse_bits(bits)[0] == OFF
    ]
    return problems


def describe(run: Run) -> dict[str, Any]:
    """What a run folder's ``run.json`` holds: the run's identity and its whole config."""
    return {
        "id": run.id,
        "method": "+".join(run.config.techniques()),
        "config": run.config.payload(),
        "parent": run.parent.id if run.parent else None,
        "teacher": run.teacher.id if run.teacher else None,
    }
