"""Commands that build, explain and bundle reports."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ofq.cli.common import StudyName, given_path, say
from ofq.config import Workspace
from ofq.console import printable_lines
from ofq.runs.own_code import told

if TYPE_CHECKING:
    from ofq.report.collect import Records

_PANEL = "Reports"
_SHARED = (
    "it contains commits, uncommitted changes, commands, versions, devices and paths in recipes; "
    "no host names, process ids, logs or credentials"
)
app = typer.Typer()


@app.command(rich_help_panel=_PANEL)
def report(study: StudyName) -> None:
    """Build a study's report from its run folders; this trains nothing."""
    from ofq.report.write import write_report

    workspace = Workspace()
    records = write_report(workspace, study, workspace.reports / study)
    say(f"report: {workspace.reports / study / 'index.html'}")
    _report_gaps(records)


def _report_gaps(records: "Records") -> None:
    if records.reasons:
        count = f"{len(records.reasons)} of {len(records.cells)} cells"
        say(f"incomplete: {count} miss seeds; `ofq status {records.name}` lists them")
    for fault in records.damaged.values():
        say(f"damaged and left out: {fault}")
    if other := told(records.name, records.changed):
        say(f"not of present code: {other}")


@app.command(rich_help_panel=_PANEL)
def overview() -> None:
    """Write reports/index.html: all studies, with their claims, verdicts and reports."""
    from ofq.report.overview import write_overview

    workspace = Workspace()
    workspace.refuse_elsewhere()
    say(f"overview: {write_overview(workspace)}")


@app.command(rich_help_panel=_PANEL)
def explain(
    study: StudyName,
    cell: Annotated[
        str, typer.Argument(metavar="CELL", help="BITS/METHOD, or MODEL/BITS/METHOD if several.")
    ],
) -> None:
    """Explain a number of a study's table by its runs, commits, recipes and commands.

    For example `ofq explain digits W2A2/statsq+qkr+cga`, or `FP/fp` for full precision.
    """
    from ofq.report import explain as explain_cell

    print(printable_lines(explain_cell(Workspace(), study, cell)))


@app.command(rich_help_panel=_PANEL, name="bundle")
def make_bundle(
    study: StudyName,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File to write. Default: STUDY.tar.xz with the reports."),
    ] = None,
    records_only: Annotated[
        bool,
        typer.Option(
            "--records-only", help="Leave out the report, which `ofq report` makes again."
        ),
    ] = False,
) -> None:
    """Pack a study's report and the records that it is built from into one file.

    The file contains config, records and results, but no weights. It includes commits, commands and
    uncommitted changes without credentials, but no host names, process ids or whole logs.
    `ofq unbundle FILE` unpacks it anywhere.
    """
    from ofq.report.bundle import ENDING, bundle

    workspace = Workspace()
    path = given_path(out, "--out") if out else workspace.reports / f"{study}{ENDING}"
    records = bundle(workspace, study, path, records_only=records_only)
    say(f"wrote {path}: {path.stat().st_size:,} bytes")
    say(_SHARED)
    _report_gaps(records)


@app.command(rich_help_panel=_PANEL, name="unbundle")
def open_bundle(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file written by `ofq bundle`.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="A new folder. Default: the study's name, here."),
    ] = None,
) -> None:
    """Unpack a study's bundle into a folder, where `ofq report` rebuilds the same report."""
    from ofq.report.bundle import unbundle

    folder = given_path(out, "--out") if out else None
    unpacked = unbundle(given_path(file, "FILE"), folder)
    [study] = unpacked.site.studies
    again = f"cd {shlex.quote(str(unpacked.root))} && ofq report {study}"
    say(f"unpacked {study}; its report anew: {again}")
