"""GPUs, ranks and processor of this machine, found without importing torch or using a GPU."""

import os
import platform
import subprocess
from pathlib import Path

_TIMEOUT = 30  # seconds, since a driver may have to initialize first


def gpus() -> list[str]:
    """Return the names of this machine's NVIDIA GPUs, in the order of ``nvidia-smi``.

    The list is empty without a driver. ``CUDA_VISIBLE_DEVICES`` has no effect on it.
    """
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        process = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=_TIMEOUT
        )
    except (OSError, subprocess.SubprocessError):
        return ["NVIDIA GPU" for _ in Path("/proc/driver/nvidia/gpus").glob("*")]
    return [line.strip() for line in process.stdout.splitlines() if line.strip()]


def are_started() -> bool:
    """Return whether torchrun or srun has started all ranks of the run, this process among them."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def processes(gpus: int) -> int:
    """Return the number of ranks of a run: one for each GPU that it requests, one if none.

    Where torchrun or srun has started the ranks, it is their number.
    """
    return int(os.environ["WORLD_SIZE"]) if are_started() else max(1, gpus)


def processor() -> str:
    """Return the name of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
