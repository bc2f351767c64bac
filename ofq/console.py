"""Makes text from records, file names and other people's configs safe to print."""

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
