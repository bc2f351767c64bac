"""Where a run's numbers come from: code, versions, machine and command."""

import hashlib
import os
import platform
import shlex
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = ("ofq", "torch", "timm", "numpy", "scikit-learn", "safetensors", "mlflow", "snakemake")
_LOCK = "requirements.lock"


def gather(root: Path) -> dict[str, Any]:
    """Collect the provenance of a run that starts now.

    Args:
        root: The checkout.

    Returns:
        Plain JSON data. ``commit`` and ``diff`` are None outside a git checkout; ``diff`` is the
        uncommitted change to tracked files under ``ofq`` and ``config`` (empty if there is none),
        ``untracked`` the other files there.
    """
    lock = root / _LOCK
    return {
        "commit": _git(root, "rev-parse", "HEAD"),
        "diff": _git(root, "diff", "HEAD", "--", "ofq", "config"),
        "untracked": (
            _git(root, "ls-files", "--others", "--exclude-standard", "--", "ofq", "config") or ""
        ).splitlines(),
        "lock_sha256": hashlib.sha256(lock.read_bytes()).hexdigest() if lock.exists() else None,
        "packages": {name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "pid": os.getpid(),
        "slurm": {
            k: v for k, v in os.environ.items() if k in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT")
        },
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
