"""Makes text from records, file names and other people's configs safe to print, on any terminal."""

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
    r"""Return text as one line that a terminal shows as it is, and doesn't obey.

    Line ends and tabs become blanks; control characters, ESC among them, bidirectional overrides
    and lone surrogates become escapes such as ``\x1b``.

    >>> printable("a\x1b[2Jb\nc")
    'a\\x1b[2Jb c'
    """
    line = str(text).translate(_REPLACED)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def printable_lines(text: object) -> str:
    """Return text of several lines, each of them as of :func:`printable`."""
    return "\n".join(printable(line) for line in str(text).split("\n"))


def show_anywhere() -> None:
    r"""Let standard output and error take text that their encoding lacks.

    Arrows, dashes and bars become their likes in ASCII, other characters escapes such as
    ``\u03b1``; a terminal or a log in ISO 8859-1 or ASCII ends no command.
    """
    codecs.register_error(_HANDLER, _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_HANDLER)


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    return "".join(map(_likes, letters)), error.end


def _likes(letter: str) -> str:
    if "\u2800" <= letter <= "\u28ff":  # a turning spinner
        return "*"
    return _PLAIN.get(letter) or letter.encode("ascii", "backslashreplace").decode()
