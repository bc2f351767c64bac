"""Where a run's numbers come from: code, versions, machine and command."""

import hashlib
import os
import platform
import re
import selectors
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from ofq.console import printable
from ofq.redact import holds_secrets, redact, redact_command

NO_CHECKOUT = "not a git repository"
"""Stands in git's reason where there is no checkout at all."""

_FOLDERS = ("ofq", "config")
_DIFF = (
    *("-c", "color.ui=false", "diff", "--no-ext-diff", "--no-textconv", "--no-color"),
    *("--no-renames", "--submodule=short", "--src-prefix=a/", "--dst-prefix=b/"),
)
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_MOST = 1_000_000  # bytes of what git prints
_LINE = 600  # bytes of what it says when it refuses
_MOST_NAMES = 1000
_PATIENCE = 10.0  # seconds for each question to git
_LOOK = 0.5
_LOCK = "requirements.lock"
_PACKAGE = Path(__file__).parents[1]
_SLURM = re.compile(
    r"SLURM_(JOB_ID|JOB_NAME|JOB_PARTITION|JOB_NODELIST|RESTART_COUNT|CLUSTER_NAME)"
)


class GitError(Exception):
    """What git says, or what can be said of it, where it doesn't answer."""


def gather(root: Path, modules: Sequence[str] = ()) -> dict[str, Any]:
    """Collect the provenance of an attempt at a run, which starts now.

    Whatever git does, or doesn't, ends no run: what it can't say is None, with the reason.

    Args:
        root: The checkout.
        modules: The user's own that the run needs.

    Returns:
        Plain JSON data. ``commit`` and ``diff`` are None where git can't tell them, and
        ``git_reason`` says why (None if it can); ``diff`` is the uncommitted change to tracked
        files under ``ofq`` and ``config`` (empty if there is none), cut at a megabyte;
        ``withheld`` names the changed files that the diff leaves out, since such files hold
        credentials; ``untracked`` names the other files there. ``code_sha256`` is of the package's
        source as it runs, and ``modules`` has name and SHA-256 of each of the user's own, which
        git needn't know (``module``, the first of them); ``packages`` has the versions of what it
        depends on; ``visible_gpus`` the GPUs that it was given, None for any. Credentials are
        redacted everywhere.
    """
    lock = root / _LOCK
    own = [{"name": module, "sha256": module_sha256(module)} for module in modules]
    return {
        "started": time.time(),
        **_code(root),
        "code_sha256": code_sha256(),
        "module": own[0] if own else None,
        "modules": own,
        "lock_sha256": _sha256(lock),
        "packages": _packages(),
        "python": platform.python_version(),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "pid": os.getpid(),
        "visible_gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "slurm": {
            name: redact(value)
            for name, value in sorted(os.environ.items())
            if _SLURM.fullmatch(name)
        },
        "command": shlex.join(redact_command([Path(sys.argv[0]).name, *sys.argv[1:]])),
    }


def code_sha256(modules: Sequence[str] = ()) -> str:
    """SHA-256 of all code that decides a run's numbers, and of the versions that it runs with.

    Args:
        modules: The user's own that the run needs.
    """
    digest = hashlib.sha256(repr(sorted(_packages().items())).encode())
    for path in sorted(_PACKAGE.rglob("*.py")):
        if not path.name.startswith(".") and path.is_file():  # an editor's lock is neither
            digest.update(path.read_bytes())
    for module in modules:
        digest.update(str(module_sha256(module)).encode())
    return digest.hexdigest()


def module_sha256(module: str) -> str | None:
    """SHA-256 of a module's source file; None if it can't be found.

    Nothing is imported to find it, neither the module nor the packages that it lies in.
    """
    try:
        source = _source(module)
        return hashlib.sha256(source.read_bytes()).hexdigest() if source else None
    except Exception:  # whatever a finder raises: importing the module will tell
        return None


def _source(module: str) -> Path | None:
    """The source file of a module, as importing it would find it.

    ``importlib.util.find_spec`` would import the packages that it lies in.
    """
    name, *parts = module.split(".")
    folders = [os.getcwd(), *sys.path]  # modules of a user's own methods lie in the checkout
    spec = PathFinder.find_spec(name, folders) or _spec(name, None)
    for part in parts:
        if spec is None or spec.submodule_search_locations is None:
            return None
        if spec.origin is None:  # a package without __init__.py, whose own list needs its parent
            folders = [os.path.join(folder, name) for folder in folders]
        else:
            folders = list(spec.submodule_search_locations)
        name, spec = part, _spec(f"{spec.name}.{part}", folders)
    return Path(spec.origin) if spec and spec.has_location and spec.origin else None


def _spec(name: str, path: Sequence[str] | None) -> ModuleSpec | None:
    found = (finder.find_spec(name, path) for finder in sys.meta_path)
    try:
        return next((spec for spec in found if spec is not None), None)
    except KeyError:  # no __init__.py within a package that isn't imported
        return ModuleSpec(name, None, is_package=True)


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


def _sha256(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None


def _code(root: Path) -> dict[str, Any]:
    """Commit, uncommitted changes and untracked files, as far as git tells them."""
    code: dict[str, Any] = {"commit": None, "diff": None, "withheld": [], "untracked": []}
    code["git_reason"] = None
    try:
        commit = _text(_git(root, "rev-parse", "--verify", "HEAD"))
        if not _HASH.fullmatch(commit):
            raise GitError(f"git answered {printable(commit[:80])!r}, which is no commit")
        code["commit"] = commit
        changed = _git(root, *_DIFF, "--name-only", "-z", "HEAD", "--", *_FOLDERS)
        if len(changed) > _MOST:
            raise GitError("too many changed files for a diff")
        withheld = [name for name in _names(changed) if holds_secrets(name)]
        without = [f":(top,exclude,literal){name}" for name in withheld]
        code["withheld"] = [printable(name) for name in withheld]
        code["diff"] = redact(_text(_git(root, *_DIFF, "HEAD", "--", *_FOLDERS, *without)))
        others = _git(root, "ls-files", "--others", "--exclude-standard", "-z", "--", *_FOLDERS)
        code["untracked"] = [printable(name) for name in _names(others)[:_MOST_NAMES]]
    except GitError as error:
        code["git_reason"] = redact(str(error))
    return code


def _names(output: bytes) -> list[str]:
    return [os.fsdecode(name) for name in output.split(b"\0") if name]


def _text(output: bytes) -> str:
    """Output as text: bytes that aren't UTF-8 are escaped, and what is cut off is said."""
    text = output[:_MOST].decode(errors="backslashreplace").strip()
    return text if len(output) <= _MOST else f"{text}\n[cut after {_MOST:,} bytes]"


def _git(root: Path, *arguments: str) -> bytes:
    """What git prints; of more than a megabyte, little more than that.

    Raises:
        GitError: It can't be run, refuses, or takes too long.
    """
    command = ["git", "-c", "core.quotepath=off", "-C", str(root), *arguments]
    environment = os.environ | {
        "LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"
    }  # fmt: skip
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        problem = error.strerror if isinstance(error, OSError) else error
        raise GitError(f"git can't be run: {problem}") from None
    with process:
        try:
            printed, said = _read(process)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode and len(printed) <= _MOST:
        line = " ".join(_text(said[:_LINE]).split())
        raise GitError(printable(line) or f"git ended with exit code {process.returncode}")
    return printed


def _read(process: "subprocess.Popen[bytes]") -> tuple[bytes, bytes]:
    """What git prints and says until it ends, or has printed more than is kept.

    Raises:
        GitError: It takes too long.
    """
    assert process.stdout is not None
    assert process.stderr is not None
    deadline = time.monotonic() + _PATIENCE
    read = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray()}
    with selectors.DefaultSelector() as open_streams:
        for stream in read:
            open_streams.register(stream, selectors.EVENT_READ)
        while open_streams.get_map() and all(len(part) <= _MOST for part in read.values()):
            if time.monotonic() > deadline:
                raise GitError(f"git hasn't answered within {_PATIENCE:g} s")
            ready = open_streams.select(_LOOK)
            for key, _ in ready:
                part = os.read(key.fd, 65536)
                read[key.fd] += part
                if not part:
                    open_streams.unregister(key.fd)
            if not ready and process.poll() is not None:
                break  # what git has started holds its streams open
    printed, said = read.values()
    with suppress(subprocess.TimeoutExpired):  # its streams are closed, or it has printed enough
        process.wait(_LOOK)
    return bytes(printed), bytes(said)
