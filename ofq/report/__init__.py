"""Reports: a page with tables, figures and findings, made from run folders.

Reads files only, and imports neither torch nor MLflow; heavier imports wait for :func:`build`.
"""

from pathlib import Path

from ofq.config import Workspace

__all__ = ["build", "explain"]


def build(workspace: Workspace, study: str, out: Path) -> Path:
    """Write a study's report.

    The report is made in a folder beside ``out`` and moved into place when complete, so a failure
    leaves an earlier report as it was. Equal run folders make byte-identical reports.

    Args:
        workspace: The checkout's config.
        study: The study's name.
        out: The report's folder; an earlier report there is replaced.

    Returns:
        The page, ``out/index.html``.

    Raises:
        UserError: The study is invalid, or no cell has a finished run; or ``out`` holds something
            else than a report.
    """
    from ofq.report.write import write_report

    write_report(workspace, study, out)
    return out / "index.html"


def explain(workspace: Workspace, study: str, cell: str) -> str:
    """Describe the runs behind a cell of a study's table (:func:`ofq.report.origin.explain`)."""
    from ofq.report.origin import explain as tell

    return tell(workspace, study, cell)
