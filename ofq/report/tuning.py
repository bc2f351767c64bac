"""The best value of each option that a study tries, and its entry in the method's file."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from yaml.nodes import MappingNode, Node, SequenceNode

from ofq.atomic import write_text
from ofq.config import Workspace
from ofq.config.files import read_yaml
from ofq.config.method import Tuned
from ofq.config.tuning import Value, Variant, shown, variants
from ofq.errors import UserError
from ofq.report.collect import Records, collect
from ofq.report.measures import measures
from ofq.runs.record import Record


@dataclass(frozen=True)
class Choice:
    """Result of a sweep over one method's options.

    Attributes:
        method: The method's name.
        tried: Each combination of values with its mean of the study's primary measure, in order.
        best: The chosen combination.
        tuned: The entry of each option.
    """

    method: str
    tried: list[tuple[Variant, float]]
    best: Variant
    tuned: dict[str, Tuned]


def choose(workspace: Workspace, study: str) -> list[Choice]:
    """Choose the values with the best mean over models, bits and seeds, the smallest of equal ones.

    Args:
        workspace: The checkout's config.
        study: A study with the key ``tune``.

    Raises:
        UserError: The study tunes nothing, or runs of its variants are missing or damaged.
    """
    config = workspace.study(study)
    if not config.tune:
        path = workspace.study_path(study)
        raise UserError(f"{path}: key 'tune' is missing: give options of methods, and their values")
    records = collect(workspace, study)
    missing = [place for place in records.reasons if place[2] in config.variants]
    if missing:
        place, reason = "/".join(missing[0]), records.reasons[missing[0]]
        raise UserError(
            f"study '{study}': {len(missing)} of its cells to choose from miss runs ({place}: "
            f"{reason}); train them: snakemake --cores 2 {study}"
        )
    return [_choice(workspace, records, base, mine) for base, mine in variants(config.tune).items()]


def _choice(workspace: Workspace, records: Records, base: str, mine: list[Variant]) -> Choice:
    measure = measures(records.primary)[0]
    names = {variant.name for variant in mine}
    runs = records.runs[records.runs["method"].isin(names)]
    means = runs.groupby("method")[measure.key].mean()
    best = min(
        mine, key=lambda v: (-measure.best * float(means[v.name]), [_rank(x) for x in _values(v)])
    )
    commits = list(dict.fromkeys(c for cell in runs["commit"] for c in cell.split()))
    tuned = {
        option: Tuned(
            study=records.name,
            value=value,
            measure=measure.key,
            tried={_tried(v): round(float(means[v.name]), 4) for v in mine},
            runs=len(runs),
            date=_day(workspace, runs),
            commits=commits,
        )
        for option, value in best.values.items()
    }
    return Choice(base, [(v, float(means[v.name])) for v in mine], best, tuned)


def _values(variant: Variant) -> list[Value]:
    return list(variant.values.values())


def _rank(value: Value) -> tuple[bool, float, str]:
    text = isinstance(value, str)
    return (text, 0.0 if text else float(value), str(value))


def _tried(variant: Variant) -> str:
    return ", ".join(map(shown, _values(variant)))


def _day(workspace: Workspace, runs: pd.DataFrame) -> str:
    """Return the day on which the last run began, in UTC; empty if none recorded it."""
    begun = [
        attempt["started"]
        for run in runs["run"]
        for attempt in _attempts(workspace.results / "runs" / run)
        if attempt.get("started")
    ]
    return datetime.fromtimestamp(max(begun), UTC).date().isoformat() if begun else ""


def _attempts(folder: Path) -> list[dict[str, Any]]:
    """Return the attempts of a finished run, as its provenance has them."""
    record = Record.open(folder)
    attempts: list[dict[str, Any]] = [] if record is None else record.provenance()["attempts"]
    return attempts


def write_choice(workspace: Workspace, choice: Choice) -> Path | None:
    """Write the chosen values, and how they were chosen, into the method's file.

    All else in the file stays as it is, comments included.

    Returns:
        The file; None if it says so already.

    Raises:
        UserError: The method's file doesn't give a tuned option itself.
    """
    path = next(p for p in workspace.files("methods") if choice.method in read_yaml(p))
    before = text = path.read_text(encoding="utf-8")
    for option, value in choice.best.values.items():
        node = _node(text, [choice.method, *option.split(".")])
        if node is None:
            raise UserError(
                f"{path}: method '{choice.method}' doesn't give '{option}' itself; give it with "
                "any value, which is then replaced"
            )
        start, end = node.start_mark.index, node.end_mark.index
        text = text[:start] + _plain(value) + text[end:]
    entry = {option: tuned.model_dump() for option, tuned in choice.tuned.items()}
    lines = "".join(f"    {_plain(o)}: {json.dumps(facts)}\n" for o, facts in entry.items())
    block, known = f"  tuned:\n{lines}", _node(text, [choice.method, "tuned"])
    if known is not None:
        start = text.rindex("\n", 0, text.rindex("tuned:", 0, known.start_mark.index)) + 1
        text = text[:start] + block + text[_line_end(text, known) :]
    else:
        method = _node(text, [choice.method])
        assert method is not None
        if method.flow_style:
            raise UserError(f"{path}: method '{choice.method}' is in braces; give a key a line")
        end = _line_end(text, method)
        text = text[:end] + ("" if text[:end].endswith("\n") else "\n") + block + text[end:]
    if text == before:
        return None
    write_text(path, text)
    return path


def _plain(value: Value) -> str:
    return value if isinstance(value, str) and value.isidentifier() else json.dumps(value)


def _line_end(text: str, node: Node) -> int:
    """Return where the line after a node's last value begins; a comment there belongs to it."""
    while isinstance(node, MappingNode | SequenceNode) and not node.flow_style and node.value:
        last = node.value[-1]
        node = last[1] if isinstance(node, MappingNode) else last
    end = text.find("\n", node.end_mark.index)
    return len(text) if end < 0 else end + 1


def _node(text: str, way: list[str]) -> Node | None:
    """Return the YAML node at an address; a technique in a list is found by its form."""
    node: Node | None = yaml.compose(text, Loader=yaml.SafeLoader)
    for part in way:
        if isinstance(node, SequenceNode):
            node = next((e for e in node.value if _scalar(e, "form") == part), None)
        elif isinstance(node, MappingNode):
            node = next((value for key, value in node.value if key.value == part), None)
        else:
            return None
    return node


def _scalar(node: Node, key: str) -> str | None:
    return next((str(v.value) for k, v in node.value if k.value == key), None)
