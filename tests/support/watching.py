"""Watches what reading a file does to the process and to the disk around it."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_watched: list[tuple[Path, list[str]]] = []
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {  # which argument is the path that changes, and which the folder that it is in
    "os.link": (1, 3), "os.mkdir": (0, 2), "os.remove": (0, 1), "os.rename": (1, 3),
    "os.rmdir": (0, 1), "os.symlink": (1, 2), "os.truncate": (0, None),
}  # fmt: skip
_CALLS = ("subprocess.Popen", "os.system", "os.exec", "socket.connect", "socket.getaddrinfo")


def _hear(event: str, arguments: tuple[object, ...]) -> None:
    if not _watched:
        return
    place, heard = _watched[-1]
    if event == "open":
        path, _, flags = arguments
        if isinstance(flags, int) and flags & _WRITES:
            _note_outside(event, path, None, place, heard)
    elif event in _CHANGES:
        path, folder = _CHANGES[event]
        within = None if folder is None else arguments[folder]
        _note_outside(event, arguments[path], within, place, heard)
    elif event in _CALLS:
        heard.append(f"{event} {arguments[0]}")


def _note_outside(event: str, path: object, within: object, place: Path, heard: list[str]) -> None:
    if not isinstance(path, str | bytes | os.PathLike):
        return
    name = os.fsdecode(path)
    if isinstance(within, int) and within >= 0:
        name = os.path.join(os.readlink(f"/proc/self/fd/{within}"), name)
    folder = os.path.realpath(os.path.dirname(os.path.abspath(name)))
    own = name == os.devnull or folder.endswith("__pycache__")
    if not own and not f"{folder}/".startswith(f"{place}/"):
        heard.append(f"{event} {name!r}")


sys.addaudithook(_hear)


@contextmanager
def nothing_touched_outside(place: Path) -> Iterator[None]:
    """Fail if the block writes outside a folder, starts a program, connects, or imports.

    Args:
        place: The folder; modules that are imported from elsewhere than the installed packages
            count, such as those that a file names.
    """
    heard: list[str] = []
    modules = set(sys.modules)
    path = list(sys.path)
    _watched.append((place.resolve(), heard))
    try:
        yield
    finally:
        _watched.pop()
    assert heard == []
    assert sys.path == path
    # what this package and its libraries import when first used
    known = ("ofq", "timm", "torch", "pandas", "pyarrow", "numpy", "rich", "pydantic")
    new = {n for n in set(sys.modules) - modules if n.partition(".")[0] not in known}
    assert {n for n in new if n.partition(".")[0] not in sys.stdlib_module_names} == set()
    assert not new & {"antigravity", "this", "evil"}


def check_message(text: str) -> None:
    """Make sure that an error is one line, not too long, that a terminal shows as it is."""
    assert text.isprintable()
    assert len(text) < 2000
