"""Hyperparameters of a stage, and the resources of its jobs."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from ofq.config.files import Strict, renamed, suggest
from ofq.config.images import Images
from ofq.errors import UserError

Loader = Literal["plain", "fast"]
Precision = Literal["fp32", "bf16", "fp16"]

SHORT = 15
"""Time limit in minutes up to which a job without GPU counts as short."""


class Teaching(Strict):
    """Computation of the teacher logits.

    Attributes:
        precision: Precision of the teacher's products; its logits are float32 in any case.
        cached: Whether the teacher logits of the training set are computed once and cached, for
            images that are the same in every epoch.
    """

    precision: Precision = "fp32"
    cached: bool = False


class ProbeConfig(Strict):
    """Recording of single weights and activations during a stage; does not affect results.

    At most 2,048 steps are recorded: all of a short stage, else the last ones of each epoch.

    Attributes:
        weights: Number of weights whose paths through the grid are recorded (0: none).
        sample: Number of entries of each weight matrix whose gradient signs are compared, and the
            most channels of query and key that are recorded for joint flips (0: none).
        histograms: Number of epochs at which all weights are counted by their position on the
            grid, evenly spaced from the start to the end (0: none).
        activations: Number of training images that go through the model again at each recorded
            step, to follow the codes of its activations (0: none).
    """

    weights: int = Field(default=0, ge=0, le=32)
    sample: int = Field(default=0, ge=0, le=256)
    histograms: int = Field(default=0, ge=0, le=16)
    activations: int = Field(default=0, ge=0, le=64)


class Training(Strict):
    """Hyperparameters of one stage.

    The learning rate rises linearly from ``warmup_lr`` over ``warmup_epochs``, then falls from
    ``lr`` to ``min_lr`` along a cosine, epoch by epoch; with ``min_lr`` equal to ``lr`` it is
    constant.

    Attributes:
        epochs: Passes over the training set, ``cooldown_epochs`` included.
        batch_size: Images per optimizer step, over all devices.
        optimizer: AdamW (0.9, 0.999, 1e-8), or SGD.
        momentum: SGD's momentum (without Nesterov's form).
        scale_adam: Constant learning rate of an Adam of their own, without decay, for the learned
            scales of weights and activations; left out, ``optimizer`` steps them like the rest.
        lr: Peak learning rate.
        min_lr: Learning rate at the end.
        warmup_epochs: Length of the linear warm-up.
        warmup_lr: Learning rate at its start.
        cooldown_epochs: The last epochs, at ``min_lr``, after the cosine's end.
        weight_decay: AdamW's decoupled decay, or SGD's coupled one; biases, norms, scales, shifts
            and embeddings get none.
        drop_path: Highest rate of stochastic depth, whatever the model's own default is.
        gradient_batch: Number of images in the gradient factor g of learned activation scales;
            left out, the whole batch.
        distillation: Whether the full-precision parent is the teacher (soft labels beside hard
            ones).
        teacher: Computation of the teacher logits.
        precision: Precision of the model's products, bf16 and fp16 by autocast, fp16 with loss
            scaling; weights, quantizers and the optimizer stay in float32.
        images: Preprocessing of image files; None for data that need none.
        probes: Recording of single weights and activations, for figures.
    """

    cosmetic: ClassVar[frozenset[str]] = frozenset({"probes"})
    older: ClassVar[dict[str, str]] = {"recording": "probes"}

    epochs: PositiveInt
    batch_size: PositiveInt
    optimizer: Literal["adamw", "sgd"] = "adamw"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    scale_adam: PositiveFloat | None = None
    lr: PositiveFloat
    min_lr: NonNegativeFloat = 0.0
    warmup_epochs: NonNegativeInt = 0
    warmup_lr: NonNegativeFloat = 1e-6
    cooldown_epochs: NonNegativeInt = 0
    weight_decay: NonNegativeFloat = 0.0
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0
    gradient_batch: PositiveInt | None = None
    distillation: bool = False
    teacher: Teaching = Teaching()
    precision: Precision = "fp32"
    images: Images | None = None
    probes: ProbeConfig = ProbeConfig()

    @model_validator(mode="after")
    def _schedule_is_possible(self) -> Self:
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr {self.min_lr} is above lr {self.lr}")
        if self.warmup_epochs + self.cooldown_epochs >= self.epochs:
            cooldown = self.cooldown_epochs
            beside = f" and cooldown_epochs {cooldown}" if cooldown else ""
            raise ValueError(
                f"warmup_epochs {self.warmup_epochs}{beside} leaves none of {self.epochs}"
            )
        return self

    @model_validator(mode="after")
    def _momentum_is_that_of_sgd(self) -> Self:
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(
                f"momentum {self.momentum} is SGD's, but optimizer is {self.optimizer}; allowed: "
                "0, or optimizer: sgd"
            )
        return self

    @model_validator(mode="after")
    def _teacher_can_be_cached(self) -> Self:
        if self.teacher.cached and not self.distillation:
            raise ValueError("teacher.cached is true, but nothing is distilled; allowed: false")
        if self.teacher.cached and self.images is not None and not self.images.deterministic:
            cause = "augmentation" if self.images.augmentation else "mixing"
            raise ValueError(
                f"teacher.cached is true, but images.{cause} changes the images at random, so the "
                "teacher logits differ each time; allowed: cached: false, or images without "
                "augmentation and mixing"
            )
        return self


class Resources(Strict):
    """Resources that one job of a stage requests from the scheduler.

    Attributes:
        threads: CPU cores, over all devices.
        mem_mb: Memory in megabytes.
        runtime: Time limit in minutes.
        gpu: Number of GPUs, one rank for each.
        device_batch: The most images that fit a GPU's memory in one pass; left out, all of the
            device's part of a batch.
        workers: Data loading processes per device; 0: images are loaded in the rank itself.
        loader: Decoder and resizer of training images: Pillow, or faster libraries with the same
            result except for rounding (docs/performance.md).
        compile: Whether to compile the model's blocks and, on a GPU, to capture steps as CUDA
            graphs (docs/performance.md).
    """

    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    mem_mb: PositiveInt = 2000
    runtime: PositiveInt = 30
    gpu: NonNegativeInt = 0
    device_batch: PositiveInt | None = None
    workers: Annotated[int, Field(ge=0, le=256)] = 2
    loader: Loader = "plain"
    compile: bool = False

    def of_one_device(self) -> "Resources":
        """Return the share of one device, for a job that compiles nothing."""
        count = max(1, self.gpu)
        share = {
            "gpu": min(1, self.gpu),
            "threads": max(1, self.threads // count),
            "mem_mb": max(1, self.mem_mb // count),
            "compile": False,
        }
        return self.model_copy(update=share)

    @property
    def short(self) -> bool:
        """Return whether a cluster should run the job without submitting it."""
        return self.runtime <= SHORT and self.gpu == 0


@dataclass(frozen=True)
class Split:
    """Split of one optimizer step's images over devices and passes; the recipe fixes their number.

    Attributes:
        devices: Number of devices.
        passes: Forward and backward passes of each device before the step.
        images: Images in one pass on one device.
    """

    devices: int
    passes: int
    images: int

    def __str__(self) -> str:
        total = self.devices * self.passes * self.images
        product = f"{self.devices} x {self.passes} x {self.images}"
        return f"{total} images per step = {product} (devices x passes x images)"


def split(batch_size: int, devices: int, device_batch: int | None = None) -> Split:
    """Split a batch evenly over devices, in as few equal passes as their memory allows.

    Args:
        batch_size: Images per optimizer step.
        devices: Number of devices.
        device_batch: The most images in one pass on one device; None for any number.

    Raises:
        UserError: The batch can't be split evenly.
    """
    share, rest = divmod(batch_size, devices)
    if rest or not share:
        raise UserError(
            f"batch_size {batch_size} can't be split over {devices} devices: "
            f"{batch_size} = {devices} x {share} + {rest}"
        )
    most = device_batch or share
    passes = next(n for n in range(1, share + 1) if share % n == 0 and share // n <= most)
    return Split(devices, passes, share // passes)


def check_pairs(training: Training, parts: Split) -> None:
    """Refuse to mix pairs of images where a pass has an odd number of them.

    Raises:
        UserError: The number is odd, and ``images.mixing`` is given.
    """
    if training.images is not None and training.images.mixing is not None and parts.images % 2:
        raise UserError(
            f"images.mixing mixes pairs, but {parts}; allowed: an even number of images in a pass"
        )


def hyperparameters(values: dict[str, Any]) -> dict[str, Any]:
    """Check keys against :class:`Training`, and return the values by present names.

    Raises:
        ValueError: A key isn't a hyperparameter; the message names the nearest allowed ones.
    """
    known = sorted(Training.model_fields)
    values = renamed(values, Training.older)
    for key in values:
        if key not in known:
            raise ValueError(f"unknown hyperparameter '{key}' ({suggest(key, known)})")
    return values
