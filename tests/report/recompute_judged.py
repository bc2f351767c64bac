"""Claims and reported results, judged again for ``recompute.py``."""

import numpy as np
import pandas as pd
from scipy import stats

from tests.report.recompute_raw import KEYS
from tests.report.recompute_statistics import (
    MID,
    Pool,
    detectable,
    holm,
    pooled,
    seeds_to_decide,
    summary,
    variance,
    wilson,
)

CELL = KEYS[:3]


def claim_number(study, blocks, claim, model, pair):
    """Return the summary of a claim's number over seeds; None without any."""
    measure, bits, other = claim["measure"], claim.get("bits", "W2A2"), claim.get("and_bits")
    methods = [pair[k] for k in ("method", "against") if pair and pair.get(k)]
    if measure in blocks and len(methods) == 2 and not other:
        return blocks[measure].difference((model, bits), *methods)

    def by_seed(at):
        if not pair:
            of = study.runs[(study.runs["model"] == model) & (study.runs["bits"] == at)]
            qat = {m for m in study.methods if not {"cga", "noise"} & study.known[m].keys()}
            of = of[of["method"].isin(qat)].dropna(subset=["top1", MID])
            groups = of.groupby("seed").filter(lambda g: len(g) > 2).groupby("seed")
            return groups[["top1", MID]].apply(lambda g: stats.spearmanr(*g.to_numpy().T)[0])
        sides = [study.quantity(measure, model, at, m) for m in methods]
        return sides[0] - sides[1] if len(sides) == 2 else sides[0]

    values = (by_seed(bits) - by_seed(other) if other else by_seed(bits)).dropna()
    if values.empty:
        return None
    found, points = summary(values, None, study.resplit), measure.startswith(("top1", "osc", "noi"))
    most = 1 if measure == "accuracy_by_oscillation" else 100 if points else np.inf
    ends = np.clip([found["low"], found["high"]], *(np.array([-most, most]) * (2 if other else 1)))
    return found | {"low": ends[0], "high": ends[1]}


def judged(claim, found, p_holm):
    """Return the verdict on a claim."""
    margin, low, high = claim.get("margin", 0.0), found["low"], found["high"]
    within, outside = -margin <= low and high <= margin, low > margin or high < -margin
    if claim["expected"] == "equal":
        return "holds" if within else "contradicted" if outside else "undecided"
    if p_holm < 0.05 and (low > 0 or high < 0):
        return "holds" if (found["mean"] > 0) == (claim["expected"] == "above") else "contradicted"
    return "no difference" if within else "undecided"


def claims_csv(study, blocks):
    """Recompute claims.csv."""

    def has(claim, pair):
        wanted = {claim.get("bits", "W2A2"), claim.get("and_bits")} - {None}
        methods = [pair[k] for k in ("method", "against") if pair.get(k)] if pair else []
        return all(wanted <= set(study.bits_of(m)) for m in (*methods, None))

    tested = [(n, c, m) for n, c in study.claims.items() for m in study.models]
    tested = [(n, c, m) for n, c, m in tested if has(c, c.get("test"))]
    found = [claim_number(study, blocks, c, m, c.get("test")) for _, c, m in tested]
    adjusted, rows = holm([f["p"] if f else np.nan for f in found]), []
    for (name, claim, model), number, p in zip(tested, found, adjusted, strict=True):
        row = {"claim": name, "model": model, "p_holm": p, "seeds": 0, "verdict": "not tested"}
        row["margin"] = claim.get("margin", 0.0)
        if number:
            row |= {k: number[k] for k in ("low", "high", "p")}
            row |= {"difference": number["mean"], "seeds": number["n"]}
            row["verdict"] = judged(claim, number, p)
        if row["verdict"] == "undecided":
            margin = claim.get("margin", 0)
            row["seeds_to_decide"] = seeds_to_decide(number["std"], margin, study.resplit)
        pair = claim.get("control")
        control = (
            claim_number(study, blocks, claim, model, pair) if pair and has(claim, pair) else None
        )
        if control:
            row |= {f"control_{k}": control[k] for k in ("low", "high")}
            row["control_difference"] = control["mean"]
        rows.append(row)
    return pd.DataFrame(rows)


def verdicts_csv(study):
    """Recompute verdicts.csv: results against those that others reported."""
    reported = {}
    for value in (v for reference in study.references for v in reference["values"]):
        if value["status"] != "this suite":
            reported.setdefault(tuple(value[k] for k in CELL), value)
    trained = {c: study.cell(*c) for c in study.cells if not untrained(study.cell(*c))}
    by_kind = {}
    for (model, bits, _), runs in trained.items():
        by_kind.setdefault((model, bits), []).append(variance(runs["top1"]))
    pool = Pool({k: pooled(v) for k, v in by_kind.items()}, list(by_kind.values()))
    places = [cell for cell in study.cells if cell in reported]
    strictest = 0.05 / max(1, sum(place in trained for place in places))
    rows = []
    for place in places:
        runs, value = study.cell(*place), reported[place]
        row = dict(zip(CELL, place, strict=True)) | {"n": len(runs), "p": np.nan}
        row |= {"reported": value["value"], "mean": runs["top1"].mean(), "by_images": False}
        row["difference"] = row["mean"] - value["value"]
        row["seeds"] = " ".join(map(str, runs["seed"]))
        if len(runs):
            s2 = pool(place[:2], variance(runs["top1"]))
            row |= distance(study, runs, value, s2, strictest)
        rows.append(row)
    frame = pd.DataFrame(rows)
    if len(frame):
        frame["p_holm"] = holm(frame["p"])
        frame["verdict"] = [reproduced(row) for _, row in frame.iterrows()]
    return frame


def untrained(runs):
    """Return whether runs are absent, or evaluate given weights."""
    return not ((runs["chain"] != runs["run"]) | (runs["steps"] > 0)).any()


def distance(study, runs, value, s2, strictest):
    """Return interval, p and detectable difference of trained results from a reported one."""
    known, gap, n = value["value"], runs["top1"].mean() - value["value"], len(runs)
    if untrained(runs):
        return {"low": gap, "high": gap, "detectable": 0.0}
    if s2[0] > 0:
        own, theirs, df = s2[0] * (1 / n + study.resplit), s2[0] / value.get("runs", 1), s2[1]
        if value.get("std"):  # Welch and Satterthwaite
            theirs = value["std"] ** 2 / value["runs"]
            df = (own + theirs) ** 2 / (own**2 / df + theirs**2 / (value["runs"] - 1))
        error = np.sqrt(own + theirs)
        low, high = np.clip(stats.t.interval(0.95, df, gap, error), -known, 100 - known)
        reach = detectable(error, df, strictest, max(known, 100 - known))
        p = 2 * stats.t.sf(abs(gap) / error, df)
        return {"low": low, "high": high, "p": p, "df": df, "detectable": reach}
    images = runs["images"].iloc[0]
    if not images or n < len(study.seeds):
        return {}
    low, high = np.array(wilson(runs["top1"].mean(), images)) - known
    edge = (known + np.copysign(0.5, gap)) / 100
    right = round(runs["top1"].mean() / 100 * images)
    p = stats.binomtest(right, int(images), edge).pvalue if abs(gap) > 0.5 else 1.0
    error = 100 * np.sqrt(known / 100 * (1 - known / 100) / images)
    reach = 0.5 + (stats.norm.isf(strictest / 2) + stats.norm.ppf(0.8)) * error
    return {"low": low, "high": high, "p": p, "detectable": reach, "by_images": True}


def reproduced(row):
    """Return the verdict on a result that others reported too."""
    low, high, allowed = row.get("low", np.nan), row.get("high", np.nan), 0.5 * row["by_images"]
    if row["n"] == 0:
        return "not run"
    if low >= -0.5 and high <= 0.5:
        return "reproduced"
    if (low == high or row["p_holm"] < 0.05) and abs(row["difference"]) > 0.5:
        return "off"
    clear = low - allowed <= 0 <= high + allowed and row["detectable"] <= 1 + allowed
    return "within noise" if clear else "underpowered"
