"""Injected noise: accuracy of models with changed codes, compared with the trained models."""

import math

import pandas as pd

from ofq.report.collect import Records
from ofq.report.curves import KEYS
from ofq.report.measures import TOP1
from ofq.report.statistics import Summary, summarize


def draws(records: Records) -> pd.DataFrame:
    """Return every draw beside the model without noise.

    Returns:
        One row per cell, seed and draw: ``step``, the draw's number from 1; ``changed``, the
        percentage of codes that differ; ``top1``; ``top1_without`` noise; ``gain``, the first minus
        the second in points. Empty if no method of the study injects noise.
    """
    rows = records.curves.read("noise")
    if rows.empty:
        return rows
    plain = rows.loc[rows["step"] == 0, [*KEYS, "top1"]]
    plain = plain.rename(columns={"top1": "top1_without"})
    noisy = rows.loc[rows["step"] > 0, [*KEYS, "step", "changed", "top1"]]
    both = noisy.merge(plain, on=KEYS)
    return both.assign(gain=both["top1"] - both["top1_without"])


def noise_rows(records: Records) -> list[dict[str, str]]:
    """Return the gains of injected noise as a table's printed rows, in the study's order.

    Returns:
        A row per model, bits and method that injects noise into oscillating weights, and one per
        control that no such method has: ``model``, ``method``'s label, ``bits``, ``seeds``,
        ``draws`` per seed, ``changed`` codes in percent, the mean ``gain`` in points with its 95 %
        t ``interval`` over the seeds' means, and the same of its control (``control``,
        ``control_interval``): the method that gives as many other weights noise and is else the
        same. A dash where there is none. Empty if no method of the study injects noise.
    """
    found, study = draws(records), records.study
    controls = _controls(records)
    tested = [m for m in study.methods if m not in controls.values()]
    rows = []
    for model in study.models:
        for bits in study.bits:
            for method in tested:
                mine = (
                    records.of(found, model=model, bits=bits, method=method)
                    if len(found)
                    else found
                )
                if len(mine):
                    control = records.of(
                        found, model=model, bits=bits, method=controls.get(method, "")
                    )
                    rows.append(_printed(records, mine, control))
    return rows


def _controls(records: Records) -> dict[str, str]:
    """Return the control of each method with noise, if the study has it, by the methods' names."""
    of_same: dict[str, dict[str, str]] = {}
    for name, method in records.methods.items():
        if method.noise is not None:
            same = method.model_dump_json(exclude={"label": True, "noise": {"weights"}})
            of_same.setdefault(same, {}).setdefault(method.noise.weights, name)
    return {
        found["oscillating"]: found["others"]
        for found in of_same.values()
        if {"oscillating", "others"} <= set(found)
    }


def _printed(records: Records, mine: pd.DataFrame, control: pd.DataFrame) -> dict[str, str]:
    first = mine.iloc[0]
    gain, beside = _over_seeds(records, mine), _over_seeds(records, control)
    return {
        "model": str(first["model"]),
        "method": records.labels[str(first["method"])],
        "bits": str(first["bits"]),
        "seeds": str(gain.n),
        "draws": str(int(mine["step"].nunique())),
        "changed": f"{mine['changed'].mean():.2g} %",
        "gain": TOP1.signed(gain.mean),
        "interval": TOP1.interval(gain.low, gain.high) or "–",
        "control": TOP1.signed(beside.mean) if beside.n else "–",
        "control_interval": TOP1.interval(beside.low, beside.high) or "–",
    }


def _over_seeds(records: Records, found: pd.DataFrame) -> Summary:
    """Summarize the seeds' mean gains; of no seeds, n is 0."""
    if found.empty:
        return Summary(0, math.nan, math.nan)
    means = found.groupby("seed")["gain"].mean()
    return TOP1.possible(summarize(means, resplit=records.resplit))
