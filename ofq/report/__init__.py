"""Reports: run folders in, a page with tables, figures and what they show out.

Reads files only, and nothing of torch or MLflow; the heavier imports wait for :func:`build`.
"""

from pathlib import Path

from ofq.config import Workspace

__all__ = ["build", "explain"]


def build(workspace: Workspace, study: str, out: Path) -> Path:
    """Write a study's report.

    The report is made in a folder beside ``out`` and put in its place when it is whole, so a
    failure leaves an earlier report as it was. Equal run folders make byte-identical reports.

    Args:
        workspace: The checkout's config.
        study: The study's name.
        out: The report's folder; what an earlier report left there is replaced.

    Returns:
        The page, ``out/index.html``.

    Raises:
        UserError: The study is wrong, or misses a run; or ``out`` holds
            something else than a report.
    """
    from ofq.report.write import write_report

    write_report(workspace, study, out)
    return out / "index.html"


def explain(workspace: Workspace, study: str, cell: str) -> str:
    """Lead from a cell of a study's table to its runs; see :func:`ofq.report.origin.explain`."""
    from ofq.report.origin import explain as tell

    return tell(workspace, study, cell)
