"""Table of the study, methods by bits, and of the verdicts; as printed, and as Markdown."""

import math
import re
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from ofq.errors import some
from ofq.report.blocks import Blocks
from ofq.report.collect import Records
from ofq.report.measures import MINUS, POINTS, SIZE, SPACE, TOP1, Measure, measures
from ofq.runs.own_code import told

_LINE_END = re.compile(r"[\t\n\v\f\r\x1c-\x1e\x85\u2028\u2029]+")
_MARKDOWN = re.compile(r"[\\`*<>&|~$#]|\](?=[(\[:])|(?<![^\W_])_|_(?![^\W_])")
"""Markdown syntax, including an underscore at a word's end and a bracket before a link target."""


@dataclass(frozen=True)
class Entry:
    """Entry of the table, as printed.

    Attributes:
        text: The number, or the reason why there is none.
        best: Whether it is set bold.
        cell: Its cell, as :func:`cell_name` names it; empty where the study has none.
    """

    text: str
    best: bool = False
    cell: str = ""


def cell_name(cell: pd.Series | dict[Hashable, Any]) -> str:
    """Return the link target of a cell's runs, given a row of a frame that has the cell's names."""
    return f"{cell['model']}/{cell['bits']}/{cell['method']}"


@dataclass(frozen=True)
class Row:
    """Row of a method: its model and label, and one entry per bits and measure."""

    model: str
    label: str
    entries: list[Entry]


@dataclass(frozen=True)
class Table:
    """Table as printed, before any markup.

    Attributes:
        title: The study's title.
        groups: The bits, each over ``headings``.
        headings: The measures' headings.
        rows: Full precision first, then the methods, for one model after the other.
        seeds: Number of seeds.
        name: Name of the measure that ``best`` refers to.
        methods: Number of methods, without full precision.
        about_seeds: Notes on what seeds share.
        gaps: Notes on missing results, and on results of other code.
    """

    title: str
    groups: list[str]
    headings: list[str]
    rows: list[Row]
    seeds: int
    name: str
    methods: int
    gaps: list[str] = field(default_factory=list)
    about_seeds: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, records: Records, cells: pd.DataFrame) -> "Table":
        """Lay out the cells of :func:`ofq.report.compare.summarize_cells`."""
        study = records.study
        shown = [m for m in measures(records.primary) if cells[f"{m.key}_mean"].notna().any()]
        plain = [SIZE] if SIZE.key in cells else []
        labels = {c.method: c.label for c in records.cells}
        rows = []
        for model in study.models:
            for method, label in labels.items():
                mine = records.of(cells, model=model, method=method)
                by_bits = {str(cell["bits"]): cell for _, cell in mine.iterrows()}
                entries = []
                for bits in study.bits:
                    # The baseline has one number, which every column of its kind repeats.
                    cell = by_bits.get("FP" if method == "fp" else bits)
                    if cell is None:  # by the study's key `only`
                        entries += [Entry("–")] * len((*shown, *plain))
                        continue
                    entries += [_entry(cell, measure) for measure in shown]
                    entries += [Entry(m.text(cell[m.key]), cell=cell_name(cell)) for m in plain]
                rows.append(Row(model, label, entries))
        headings = [m.heading for m in (*shown, *plain)]
        seeds, name = len(study.seeds), shown[0].name
        methods = len(study.methods)
        return cls(
            study.title, study.bits, headings, rows, seeds, name, methods,
            gaps=_gaps(records), about_seeds=_about_seeds(records),
        )  # fmt: skip

    @property
    def many_models(self) -> bool:
        """Return whether the rows are of more than one model, so that each must name its model."""
        return len({row.model for row in self.rows}) > 1

    @property
    def notes(self) -> list[str]:
        """Notes below the table."""
        return [*self._about_spread(), *self.about_seeds, *self._about_size(), *self.gaps]

    def _about_spread(self) -> list[str]:
        if self.seeds == 1:
            interval = "; the CSV has the 95 % interval of each accuracy over its images"
            return [
                "One seed: no spread can be given, and nothing is set bold"
                f"{interval if self.name == TOP1.name else ''}."
            ]
        spread = f"Mean ± sample standard deviation over {self.seeds} seeds."
        if self.methods == 1:
            return [spread]
        if any(entry.best for row in self.rows for entry in row.entries):
            return [
                spread,
                f"Bold: best {self.name} at these bits, by paired t tests against every other "
                "method, corrected (Holm) for all columns.",
            ]
        return [
            spread,
            f"No {self.name} is set bold: at no bits is one method shown to be better than every "
            "other, by paired t tests, corrected (Holm) for all columns.",
        ]

    def _about_size(self) -> list[str]:
        if SIZE.heading not in self.headings:
            return []
        return ["Size: of the file that ofq export writes; in full precision, of the weights."]


def _about_seeds(records: Records) -> list[str]:
    """Return notes on what the study's seeds share: images, and luck."""
    if len(records.study.seeds) == 1:
        return []
    notes = []
    if records.resplit:
        ratio = f"{records.resplit:.2f}"
        notes.append(
            f"Each seed splits one set of images anew, into {ratio} test images per training "
            "image, so that seeds share images: intervals and tests take the variance of a mean "
            f"over n seeds as σ²·(1/n + {ratio}) (Nadeau and Bengio 2003)."
        )
    measure = measures(records.primary)[0]
    correlation = Blocks.of(records, measure).mean_correlation()
    if not math.isnan(correlation):
        shown = f"{correlation:.2f}".replace("-", MINUS)
        notes.append(
            f"On the same seeds, {measure.name} of two methods correlates by {shown} (mean over "
            "pairs of methods at the same bits), which is the share of a difference's variance "
            "that comparing seed by seed takes off."
        )
    return notes


def _gaps(records: Records) -> list[str]:
    other = told(records.name, records.changed)
    return [*_missing(records), *([f"Not of present code: {other}."] if other else [])]


def _missing(records: Records) -> list[str]:
    files = [f"{name}/{fault.file}" for name, fault in records.damaged.items()]
    damaged = [f"Damaged and left out: {some(files)}; ofq doctor says what to do."] if files else []
    if not records.reasons:
        return damaged
    reasons = [reason.partition(":")[0] for reason in records.reasons.values()]
    counts = ", ".join(f"{reasons.count(word)} {word}" for word in dict.fromkeys(reasons))
    return [
        f"Not complete: {len(reasons)} of {len(records.cells)} cells miss seeds ({counts}); "
        "n: number of seeds where some are missing.",
        *damaged,
    ]


def _entry(cell: pd.Series, measure: Measure) -> Entry:
    if cell["n"] == 0:
        return Entry(cell["missing"], cell=cell_name(cell))
    mean, std = float(cell[f"{measure.key}_mean"]), float(cell[f"{measure.key}_std"])
    text = measure.text(mean)
    if pd.notna(std):
        text += f" ± {measure.text(std)}"
    return Entry(
        text + fewer_seeds(cell), measure.best != 0 and bool(cell["best"]), cell_name(cell)
    )


def fewer_seeds(cell: pd.Series) -> str:
    """Return the mark of a mean over fewer seeds than the study has; empty for all of them."""
    if pd.isna(cell["missing"]):
        return ""
    damage = f"; {cell['missing']}" if is_damaged(cell["missing"]) else ""
    return f" (n = {cell['n']}{damage})"


def is_damaged(missing: object) -> bool:
    """Return whether seeds are missing because of damaged records, given a cell's reason."""
    return isinstance(missing, str) and missing.startswith("damaged")


VERDICT_HEADINGS = (
    "method",
    "bits",
    "seeds",
    "ours",
    "reported",
    "difference",
    "95 % interval",
    "verdict",
)


def verdict_rows(verdicts: pd.DataFrame) -> list[dict[str, str]]:
    """Format the result of :func:`ofq.report.compare.hold_against` as rows, by heading."""
    rows = []
    for _, row in verdicts.iterrows():
        known = row["n"] > 0
        rows.append(
            {
                "model": row["model"],
                "method": row["label"],
                "bits": row["bits"],
                "ours": TOP1.text(row["mean"]) + _mark(row) if known else row["missing"],
                "reported": TOP1.text(row["reported"]),
                "difference": TOP1.signed(row["difference"]),
                "95 % interval": _interval(row),
                "verdict": _verdict(row),
                "seeds": str(row["n"]),
                "detectable": TOP1.text(row["detectable"]),
                "known": f"{row['status']}: {row['source']}",
                "cell": cell_name(row),
            }
        )
    return rows


CLAIM_HEADINGS = [
    "claim", "verdict", "difference", "interval", "control", "bits", "seeds", "seeds_to_decide",
]  # fmt: skip


def claim_rows(claims: pd.DataFrame) -> list[dict[str, str]]:
    """Format the result of :func:`ofq.report.claims.judge_claims` as rows, by heading."""
    rows = []
    for _, row in claims.iterrows():
        number = Measure(row["measure"], "", "", _unit(row["measure"]), ".2f", 0)
        control = f"{number.signed(row['control_difference'])} " + number.interval(
            row["control_low"], row["control_high"]
        )
        enough = row["seeds_to_decide"]
        rows.append(
            {
                "claim": row["text"],
                "model": row["model"],
                "verdict": row["verdict"],
                "difference": number.signed(row["difference"]) + number.unit
                if row["seeds"]
                else "–",
                "interval": number.interval(row["low"], row["high"]) or "–",
                "control": f"{row['control']}: {control.strip()}" if row["control"] else "–",
                "bits": row["bits"],
                "seeds": str(row["seeds"]),
                "seeds_to_decide": f"{enough:.0f}" if pd.notna(enough) else "–",
                "source": row["source"],
                "strip": _strip(row),
            }
        )
    return rows


def _strip(row: pd.Series) -> list[dict[str, Any]]:
    """Return the marks of a claim's interval on a strip: their kinds, left ends and widths in %.

    The strip is linear to two margins on both sides of 0 and logarithmic beyond, to 32 margins; a
    claim that a number is below 0 has it mirrored, so that right of 0 is always as claimed.
    """
    if not row["margin"] > 0 or pd.isna(row["low"]):
        return []
    unit = -row["margin"] if row["expected"] == "below" else row["margin"]

    def place(value: float) -> float:
        size = abs(value / unit)
        far = min(size / 2, 1 + math.log(max(size, 2) / 2, 16)) / 2
        return round(50 + 50 * math.copysign(min(far, 1), value / unit), 2)

    def mark(kind: str, one: float, other: float) -> dict[str, Any]:
        ends = sorted([place(one), place(other)])
        return {"kind": kind, "left": ends[0], "width": round(ends[1] - ends[0], 2)}

    marks = [mark("margin", -row["margin"], row["margin"]), mark("zero", 0, 0)]
    if pd.notna(row["control_low"]):
        marks.append(mark("control-interval", row["control_low"], row["control_high"]))
    if pd.notna(row["control_difference"]):
        marks.append(mark("control", row["control_difference"], row["control_difference"]))
    marks.append(mark("interval", row["low"], row["high"]))
    return [*marks, mark("mean", row["difference"], row["difference"])]


def _unit(measure: str) -> str:
    if measure.startswith("flips"):
        return f"{SPACE}flips"
    return POINTS if measure.startswith(("top1", "oscillation", "noise")) else ""


def _claims_to_markdown(claims: pd.DataFrame) -> str:
    """Return the claims with their verdicts as a GitHub-flavoured Markdown table."""
    many = claims["model"].nunique() > 1
    keys = [*(["model"] if many else []), *CLAIM_HEADINGS]
    lines = [[key.replace("_", " ") for key in keys], ["---"] * len(keys)]
    lines += [[escape_markdown(row[key]) for key in keys] for row in claim_rows(claims)]
    return f"## Claims\n\n{markdown_grid(lines)}"


def _mark(row: pd.Series) -> str:
    return fewer_seeds(row) if is_damaged(row["missing"]) else ""


def _interval(row: pd.Series) -> str:
    if row["low"] == row["high"]:
        return "exact"
    return TOP1.interval(row["low"], row["high"]) or "–"


def _verdict(row: pd.Series) -> str:
    if row["verdict"] != "off":
        return str(row["verdict"])
    side = "better" if row["difference"] > 0 else "worse"
    return f"off by {TOP1.text(abs(row['difference']))} ({side})"


def verdicts_to_markdown(verdicts: pd.DataFrame, notes: Iterable[str]) -> str:
    """Return the verdicts as a GitHub-flavoured Markdown table, with the references' notes."""
    many = verdicts["model"].nunique() > 1
    names = [*(["model"] if many else []), *VERDICT_HEADINGS, "known from"]
    lines = [names, ["---"] * len(names)]
    keys = [*(["model"] if many else []), *VERDICT_HEADINGS, "known"]
    lines += [[row[key] for key in keys] for row in verdict_rows(verdicts)]
    lines[2:] = [[escape_markdown(text) for text in line] for line in lines[2:]]
    paragraphs = [markdown_paragraph(note) for note in notes]
    return "\n\n".join(["## Against what was reported", markdown_grid(lines), *paragraphs]) + "\n"


def to_markdown(table: Table, answer: str = "", claims: pd.DataFrame | None = None) -> str:
    """Return the study's answer, its claims and its table, in GitHub-flavoured Markdown."""
    names = ["model", "method"] if table.many_models else ["method"]
    columns = [
        escape_markdown(f"{bits} {heading}") for bits in table.groups for heading in table.headings
    ]
    lines = [[*names, *columns], ["---"] * len(names) + ["---:"] * len(columns)]
    for row in table.rows:
        heads = [row.model, row.label] if table.many_models else [row.label]
        texts = [escape_markdown(entry.text) for entry in row.entries]
        bold = [
            f"**{text}**" if entry.best else text
            for text, entry in zip(texts, row.entries, strict=True)
        ]
        lines.append([*map(escape_markdown, heads), *bold])
    notes = markdown_paragraph(" ".join(table.notes))
    parts = [f"# {escape_markdown(table.title)}", markdown_paragraph(answer)]
    if claims is not None and len(claims):
        parts += [_claims_to_markdown(claims), "## Table"]
    parts += [markdown_grid(lines), notes]
    return "\n\n".join(part for part in parts if part) + "\n"


def markdown_grid(lines: list[list[str]]) -> str:
    """Return escaped lines, the second one the rule below the heads, as a Markdown table."""
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def escape_markdown(text: str) -> str:
    """Return plain text as one line of Markdown that renders literally, without HTML."""
    return _MARKDOWN.sub(r"\\\g<0>", _LINE_END.sub(" ", text))


def markdown_paragraph(text: str) -> str:
    """Return plain text as a Markdown paragraph, which begins no list or heading."""
    return re.sub(r"^(\d*)(?=[-+=.)])", r"\1\\", escape_markdown(text).strip())
