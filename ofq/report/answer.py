"""A study's answer in a sentence: the difference that it is made for, with its certainty."""

from collections.abc import Hashable
from typing import Any

import pandas as pd

from ofq.report.collect import Records
from ofq.report.measures import TOP1, Measure, measures

Fact = dict[Hashable, Any]
"""Row of the differences."""


def answer(records: Records, cells: pd.DataFrame, differences: pd.DataFrame) -> str:
    """Say what a study shows: of its first contrast, else of its last method against the first.

    The first bits have a sentence for each model, with the distance to full precision; other bits,
    of a study with one model, have their numbers after it.

    Args:
        records: The study's records.
        cells: Result of :func:`ofq.report.compare.summarize_cells`.
        differences: Result of :func:`ofq.report.compare.compare`.

    Returns:
        The sentences; empty if no seed has finished with the two methods.
    """
    study, measure = records.study, measures(records.primary)[0]
    method, against = main_pair(records)
    if method == against:
        return _of_one_method(records, cells, measure)
    rows = records.of(differences, measure=measure.key, method=method, against=against)
    facts = {(row["model"], row["bits"]): row for row in rows.to_dict("records")}
    sentences = []
    for model in study.models:
        places = [(model, bits) for bits in study.bits if (model, bits) in facts]
        if not places:
            continue
        sentences.append(_sentence(records, cells, measure, facts[places[0]]))
        if len(study.models) == 1 and places[1:]:
            others = "; ".join(_of_other_bits(measure, facts[place]) for place in places[1:])
            sentences.append(f"{others[0].upper()}{others[1:]}.")
    return " ".join(sentences)


def main_pair(records: Records) -> tuple[str, str]:
    """Return the two methods of the study's first contrast, else its last and its first method."""
    study = records.study
    if study.contrasts:
        return study.contrasts[0].method, study.contrasts[0].against
    return study.methods[-1], study.methods[0]


def _sentence(records: Records, cells: pd.DataFrame, measure: Measure, fact: Fact) -> str:
    one, other = (records.labels[fact[key]] for key in ("method", "against"))
    model = f" with {fact['model']}" if len(records.study.models) > 1 else ""
    start = f"On {records.dataset}{model} at {fact['bits']}, {one}"
    full_precision = _beside_full_precision(records, cells, measure, fact)
    size = _size(measure, fact["mean"], fact["low"], fact["high"])
    side = "above" if fact["mean"] > 0 else "below"
    what = "" if measure is TOP1 else f" in {measure.name}"
    match fact["verdict"]:
        case "holds":
            return f"{start} is {size} {side} {other}{what}{full_precision}."
        case "suggestive":
            return f"{start} may be {size} {side} {other}{what} (suggestive only){full_precision}."
        case "not shown":
            gap = _signed(measure, fact)
            return f"{start} can't be told from {other}{what} ({gap}){full_precision}."
    seeds = f"{fact['n']} seed{'' if fact['n'] == 1 else 's'}, no interval"
    return f"{start} is {size} {side} {other}{what} ({seeds}){full_precision}."


def _of_other_bits(measure: Measure, fact: Fact) -> str:
    verdict = "" if fact["verdict"] == "holds" else f", {fact['verdict']}"
    return f"at {fact['bits']} {_signed(measure, fact)}{verdict}"


def _size(measure: Measure, mean: float, low: float, high: float) -> str:
    """Format a difference and its interval, both ends on the same side of 0, without signs."""
    ends = sorted([abs(low), abs(high)])
    interval = "" if pd.isna(low) else f" [{measure.text(ends[0])}, {measure.text(ends[1])}]"
    return f"{measure.text(abs(mean))}{interval}{measure.unit}"


def _signed(measure: Measure, fact: Fact) -> str:
    interval = measure.interval(fact["low"], fact["high"])
    gap = f"{measure.signed(fact['mean'])}{measure.unit}"
    return " ".join(part for part in (gap, interval) if part)


def _beside_full_precision(
    records: Records, cells: pd.DataFrame, measure: Measure, fact: Fact
) -> str:
    column = f"{measure.key}_mean"
    mine = records.of(cells, model=fact["model"], bits=fact["bits"], method=fact["method"])
    full = records.of(cells, model=fact["model"], method="fp")
    if full.empty or full[column].isna().all():
        return ""
    gap = mine[column].iloc[0] - full[column].iloc[0]
    side = "above" if gap > 0 else "below"
    return f"; it is {measure.text(abs(gap))}{measure.unit} {side} full precision"


def _of_one_method(records: Records, cells: pd.DataFrame, measure: Measure) -> str:
    label = records.labels[records.study.methods[0]]
    known = cells[(cells["method"] != "fp") & cells[f"{measure.key}_mean"].notna()]
    if known.empty:
        return ""
    many = len(records.study.models) > 1
    numbers = [
        f"{measure.text(row[f'{measure.key}_mean'])} at {row['bits']}"
        + (f" with {row['model']}" if many else "")
        for row in known.to_dict("records")
    ]
    return f"On {records.dataset}, {label} has a {measure.name} (%) of {', '.join(numbers)}."
