"""What a benchmark ran on, for its results file."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import torch

from ofq.training.devices import choose


def machine() -> dict[str, Any]:
    """Devices, cores that this process may use, torch's version, and the checkout's commit."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    devices = choose(torch.cuda.device_count()).describe()["devices"]
    return {
        "devices": devices,
        "cores": len(os.sched_getaffinity(0)),
        "torch": torch.__version__,
        "commit": commit or None,
    }


def keep(file: Path | None, figures: dict[str, Any]) -> None:
    """Write figures and the machine they were measured on as JSON, if a file was asked for."""
    if file is not None:
        file.write_text(json.dumps({"machine": machine(), **figures}, indent=2) + "\n")
