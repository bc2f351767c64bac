"""GPUs that a plan can name, with what their makers say of them."""

from dataclasses import dataclass
from math import sqrt

from ofq.config.files import suggest
from ofq.errors import UserError


@dataclass(frozen=True)
class Device:
    """GPU as its data sheet describes it.

    Attributes:
        name: Its name on the command line, part of the name that its driver gives it.
        half: Peak of bf16 or fp16 products with sums in float32, dense, in 10^12 operations/s.
        fp32: Peak of float32 products, not on tensor cores, in 10^12 operations/s.
        bandwidth: Of its memory, in 10^12 bytes/s.
    """

    name: str
    half: float
    fp32: float
    bandwidth: float

    def peak(self, precision: str) -> float:
        """Return the peak in operations/s of products in ``fp32``, ``bf16`` or ``fp16``."""
        return 1e12 * (self.fp32 if precision == "fp32" else self.half)

    def speed(self, precision: str) -> float:
        """Return the expected speed of training steps, relative to an H200 in bf16.

        A step's time is between that of its products, which goes with the peak, and that of its
        memory traffic, which goes with the bandwidth: the geometric mean of both ratios. Float32
        moves twice the bytes.
        """
        size = 2 if precision == "fp32" else 1
        peak = self.peak(precision) / _REFERENCE.peak("bf16")
        return sqrt(peak * self.bandwidth / size / _REFERENCE.bandwidth)


DEVICES = (
    # V100 data sheet (SXM2); its tensor cores have no bf16, which runs at float32's rate
    Device("v100", half=15.7, fp32=15.7, bandwidth=0.9),
    # A100 data sheet (SXM, 80 GB; one of 40 GB has 1.6 TB/s)
    Device("a100", half=312, fp32=19.5, bandwidth=2.0),
    # H100 data sheet (SXM; on PCIe 756 and 51, 2.0 TB/s)
    Device("h100", half=989, fp32=67, bandwidth=3.35),
    # H200 data sheet (SXM)
    Device("h200", half=989, fp32=67, bandwidth=4.8),
    # L40S data sheet, half of what it says with sparsity
    Device("l40s", half=362, fp32=91.6, bandwidth=0.864),
    # GA102 white paper (RTX A6000, GeForce RTX 3090)
    Device("a6000", half=154.8, fp32=38.7, bandwidth=0.768),
    Device("rtx3090", half=71, fp32=35.6, bandwidth=0.936),
    # Ada white paper (GeForce RTX 4090)
    Device("rtx4090", half=165, fp32=82.6, bandwidth=1.008),
)
"""The GPUs, by NVIDIA's data sheets and white papers."""

NAMES = [device.name for device in DEVICES]
"""Their names."""

_REFERENCE = next(device for device in DEVICES if device.name == "h200")


def named(name: str) -> Device:
    """Return the GPU of a name from the command line.

    Raises:
        UserError: No GPU has the name.
    """
    found = next((device for device in DEVICES if device.name == name.lower()), None)
    if found is None:
        raise UserError(
            f"--device {name}: no GPU of a known name ({suggest(name.lower(), NAMES)}); "
            "leave it out for the range over all of them"
        )
    return found


def recognized(full_name: str) -> Device | None:
    """Return the GPU that a driver's name means; None if it isn't one of these.

    >>> recognized("NVIDIA GeForce RTX 4090").name, recognized("Tesla T4")
    ('rtx4090', None)
    """
    joined = full_name.lower().replace(" ", "")
    return next((device for device in DEVICES if device.name in joined), None)
