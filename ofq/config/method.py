"""Methods: weight quantization, techniques against oscillation during QAT, and CGA."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from ofq.config.fields import Bits, Line, Name, QuantizedStage
from ofq.config.files import Strict, renamed, suggest
from ofq.config.plugins import with_module
from ofq.config.stage import hyperparameters
from ofq.registry import built_in_names

WEIGHT_QUANTIZERS = built_in_names("register_weight_quantizer", "quantization/quantizers")
"""Built-in weight quantizers; a method that names another one also names its ``module``."""

ACTIVATION_QUANTIZERS = built_in_names("register_activation_quantizer", "quantization/quantizers")
"""Built-in activation quantizers."""


class _Technique(Strict):
    """Base class of technique configs: the form, and the technique's options as further keys.

    Attributes:
        needs_model: Whether only its construction for the model shows whether it is possible.
    """

    needs_model: ClassVar[bool] = False

    form: str

    @property
    def technique(self) -> str:
        """Name under which the technique is registered."""
        return self.form

    def options(self) -> dict[str, Any]:
        """Return the technique's arguments beside the model."""
        return self.model_dump(exclude={"form"})


class CgaConfig(_Technique):
    """CGA: only weights within the boundary range of a rounding threshold stay trainable.

    Attributes:
        boundary_range: Half the width of the range around a threshold, in quantization steps.
        rule: Weights that CGA covers: all, as the paper has it, or those that the released code
            reaches; docs/methods.md says what differs.
    """

    form: Literal["band"] = "band"
    boundary_range: Annotated[float, Field(gt=0, lt=0.5)] = 0.005
    rule: Literal["as_paper", "as_released"] = "as_paper"

    @property
    def technique(self) -> str:
        """Name of the technique: ``cga``."""
        return "cga"


class CgaRatioConfig(_Technique):
    """CGA in ratio form: confidence by the distances to the nearest and the farthest level.

    Attributes:
        alpha: Factor on the gradients that pass.
        confidence: The ratio itself, or one minus it; docs/methods.md says what each freezes.
    """

    needs_model: ClassVar[bool] = True  # not every weight quantizer goes with it

    form: Literal["ratio"]
    alpha: Annotated[float, Field(gt=0, le=1)] = 0.9
    confidence: Literal["as_written", "as_intended"] = "as_written"

    @property
    def technique(self) -> str:
        """Name of the technique: ``cga_ratio``."""
        return "cga_ratio"


class CgaControlConfig(_Technique):
    """Control for CGA: all low-bit weights frozen, or none."""

    form: Literal["freeze_all", "no_freeze"]


class Freezing(_Technique):
    """Iterative weight freezing during QAT (Nagel et al. 2022), a baseline.

    Attributes:
        start, end: Oscillation frequency above which a weight freezes, at the start and the end of
            a cosine schedule.
        momentum: Of the oscillation frequency and of the average code.
        begin: Share of the training after which the schedule begins; nothing is frozen before.
    """

    needs_model: ClassVar[bool] = True  # not every weight quantizer goes with it

    form: Literal["freezing"]
    start: PositiveFloat = 0.04
    end: PositiveFloat = 0.01
    momentum: Annotated[float, Field(gt=0, le=1)] = 0.01
    begin: Annotated[float, Field(ge=0, lt=1)] = 0.0


class Dampening(_Technique):
    """Oscillation dampening during QAT (Nagel et al. 2022), a baseline.

    Attributes:
        strength: Weight of the penalty at the end, reached from 0 by a cosine.
        aggregation: Sum over a layer's weights, or over its rows of each row's mean.
        begin: Share of the training after which the weight rises.
    """

    needs_model: ClassVar[bool] = True  # not every weight quantizer goes with it

    form: Literal["dampening"]
    strength: PositiveFloat
    aggregation: Literal["sum", "kernel_mean"] = "sum"
    begin: Annotated[float, Field(ge=0, lt=1)] = 0.0


class BatchNormReestimation(_Technique):
    """Re-estimation of batch norm's statistics before each evaluation (Nagel et al. 2022).

    Attributes:
        batches: Number of training batches that the statistics are computed from.
    """

    needs_model: ClassVar[bool] = True

    form: Literal["bn_reestimation"]
    batches: PositiveInt = 50


class OwnTechnique(_Technique):
    """Technique by its registered name, built in or the user's own; its options are further keys.

    They are checked when the technique is constructed, before anything is trained.
    """

    needs_model: ClassVar[bool] = True

    model_config = ConfigDict(extra="allow")

    form: Name

    @model_validator(mode="after")
    def _options_are_plain(self) -> Self:
        for name, value in (self.model_extra or {}).items():
            if not isinstance(value, bool | int | float | str):
                raise ValueError(f"{name}: {value!r}; allowed: a number, a text, true or false")
        return self


class Noise(Strict):
    """Noise injection after training: oscillating weights get other codes, drawn several times.

    Attributes:
        boundary_range: Distance from a threshold within which a weight counts as oscillating, in
            quantization steps.
        samples: Number of draws, each evaluated.
        weights: Weights that get noise: those that oscillate, or, as a control, as many others.
    """

    boundary_range: Annotated[float, Field(gt=0, lt=0.5)] = 0.005
    samples: PositiveInt = 20
    weights: Literal["oscillating", "others"] = "oscillating"


def _technique(data: Any, built_in: dict[str, type[_Technique]], default: str | None) -> Any:
    """Parse a technique's config by its form."""
    if data is None or isinstance(data, _Technique):
        return data
    if not isinstance(data, dict):
        raise ValueError("expected a mapping of a technique's form and options")
    form = data.get("form", default)
    if form is None:
        raise ValueError(f"key 'form' is missing; allowed: {', '.join(built_in)}")
    return built_in.get(form, OwnTechnique).model_validate({**data, "form": form})


def _annealing(data: Any) -> Any:
    return _technique(data, ANNEALINGS, default="band")


def _qat_technique(data: Any) -> Any:
    return _technique(data, QAT_TECHNIQUES, default=None)


ANNEALINGS: dict[str, type[_Technique]] = {
    "band": CgaConfig,
    "ratio": CgaRatioConfig,
    "freeze_all": CgaControlConfig,
    "no_freeze": CgaControlConfig,
}
QAT_TECHNIQUES: dict[str, type[_Technique]] = {
    "freezing": Freezing,
    "dampening": Dampening,
    "bn_reestimation": BatchNormReestimation,
}
TECHNIQUES = tuple(
    name
    for name in built_in_names("register_technique", "quantization/techniques")
    if name not in {"cga", "cga_ratio", *ANNEALINGS, *QAT_TECHNIQUES}
)
"""Built-in techniques that are named and checked as a user's own are, in either stage."""

BUILT_IN = {*WEIGHT_QUANTIZERS, *ACTIVATION_QUANTIZERS, *ANNEALINGS, *QAT_TECHNIQUES, *TECHNIQUES}
"""Names of all built-in parts that a method may name."""

Annealing = Annotated[
    CgaConfig | CgaRatioConfig | CgaControlConfig | OwnTechnique, BeforeValidator(_annealing)
]
QatTechnique = Annotated[
    Freezing | Dampening | BatchNormReestimation | OwnTechnique, BeforeValidator(_qat_technique)
]


class _QuantizationKeys(Strict):
    """Quantization settings of a method, without the bits."""

    older: ClassVar[dict[str, str]] = {"ends": "first_last"}

    weight_quantizer: Name
    options: dict[str, float | str] = Field(default_factory=dict)
    activation_quantizer: Name = "lsq"
    activation_options: dict[str, float] = Field(default_factory=dict)
    qkr: Literal[False, True, "lowrank"] = False
    first_last: Bits = "W8A8"
    layers: dict[str, Bits] = Field(default_factory=dict)
    module: str | None = None


class Quantization(_QuantizationKeys):
    """Quantization of a model.

    Attributes:
        bits: Bit-widths of block weights and activations.
        weight_quantizer: Quantizer of block weights.
        options: Arguments of the weight quantizer beside its bits.
        activation_quantizer: Quantizer of block activations.
        activation_options: Arguments of the activation quantizer beside its bits.
        qkr: Query-key reparameterization: off, merged (True), or in low-rank form.
        first_last: Bit-width of first and last layers (patch embedding and heads), weights and
            activations.
        layers: Other bits for layers whose name in the full-precision model matches a pattern
            (``blocks.0.*``); the last match wins.
        module: A Python module that registers quantizers or techniques of the user's own.
    """

    bits: Bits

    def payload(self, *, brief: bool) -> dict[str, Any]:
        """Return the keys that affect results, by their older names, which run ids hash."""
        names = {new: old for old, new in self.older.items()}
        return renamed(super().payload(brief=brief), names)


class Tuned(Strict):
    """How an option's value was chosen, which ``ofq tune`` writes.

    Attributes:
        study: The study that tried the values.
        value: The chosen value.
        measure: The measure that decided, ``top1`` or ``loss``, on held-out training images.
        tried: Its mean over seeds, by value.
        runs: Number of runs behind these means.
        date: Day of the last of them, in UTC.
        commits: Commits that they were made by.
    """

    study: Name
    value: bool | int | float | str
    measure: Literal["top1", "loss"]
    tried: dict[str, float]
    runs: PositiveInt
    date: str
    commits: list[str]


class Method(_QuantizationKeys):
    """Named combination of techniques; has the attributes of :class:`Quantization` as well.

    Attributes:
        label: The name that tables and figures print.
        scale_lr: Factor on the learning rate of learned weight scales.
        techniques: Techniques against oscillation during QAT, in order, each by its form: a
            built-in one, or one of the user's own. ``stabilizer``, for a single one, is the older
            name.
        cga: Settings of the CGA stage after QAT; without it there is no such stage.
        noise: Settings of noise injection after the last stage; the method's result is then the
            mean over its draws.
        training: Hyperparameters by stage that differ from the recipe's.
        tuned: How options were chosen, by option; no part of the method.
    """

    label: Line
    scale_lr: PositiveFloat = 1.0
    techniques: tuple[QatTechnique, ...] = ()
    cga: Annealing | None = None
    noise: Noise | None = None
    training: dict[QuantizedStage, Annotated[dict[str, Any], AfterValidator(hyperparameters)]] = (
        Field(default_factory=dict)
    )
    tuned: dict[str, Tuned] = Field(default_factory=dict)

    def quantization(self, bits: str) -> Quantization:
        """Return the method's quantization at given bits."""
        shared = {name: getattr(self, name) for name in _QuantizationKeys.model_fields}
        return Quantization(bits=bits, **shared)

    @model_validator(mode="before")
    @classmethod
    def _stabilizer_is_one_technique(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "stabilizer" not in data:
            return data
        if "techniques" in data:
            raise ValueError("give 'techniques', or 'stabilizer' for a single one; not both")
        rest = {key: value for key, value in data.items() if key != "stabilizer"}
        technique = data["stabilizer"]
        return rest if technique is None else rest | {"techniques": [technique]}

    @model_validator(mode="before")
    @classmethod
    def _module_may_be_a_plugin(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        parts = [data.get("cga"), data.get("stabilizer")]
        parts += data["techniques"] if isinstance(data.get("techniques"), list) else []
        forms = [part.get("form") for part in parts if isinstance(part, dict)]
        names = [data.get("weight_quantizer"), data.get("activation_quantizer"), *forms]
        return with_module(data, names, BUILT_IN)

    @model_validator(mode="after")
    def _parts_are_known(self) -> Self:
        for key, names in (
            ("weight_quantizer", WEIGHT_QUANTIZERS),
            ("activation_quantizer", ACTIVATION_QUANTIZERS),
        ):
            name = getattr(self, key)
            if self.module is None and name not in names:
                raise ValueError(
                    f"unknown {key} '{name}' ({suggest(name, list(names))}); "
                    "for one of your own, name the Python module that registers it as 'module'"
                )
        for key, given, built_in in (
            ("cga", self.cga, ANNEALINGS),
            *(("techniques", technique, QAT_TECHNIQUES) for technique in self.techniques),
        ):
            if not isinstance(given, OwnTechnique) or given.form in TECHNIQUES:
                continue
            if self.module is None:
                known = [*built_in, *TECHNIQUES]
                raise ValueError(
                    f"{key}: unknown form '{given.form}' ({suggest(given.form, known)}); "
                    "for one of your own, name the Python module that registers it as 'module'"
                )
        return self
