"""What this machine computes with, found without torch, so that asking takes no GPU and no time."""

import os
import platform
import subprocess
from pathlib import Path

_PATIENCE = 30  # seconds for a driver that wakes up


def gpus() -> list[str]:
    """Names of this machine's NVIDIA GPUs, in the order of ``nvidia-smi``; none without a driver.

    ``CUDA_VISIBLE_DEVICES`` hides none of them.
    """
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=_PATIENCE
        )
    except (OSError, subprocess.SubprocessError):
        return ["NVIDIA GPU" for _ in Path("/proc/driver/nvidia/gpus").glob("*")]
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def are_started() -> bool:
    """Whether a run's processes are all there, started by torchrun or srun, this one among them."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def processes(gpus: int) -> int:
    """Number of processes of a run that asks for some GPUs: one for each, and one without.

    Where they are started already, it is their number that counts.
    """
    return int(os.environ["WORLD_SIZE"]) if are_started() else max(1, gpus)


def processor() -> str:
    """Name of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
