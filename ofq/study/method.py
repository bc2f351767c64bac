"""Methods: how weights are quantized, what steadies QAT, and how it is annealed."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt, model_validator

from ofq.study.fields import Bits, Line, Name, QuantizedStage
from ofq.study.files import Strict, suggest
from ofq.study.stage import check_hyperparameters

WEIGHT_QUANTIZERS = ("lsq", "lsq_statistical", "statsq", "statsq_learned", "statsq_moments")
"""The built-in weight quantizers; a method that names another one also names its ``module``."""


class Band(Strict):
    """CGA: only weights near a rounding threshold stay trainable.

    Attributes:
        boundary_range: Half the width of the band around a threshold, in quantization steps.
        rule: Which weights are annealed: all, as the paper has it, or those that the released code
            reaches; docs/methods.md says what differs.
    """

    form: Literal["band"] = "band"
    boundary_range: Annotated[float, Field(gt=0, lt=0.5)] = 0.005
    rule: Literal["as_paper", "as_released"] = "as_paper"


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


class Noise(Strict):
    """Noise injection after training: other codes for oscillating weights, drawn several times.

    Attributes:
        boundary_range: How near a threshold a weight counts as oscillating, in quantization steps.
        samples: Number of draws, each evaluated.
        weights: Those that oscillate, or, as a control, as many of the others.
    """

    boundary_range: Annotated[float, Field(gt=0, lt=0.5)] = 0.005
    samples: PositiveInt = 20
    weights: Literal["oscillating", "others"] = "oscillating"


def _band_by_default(data: Any) -> Any:
    return {"form": "band", **data} if isinstance(data, dict) else data


Annealing = Annotated[
    Band | Ratio | Control, Field(discriminator="form"), BeforeValidator(_band_by_default)
]
Stabilizer = Annotated[Freezing | Dampening, Field(discriminator="form")]


class _Techniques(Strict):
    """What a method says of quantization, at any bits."""

    weight_quantizer: Name
    options: dict[str, float] = Field(default_factory=dict)
    qkr: Literal[False, True, "lowrank"] = False
    ends: Bits = "W8A8"
    layers: dict[str, Bits] = Field(default_factory=dict)
    module: str | None = None


class Quantization(_Techniques):
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


class Method(_Techniques):
    """A named combination of techniques; beside its own attributes it has :class:`Quantization`'s.

    Attributes:
        label: The name that tables and figures print.
        scale_lr: Factor on the learning rate of learned weight scales.
        stabilizer: A baseline against oscillation during QAT.
        cga: Settings of the annealing stage after QAT; without it there is no such stage.
        noise: Settings of noise injection after the last stage; the method's number then is the
            mean over its draws.
        training: Hyperparameters by stage, where the method needs others than the recipe's.
    """

    label: Line
    scale_lr: PositiveFloat = 1.0
    stabilizer: Stabilizer | None = None
    cga: Annealing | None = None
    noise: Noise | None = None
    training: dict[QuantizedStage, dict[str, Any]] = Field(default_factory=dict)

    def quantization(self, bits: str) -> Quantization:
        """The method's quantization at some bits."""
        shared = {name: getattr(self, name) for name in _Techniques.model_fields}
        return Quantization(bits=bits, **shared)

    @model_validator(mode="after")
    def _parts_are_known(self) -> Self:
        if self.module is None and self.weight_quantizer not in WEIGHT_QUANTIZERS:
            hint = suggest(self.weight_quantizer, list(WEIGHT_QUANTIZERS))
            raise ValueError(
                f"unknown weight_quantizer '{self.weight_quantizer}' ({hint}); "
                "for one of your own, name the Python module that registers it as 'module'"
            )
        for values in self.training.values():
            check_hyperparameters(values)
        return self
