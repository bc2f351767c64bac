"""Page of a report: one self-contained HTML file."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from ofq.config import Study
from ofq.report.baselines import SideBySide
from ofq.report.collect import Records
from ofq.report.effects import effect_rows
from ofq.report.figures import Saved
from ofq.report.measures import MINUS, Measure, measures, p_text
from ofq.report.noise import noise_rows
from ofq.report.tables import Table, cell_name, claim_rows, verdict_rows
from ofq.report.verdicts import MARGIN, RESOLUTION

TEMPLATES = Environment(
    loader=PackageLoader("ofq.report", "."),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
)
"""The pages' templates."""

_PLAIN = " !$'()*+,/:;<=>?@[]"
"""Characters that need no escape in a data URI inside double quotes."""


@dataclass(frozen=True)
class Picture:
    """Figure as the page embeds it."""

    name: str
    caption: str
    uri: str
    width: float


def write_page(
    path: Path,
    records: Records,
    table: Table,
    differences: pd.DataFrame,
    *,
    answer: str,
    found: dict[str, pd.DataFrame],
    beside: SideBySide | None,
    figures: list[Saved],
    absent: dict[str, str],
    runs_path: str,
) -> None:
    """Write ``index.html``.

    Args:
        path: The page.
        records: Records of the run folders.
        table: The study's table.
        differences: Result of :func:`ofq.report.compare.compare`.
        answer: The study's answer in a sentence (:func:`ofq.report.answer.answer`).
        found: ``claims`` of :func:`ofq.report.claims.judge_claims`, ``verdicts`` of
            :func:`ofq.report.compare.hold_against` and ``effects`` of
            :func:`ofq.report.effects.effects`; each may be empty.
        beside: The methods beside the study's baselines; None without any.
        figures: The figures, to be embedded.
        absent: Reasons why other figures are missing, by name.
        runs_path: Path of the run folders, relative to the page's folder.
    """
    rows = _difference_rows(records, differences)
    path.write_text(
        TEMPLATES.get_template("page.html.j2").render(
            records=records,
            study=records.study,
            table=table,
            answer=answer,
            findings=[row for row in rows if row["is_asked"]],
            claims=claim_rows(found["claims"]),
            verdicts=verdict_rows(found["verdicts"]),
            noise=noise_rows(records),
            beside=beside,
            effects=effect_rows(records, found["effects"]),
            rule={"margin": MARGIN, "resolution": f"{RESOLUTION:g}"},
            references=records.references,
            by_images=bool(found["verdicts"].get("by_images", pd.Series(dtype=bool)).any()),
            seeds=", ".join(str(seed) for seed in records.study.seeds),
            commits=_commits(records.runs["commit"]),
            pictures=[_picture(figure) for figure in figures],
            absent=absent,
            differences=rows,
            runs=_run_rows(records),
            primary=measures(records.primary)[0],
            headings=[measure.heading for measure in measures(records.primary)],
            runs_path=quote(Path(runs_path).as_posix()),
        ),
        encoding="utf-8",
    )


def _picture(figure: Saved) -> Picture:
    # as text: shorter than base64, and compresses well beside the file itself in a bundle
    data = quote(" ".join(figure.svg.read_text(encoding="utf-8").split()), safe=_PLAIN)
    return Picture(figure.name, figure.caption, f"data:image/svg+xml,{data}", 96 * figure.width)


def _short(commit: str) -> str:
    return re.sub("^([0-9a-f]{10})[0-9a-f]+", r"\1", commit)


def _commits(cells: Iterable[str]) -> list[str]:
    """Return every commit once, shortened."""
    return list(dict.fromkeys(_short(name) for cell in cells for name in cell.split()))


def _difference_rows(records: Records, differences: pd.DataFrame) -> list[dict[str, Any]]:
    by_key = {m.key: m for m in measures(records.primary)}
    primary = measures(records.primary)[0]
    questions = {
        (c.method, c.against): c.question.removesuffix(":") for c in records.study.contrasts
    }
    rows = []
    for _, row in differences.iterrows():
        measure = by_key[row["measure"]]
        rows.append(
            {
                "measure": measure.name,
                "model": row["model"],
                "bits": row["bits"],
                "pair": f"{records.labels[row['method']]} against {records.labels[row['against']]}",
                "family": row["family"],
                "n": row["n"],
                "mean": measure.signed(row["mean"]),
                "interval": measure.interval(row["low"], row["high"]) or "–",
                "p": p_text(row["p"]),
                "p_holm": p_text(row["p_holm"]),
                "detectable": measure.text(row["detectable"]),
                "images": _images(row) if measure is primary else "–",
                "verdict": row["verdict"],
                "reported": _reported(measure, row),
                "question": questions.get((row["method"], row["against"]), ""),
                "is_asked": row["verdict"] != "identical" and _is_asked(records.study, row),
            }
        )
    return rows


def _reported(measure: Measure, row: pd.Series) -> str:
    """Format the difference that others reported, with the verdict on ours; empty without one."""
    if pd.isna(row.get("reported", math.nan)):
        return ""
    return f"{measure.signed(row['reported'])}: {row['against_reported']} ({row['source']})"


def _is_asked(study: Study, row: pd.Series) -> bool:
    """Return whether a difference is one of those that the study is made for."""
    pair = (row["method"], row["against"])
    if study.contrasts:
        return bool(row["family"] == "primary")
    if study.factors:
        return not study.factors_of(pair[1]) or study.factors_of(pair[0]) == set(study.factors)
    methods = study.methods
    return pair[::-1] in [*pairwise(methods), (methods[0], methods[-1])]


def _images(row: pd.Series) -> str:
    """Format the images that only one of two methods gets right, with McNemar's p."""
    if pd.isna(row["gained"]):
        return "–"
    p = row["p_mcnemar"] if pd.isna(row["p_mcnemar_holm"]) else row["p_mcnemar_holm"]
    return f"+{row['gained']:.0f} {MINUS}{row['lost']:.0f}, p {p_text(p)}"


def _run_rows(records: Records) -> list[dict[str, Any]]:
    shown = measures(records.primary)
    return [
        {
            "id": run["run"],
            "cell": cell_name(run),
            "command": run["command"],
            "mlflow": run["mlflow_runs"],
            "differences": run["recipe_differences"],
            "model": run["model"],
            "label": run["label"],
            "bits": run["bits"],
            "seed": run["seed"],
            "values": [measure.text(run[measure.key]) for measure in shown],
            "commit": ", ".join(_commits([run["commit"]])),
        }
        for run in records.runs.to_dict("records")
    ]
