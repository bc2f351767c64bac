"""LaTeX of the study's table for the package booktabs, as wide as a page of the class article."""

from collections.abc import Iterator
from itertools import groupby

import pandas as pd
from pylatexenc.latexencode import (
    RULE_DICT,
    UnicodeToLatexConversionRule,
    UnicodeToLatexEncoder,
)

from ofq.report.tables import Entry, Row, Table, verdict_rows

_LATEX = UnicodeToLatexEncoder(
    conversion_rules=[
        # at a row's beginning, brackets and stars would be options of the line break before it
        UnicodeToLatexConversionRule(
            RULE_DICT, {ord("["): "{[}", ord("*"): "{*}", ord("|"): r"\textbar{}", ord("−"): "$-$"}
        ),
        "defaults",
    ],
    unknown_char_policy="keep",
    unknown_char_warning=False,
)
"""Encoder for pdfTeX; characters that it can't print, such as Chinese, need XeTeX or LuaTeX."""


def to_latex(table: Table, verdicts: pd.DataFrame) -> str:
    """Return the table of the primary measure: methods by bits, reported results below each.

    Args:
        table: The table as printed.
        verdicts: Result of :func:`ofq.report.compare.hold_against`; may be empty.
    """
    reported = {
        row["cell"]: f"{row['reported']} ({row['difference']})" for row in verdict_rows(verdicts)
    }
    body, width = [], len(table.headings)
    for model, rows in _by_model(table):
        body += _heading([model] if table.many_models else [], len(table.groups))
        for row in rows:
            numbers = row.entries[::width]
            body.append(_line(escape_latex(row.label), numbers))
            known = [Entry(reported.get(entry.cell, "–")) for entry in numbers]
            if any(entry.text != "–" for entry in known):
                body.append(_line(r"\quad reported (difference)", known))
    title = f"{table.title}: {table.headings[0]}"
    return _tabular([title, *table.notes], table.groups, body)


def measures_to_latex(table: Table) -> str:
    """Return the table of the other measures: methods by measures, for each model and bits.

    Args:
        table: The table as printed.
    """
    body, width = [], len(table.headings)
    for model, rows in _by_model(table):
        for number, bits in enumerate(table.groups):
            lines = []
            for row in rows:
                own = row.entries[number * width + 1 : (number + 1) * width]
                if any(entry.text != "–" for entry in own):
                    lines.append(_line(escape_latex(row.label), own))
            heading = _heading([model, bits] if table.many_models else [bits], width - 1)
            body += [*heading, *lines] if lines else []
    if not body:
        return f"% {' '.join(table.title.split())}: nothing else was measured\n"
    return _tabular([table.title, *table.notes], table.headings[1:], body)


def _by_model(table: Table) -> Iterator[tuple[str, list[Row]]]:
    return ((m, list(rows)) for m, rows in groupby(table.rows, lambda row: row.model))


def _heading(names: list[str], columns: int) -> list[str]:
    """Return a heading over rows, or nothing if it has no text."""
    text = escape_latex(", ".join(names))
    line = rf"\multicolumn{{{columns + 1}}}{{l}}{{\textit{{{text}}}}} \\"
    return [r"\addlinespace", line] if names else []


def _line(head: str, entries: list[Entry]) -> str:
    texts = [
        rf"\textbf{{{escape_latex(entry.text)}}}" if entry.best else escape_latex(entry.text)
        for entry in entries
    ]
    return " & ".join([head, *texts]) + r" \\"


def _tabular(notes: list[str], columns: list[str], body: list[str]) -> str:
    lines = [
        *(f"% {' '.join(note.split())}" for note in notes),
        rf"\begin{{tabular}}{{@{{}}l{'r' * len(columns)}@{{}}}}",
        r"\toprule",
        " & ".join(["Method", *map(escape_latex, columns)]) + r" \\",
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def escape_latex(text: str) -> str:
    """Return plain text as LaTeX source."""
    return str(_LATEX.unicode_to_latex(text))
