"""Description of the machine that a benchmark ran on, for its results file."""

import json
import os
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ofq.training.distributed import choose


def machine() -> dict[str, Any]:
    """Return devices, cores that this process may use, torch's version, and the commit."""
    devices = choose(torch.cuda.device_count()).describe()["devices"]
    return {
        "devices": devices,
        "cores": len(os.sched_getaffinity(0)),
        "torch": torch.__version__,
        "commit": _commit(),
    }


def _commit() -> str | None:
    """Return the checkout's commit, marked if Python code differs from it."""
    here = str(Path(__file__).parent)
    git = partial(subprocess.run, capture_output=True, text=True, check=False, cwd=here)
    commit = git(["git", "describe", "--always"]).stdout.strip()
    changed = git(["git", "status", "--porcelain", "--", "*.py", "../ofq"]).stdout
    return f"{commit}-dirty" if commit and changed else commit or None


def keep(file: Path | None, figures: dict[str, Any]) -> None:
    """Write figures and a description of the machine as JSON, if a file was given."""
    if file is not None:
        file.write_text(json.dumps({"machine": machine(), **figures}, indent=2) + "\n")
