"""Writing files so that a reader, or a crash, sees the old content or the new, never a part."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from stat import S_IMODE
from typing import Any

_PLAIN_LIST = re.compile(r"\[\n\s+([^\[\]{}]*?)\n\s*\]")  # strings in JSON hold no line breaks
_BREAK = re.compile(r",\n\s+")


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then put it in ``path``'s place.

    The data and the rename are flushed to the disk before this returns. The file's mode is the one
    that the process's umask gives a new file, whatever ``write`` makes.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        if temporary.stat().st_mode != mode:  # safetensors makes files for their owner alone
            temporary.chmod(S_IMODE(mode))
        _sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Replace a text file."""
    write_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, data: Any) -> None:
    """Replace a JSON file, indented for people to read; a list of plain values is one line."""
    text = _PLAIN_LIST.sub(_on_one_line, json.dumps(data, indent=2))
    write_text(path, text + "\n")


def _on_one_line(found: re.Match[str]) -> str:
    return f"[{_BREAK.sub(', ', found[1])}]"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
