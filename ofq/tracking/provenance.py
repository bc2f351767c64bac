"""Where a run's numbers come from: code, versions, machine and command."""

import hashlib
import os
import platform
import re
import shlex
import socket
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from ofq.credentials import redact

_LOCK = "requirements.lock"
_PACKAGE = Path(__file__).parents[1]
_SLURM = re.compile(
    r"SLURM_(JOB_ID|JOB_NAME|JOB_PARTITION|JOB_NODELIST|RESTART_COUNT|CLUSTER_NAME)"
)


def gather(root: Path) -> dict[str, Any]:
    """Collect the provenance of an attempt at a run, which starts now.

    Args:
        root: The checkout.

    Returns:
        Plain JSON data. ``commit`` and ``diff`` are None outside a git checkout; ``diff`` is the
        uncommitted change to tracked files under ``ofq`` and ``config`` (empty if there is none),
        ``untracked`` the other files there. ``code_sha256`` is of the package's source as it runs;
        ``packages`` has the versions of what it depends on; ``visible_gpus`` the GPUs that it was
        given, None for any. Credentials in the command and in the diff are left out.
    """
    lock = root / _LOCK
    diff = _git(root, "diff", "HEAD", "--", "ofq", "config")
    return {
        "started": time.time(),
        "commit": _git(root, "rev-parse", "HEAD"),
        "diff": diff and redact(diff),
        "untracked": (
            _git(root, "ls-files", "--others", "--exclude-standard", "--", "ofq", "config") or ""
        ).splitlines(),
        "code_sha256": code_sha256(),
        "lock_sha256": hashlib.sha256(lock.read_bytes()).hexdigest() if lock.exists() else None,
        "packages": _packages(),
        "python": platform.python_version(),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "pid": os.getpid(),
        "visible_gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "slurm": {name: v for name, v in sorted(os.environ.items()) if _SLURM.fullmatch(name)},
        "command": redact(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])),
    }


def code_sha256() -> str:
    """SHA-256 of the package's source files and of the versions that it runs with."""
    digest = hashlib.sha256(repr(sorted(_packages().items())).encode())
    for path in sorted(_PACKAGE.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _packages() -> dict[str, str | None]:
    """Versions of this package and of what it directly depends on."""
    try:
        wanted = metadata.requires("ofq") or []
    except metadata.PackageNotFoundError:
        wanted = []
    names = [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in wanted if "extra ==" not in line]
    return {name: _version(name) for name in ["ofq", *names]}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
