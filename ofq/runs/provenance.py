"""Provenance of a run's numbers: code, versions, machine and command."""

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
"""Part of git's error message where there is no checkout."""

_FOLDERS = ("ofq", "config")
_DIFF = (
    *("-c", "color.ui=false", "diff", "--no-ext-diff", "--no-textconv", "--no-color"),
    *("--no-renames", "--submodule=short", "--src-prefix=a/", "--dst-prefix=b/"),
)
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_MOST = 1_000_000  # bytes kept of git's output
_LINE = 600  # bytes kept of its error messages
_MOST_NAMES = 1000
_PATIENCE = 10.0  # seconds for each git command
_POLL = 0.5  # seconds between two polls of it
_LOCK = "requirements.lock"
_PACKAGE = Path(__file__).parents[1]
_SLURM = re.compile(
    r"SLURM_(JOB_ID|JOB_NAME|JOB_PARTITION|JOB_NODELIST|RESTART_COUNT|CLUSTER_NAME)"
)


class GitError(Exception):
    """Error of git: its message, or why it gave no output."""


def gather(root: Path, modules: Sequence[str] = ()) -> dict[str, Any]:
    """Collect the provenance of an attempt at a run, which starts now.

    No failure of git ends a run: fields that it can't fill are None, with the reason.

    Args:
        root: The checkout.
        modules: User modules that the run needs.

    Returns:
        Plain JSON data. ``commit`` and ``diff`` are None where git fails, and ``git_reason`` says
        why (None if it works); ``diff`` is the uncommitted change to tracked files under ``ofq``
        and ``config`` (empty if there is none), cut at a megabyte; ``withheld`` names the changed
        files that the diff leaves out, since such files hold credentials; ``untracked`` names the
        other files there. ``code_sha256`` covers the package's source as it runs; ``modules`` has
        name and hashes of each user module (:func:`hashes_of_module`), which git need not track,
        and ``module`` is the first of them; ``packages`` has the versions of the dependencies;
        ``visible_gpus`` is ``CUDA_VISIBLE_DEVICES``, None for any. Credentials are redacted
        everywhere.
    """
    lock = root / _LOCK
    own = [{"name": module, **hashes_of_module(module)} for module in modules]
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
    """Return the SHA-256 of all code that decides a run's numbers, and of package versions.

    Args:
        modules: User modules that the run needs.
    """
    digest = hashlib.sha256(repr(sorted(_packages().items())).encode())
    for path in sorted(_PACKAGE.rglob("*.py")):
        if not path.name.startswith(".") and path.is_file():  # an editor's lock file is neither
            digest.update(path.read_bytes())
    for module in modules:
        digest.update(repr(sorted(hashes_of_module(module).items())).encode())
    return digest.hexdigest()


def hashes_of_module(module: str) -> dict[str, str | None]:
    """Return the hashes by which a user's module is known; imports nothing.

    Returns:
        ``sha256`` of its source file, None if it isn't found; of a package also
        ``package_sha256``, of the names and contents of all Python files in its folder.
    """
    hashes: dict[str, str | None] = {"sha256": module_sha256(module)}
    try:
        source = _source(module)
        if source is not None and source.name == "__init__.py":
            hashes["package_sha256"] = _package_sha256(source.parent)
    except Exception:  # as for module_sha256
        return hashes
    return hashes


def _package_sha256(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        if not path.name.startswith(".") and path.is_file():
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    return digest.hexdigest()


def module_sha256(module: str) -> str | None:
    """Return the SHA-256 of a module's source file; None if it can't be found.

    Imports neither the module nor the packages that it lies in.
    """
    try:
        source = _source(module)
        return hashlib.sha256(source.read_bytes()).hexdigest() if source else None
    except Exception:  # finders raise anything; importing the module will report it
        return None


def _source(module: str) -> Path | None:
    """Return the source file of a module, found as an import would find it.

    ``importlib.util.find_spec`` would import the packages that it lies in.
    """
    name, *parts = module.split(".")
    folders = [os.getcwd(), *sys.path]  # user modules of methods lie in the checkout
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
    specs = (finder.find_spec(name, path) for finder in sys.meta_path)
    try:
        return next((spec for spec in specs if spec is not None), None)
    except KeyError:  # no __init__.py within a package that isn't imported
        return ModuleSpec(name, None, is_package=True)


def _packages() -> dict[str, str | None]:
    """Return the versions of this package and of its direct dependencies."""
    try:
        needs = metadata.requires("ofq") or []
    except metadata.PackageNotFoundError:
        needs = []
    names = [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in needs if "extra ==" not in line]
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
    """Return commit, uncommitted changes and untracked files, as far as git reports them."""
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
    """Decode output: escape bytes that aren't UTF-8, cut it at the limit, and say so."""
    text = output[:_MOST].decode(errors="backslashreplace").strip()
    return text if len(output) <= _MOST else f"{text}\n[cut after {_MOST:,} bytes]"


def _git(root: Path, *arguments: str) -> bytes:
    """Run git and return its output, cut soon after a megabyte.

    Raises:
        GitError: Git can't be run, fails, or takes too long.
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
            output, messages = _read(process)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode and len(output) <= _MOST:
        line = " ".join(_text(messages[:_LINE]).split())
        raise GitError(printable(line) or f"git ended with exit code {process.returncode}")
    return output


def _read(process: "subprocess.Popen[bytes]") -> tuple[bytes, bytes]:
    """Return git's output and error messages, read until it ends or exceeds the limit.

    Raises:
        GitError: Git takes too long.
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
            ready = open_streams.select(_POLL)
            for key, _ in ready:
                part = os.read(key.fd, 65536)
                read[key.fd] += part
                if not part:
                    open_streams.unregister(key.fd)
            if not ready and process.poll() is not None:
                break  # a child of git holds its streams open
    output, messages = read.values()
    with suppress(subprocess.TimeoutExpired):  # its streams are closed, or the limit is reached
        process.wait(_POLL)
    return bytes(output), bytes(messages)
