"""Escaping of text from records, file names and configs, so that any terminal prints it safely."""

import codecs
import io
import sys

_PLAIN = {
    "→": "->", "←": "<-", "↑": "^", "↓": "v", "…": "...", "–": "-", "—": "-", "−": "-", "‐": "-",
    "×": "x", "·": ".", "•": "*", "±": "+-", "≥": ">=", "≤": "<=", "≈": "~", "“": '"', "”": '"',
    "‘": "'", "’": "'", "━": "=", "─": "-", "│": "|", "╸": "=", "╺": " ", "█": "#",
}  # fmt: skip
_HANDLER = "ofq.plain"
_REPLACED = {ord("\t"): " ", ord("\n"): " ", ord("\r"): " "}


def printable(text: object) -> str:
    r"""Return text as one line without control sequences that a terminal would act on.

    Line ends and tabs become spaces; control characters, ESC among them, bidirectional overrides
    and lone surrogates become escapes such as ``\x1b``.

    >>> printable("a\x1b[2Jb\nc")
    'a\\x1b[2Jb c'
    """
    line = str(text).translate(_REPLACED)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def printable_lines(text: object) -> str:
    """Apply :func:`printable` to each line of a text, and keep the line breaks."""
    return "\n".join(printable(line) for line in str(text).split("\n"))


def show_anywhere() -> None:
    r"""Let standard output and error accept characters that their encoding lacks.

    Arrows, dashes and bars become similar characters in ASCII, all others escapes such as
    ``\u03b1``, so that no command fails on a terminal or log in ISO 8859-1 or ASCII.
    """
    codecs.register_error(_HANDLER, _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_HANDLER)


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    return "".join(map(_substitute, letters)), error.end


def _substitute(letter: str) -> str:
    if "\u2800" <= letter <= "\u28ff":  # a frame of a spinner
        return "*"
    return _PLAIN.get(letter) or letter.encode("ascii", "backslashreplace").decode()
