"""Atomic file writes: a reader, or a crash, sees the old content or the new, never a part."""

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
    """Let ``write`` fill a temporary file beside ``path``, then rename it to ``path``.

    The data and the rename are flushed to the disk before this returns. The file gets the mode that
    the umask gives a new file, whatever mode ``write`` sets.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        if temporary.stat().st_mode != mode:  # safetensors makes it private
            temporary.chmod(S_IMODE(mode))
        _sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, data: Any) -> None:
    """Write a JSON file atomically, indented; a list of plain values stays on one line."""
    text = _PLAIN_LIST.sub(_on_one_line, json.dumps(data, indent=2))
    write_text(path, text + "\n")


def _on_one_line(match: re.Match[str]) -> str:
    return f"[{_BREAK.sub(', ', match[1])}]"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
