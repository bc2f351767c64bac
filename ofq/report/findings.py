"""Findings in sentences, generated from the statistics alone."""

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pandas as pd

from ofq.report.collect import Records
from ofq.report.measures import TOP1, Measure, measures, p_text

Fact = dict[Hashable, Any]
"""Row of the differences."""


@dataclass(frozen=True)
class Finding:
    """Comparison of two methods in words.

    Attributes:
        place: The bits, preceded by the model where there are several.
        verdict: One of :func:`ofq.report.statistics.verdict`.
        text: The sentence.
    """

    place: str
    verdict: str
    text: str


@dataclass(frozen=True)
class Findings:
    """Findings about one measure.

    Attributes:
        name: The measure's name.
        summary: Numbers of differences by verdict, and which of them are listed.
        items: The listed ones.
    """

    name: str
    summary: str
    items: list[Finding]

    def by_place(self) -> dict[str, list[Finding]]:
        """Group the items by their place, in order."""
        return {
            place: [item for item in self.items if item.place == place]
            for place in dict.fromkeys(item.place for item in self.items)
        }


def describe(records: Records, differences: pd.DataFrame) -> list[Findings]:
    """Put the differences of :func:`ofq.report.compare.compare` into words.

    Returns:
        One entry for each measure that the study has results of, in order.
    """
    entries, family = [], int(differences["p_holm"].notna().sum())
    for measure in measures(records.primary):
        rows = differences[differences["measure"] == measure.key]
        if not rows.empty:
            listed = [fact for fact in rows.to_dict("records") if _is_listed(records, fact)]
            items = [_finding(records, measure, fact, family) for fact in listed]
            if not items and records.study.contrasts:
                continue  # the study makes no comparison of this measure
            summary = f"{_summary(rows['verdict'])} Below: {_scope(records)}."
            entries.append(Findings(measure.name, summary, items))
    return entries


def _is_listed(records: Records, fact: Fact) -> bool:
    """Return whether a pair is listed as a finding; identical ones aren't."""
    study, pair = records.study, (fact["method"], fact["against"])
    if fact["verdict"] == "identical":
        return False
    if study.contrasts:
        return bool(fact["family"] == "primary")
    if study.factors:
        return not study.factors_of(pair[1]) or study.factors_of(pair[0]) == set(study.factors)
    methods = study.methods
    return pair[::-1] in [*pairwise(methods), (methods[0], methods[-1])]


def _scope(records: Records) -> str:
    if records.study.contrasts:
        return "the comparisons that the study is made for"
    if records.study.factors:
        return "each technique by itself, on top of all others, and all of them together"
    return "each method against the one before it, then the last against the first"


def _summary(verdicts: Iterable[str]) -> str:
    counts = pd.Series(list(verdicts)).value_counts()
    words = {
        "holds": "hold",
        "suggestive": "suggestive only",
        "not shown": "not shown",
        "identical": "identical in every seed",
        "no interval": "without an interval",
    }
    parts = [f"{word}: {counts[key]}" for key, word in words.items() if key in counts]
    return f"Differences: {sum(counts)} ({', '.join(parts)})."


def _finding(records: Records, measure: Measure, fact: Fact, family: int) -> Finding:
    many = len(records.study.models) > 1
    place = f"{fact['model']}, {fact['bits']}" if many else fact["bits"]
    one, other = (records.labels[fact[key]] for key in ("method", "against"))
    gap = f"{measure.signed(fact['mean'])}{measure.unit}"
    interval = measure.interval(fact["low"], fact["high"])
    text = _sentence(fact, one, other, gap, interval) + _caveat(measure, fact, family)
    text = " ".join([*_questions(records, fact), text])
    return Finding(place, fact["verdict"], text)


def _questions(records: Records, fact: Fact) -> list[str]:
    """Return the questions of the study's contrasts about a pair."""
    pair = (fact["method"], fact["against"])
    return [c.question for c in records.study.contrasts if (c.method, c.against) == pair]


def _sentence(fact: Fact, one: str, other: str, gap: str, interval: str) -> str:
    kind, side = fact["verdict"], "above" if fact["mean"] > 0 else "below"
    if kind == "not shown":
        return f"{one} and {other} can't be told apart: {gap} {interval}."
    if kind == "no interval":
        return f"{one} against {other}: {gap}."
    return f"{one} is {side} {other}: {gap} {interval}."


def _caveat(measure: Measure, fact: Fact, family: int) -> str:
    kind, seeds = fact["verdict"], int(fact["n"])
    if kind == "suggestive" and fact["family"] == "exploratory":
        return f" Exploratory: p = {p_text(fact['p'])}, not corrected for other comparisons."
    if kind == "suggestive":
        return (
            f" The interval excludes 0, but among {family} comparisons this is not enough "
            f"(Holm-adjusted p = {p_text(fact['p_holm'])})."
        )
    if kind == "not shown" and math.isnan(fact["detectable"]):
        return f" With this spread, {_seeds(seeds)} can't show any possible difference."
    if kind == "not shown":
        return (
            f" With this spread, {_seeds(seeds)} would show a true difference of "
            f"{measure.text(fact['detectable'])}{measure.unit} in four repetitions of five."
        )
    if kind == "no interval" and seeds > 1:
        return f" Equal in all {seeds} seeds, so that no interval can be given."
    if kind == "no interval" and measure is TOP1 and not math.isnan(fact["gained"]):
        if fact["gained"] + fact["lost"] == 0:
            return " Both are right about the same images; of other seeds that says nothing."
        return (
            f" {fact['gained']:.0f} images are classified rightly by the first alone, "
            f"{fact['lost']:.0f} by the second alone (McNemar, {_mcnemar_p(fact)}); of other seeds "
            "that says nothing."
        )
    return ""


def _seeds(number: int) -> str:
    return f"{number} {'seed' if number == 1 else 'seeds'}"


def _mcnemar_p(fact: Fact) -> str:
    if math.isnan(fact["p_mcnemar_holm"]):
        return f"p = {p_text(fact['p_mcnemar'])}, not corrected"
    return f"Holm-adjusted p = {p_text(fact['p_mcnemar_holm'])}"
