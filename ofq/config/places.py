"""Paths of config, environment and command line, with ``~`` and variables expanded."""

import os
import re
from pathlib import Path

from ofq.console import printable
from ofq.errors import UserError

_VARIABLE = re.compile(r"\$(?:\{([^}]*)\}|([A-Za-z_]\w*)|(\{))")
_PREFIX = re.compile(r"(?:wds|hfds)/", re.I)
_FILE_URI = re.compile(r"(?:sqlite(?:\+\w+)?:///|file:(?://)?)", re.I)
_URI = re.compile(r"[A-Za-z][\w.+-]*:")
_LONGEST_NAME = 255  # bytes, as file systems have it
_SHOWN = 80


def expand_path(given: str, source: str) -> str:
    """Return a path with ``~``, ``~USER``, ``$VARIABLE`` and ``${VARIABLE}`` expanded.

    A data set's prefix, ``wds/`` or ``hfds/``, stays in front.

    Args:
        given: The path.
        source: Its origin (file and key, variable or option), for the errors.

    Raises:
        UserError: A variable isn't set, a user isn't known, or it can't be a path.

    >>> import os
    >>> os.environ["SCRATCH"] = "/scratch/me"
    >>> expand_path("wds/$SCRATCH/in", "config.yaml: key 'data.imagenet'")
    'wds//scratch/me/in'
    """
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in given):
        raise UserError(f"{source} is '{printable(given)}': a path can't have control characters")
    prefix = _PREFIX.match(given)
    start, path = given[: prefix.end()] if prefix else "", given[prefix.end() if prefix else 0 :]

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if not name or not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise UserError(f"{source} is '{given}': allowed after a $: NAME or {{NAME}}")
        if not os.environ.get(name):
            raise UserError(f"{source} is '{given}': set the variable {name}, which isn't set")
        return os.environ[name]

    path = _VARIABLE.sub(value, path)
    home = os.path.expanduser(path)
    if home.startswith("~"):
        user = home.partition("/")[0]
        raise UserError(f"{source} is '{given}': no home folder is known for '{user}'")
    if "~" in Path(home).parts:
        raise UserError(f"{source} is '{given}': ~ stands for a home folder only in front")
    if any(len(os.fsencode(part)) > _LONGEST_NAME for part in Path(home).parts):
        raise UserError(
            f"{source}: '{given[:_SHOWN]}…': a name in a path has {_LONGEST_NAME} bytes at most"
        )
    return start + home


def expand_uri(given: str, source: str) -> str:
    """Return a tracking URI with the path of a local file expanded as by :func:`expand_path`.

    Other URIs stay as they are, since a password may hold a ``$``.

    Raises:
        UserError: For the reasons of :func:`expand_path`, or it is no URI of a store.
    """
    scheme = _FILE_URI.match(given)
    if scheme is None:
        if given.lower().startswith("sqlite"):
            raise UserError(f"{source} is '{given}': allowed of SQLite: sqlite:///PATH")
        return given if _URI.match(given) else expand_path(given, source)
    return scheme[0] + expand_path(given[scheme.end() :], source)


def local_store(path: Path) -> str:
    """Return the URI of an SQLite file.

    SQLAlchemy takes what follows a ``?`` for options and has no escape, so a path that has one
    is made relative to the current folder.

    Raises:
        UserError: The relative path has one, too.
    """
    place = str(path.resolve())
    if "?" in place:
        place = os.path.relpath(place)
    if "?" in place:
        raise UserError(
            f"{path}: MLflow can't have its store in a folder with a '?' in its name; set "
            "'results' or 'tracking_uri' in config/config.yaml to another place"
        )
    return f"sqlite:///{place}"
