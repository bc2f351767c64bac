"""Reports: built, explained and packed."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ofq.cli.common import StudyName, given_path, say
from ofq.config import Workspace
from ofq.console import printable_lines

if TYPE_CHECKING:
    from ofq.report.collect import Records

_PANEL = "Reports"
_SHARED = (
    "it tells commits, uncommitted changes, commands, versions, devices and paths that recipes "
    "name; not hosts, processes, logs or credentials"
)
app = typer.Typer()


@app.command(rich_help_panel=_PANEL)
def report(study: StudyName) -> None:
    """Build a study's report from its run folders; trains nothing."""
    from ofq.report.write import write_report

    workspace = Workspace()
    records = write_report(workspace, study, workspace.reports / study)
    say(f"report: {workspace.reports / study / 'index.html'}")
    _tell_gaps(records)


def _tell_gaps(records: "Records") -> None:
    if records.reasons:
        count = f"{len(records.reasons)} of {len(records.cells)} cells"
        say(f"not complete: {count} miss seeds; `ofq status {records.name}` says which")
    for fault in records.damaged.values():
        say(f"damaged, and left out: {fault}")


@app.command(rich_help_panel=_PANEL)
def explain(
    study: StudyName,
    cell: Annotated[
        str, typer.Argument(metavar="CELL", help="BITS/METHOD, or MODEL/BITS/METHOD if several.")
    ],
) -> None:
    """Tell where a number of a study's table comes from: runs, commits, recipes, commands.

    For example `ofq explain digits W2A2/statsq+qkr+cga`, or `FP/fp` for full precision.
    """
    from ofq.report import explain as tell

    print(printable_lines(tell(Workspace(), study, cell)))


@app.command(rich_help_panel=_PANEL, name="bundle")
def make_bundle(
    study: StudyName,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where to write it; left out, as reports/STUDY.tar.xz."),
    ] = None,
) -> None:
    """Pack what a study's report is made from, and the report, into one file.

    It holds config, records and results, no weights. Commits, commands and uncommitted changes are
    in it, without credentials; names of hosts, ids of processes and whole logs aren't. `ofq
    unbundle FILE` unpacks it anywhere.
    """
    from ofq.report.bundle import ENDING, bundle

    workspace = Workspace()
    path = given_path(out, "--out") if out else workspace.reports / f"{study}{ENDING}"
    records = bundle(workspace, study, path)
    say(f"wrote {path}: {path.stat().st_size:,} bytes")
    say(_SHARED)
    _tell_gaps(records)


@app.command(rich_help_panel=_PANEL, name="unbundle")
def open_bundle(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `ofq bundle` has written.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="A new folder; left out, the study's name, here."),
    ] = None,
) -> None:
    """Unpack a study's bundle into a folder, where `ofq report` makes the same report again."""
    from ofq.report.bundle import unbundle

    folder = given_path(out, "--out") if out else None
    unpacked = unbundle(given_path(file, "FILE"), folder)
    [study] = unpacked.site.studies
    again = f"cd {shlex.quote(str(unpacked.root))} && ofq report {study}"
    say(f"unpacked {study}; its report anew: {again}")
