"""Putting a report together in a temporary folder, and that folder in the report's place."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ofq.errors import UserError
from ofq.report.collect import Records, collect
from ofq.report.compare import compare, hold_against, summarize_cells
from ofq.report.effects import effects
from ofq.report.figures import write_figures
from ofq.report.formats import FORMATS, FRAMES, Tables, write_tables
from ofq.report.noise import draws
from ofq.report.page import write_page
from ofq.report.tables import Table
from ofq.study import Workspace

ENTRIES = {
    "index.html",
    "figures",
    "measures.tex",
    *(f"{name}.{ending}" for name in FRAMES for ending in FORMATS),
}
"""What a report's folder may hold."""


def write_report(workspace: Workspace, study: str, out: Path) -> Records:
    """Write a report (:func:`ofq.report.build`), and give what it was made from."""
    _refuse_foreign(out)
    records = collect(workspace, study)
    with _replacing(out) as folder:
        _fill(folder, records, os.path.relpath(workspace.results / "runs", out))
    return records


def _fill(folder: Path, records: Records, runs_path: str) -> None:
    cells, differences = summarize_cells(records), compare(records)
    table = Table.of(records, cells)
    found = {"verdicts": hold_against(records), "effects": effects(records)}
    frames = {"table": cells, "runs": records.runs, "differences": differences}
    asked = {"verdicts": records.study.references, "effects": records.study.factors}
    optional = {**found, "noise": draws(records)}
    frames |= {name: frame for name, frame in optional.items() if len(frame) or asked.get(name)}
    notes = [note for reference in records.references for note in reference.notes]
    write_tables(Tables(table, found["verdicts"], notes, frames), folder)
    figures, absent = write_figures(folder / "figures", records)
    page = folder / "index.html"
    write_page(page, records, table, differences, found, figures, absent, runs_path)


def _refuse_foreign(out: Path) -> None:
    """Keep a mistyped folder from being replaced by a report."""
    if not out.exists():
        return
    foreign = sorted(p.name for p in out.iterdir() if p.name not in ENTRIES and p.name[0] != ".")
    if foreign:
        raise UserError(
            f"{out}: holds '{foreign[0]}', which is no part of a report; a report replaces its "
            "whole folder, so give another folder or move that away"
        )


@contextmanager
def _replacing(out: Path) -> Iterator[Path]:
    fresh, stale = (out.with_name(f".{out.name}.{os.getpid()}.{word}") for word in ("new", "old"))
    try:
        fresh.mkdir(parents=True)
        yield fresh
        if out.exists():
            out.rename(stale)
        try:
            fresh.rename(out)
        except OSError:
            if stale.exists():
                stale.rename(out)
            raise
    except OSError as error:
        raise UserError(f"{out}: can't write the report: {error.strerror or error}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(stale, ignore_errors=True)
