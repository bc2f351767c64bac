"""Tables as others read them: Parquet by pandas, LaTeX by pdfTeX."""

import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from ofq.report.latex import measures_to_latex, to_latex
from ofq.report.tables import Entry, Row, Table

from tests.support.required import without

ROOT = Path(__file__).parents[2]

DOCUMENT = r"""
\documentclass{article}
\usepackage{booktabs}
\begin{document}
\input{table}
\end{document}
"""

SPECIAL = r"*[1] 100 % of A&B_c #1 {x} ~^ \ <y> |z| $5 ± − – · é α ≥ → ×"
NAMED = Table(
    SPECIAL,
    ["W2A2", "W4A4"],
    [SPECIAL, "loss"],
    [Row(f"m_{i}", SPECIAL, [Entry(SPECIAL, best=bool(i))] * 4) for i in range(2)],
    3,
    SPECIAL,
    2,
    [f"A note\n\\undefined {SPECIAL}"],
)


@pytest.mark.parametrize("name", ["table", "runs", "differences"])
def test_parquet_and_csv_say_the_same(report: Path, name: str) -> None:
    text = pd.read_parquet(report / f"{name}.parquet").to_csv(index=False, lineterminator="\n")
    assert text == (report / f"{name}.csv").read_text()


@pytest.fixture(scope="session")
def pdflatex() -> str:
    """The typesetter; skipped without it, unless it is required."""
    found = shutil.which("pdflatex")
    if found is None:
        without("pdflatex", "no pdflatex here (Debian's texlive-latex-recommended)")
    return found


def typeset(pdflatex: str, table: str, folder: Path) -> str:
    """Typeset a table in a document with booktabs and nothing else, and give what TeX says."""
    (folder / "table.tex").write_text(table)
    (folder / "document.tex").write_text(DOCUMENT)
    command = [pdflatex, "-halt-on-error", "-interaction=nonstopmode", "document.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
    log = (folder / "document.log").read_text()
    assert "Missing character" not in log
    return log


@pytest.mark.integration
@pytest.mark.parametrize(
    "table",
    sorted(ROOT.glob("reports/*/*.tex")),
    ids=lambda path: f"{path.parent.name}-{path.stem}",
)
def test_committed_tables_fit_on_a_page(pdflatex: str, table: Path, tmp_path: Path) -> None:
    assert "Overfull" not in typeset(pdflatex, rf"\noindent\small {table.read_text()}", tmp_path)


@pytest.mark.integration
def test_what_latex_would_read_is_typeset_as_it_is(pdflatex: str, tmp_path: Path) -> None:
    typeset(pdflatex, to_latex(NAMED, pd.DataFrame()) + measures_to_latex(NAMED), tmp_path)
