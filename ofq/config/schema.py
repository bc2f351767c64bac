"""Config models of the site, studies and recipes under ``config/``.

Nothing here imports torch or timm, so that a workflow parses in a moment.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from ofq.config.datasets import Unreadable
from ofq.config.factors import Factor
from ofq.config.fields import (
    Bits,
    Line,
    ModelArgs,
    Name,
    Names,
    Seed,
    Stage,
    Text,
    TrainedStage,
    distinct,
)
from ofq.config.files import Strict, suggest
from ofq.config.plugins import with_module
from ofq.config.stage import Resources, Training, hyperparameters
from ofq.config.tuning import Variant, variants
from ofq.registry import built_in_names

FIGURES = built_in_names("register_figure", "report/figures")
"""Built-in figures that a study may name, which :mod:`ofq.report.figures` draws."""

HUB = "timm"
"""Value in a run's config that stands for the model's pretrained weights on timm's hub."""

Folder = Annotated[str, Field(min_length=1)]

Tried = Annotated[list[bool | int | float | str], AfterValidator(distinct), Field(min_length=2)]
"""Values of an option that a study tries."""

_WEIGHT_FILES = (".safetensors", ".pth", ".pt")


def _listed(given: Any) -> Any:
    return given if given is None or isinstance(given, list) else [given]


def _each_once(given: list[str]) -> list[str]:
    return distinct(given) if given else given


class Match(Strict):
    """Selection of runs by model, bits and stage, each one value or a list.

    A key left out matches every run.
    """

    model: Annotated[list[str] | None, BeforeValidator(_listed)] = None
    bits: Annotated[list[Bits] | None, BeforeValidator(_listed)] = None
    stage: Annotated[list[TrainedStage] | None, BeforeValidator(_listed)] = None

    def fits(self, model: str, bits: str | None, stage: str) -> bool:
        """Return whether a run is selected."""
        pairs = ((self.model, model), (self.bits, bits), (self.stage, stage))
        return all(wanted is None or value in wanted for wanted, value in pairs)


class Override(Strict):
    """Hyperparameters that differ for some models, bits or stages; the last match wins.

    A mapping, such as ``images``, is merged with what it overrides, key by key; null removes it.
    """

    match: Match
    set: Annotated[dict[str, Any], AfterValidator(hyperparameters)]


class Contrast(Strict):
    """Comparison that a study is made for.

    Attributes:
        question: Question that the difference between the two methods answers.
        method, against: Names of two of the study's methods; the difference is the first's number
            minus the second's.
        measure: The measure that answers the question; None for the study's primary one. All
            contrasts of a study, each on its measure, are corrected together.
        alone: The one factor in which the two methods differ; a study is refused if they differ in
            another one, too. Left out, they may differ in any number of factors.
    """

    question: Text
    method: Name
    against: Name
    measure: Literal["top1", "loss", "oscillation_rate_mid", "oscillation_rate_end"] | None = None
    alone: Factor | None = None


class Recipe(Strict):
    """Hyperparameters for a data set and its models, by stage.

    Attributes:
        dataset: Name of the data set: a file of ``config/datasets``, or one that comes with the
            package.
        models: Names of timm models, or of this package's own.
        model_args: Arguments of the models' constructors beside the number of classes, such as
            ``img_size`` and ``patch_size``.
        module: A Python module that registers models of the user's own with timm.
        classes: Number of classes that the data set must have; None for as many as its file says.
        stages: Hyperparameters of each stage; none if the recipe's studies only evaluate released
            checkpoints.
        pretrained: Without an ``fp`` stage, the weights of QAT's start and of its teacher, whose
            evaluation is the full-precision baseline: in the file, ``true`` for those that
            timm's hub has for the model (here :data:`HUB`), or a local file. Left out, QAT starts
            from scratch.
        overrides: Hyperparameters that differ for some models, bits or stages.
        resources: Resources that a job of each stage requests (:meth:`asked`).
    """

    dataset: Name
    models: Names
    model_args: ModelArgs = Field(default_factory=dict)
    module: str | None = None
    classes: PositiveInt | None = None
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

    def asked(self, stage: Stage) -> Resources:
        """Return the resources that a job of a stage requests.

        An evaluation that the recipe doesn't list requests the share of one device of QAT, since
        it reads the same images.
        """
        if stage in self.resources or stage in self.stages or "qat" not in self.resources:
            return self.resources.get(stage, Resources())
        return self.resources["qat"].of_one_device()

    @property
    def short(self) -> bool:
        """Return whether the jobs of all stages are short."""
        stages: set[Stage] = {*self.stages, *self.resources} or {"released"}
        return all(self.asked(stage).short for stage in stages)

    @model_validator(mode="after")
    def _overrides_match_something(self) -> Self:
        for number, override in enumerate(self.overrides):
            match, where = override.match, f"overrides.{number}.match"
            for key, given, allowed in (
                ("model", match.model, self.models),
                ("stage", match.stage, list(self.stages)),
            ):
                for value in given or []:
                    if value not in allowed:
                        hint = suggest(value, [str(name) for name in allowed])
                        raise ValueError(f"{where}: the recipe has no {key} '{value}' ({hint})")
            if match.bits and match.stage == ["fp"]:
                raise ValueError(f"{where}: stage 'fp' has no bits; leave them out")
        return self

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.stages and "qat" not in self.stages:
            raise ValueError("stages lacks 'qat', the stage that every method needs")
        distilling = [s for s, t in self.stages.items() if t.distillation]
        if distilling and "fp" not in self.stages and self.pretrained is None:
            raise ValueError(
                f"stage '{distilling[0]}' distils, but there is no 'fp' stage for its teacher, "
                "and no 'pretrained'; allowed: either, or distillation: false"
            )
        return self


class Study(Strict):
    """Grid of cells, with the tables and figures made of it.

    Attributes:
        title: Heading of the report.
        description: Question of the study, if it has one (Markdown-free plain text).
        extends: Name of the study that gives the keys that this one leaves out.
        recipe: Name of the recipe.
        dataset: Name of the data set; left out, the recipe's.
        models, bits, methods, seeds: The grid.
        tune: Values to try of options of some of the methods, by method and option; each
            combination takes the method's place in the grid. The data set must have held-out
            images, so that no choice is made by the test set.
        only: Methods that are tried at some of the bits, with those bits.
        checkpoints: Files in the authors' released layout, by model and bits, which are evaluated
            in place of training.
        figures: Names of the report's figures, in order, ``accuracy`` if left out; among
            :data:`FIGURES`, or those that ``module`` registers.
        module: A Python module of the user's own that registers figures.
        references: Names of files in ``config/reference``, with which results are compared; the
            first that has a cell counts.
        claims: Names of files in ``config/claims``; the report judges those of their claims for
            which the study has methods and bits.
        contrasts: The comparisons that the study is made for, corrected together; each method is
            compared with the one before it and with the first, too, as exploratory.
        baselines: Methods of the study that the report holds every method against, in one table
            with oscillation and cost.
        factors: For a study whose methods are all combinations of some techniques: each
            technique, and the methods that have it; the report then has main effects and
            interactions, and compares methods that differ in one technique.
        expectations: Known results in this setting, printed beside the study's findings.
    """

    title: Line
    description: Text = ""
    extends: Name | None = None
    recipe: Name
    dataset: Name | None = None
    models: Names
    bits: Annotated[list[Bits], AfterValidator(distinct)]
    methods: Names
    seeds: Annotated[list[Seed], AfterValidator(distinct)]
    tune: dict[Name, Annotated[dict[str, Tried], Field(min_length=1)]] = Field(default_factory=dict)
    only: dict[Name, Annotated[list[Bits], Field(min_length=1)]] = Field(default_factory=dict)
    figures: Names = Field(default_factory=lambda: ["accuracy"])
    module: str | None = None
    checkpoints: dict[Name, dict[Bits, str]] = Field(default_factory=dict)
    references: list[Name] = Field(default_factory=list)
    claims: list[Name] = Field(default_factory=list)
    contrasts: tuple[Contrast, ...] = ()
    baselines: Annotated[list[Name], AfterValidator(_each_once)] = Field(default_factory=list)
    factors: dict[Line, list[Name]] = Field(default_factory=dict)
    expectations: tuple[Text, ...] = ()

    def bits_of(self, method: str) -> list[str]:
        """Return the bits at which a method is tried."""
        only = self.only.get(method, self.bits)
        return [bits for bits in self.bits if bits in only]

    def factors_of(self, method: str) -> frozenset[str]:
        """Return the factors that a method has."""
        return frozenset(f for f, methods in self.factors.items() if method in methods)

    @model_validator(mode="before")
    @classmethod
    def _module_may_be_a_plugin(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        figures = data.get("figures")
        return with_module(data, figures if isinstance(figures, list) else [], FIGURES)

    @model_validator(mode="after")
    def _figures_are_known(self) -> Self:
        unknown = [name for name in self.figures if name not in FIGURES]
        if unknown and self.module is None:
            raise ValueError(
                f"figures: unknown figure '{unknown[0]}' ({suggest(unknown[0], list(FIGURES))}); "
                "for one of your own, name the Python module that registers it as 'module'"
            )
        return self

    @model_validator(mode="after")
    def _tuned_methods_are_in_the_grid(self) -> Self:
        if self.tune and self.factors:
            raise ValueError("tune: a study with 'factors' has each of its methods once")
        for method in self.tune:
            if method not in self.methods:
                raise ValueError(
                    f"tune: unknown method '{method}' ({suggest(method, self.methods)})"
                )
        return self

    @property
    def variants(self) -> dict[str, Variant]:
        """Variants of the methods that it tunes, by their names."""
        return {v.name: v for of_method in variants(self.tune).values() for v in of_method}

    def expanded(self) -> "Study":
        """Return the study with variants in place of the methods that it tunes."""
        names = {base: [v.name for v in tried] for base, tried in variants(self.tune).items()}
        methods = [name for m in self.methods for name in names.get(m, [m])]
        only = {name: bits for m, bits in self.only.items() for name in names.get(m, [m])}
        return self.model_copy(update={"methods": methods, "only": only})

    @model_validator(mode="after")
    def _only_narrows_the_grid(self) -> Self:
        if self.only and self.factors:
            raise ValueError("only: a study with 'factors' has all of its methods at all bits")
        for method, only in self.only.items():
            if method not in self.methods:
                raise ValueError(
                    f"only: unknown method '{method}' ({suggest(method, self.methods)})"
                )
            for bits in only:
                if bits not in self.bits:
                    raise ValueError(
                        f"only.{method}: {bits} is not among the study's bits; allowed: "
                        f"{', '.join(self.bits)}"
                    )
        return self

    @model_validator(mode="after")
    def _factors_make_all_combinations(self) -> Self:
        named = {method for having in self.factors.values() for method in having}
        if unknown := sorted(named - set(self.methods)):
            raise ValueError(f"factors: '{unknown[0]}' is not among the study's methods")
        sets = {self.factors_of(method) for method in self.methods}
        if self.factors and not len(sets) == len(self.methods) == 2 ** len(self.factors):
            raise ValueError(
                f"factors: {len(self.methods)} methods make {len(sets)} combinations; needed: "
                f"each of the {2 ** len(self.factors)} combinations of {', '.join(self.factors)} "
                "once"
            )
        return self


class Site(Strict):
    """Settings of a site, which differ between machines: ``config/config.yaml``.

    Attributes:
        studies: Studies that ``snakemake`` builds when it is given no target.
        results: Folder of the run folders and of the embedded MLflow store.
        reports: Folder of the reports.
        tracking_uri: MLflow's store, without a password; left out, ``MLFLOW_TRACKING_URI``,
            or else an SQLite file in ``results``.
        data: Places of data sets, by name: a folder, ``wds/FOLDER`` or ``hfds/NAME``
            (docs/data.md).
        unreadable: Handling of an image that can't be read: ``fail`` ends the run; ``skip`` trains
            on the next one in its place, and evaluates without it.
        checkpoint_minutes: Time between two checkpoints: the most that a crash can cost.
    """

    studies: Names
    results: Folder = "results"
    reports: Folder = "reports"
    tracking_uri: str | None = None
    data: dict[Name, str] = Field(default_factory=dict)
    unreadable: Unreadable = "fail"
    checkpoint_minutes: PositiveFloat = 2
