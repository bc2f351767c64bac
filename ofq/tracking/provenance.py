"""Where a run's numbers come from: code, versions, machine and command."""

import hashlib
import importlib.util
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


def gather(root: Path, module: str | None = None) -> dict[str, Any]:
    """Collect the provenance of an attempt at a run, which starts now.

    Args:
        root: The checkout.
        module: The user's own that the run's method names, if it names one.

    Returns:
        Plain JSON data. ``commit`` and ``diff`` are None outside a git checkout; ``diff`` is the
        uncommitted change to tracked files under ``ofq`` and ``config`` (empty if there is none),
        ``untracked`` the other files there. ``code_sha256`` is of the package's source as it runs,
        and ``module`` has the name and SHA-256 of the user's own, which git needn't know;
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
        "module": module and {"name": module, "sha256": module_sha256(module)},
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


def code_sha256(module: str | None = None) -> str:
    """SHA-256 of all code that decides a run's numbers, and of the versions that it runs with.

    Args:
        module: The user's own that the run's method names, if it names one.
    """
    digest = hashlib.sha256(repr(sorted(_packages().items())).encode())
    for path in sorted(_PACKAGE.rglob("*.py")):
        digest.update(path.read_bytes())
    if module is not None:
        digest.update(str(module_sha256(module)).encode())
    return digest.hexdigest()


def module_sha256(module: str) -> str | None:
    """SHA-256 of a module's source file; None if it can't be found."""
    try:
        found = importlib.util.find_spec(module)
        source = Path(found.origin) if found and found.origin else None
        return hashlib.sha256(source.read_bytes()).hexdigest() if source else None
    except Exception:  # whatever its package raises: importing it will tell
        return None


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
