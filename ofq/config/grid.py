"""Expansion of a study to its cells, and of cells to runs that share their early stages."""

from dataclasses import dataclass, field
from typing import Any

from ofq.config.datasets import Dataset
from ofq.config.factors import differences
from ofq.config.fields import QuantizedStage, TrainedStage
from ofq.config.files import merged, parse, suggest
from ofq.config.method import Method, Quantization
from ofq.config.run import (
    Cell,
    CgaRun,
    FullPrecisionRun,
    Grid,
    NoiseRun,
    PretrainedRun,
    QatRun,
    ReleasedRun,
    Run,
    RunConfig,
    training_of,
)
from ofq.config.runtimes import Minutes
from ofq.config.schema import Recipe, Study
from ofq.config.stage import Resources, Training, check_pairs, split
from ofq.config.tuning import base_of
from ofq.errors import UserError
from ofq.values import OFF, parse_bits


@dataclass(frozen=True)
class Parts:
    """Configs from which a study is expanded.

    Attributes:
        study: Its config.
        recipe: The recipe that it names.
        dataset: The data set that the recipe names.
        methods: All known methods by name.
        runtimes: Measured time limits of its jobs in minutes, which replace the recipe's.
    """

    study: Study
    recipe: Recipe
    dataset: Dataset
    methods: dict[str, Method]
    runtimes: Minutes


@dataclass
class _Builder:
    """Builder of the runs of one recipe, each distinct one once."""

    recipe: Recipe
    dataset: Dataset
    source: str
    checkpoints: dict[str, dict[str, str]]
    runtimes: Minutes
    runs: dict[str, Run] = field(default_factory=dict)
    known: dict[tuple[Any, ...], Training] = field(default_factory=dict)
    quantizations: dict[tuple[Any, ...], Quantization] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def training(
        self, stage: TrainedStage, model: str, bits: str | None, method: Method | None
    ) -> Training:
        """Return a stage's hyperparameters: the recipe's, its overrides, then the method's own."""
        key = (stage, model, bits, id(method))
        if key not in self.known:
            own = method.training.get(stage, {}) if method and stage != "fp" else {}
            self.known[key] = self._resolve(stage, model, bits, own)
        return self.known[key]

    def _resolve(
        self, stage: TrainedStage, model: str, bits: str | None, own: dict[str, Any]
    ) -> Training:
        values = self.recipe.stages[stage].model_dump()
        for override in self.recipe.overrides:
            if override.match.fits(model, bits, stage):
                values = merged(values, override.set)
        values = merged(values, own)
        where = (
            f"{self.source}: stage '{stage}' of {model} at {bits}, by its recipe, the recipe's "
            "overrides and the method's own 'training'"
        )
        training = parse(Training, values, where)
        if training.images is not None and not self.dataset.of_files:
            raise UserError(
                f"{where}: key 'images': data set '{self.recipe.dataset}' comes ready; allowed "
                "for data sets whose source is 'images'"
            )
        return training

    def quantization(self, method: Method, bits: str) -> Quantization:
        key = ("quantization", id(method), bits)
        if key not in self.quantizations:
            self.quantizations[key] = method.quantization(bits)
        return self.quantizations[key]

    def run(self, config: RunConfig, parent: Run | None, teacher: Run | None) -> Run:
        name = f"{config.dataset}/{config.model}/{config.slug()}-{config.digest()}"
        if name not in self.runs:
            resources = self.recipe.asked(config.stage)
            minutes = self.runtimes.get(config.model, {}).get(config.stage)
            if minutes is not None:
                resources = resources.model_copy(update={"runtime": minutes})
            self._check_devices(config, resources)
            self.runs[name] = Run(config, name, parent, teacher, resources)
        return self.runs[name]

    def _check_devices(self, config: RunConfig, resources: Resources) -> None:
        devices = max(1, resources.gpu)
        where = f"recipe of {self.source}: key 'resources.{config.stage}.gpu'"
        training = training_of(config)
        try:
            if training is not None:
                check_pairs(training, split(training.batch_size, devices, resources.device_batch))
            elif devices > 1:
                raise UserError(f"an evaluation takes one device, not {devices}")
        except UserError as error:  # all of them are told at once
            self.problems.append(f"{where}: {config.model}: {error}")

    def fp(self, model: str, seed: int) -> Run | None:
        if "fp" not in self.recipe.stages:
            return None
        training = self.training("fp", model, None, None)
        config = FullPrecisionRun(**self._shared(model, seed), training=training)
        return self.run(config, None, None)

    def baseline(self, model: str, seeds: list[int]) -> list[Run]:
        """Return the runs of the full-precision cell: trained, or evaluated pretrained weights.

        The list is empty if the recipe has neither, or with released checkpoints. Where all seeds
        share one evaluation set, one evaluation is enough.
        """
        if self.checkpoints:
            return []
        if "fp" in self.recipe.stages:
            return [run for seed in seeds if (run := self.fp(model, seed))]
        if self.recipe.pretrained is None:
            return []
        weights = self.recipe.pretrained
        configs = [
            PretrainedRun(**self._shared(model, seed), pretrained=weights)
            for seed in (seeds if self.dataset.splits_anew else seeds[:1])
        ]
        return [self.run(config, None, None) for config in configs]

    def _shared(self, model: str, seed: int) -> dict[str, Any]:
        """Return the fields that all kinds of run configs share."""
        return {
            "dataset": self.recipe.dataset,
            "model": model,
            "seed": seed,
            "data": self.dataset,
            "model_args": self.recipe.model_args,
            "model_module": self.recipe.module,
        }

    def last(self, model: str, bits: str, method: Method, seed: int) -> Run:
        """Return the last run of a cell's chain, or that of a released checkpoint."""
        if self.checkpoints:
            return self._released(model, bits, method, seed)
        fp = self.fp(model, seed)
        last = self._stage("qat", model, bits, method, fp, fp, seed=seed)
        if method.cga is not None:
            last = self._stage("cga", model, bits, method, last, fp, seed=seed)
        return last if method.noise is None else self._noise(method, last)

    def _noise(self, method: Method, trained: Run) -> Run:
        config, noise = trained.config, method.noise
        assert isinstance(config, QatRun | CgaRun)
        assert noise is not None
        noisy = NoiseRun(
            **self._shared(config.model, config.seed),
            quantization=config.quantization,
            annealing=method.cga,
            parent=config.digest(),
            noise=noise,
        )
        return self.run(noisy, trained, None)

    def _stage(
        self,
        stage: QuantizedStage,
        model: str,
        bits: str,
        method: Method,
        parent: Run | None,
        fp: Run | None,
        *,
        seed: int,
    ) -> Run:
        training = self.training(stage, model, bits, method)
        teacher = fp if training.distillation else None
        if training.distillation and fp is None and self.recipe.pretrained is None:
            raise UserError(
                f"recipe of {self.source}: stage '{stage}' of {model} at {bits} distils, but there "
                "is neither a stage 'fp' nor 'pretrained' for its teacher"
            )
        shared: dict[str, Any] = {
            **self._shared(model, seed),
            "training": training,
            "quantization": self.quantization(method, bits),
            "scale_lr": method.scale_lr,
            "parent": parent.config.digest() if parent else None,
            "teacher": teacher.config.digest() if teacher else None,
            "pretrained": self.recipe.pretrained,
        }
        if stage == "qat":
            return self.run(QatRun(**shared, techniques=method.techniques), parent, teacher)
        assert method.cga is not None
        return self.run(CgaRun(**shared, annealing=method.cga), parent, teacher)

    def _released(self, model: str, bits: str, method: Method, seed: int) -> Run:
        config = ReleasedRun(
            **self._shared(model, seed),
            quantization=self.quantization(method, bits),
            checkpoint=self.checkpoints[model][bits],
        )
        return self.run(config, None, None)


def expand(name: str, parts: Parts, source: str) -> Grid:
    """Expand a study into its cells.

    Args:
        name: The study's name.
        parts: The configs from which it is expanded.
        source: The study's file, for errors.

    Raises:
        UserError: The study names something that its recipe or the methods lack, or asks for a
            cell that can't exist.
    """
    study, recipe, methods = parts.study, parts.recipe, parts.methods
    _check(parts, source)
    builder = _Builder(recipe, parts.dataset, source, study.checkpoints, parts.runtimes)
    cells = [
        Cell(recipe.dataset, model, "FP", "fp", "Full precision", tuple(found))
        for model in study.models
        if (found := builder.baseline(model, study.seeds))
    ]
    for model in study.models:
        for bits in study.bits:
            for key in study.methods:
                if bits not in study.bits_of(key):
                    continue
                method = methods[key]
                runs = tuple(builder.last(model, bits, method, s) for s in study.seeds)
                cells.append(Cell(recipe.dataset, model, bits, key, method.label, runs))
    if builder.problems:
        raise UserError("\n".join(dict.fromkeys(builder.problems)))
    return Grid(name, tuple(cells))


def _check(parts: Parts, source: str) -> None:
    study, recipe, methods = parts.study, parts.recipe, parts.methods
    problems = [
        f"key 'methods': unknown method '{m}' ({suggest(m, sorted(methods))})"
        for m in dict.fromkeys(map(base_of, study.methods))
        if m not in methods
    ]
    if study.tune and parts.dataset.held_out is None:
        problems.append(
            f"key 'tune': data set '{recipe.dataset}' is evaluated on its test set, by which "
            "nothing may be chosen; allowed: as key 'dataset', one with 'held_out' images"
        )
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
    problems += [
        f"key 'baselines': '{m}' is not among the study's methods ({suggest(m, study.methods)})"
        for m in study.baselines
        if m not in study.methods
    ]
    problems += _alone_problems(study, methods)
    problems += (_checkpoint_problems if study.checkpoints else _stage_problems)(parts)
    if problems:
        raise UserError("\n".join(f"{source}: {problem}" for problem in problems))


def _alone_problems(study: Study, methods: dict[str, Method]) -> list[str]:
    """Return the contrasts whose methods don't differ in exactly the one declared factor."""
    problems = []
    for number, contrast in enumerate(study.contrasts):
        pair = (contrast.method, contrast.against)
        if contrast.alone is None or not all(m in methods and m in study.methods for m in pair):
            continue
        for bits in study.bits_of(pair[0]):
            if bits not in study.bits_of(pair[1]):
                continue
            found = differences(methods[contrast.method], methods[contrast.against], bits)
            if list(found) != [contrast.alone]:
                problems.append(
                    f"key 'contrasts.{number}.alone' is '{contrast.alone}', but at {bits} "
                    f"'{pair[0]}' and '{pair[1]}' differ in "
                    f"{' and '.join(found.values()) or 'nothing'}; "
                    f"allowed: two methods that differ in {contrast.alone} and nothing else"
                )
                break
    return problems


def _checkpoint_problems(parts: Parts) -> list[str]:
    """Return the mistakes in a study of released checkpoints."""
    study, recipe = parts.study, parts.recipe
    available = {(model, bits) for model, paths in study.checkpoints.items() for bits in paths}
    wanted = {(model, bits) for model in study.models for bits in study.bits}
    problems = [
        f"key 'checkpoints.{model}.{bits}' is missing: give the file of this cell"
        for model, bits in sorted(wanted - available)
    ]
    problems += [
        f"key 'checkpoints.{model}.{bits}': the study has no such cell "
        f"(models: {', '.join(study.models)}; bits: {', '.join(study.bits)})"
        for model, bits in sorted(available - wanted)
    ]
    if len(study.methods) > 1:
        problems.append(
            f"key 'methods': {', '.join(study.methods)}; with 'checkpoints' allowed: one, that of "
            "the files"
        )
    if study.figures != ["accuracy"]:
        problems.append(
            "key 'figures': with 'checkpoints', which have no training records, allowed: accuracy"
        )
    if parts.dataset.task != "classification":
        problems.append(
            f"key 'checkpoints': recipe '{study.recipe}' is for dataset '{recipe.dataset}', a "
            f"{parts.dataset.task}; allowed: a classification"
        )
    return problems


def _stage_problems(parts: Parts) -> list[str]:
    """Return the mismatches between a study's methods and the stages that they need."""
    study, recipe, methods = parts.study, parts.recipe, parts.methods
    if not recipe.stages:
        return [
            f"key 'recipe': recipe '{study.recipe}' has no stages to train; give 'checkpoints', "
            "or name another recipe"
        ]
    problems = []
    noisy = [m for m in study.methods if m in methods and methods[m].noise]
    if noisy and parts.dataset.task != "classification":
        problems.append(
            f"key 'methods': '{noisy[0]}' injects noise, but recipe '{study.recipe}' is for "
            f"dataset '{recipe.dataset}', a {parts.dataset.task}; allowed: a classification"
        )
    with_cga = [m for m in study.methods if m in methods and methods[m].cga]
    if with_cga and "cga" not in recipe.stages:
        problems.append(
            f"key 'methods': '{with_cga[0]}' ends with CGA, but recipe '{study.recipe}' has no "
            f"stage 'cga' (it has: {', '.join(recipe.stages)})"
        )
    affected = [
        m for m in study.methods if m in with_cga or (m in methods and methods[m].techniques)
    ]
    problems += [
        f"key 'bits': at {bits} there are no quantized weights for '{affected[0]}' to "
        "act on; give weight bits of 2 to 8, or leave the method out"
        for bits in study.bits
        if affected and parse_bits(bits)[0] == OFF
    ]
    return problems
