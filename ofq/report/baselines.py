"""All methods of a study side by side: accuracy beside baselines, oscillation, and cost."""

import math
from dataclasses import dataclass
from itertools import product

import pandas as pd

from ofq.config import Cell
from ofq.config.run import training_of
from ofq.monitor.cost import Cost, cost_text, costs
from ofq.monitor.kind import Kind
from ofq.report.blocks import Blocks
from ofq.report.collect import Records
from ofq.report.measures import (
    FLIPS_END,
    FLIPS_MID,
    IN_RANGE_END,
    IN_RANGE_MID,
    Measure,
    measures,
)
from ofq.report.tables import (
    Entry,
    Row,
    cell_name,
    escape_markdown,
    fewer_seeds,
    markdown_grid,
    markdown_paragraph,
)

OSCILLATION = (FLIPS_MID, FLIPS_END, IN_RANGE_MID, IN_RANGE_END)
"""Measures of oscillation that stand beside accuracy."""


def baselines(records: Records, cells: pd.DataFrame) -> pd.DataFrame:
    """Hold every method against the study's baselines, with its oscillation and its cost.

    Args:
        records: Records of the run folders.
        cells: Result of :func:`ofq.report.compare.summarize_cells`.

    Returns:
        One row per quantized cell: its names; ``n`` finished seeds; ``missing``, the reason why
        others aren't finished; ``_mean`` and ``_std`` over seeds of the primary measure and of
        :data:`OSCILLATION`; for each baseline B ``over_B_n``, ``_mean``, ``_low`` and ``_high`` of
        the method minus B over the seeds that have both, by the variance that
        :class:`ofq.report.blocks.Blocks` pools, uncorrected; ``epochs`` of all stages after full
        precision; ``seconds_per_epoch`` and ``cost`` (:mod:`ofq.monitor.cost`), medians of
        ``cost_runs`` QAT runs of the study, with quartiles ``cost_low`` and ``cost_high``.
        Empty for a study without baselines.
    """
    study, primary = records.study, measures(records.primary)[0]
    if not study.baselines:
        return pd.DataFrame()
    blocks, known = Blocks.of(records, primary), costs(records.samples.values())
    quantized = {cell.place: cell for cell in records.cells if cell.method != "fp"}
    rows = []
    for _, row in cells.iterrows():
        cell = quantized.get((row["model"], row["bits"], row["method"]))
        if cell is None:
            continue
        names = ("model", "bits", "method", "label", "n", "missing")
        keys = [f"{primary.key}_{part}" for part in ("mean", "std")]
        rows.append(
            {name: row[name] for name in (*names, *keys)}
            | _differences(blocks, cell, study.baselines)
            | _oscillation(records, cell)
            | _effort(records, cell, known)
        )
    return pd.DataFrame(rows).astype({"epochs": "Int64"})


def _differences(blocks: Blocks, cell: Cell, against: list[str]) -> dict[str, float]:
    fields: dict[str, float] = {}
    for baseline in against:
        found = None
        if baseline != cell.method:
            found = blocks.difference((cell.model, cell.bits), cell.method, baseline)
        fields[f"over_{baseline}_n"] = 0 if found is None else found.n
        for part in ("mean", "low", "high"):
            fields[f"over_{baseline}_{part}"] = math.nan if found is None else getattr(found, part)
    return fields


def _oscillation(records: Records, cell: Cell) -> dict[str, float]:
    runs = records.runs_of(cell)
    return {
        f"{measure.key}_{part}": float(getattr(runs[measure.key].astype(float), part)())
        for measure, part in product(OSCILLATION, ("mean", "std"))
    }


def _effort(records: Records, cell: Cell, known: dict[Kind, Cost]) -> dict[str, float]:
    """Return a cell's epochs after full precision, and the cost of its QAT; NaN if unknown."""
    runs = records.runs_of(cell)
    quantized = [link.config for link in cell.runs[0].chain() if link.config.stage != "fp"]
    epochs = [training.epochs for config in quantized if (training := training_of(config))]
    links = [name for chain in runs["chain"] for name in chain.split(" > ")]
    kinds = [records.samples[name].kind for name in links if name in records.samples]
    found = next((known[kind] for kind in kinds if kind in known), None)
    return {
        "epochs": sum(epochs) if len(runs) else math.nan,
        "seconds_per_epoch": found.seconds if found else math.nan,
        "cost": found.ratio if found else math.nan,
        "cost_low": found.low if found else math.nan,
        "cost_high": found.high if found else math.nan,
        "cost_runs": found.count if found else 0,
    }


@dataclass(frozen=True)
class SideBySide:
    """Result of :func:`baselines` as printed, before any markup.

    Attributes:
        headings: Headings of the entries.
        rows: One per cell, with its bits as the first entry.
        many_models: Whether each row must name its model.
        notes: Notes below the table.
    """

    headings: list[str]
    rows: list[Row]
    many_models: bool
    notes: list[str]

    @classmethod
    def of(cls, records: Records, found: pd.DataFrame) -> "SideBySide":
        """Lay out the rows of :func:`baselines`."""
        primary, labels = measures(records.primary)[0], records.labels
        against = records.study.baselines
        headings = ["bits", "seeds", primary.heading, *(f"over {labels[name]}" for name in against)]
        headings += ["epochs", "cost", *(measure.heading for measure in OSCILLATION)]
        rows = []
        for _, row in found.iterrows():
            shown = row["missing"] if row["n"] == 0 else _over_seeds(row, primary)
            texts = [
                *(_difference(row, primary, name) for name in against),
                "–" if pd.isna(row["epochs"]) else str(row["epochs"]),
                _cost(row),
                *(_over_seeds(row, measure) for measure in OSCILLATION),
            ]
            value = Entry(shown + (fewer_seeds(row) if row["n"] else ""), cell=cell_name(row))
            entries = [Entry(row["bits"]), Entry(str(row["n"])), value, *map(Entry, texts)]
            rows.append(Row(row["model"], row["label"], entries))
        many = len(records.study.models) > 1
        return cls(headings, rows, many, _notes(records, found))

    def to_markdown(self) -> str:
        """Return the table with its notes, in GitHub-flavoured Markdown."""
        names = ["model", "method"] if self.many_models else ["method"]
        lines = [[*names, *self.headings], ["---"] * len(names) + ["---:"] * len(self.headings)]
        for row in self.rows:
            heads = [row.model, row.label] if self.many_models else [row.label]
            lines.append([*heads, *(entry.text for entry in row.entries)])
        lines = [
            line if number == 1 else [escape_markdown(text) for text in line]
            for number, line in enumerate(lines)
        ]
        notes = markdown_paragraph(" ".join(self.notes))
        return f"## Methods side by side\n\n{markdown_grid(lines)}\n\n{notes}\n"


def _over_seeds(row: pd.Series, measure: Measure) -> str:
    mean, std = row[f"{measure.key}_mean"], row[f"{measure.key}_std"]
    return measure.text(mean) + ("" if pd.isna(std) else f" ± {measure.text(std)}")


def _difference(row: pd.Series, measure: Measure, against: str) -> str:
    mean, low, high = (row[f"over_{against}_{part}"] for part in ("mean", "low", "high"))
    return f"{measure.signed(mean)} {measure.interval(low, high)}".strip()


def _cost(row: pd.Series) -> str:
    known = pd.notna(row["cost"])
    return cost_text(row["cost"], row["cost_low"], row["cost_high"]) if known else "–"


def _notes(records: Records, found: pd.DataFrame) -> list[str]:
    primary = measures(records.primary)[0]
    notes = [
        f"Over a baseline: difference of {primary.name} on the same seeds with its 95 % interval, "
        "whose variance is pooled as in all differences; not corrected for the number of rows.",
        "Flips: per 1,000 weights and optimizer step. In boundary range: weights near a rounding "
        "threshold. Mid-run is in QAT, the end that of the last stage.",
    ]
    if found["epochs"].nunique() > 1:
        notes.append(
            "Epochs: of QAT and the stage after it. Methods with more of them trained longer; "
            "their control is one with as many."
        )
    if found["cost"].isna().all():
        notes.append("Cost: not known; it takes QAT runs of LSQ, of one device, beside others.")
    counts = found.loc[found["cost"].notna(), "cost_runs"]
    if len(counts):
        least, most = counts.min(), counts.max()
        number = str(most) if least == most else f"{least} to {most}"
        runs = "run" if most == 1 else "runs"
        notes.append(
            f"Cost: time of a step of QAT over LSQ's; median of {number} {runs} (and quartiles), "
            "recorded while they trained. Other jobs beside them slow some: a cost with quartiles "
            "wide apart says little."
        )
    return notes
