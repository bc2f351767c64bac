"""Assumptions where nothing was measured, with their sources.

A device is taken to be as fast as its peak and its memory's bandwidth say, relative to those on
which steps were measured (:mod:`ofq.monitor.devices`). There are no entries for this package's
small models, which keep no GPU busy.
"""

from dataclasses import dataclass

from ofq.config.stage import Resources
from ofq.monitor.devices import DEVICES, Device
from ofq.monitor.kind import Kind
from ofq.monitor.span import Range, hull

LOADING = "loading images"
"""Basis of times that no GPU decides."""

FACTOR = 1.5
"""Uncertainty of a named device's times, either way: high is at most 2.25 times low.

The measured steps that :data:`WORK` was made of lie within a factor of 1.3.
"""

IMAGES = {"imagenet": (1_281_167, 50_000)}
"""Images to train on and to evaluate, by data set (Russakovsky et al. 2015)."""

LOADED = {"plain": 144.0, "fast": 196.0}
"""Images that a loading process makes ready in a second (benchmarks/results/loader.json)."""

_STEP_PARTS = 3  # a forward pass, and a backward pass of twice its operations
_EVALUATED = 0.5  # of a step: a third by operations; not compiled, it takes 1.4 times as long
_TAUGHT = 1 / _STEP_PARTS  # benchmarks/results/step_h200.json: 0.334
_OPERATIONS_PER_MAC = 2


@dataclass(frozen=True)
class Work:
    """What a model costs for an image of 224 x 224.

    Attributes:
        step: Seconds of a full-precision training step in bf16 on an H200, compiled.
        macs: Multiply-adds of a forward pass.
        merged: A quantized step's time with QKR, relative to full precision.
    """

    step: float
    macs: float
    merged: float


QUANTIZED = 1.2
"""A quantized step's time without QKR, relative to full precision, both compiled.

StatsQ and LSQ take 1.20 and 1.22 on an H200, 1.02 to 1.22 on a CPU (benchmarks/results/step*.json).
"""

# Seconds: DeiT-T's are the geometric mean of 62.5 us, measured on an H200
# (docs/performance.md: 8.0 ms for 128 images), and of what 437 us on an RTX 3090 are there (timm's
# results/benchmark-train-amp-nhwc-pt112-cu113-rtx3090.csv). The others' are relative to DeiT-T's:
# 2.3 and 4.1, between timm's training on that GPU (2.2; 3.5) and its compiled evaluation on an
# RTX 4090 (2.5; 4.8). Multiply-adds: Touvron et al. 2021, Liu et al. 2021.
# With QKR, tracked: DeiT-T on the H200; the others' ratios on a CPU (1.51; 2.03) times DeiT-T's of
# H200 to CPU, 1.61 / 1.43.
_DEIT_TINY = Work(step=57e-6, macs=1.3e9, merged=1.6)
_DEIT_SMALL = Work(step=131e-6, macs=4.6e9, merged=1.7)

WORK = {
    "deit_tiny_patch16_224": _DEIT_TINY,
    "deit_tiny_distilled_patch16_224": _DEIT_TINY,
    "deit_small_patch16_224": _DEIT_SMALL,
    "deit_small_distilled_patch16_224": _DEIT_SMALL,
    "swin_tiny_patch4_window7_224": Work(step=234e-6, macs=4.5e9, merged=2.3),
}
"""The models' costs."""


@dataclass(frozen=True)
class Assumed:
    """Assumed time of an epoch.

    Attributes:
        seconds: The time, its evaluation included.
        basis: What it was assumed from, in a few words.
    """

    seconds: Range
    basis: str


def assumed_epoch(kind: Kind, resources: Resources, device: Device | None) -> Assumed | None:
    """Return the time of one epoch with its evaluation; None if no assumption applies.

    None applies to a training on a GPU that isn't compiled either: such steps wait for the
    processor that launches them.

    Args:
        kind: The kind of run.
        resources: What its job requests: whether it is compiled, and how it loads images.
        device: The GPU; None for the range over all known ones.
    """
    if kind.model not in WORK or kind.dataset not in IMAGES or not kind.gpus:
        return None
    if kind.batch_size and not resources.compile:
        return None
    on_gpu = hull(_on(each, kind) for each in ([device] if device else DEVICES))
    loading = _loading(kind, resources)
    if loading.high >= on_gpu.high:
        return Assumed(loading, LOADING)
    where = device.name if device else "any GPU"
    seconds = Range(max(on_gpu.low, loading.low), on_gpu.high)
    return Assumed(seconds, f"{where}, {kind.precision}")


def _on(device: Device, kind: Kind) -> Range:
    """Return the seconds that a device computes for an epoch."""
    work, (train, test) = WORK[kind.model], _images(kind)
    slowdown = 1.0
    if kind.bits != "FP":
        slowdown = work.merged if "qkr" in kind.method else QUANTIZED
    steps = train * slowdown + test * slowdown * _EVALUATED
    taught = train * _TAUGHT if kind.taught else 0.0
    seconds = work.step / kind.gpus * (
        steps / device.speed(kind.precision) + taught / device.speed(kind.teacher)
    )  # fmt: skip
    operations = _OPERATIONS_PER_MAC * work.macs * (_STEP_PARTS * train + test)
    least = operations / (kind.gpus * device.peak(kind.precision))
    return Range(max(seconds / FACTOR, min(seconds, least)), seconds * FACTOR)


def _loading(kind: Kind, resources: Resources) -> Range:
    """Return the seconds that a run's processes load the images of an epoch."""
    train, test = _images(kind)
    processes = kind.gpus * max(1, resources.workers)
    # evaluation always takes the plain loader
    seconds = (train / LOADED[resources.loader] + test / LOADED["plain"]) / processes
    return Range(seconds / FACTOR, seconds * FACTOR)


def _images(kind: Kind) -> tuple[int, int]:
    train, test = IMAGES[kind.dataset]
    return (train if kind.batch_size else 0), test
