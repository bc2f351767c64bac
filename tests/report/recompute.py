"""Recompute a report from the raw records in its bundle, without any code of ``ofq``.

    python -m tests.report.recompute reports/digits.tar.xz reports/digits

prints each cell of the report's CSV files that isn't what the records give, and each number of its
tables that isn't the CSV's, rounded. Definitions: docs/reports.md. Records are read by
``recompute_raw``; formulas are in ``recompute_statistics``, claims and reported results in
``recompute_judged``, printed tables in ``recompute_pages``.
"""

import sys
import tarfile
import tempfile
from itertools import combinations, pairwise, product
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from tests.report.recompute_judged import claims_csv, verdicts_csv
from tests.report.recompute_pages import check_pages
from tests.report.recompute_raw import RATES, Study
from tests.report.recompute_statistics import (
    END,
    MID,
    NUMBERS,
    Blocks,
    bound,
    detectable,
    holm,
    summary,
    wilson,
)

PAIR = ["model", "bits", "method", "against"]
LOOSE = {"detectable": 1e-5}  # power is integrated in another way


def verdict(row):
    """Return the verdict on a difference or effect."""
    if np.isnan(row["low"]):
        return "identical" if row["n"] > 1 and abs(row["mean"]) < 1e-12 else "no interval"
    if row["low"] <= 0 <= row["high"]:
        return "not shown"
    return "holds" if row["p_holm"] < 0.05 else "suggestive"


def table_csv(study, blocks):
    """Recompute table.csv: means, spreads and intervals of cells, and which are best."""
    rows, best = [], best_cells(study, blocks)
    for place in study.cells:
        runs = study.cell(*place)
        alone = len(runs) == 1 and runs["top1"].notna().all() and runs["images"].iloc[0] > 0
        row = dict(zip(PAIR[:3], place, strict=True)) | {"n": len(runs), "by_images": alone}
        row |= {"best": place in best, "runs": " ".join(runs["run"])}
        row["seeds"] = " ".join(map(str, runs["seed"]))
        for measure in (study.primary, MID, END):
            values = runs[measure].dropna()
            limits = (0, bound(measure))
            found = summary(values, None, study.resplit, limits) if len(values) else {}
            row |= {f"{measure}_{k}": found.get(k, np.nan) for k in ("mean", "std", "low", "high")}
        if alone:
            row["top1_low"], row["top1_high"] = wilson(runs["top1"].iloc[0], runs["images"].iloc[0])
        if "packed_bytes" in study.runs:
            of_model = study.runs[study.runs["model"] == place[0]]
            full = place[2] == "fp"
            sizes = of_model["full_precision_bytes"] if full else runs["packed_bytes"]
            row["megabytes"] = sizes.max() / 1e6
        rows.append(row)
    return pd.DataFrame(rows)


def best_cells(study, blocks):
    """Return the cells better than every other at their bits, corrected for the columns."""
    found = {}
    for kind in product(study.models, study.bits):
        tried = [m for m in study.methods if kind[1] in study.bits_of(m)]
        worst = {}
        for method in tried:
            gaps = [blocks.difference(kind, method, m) for m in tried if m != method]
            sign = -1 if study.primary == "loss" else 1
            shown = [g is not None and sign * g["mean"] > 0 and g["p"] >= 0 for g in gaps]
            worst[method] = max(g["p"] for g in gaps) if gaps and all(shown) else 1.0
        leader = min(worst, key=worst.get)
        found[(*kind, leader)] = worst[leader]
    return {place for place, p in zip(found, holm(found.values()), strict=True) if p < 0.05}


def listed_pairs(study):
    """Return (method, against) of all comparisons, the study's contrasts first."""
    asked, methods = [(c["method"], c["against"]) for c in study.contrasts], study.methods
    others = [*((b, a) for a, b in pairwise(methods)), *((m, methods[0]) for m in methods[2:])]
    if study.factors:
        having = {m: {f for f in study.factors if m in study.factors[f]} for m in methods}
        single = [p for p in product(methods, methods) if len(having[p[0]] - having[p[1]]) == 1]
        others = [(a, b) for a, b in single if having[b] < having[a]]
        by_number = sorted(methods, key=lambda m: len(having[m]))
        others.append((by_number[-1], by_number[0]))
    return list(dict.fromkeys(asked + [(a, b) for a, b in others if (b, a) not in asked]))


def differences_csv(study, blocks):
    """Recompute differences.csv, McNemar's tests of single seeds included."""
    asked = {
        (c["method"], c["against"], c.get("measure") or study.primary) for c in study.contrasts
    }
    rows = []
    for measure, kind in product(blocks, product(study.models, study.bits)):
        seen = []
        for pair in listed_pairs(study):
            if measure == MID:  # a method with CGA is its QAT run
                sides = {study.qat(m) for m in pair}
                if len(sides) < 2 or sides in seen:
                    continue
                seen.append(sides)
            found = blocks[measure].difference(kind, *pair)
            if found:
                family = "primary" if (*pair, measure) in asked else "exploratory"
                names = dict(zip(PAIR, (*kind, *pair), strict=True))
                extra = {"correlation": blocks[measure].correlation(kind, *pair)}
                rows.append({"measure": measure, "family": family} | names | found | extra)
    frame = pd.DataFrame(rows, columns=["measure", "family", *PAIR, *NUMBERS, "correlation"])
    primary = frame["family"] == "primary"
    frame["p_holm"] = holm(frame["p"].where(primary))
    level = np.where(primary, 0.05 / max(1, frame["p_holm"].count()), 0.05)
    frame["detectable"] = [
        detectable(row["error"], row["df"], a, bound(row["measure"]))
        for (_, row), a in zip(frame.iterrows(), level, strict=True)
    ]
    frame["verdict"] = [verdict(row) for _, row in frame.iterrows()]
    alone = (
        frame[frame["n"] == 1].assign(primary=primary).groupby(PAIR, sort=False)["primary"].any()
    )
    tests = [(*key, *mcnemar(study, *key)) for key in alone.index]
    marks = pd.DataFrame(tests, columns=[*PAIR, "gained", "lost", "p_mcnemar"])
    marks["p_mcnemar_holm"] = holm(marks["p_mcnemar"].where(alone.to_numpy(bool)))
    return frame.merge(marks, "left", PAIR)


def mcnemar(study, model, bits, *pair):
    """Return images gained and lost by the first of two methods, and McNemar's exact p."""
    sides = [study.cell(model, bits, m).set_index("seed")["run"].map(study.right) for m in pair]
    both = pd.DataFrame(dict(enumerate(sides))).dropna().sort_index()
    if both.empty:
        return np.nan, np.nan, np.nan
    one, other = both.iloc[0]
    gained, lost = int((one & ~other).sum()), int((other & ~one).sum())
    exact = min(1.0, 2 * stats.binom.cdf(min(gained, lost), gained + lost, 0.5))
    return gained, lost, exact if gained + lost else np.nan


def effects_csv(study, blocks):
    """Recompute effects.csv: main effects and interactions of a full grid of factors."""
    rows, factors = [], list(study.factors)
    chosen = [c for n in range(1, len(factors) + 1) for c in combinations(factors, n)]
    for measure, model, bits, names in product(blocks, study.models, study.bits, chosen):
        levels = {m: [1 if m in study.factors[f] else -1 for f in names] for m in study.methods}
        weights = {m: np.prod(v) / 2.0 ** (len(factors) - 1) for m, v in levels.items()}
        found = blocks[measure].contrast((model, bits), weights)
        if found:
            where = {"measure": measure, "model": model, "bits": bits, "effect": " × ".join(names)}
            where["order"] = len(names)
            rows.append(where | found)
    frame = pd.DataFrame(rows)
    if len(frame):
        frame["p_holm"] = frame.groupby("measure", sort=False)["p"].transform(holm)
        frame["verdict"] = [verdict(row) for _, row in frame.iterrows()]
    return frame


def baselines_csv(study, blocks):
    """Recompute baselines.csv: each method over the baselines, its oscillation and its cost."""
    rows = []
    for place in study.cells if study.config.get("baselines") else []:
        if place[2] == "fp":
            continue
        runs = study.cell(*place)
        row = dict(zip(PAIR[:3], place, strict=True)) | {"n": len(runs)}
        oscillation = [f"{rate}_{at}" for rate in RATES[1:] for at in ("mid", "end")]
        for measure in (study.primary, *oscillation):
            values = runs[measure].astype(float)
            row |= {f"{measure}_mean": values.mean(), f"{measure}_std": values.std()}
        for other in study.config["baselines"]:
            found = blocks.difference(place[:2], place[2], other) if other != place[2] else None
            found = found or {"n": 0}
            row |= {f"over_{other}_{k}": found.get(k) for k in ("n", "mean", "low", "high")}
        row["epochs"] = study.epochs(runs["run"].iloc[0]) if len(runs) else np.nan
        names = ("seconds_per_epoch", "cost", "cost_low", "cost_high", "cost_runs")
        row |= dict(zip(names, study.cost(*place), strict=True))
        rows.append(row)
    return pd.DataFrame(rows)


def recomputed(study):
    """Return each table that the report must have, by name, and the columns that name its rows."""
    blocks = {measure: Blocks(study, measure) for measure in (study.primary, MID, END)}
    cell = PAIR[:3]
    tables = {
        "runs": (study.runs, [*cell, "seed"]),
        "table": (table_csv(study, blocks[study.primary]), cell),
        "differences": (differences_csv(study, blocks), ["measure", *PAIR]),
        "effects": (effects_csv(study, blocks), ["measure", "model", "bits", "effect"]),
        "claims": (claims_csv(study, blocks), ["claim", "model"]),
        "verdicts": (verdicts_csv(study), cell),
        "baselines": (baselines_csv(study, blocks[study.primary]), cell),
        "noise": (study.draws(), [*cell, "seed", "step"]),
    }
    always = ("runs", "table", "differences")
    return {name: found for name, found in tables.items() if name in always or len(found[0])}


def differing(name, given, found, keys):
    """Return the cells of a CSV file that aren't what was found; 1e-9 of a number is rounding."""
    missing = [c for c in found if c not in given]
    if missing:
        return [f"{name}.csv: no column {', '.join(missing)}"]
    numbers = given.select_dtypes("number").dropna(axis=1, how="all").columns
    others = [c for c in numbers if c not in found]
    problems = [f"{name}.csv: column {c} isn't recomputed" for c in others]
    both = found.merge(given, "outer", keys, suffixes=(" found", " given"), indicator=True)
    for _, row in both.iterrows():
        where = f"{name}.csv, {' '.join(str(row[k]) for k in keys)}"
        if row["_merge"] != "both":
            given_only = row["_merge"] == "right_only"
            problems.append(f"{where}: {'not in the records' if given_only else 'no such row'}")
            continue
        for column in (c for c in found if c not in keys):
            a, b = row[f"{column} found"], row[f"{column} given"]
            if not same(a, b, LOOSE.get(column, 1e-9)):
                problems.append(f"{where}: {column} is {b}, recomputed {a}")
    return problems


def same(a, b, tolerance):
    """Return whether two cells are the same text, both empty, or numbers alike."""
    if pd.isna(a) or pd.isna(b):
        return (pd.isna(a) and pd.isna(b)) or {str(a), str(b)} == {"", "nan"}
    if isinstance(a, str) or isinstance(b, str):
        return str(a) == str(b)
    return bool(np.isclose(float(a), float(b), rtol=tolerance, atol=1e-11))


def check(bundle, report):
    """Return what in a report isn't what its bundle's raw records give, one line each."""
    with tempfile.TemporaryDirectory() as place:
        with tarfile.open(bundle) as archive:
            archive.extractall(place, filter="data")
        root = next(Path(place).iterdir())
        study = Study(root, root.name)
        tables = recomputed(study)
        return compare(study, tables, Path(report))


def compare(study, tables, report):
    """Hold a report's files against the recomputed tables."""
    files = {path.stem: pd.read_csv(path) for path in report.glob("*.csv")}
    problems = [f"{name}.csv: missing" for name in tables if name not in files]
    problems += [f"{name}.csv: not recomputed" for name in files if name not in tables]
    for name, (found, keys) in tables.items():
        if name in files:
            problems += differing(name, files[name], found, keys)
    return problems + check_pages(study, files, report)


if __name__ == "__main__":
    found = check(*sys.argv[1:3])
    print("\n".join(found) or "every number is what the records give")
    sys.exit(bool(found))
