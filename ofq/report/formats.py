"""File formats of a report's tables."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ofq.report.baselines import SideBySide
from ofq.report.latex import measures_to_latex, to_latex
from ofq.report.tables import Table, to_markdown, verdicts_to_markdown

_FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")

FRAMES = ("table", "runs", "differences", "verdicts", "effects", "noise", "claims", "baselines")
"""Names of the frames that a report may have."""


@dataclass(frozen=True)
class Tables:
    """Tables of a report.

    Attributes:
        printed: The study's table, as printed.
        answer: The study's answer in a sentence.
        verdicts: Result of :func:`ofq.report.compare.hold_against`; may be empty.
        notes: The references' notes on the comparison with reported results.
        beside: The methods beside the study's baselines, as printed; None without any.
        frames: Every table in full precision, by its name in :data:`FRAMES`.
    """

    printed: Table
    answer: str
    verdicts: pd.DataFrame
    notes: list[str]
    beside: SideBySide | None
    frames: dict[str, pd.DataFrame]


Write = Callable[[Tables, Path], None]

FORMATS: dict[str, Write] = {}
"""Functions that write the tables into a folder, by the suffix of their files."""


def table_format(ending: str) -> Callable[[Write], Write]:
    """Register a function that writes tables in one format, to files with one suffix.

    Example:
        >>> @table_format("json")
        ... def write_json(tables: Tables, folder: Path) -> None: ...
        >>> del FORMATS["json"]
    """

    def register(write: Write) -> Write:
        FORMATS[ending] = write
        return write

    return register


def write_tables(tables: Tables, folder: Path) -> None:
    """Write the tables in every format."""
    for write in FORMATS.values():
        write(tables, folder)


@table_format("md")
def _markdown(tables: Tables, folder: Path) -> None:
    text = to_markdown(tables.printed, tables.answer, tables.frames.get("claims"))
    if tables.beside is not None:
        text += f"\n{tables.beside.to_markdown()}"
    if len(tables.verdicts):
        text += f"\n{verdicts_to_markdown(tables.verdicts, tables.notes)}"
    (folder / "table.md").write_text(text, encoding="utf-8")


@table_format("tex")
def _latex(tables: Tables, folder: Path) -> None:
    study, others = to_latex(tables.printed, tables.verdicts), measures_to_latex(tables.printed)
    (folder / "table.tex").write_text(study, encoding="utf-8")
    (folder / "measures.tex").write_text(others, encoding="utf-8")


@table_format("csv")
def _csv(tables: Tables, folder: Path) -> None:
    for name, frame in tables.frames.items():
        texts = frame.select_dtypes(exclude=["number", "bool"]).columns
        cells = frame.copy()
        cells[texts] = frame[texts].map(inert)
        cells = cells.rename(columns=inert)
        cells.to_csv(folder / f"{name}.csv", index=False, lineterminator="\n")


def inert(cell: Any) -> Any:
    """Return a cell of a CSV file such that a spreadsheet takes no text for a formula.

    Text that begins like a formula gets an apostrophe before it; numbers stay as they are.
    """
    if not isinstance(cell, str) or not cell.startswith(_FORMULAS):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell


@table_format("parquet")
def _parquet(tables: Tables, folder: Path) -> None:
    for name, frame in tables.frames.items():
        frame.to_parquet(folder / f"{name}.parquet", index=False)
