"""Assumptions where nothing was measured, with their sources.

A step's time is its operations, divided by a device's operations per second. That holds for
models and batches that keep a GPU busy, so there are no entries for this package's small models.
"""

from ofq.monitor.kind import Kind
from ofq.monitor.span import Range

FORWARD_GMACS = {
    # at 224 x 224: Touvron et al. 2021 (DeiT), Liu et al. 2021 (Swin)
    "deit_tiny_patch16_224": 1.3,
    "deit_tiny_distilled_patch16_224": 1.3,
    "deit_small_patch16_224": 4.6,
    "deit_small_distilled_patch16_224": 4.6,
    "swin_tiny_patch4_window7_224": 4.5,
}
"""Billions of multiply-adds in a forward pass of one image."""

IMAGES = {"imagenet": (1_281_167, 50_000)}
"""Images to train on and to evaluate, by data set (Russakovsky et al. 2015)."""

PEAK_TFLOPS = {
    # NVIDIA's data sheets: float32, not tensor cores
    "V100": 15.7,
    "A100": 19.5,
    "RTX 3090": 35.6,
    "H100": 67.0,
    "H200": 67.0,
}
"""Peak performance in 10^12 operations per second, by a part of the device's name."""

UTILIZATION = Range(0.25, 0.6)
"""Share of the peak that training reaches: assumed."""

QUANTIZED = Range(1.5, 2.2)
"""Time of a quantized step relative to a full-precision one.

Measured on a CPU with the released code: 1.7 (StatsQ) and 2.1 (with QKR); wider here, since GPUs
differ.
"""

_STEP = 3  # a backward pass costs two forward passes
_PER_MAC = 2  # operations


def assumed_epoch(kind: Kind, device: str | None) -> Range | None:
    """Return the seconds of one epoch with its evaluation; None if no assumption applies.

    Args:
        kind: The kind of run.
        device: The GPU's name; None, or an unknown one, for the range over all known GPUs.
    """
    if kind.model not in FORWARD_GMACS or kind.dataset not in IMAGES or not kind.gpus:
        return None
    known = [peak for name, peak in PEAK_TFLOPS.items() if device and name in device]
    peaks = known or list(PEAK_TFLOPS.values())
    train, test = IMAGES[kind.dataset] if kind.batch_size else (0, IMAGES[kind.dataset][1])
    factor = Range(1, 1) if kind.stage == "fp" else QUANTIZED
    forward = 1e9 * _PER_MAC * FORWARD_GMACS[kind.model]

    def operations(slowdown: float) -> float:
        return forward * ((_STEP * slowdown + kind.taught) * train + slowdown * test)

    def rate(peak: float, share: float) -> float:
        return 1e12 * peak * share * kind.gpus

    return Range(
        operations(factor.low) / rate(max(peaks), UTILIZATION.high),
        operations(factor.high) / rate(min(peaks), UTILIZATION.low),
    )
