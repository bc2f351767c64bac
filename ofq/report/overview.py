"""Page of all studies: what each claims to test, what became of it, and its report."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd

from ofq.atomic import write_text
from ofq.config import Workspace
from ofq.errors import UserError
from ofq.report.page import TEMPLATES


def write_overview(workspace: Workspace) -> Path:
    """Write ``reports/index.html`` from the studies' files and the reports that are there.

    Returns:
        The page.

    Raises:
        UserError: It can't be written, or a report's table can't be read.
    """
    titles, faults = {}, workspace.faults()
    for name in workspace.study_names:
        with suppress(UserError):  # named among the faults
            titles[name] = workspace.study(name).title
    studies = [_entry(workspace.reports / name, title) for name, title in titles.items()]
    page = workspace.reports / "index.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    text = TEMPLATES.get_template("overview.html.j2").render(studies=studies, faults=faults)
    write_text(page, text)
    return page


def _entry(folder: Path, title: str) -> dict[str, Any]:
    name = folder.name
    entry = {"name": name, "title": title, "page": "", "state": "no report yet", "claims": []}
    if not (folder / "index.html").is_file():
        return entry
    cells, claims = _read(folder / "table.csv"), folder / "claims.csv"
    missing = int(cells["missing"].notna().sum())
    state = f"{missing} of {len(cells)} cells miss seeds" if missing else f"{len(cells)} cells"
    found = _read(claims) if claims.is_file() else pd.DataFrame()
    if len(found) and found["model"].nunique() < 2:
        found = found.assign(model="")
    return entry | {
        "page": f"{name}/index.html",
        "state": state,
        "claims": found.to_dict("records"),
    }


def _read(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path, keep_default_na=True)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: can't read this part of a report: {error}; `ofq report {path.parent.name}` "
            "makes the report anew"
        ) from error
