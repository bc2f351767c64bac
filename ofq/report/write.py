"""Assembly of a report in a temporary folder, which then replaces the earlier report."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ofq.config import Workspace
from ofq.config.schema import FIGURES
from ofq.console import printable
from ofq.errors import UserError
from ofq.report.answer import answer
from ofq.report.baselines import SideBySide, baselines
from ofq.report.claims import judge_claims
from ofq.report.collect import Records, collect
from ofq.report.compare import compare, hold_against, summarize_cells
from ofq.report.curves import DamagedTables
from ofq.report.effects import effects
from ofq.report.figures import write_figures
from ofq.report.formats import FORMATS, FRAMES, Tables, write_tables
from ofq.report.noise import draws
from ofq.report.page import write_page
from ofq.report.tables import Table
from ofq.runs.record import Damaged

ENTRIES = {
    "index.html",
    "figures",
    "measures.tex",
    *(f"{name}.{ending}" for name in FRAMES for ending in FORMATS),
}
"""Allowed content of a report's folder."""

_ADVICE = b"ofq explain "
"""Text that identifies a page as a report's."""

_NOTES = {".snakemake_timestamp", ".DS_Store"}
"""Files that Snakemake and macOS leave in folders."""


def write_report(workspace: Workspace, study: str, out: Path) -> Records:
    """Write a report (:func:`ofq.report.build`), and return the records it was made from."""
    _refuse_foreign(out, {*FIGURES, *workspace.study(study).figures})
    damaged: dict[str, Damaged] = {}
    while True:
        records = collect(workspace, study, damaged)
        try:
            with _replacing(out) as folder:
                _fill(folder, records, os.path.relpath(workspace.results / "runs", out))
        except DamagedTables as found:  # read by a figure: start again without these runs
            damaged = records.damaged | found.faults
        else:
            return records


def _fill(folder: Path, records: Records, runs_path: str) -> None:
    cells, differences = summarize_cells(records), compare(records)
    table = Table.of(records, cells)
    found = {
        "claims": judge_claims(records),
        "verdicts": hold_against(records),
        "effects": effects(records),
    }
    against = baselines(records, cells)
    beside = SideBySide.of(records, against) if len(against) else None
    frames = {"table": cells, "runs": records.runs, "differences": differences}
    study = records.study
    asked = {"claims": study.claims, "verdicts": records.references, "effects": study.factors}
    optional = {**found, "noise": draws(records), "baselines": against}
    frames |= {name: frame for name, frame in optional.items() if len(frame) or asked.get(name)}
    notes = [note for reference in records.references for note in reference.notes]
    sentence = answer(records, cells, differences)
    write_tables(Tables(table, sentence, found["verdicts"], notes, beside, frames), folder)
    figures, absent = write_figures(folder / "figures", records)
    page = folder / "index.html"
    write_page(
        page, records, table, differences,
        answer=sentence, found=found, beside=beside, figures=figures, absent=absent,
        runs_path=runs_path,
    )  # fmt: skip


def _refuse_foreign(out: Path, figures: set[str]) -> None:
    """Refuse to replace anything but an earlier report.

    Raises:
        UserError: The folder, or its folder of figures, holds something else; or it is a link.
    """
    if not os.path.lexists(out):
        return
    if out.is_symlink() or not out.is_dir():
        raise UserError(f"{out}: isn't a folder; a report is a folder of its own, so give another")
    foreign = [path.name for path in out.iterdir() if not _is_own(path)]
    if (out / "figures").is_dir():
        drawings = (out / "figures").iterdir()
        foreign += [f"figures/{path.name}" for path in drawings if not _is_figure(path, figures)]
    if foreign:
        raise UserError(
            f"{out}: holds '{printable(min(foreign))}', which is no part of a report; a report "
            "replaces its whole folder, so give another folder or move that away"
        )


def _is_own(path: Path) -> bool:
    """Return whether an entry of a report's folder belongs to a report, by its name and kind."""
    if path.is_symlink() or path.is_dir() != (path.name == "figures"):
        return False
    if path.name == "index.html":
        return _ADVICE in path.read_bytes()
    return path.name in ENTRIES | _NOTES


def _is_figure(path: Path, figures: set[str]) -> bool:
    plain = path.is_file() and not path.is_symlink()
    return plain and path.suffix in (".svg", ".png") and path.stem in figures


@contextmanager
def _replacing(out: Path) -> Iterator[Path]:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=out.parent, prefix=f".{out.name}.", ignore_cleanup_errors=True
        ) as place:
            fresh, stale = Path(place) / "new", Path(place) / "old"
            fresh.mkdir()
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
