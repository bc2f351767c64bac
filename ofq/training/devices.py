"""The devices that this process computes on, for the record."""

import subprocess
from typing import Any

import torch

from ofq.hardware import processor


def describe() -> dict[str, Any]:
    """Names and drivers of this process's devices.

    Returns:
        ``devices``: names, one per GPU that this process sees, or the processor's alone;
        ``driver``, ``cuda`` and ``cudnn``: versions, None without a GPU; ``threads``: CPU threads.
    """
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "devices": gpus or [processor()],
        "driver": _driver() if gpus else None,
        "cuda": torch.version.cuda if gpus else None,
        "cudnn": torch.backends.cudnn.version() if gpus else None,
        "threads": torch.get_num_threads(),
    }


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.partition("\n")[0].strip()
