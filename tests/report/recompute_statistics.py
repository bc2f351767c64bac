"""Statistics of a report by formulas of their own, for ``recompute.py``.

A variance is a pair: its value and its degrees of freedom, (0, 0) if nothing is known of it.
"""

from functools import lru_cache
from itertools import product

import numpy as np
import pandas as pd
from scipy import integrate, optimize, special, stats

MID, END = "oscillation_rate_mid", "oscillation_rate_end"
NUMBERS = ["n", "mean", "std", "low", "high", "error", "df", "p"]


def variance(values, weight=1.0):
    """Return the sample variance of values over ``weight``, and its degrees of freedom."""
    x = np.asarray(values, float)
    if len(x) < 2:
        return 0.0, 0
    equal = np.ptp(x) <= 1e-12 * max(1, np.abs(x).max())
    return (0.0 if equal else x.var(ddof=1) / weight), len(x) - 1


def pooled(variances):
    """Return the mean of variances by their degrees of freedom."""
    df = sum(d for _, d in variances)
    return (sum(v * d for v, d in variances) / df if df else 0.0), df


def moderated(own, prior, most):
    """Move a variance towards a prior one (value, degrees of freedom), as limma does."""
    total = own[1] + prior[1]
    return (own[0] * own[1] + prior[0] * prior[1]) / total, max(own[1], min(total, most))


def prior_df(groups):
    """Return limma's prior degrees of freedom of variances alike within groups, within 4 and 5."""
    logs = []
    for number, group in enumerate(groups):
        s2, d = np.array([v for v in group if v[1] > 0], float).reshape(-1, 2).T
        if s2.any():
            s2 = np.maximum(s2, 1e-5 * (np.median(s2) or s2.max()))
            z = np.log(s2) - special.psi(d / 2) + np.log(d / 2)
            logs += [(number, *row) for row in zip(z, special.polygamma(1, d / 2), strict=True)]
    frame = pd.DataFrame(logs, columns=["group", "z", "noise"])
    frame = frame[frame.groupby("group")["z"].transform("size") > 1]
    if frame.empty:
        return 5.0
    deviations = frame["z"] - frame.groupby("group")["z"].transform("mean")
    free = len(frame) - frame["group"].nunique()
    excess = (deviations**2).sum() / free - frame["noise"].mean()
    if excess <= special.polygamma(1, 5 / 2):  # the trigamma function falls
        return 5.0
    if excess >= special.polygamma(1, 4 / 2):
        return 4.0
    return 2 * optimize.brentq(lambda x: special.polygamma(1, x) - excess, 2, 2.5, xtol=1e-14)


def layout_variances(table):
    """Return the residual variance of method + seed (least squares), and each method's."""
    seed, method = np.nonzero(table.notna().to_numpy())
    if not len(seed):
        return (0.0, 0), []
    y = table.to_numpy()[seed, method]
    design = np.hstack([np.eye(table.shape[0])[seed], np.eye(table.shape[1])[method]])
    hat = design @ np.linalg.pinv(design)
    left, free = y - hat @ y, 1 - np.diag(hat)
    left[np.abs(left) <= 1e-12 * max(1, np.abs(y - y.mean()).max())] = 0
    df = round(free.sum())
    if df == 0:
        return (0.0, 0), []
    of = [method == k for k in range(table.shape[1])]
    members = [(left[m] @ left[m] / free[m].sum(), m.sum() - 1) for m in of if free[m].sum() > 1e-9]
    return (left @ left / df, df), members


class Pool:
    """Moderated variances by model and bits, given each one's variance and its members'."""

    def __init__(self, kinds, groups):
        self.within, self.kinds = prior_df(groups), kinds
        known = [v for v in kinds.values() if v[0] > 0]
        if len(known) > 1:
            (common, df), d0 = pooled(known), prior_df([known])
            self.kinds = {k: moderated(v, (common, d0), df) for k, v in kinds.items()}

    def __call__(self, kind, own):
        value, df = self.kinds.get(kind, (0.0, 0))
        return moderated(own, (value, self.within), df) if value > 0 else own


def summary(values, known=None, resplit=0.0, limits=(-np.inf, np.inf)):
    """Return mean, t interval and test by a variance; with ``resplit``, Nadeau and Bengio's."""
    x = np.asarray(values, float)
    s2, df = known or variance(x)
    fields = dict.fromkeys(NUMBERS, np.nan) | {"n": len(x), "mean": x.mean()}
    fields["std"] = np.sqrt(variance(x)[0]) if len(x) > 1 else np.nan
    if s2 > 0:
        error = np.sqrt(s2 * (1 / len(x) + resplit))
        ends = np.clip(stats.t.interval(0.95, df, x.mean(), error), *limits)
        p = 2 * stats.t.sf(abs(x.mean()) / error, df)
        fields |= {"low": ends[0], "high": ends[1], "error": error, "df": df, "p": p}
    return fields


def holm(p):
    """Return p-values after Holm's correction; NaN isn't of the family."""
    p = pd.Series(p, dtype=float)
    steps = p.dropna().sort_values()
    steps *= np.arange(len(steps), 0, -1)
    return steps.cummax().clip(upper=1).reindex(p.index)


@lru_cache
def noncentrality(df, alpha):
    """Return the true t at which a test has 80 % power, by integrating over the sample's spread."""
    critical, chi = stats.t.isf(alpha / 2, df), stats.chi(df)
    ends = chi.ppf([1e-12, 0.5, 1 - 1e-12])

    def power(delta):
        def shown(c):
            reach = critical * c / np.sqrt(df)
            return (special.ndtr(delta - reach) + special.ndtr(-delta - reach)) * chi.pdf(c)

        return integrate.quad(shown, *ends[:2])[0] + integrate.quad(shown, *ends[1:])[0]

    return optimize.brentq(lambda delta: power(delta) - 0.8, 0, 4 * critical + 10, xtol=1e-7)


def detectable(error, df, alpha, most=np.inf):
    """Return the true difference that a t test shows with 80 % power; NaN beyond ``most``."""
    if not (error > 0 and df >= 1):
        return np.nan
    found = noncentrality(int(min(df, 1000)), alpha) * error
    return found if found <= most else np.nan


def wilson(percent, images):
    """Return Wilson's 95 % interval of an accuracy, in percent."""
    k, z = round(percent / 100 * images), stats.norm.isf(0.025)
    share, scale = k / images, 1 + z * z / images
    half = z * np.sqrt(share * (1 - share) / images + (z / images / 2) ** 2)
    return [100 * (share + z * z / images / 2 + side * half) / scale for side in (-1, 1)]


def seeds_to_decide(std, margin, resplit):
    """Return the fewest seeds, at most 1,000, that would show a difference of the margin."""
    if not (std > 0 and margin > 0):
        return np.nan
    errors = {n: std * np.sqrt(1 / n + resplit) for n in range(2, 1001)}
    # no test is surer than one of known variance, which spares most of the integrals
    likely = (n for n, error in errors.items() if 2.8 * error <= margin)
    return next((n for n in likely if detectable(errors[n], n - 1, 0.05) <= margin), np.nan)


def bound(measure):
    """Return the largest possible value of a measure."""
    return np.inf if measure == "loss" else 100.0


class Blocks:
    """Results of one measure with seeds as blocks: a table of seeds by methods for each kind."""

    def __init__(self, study, measure):
        self.resplit, self.measure = study.resplit, measure
        self.tables = {
            kind: study.table(*kind, measure) for kind in product(study.models, study.bits)
        }
        fits = {}
        for kind, table in self.tables.items():
            qat = [study.qat(m) if measure == MID else m for m in table]
            fits[kind] = layout_variances(table.loc[:, ~pd.Index(qat).duplicated()])
        groups = [members for _, members in fits.values() if len(members) > 2]
        self.pool = Pool({kind: fit[0] for kind, fit in fits.items()}, groups)

    def contrast(self, kind, weights):
        """Summarize a weighted sum of methods over the seeds that have all; None without any."""
        values = self.tables[kind].reindex(columns=list(weights)).dropna() @ pd.Series(weights)
        if not len(values):
            return None
        size, most = sum(w * w for w in weights.values()), bound(self.measure)
        s2, df = self.pool(kind, variance(values, size))
        return summary(values, (size * s2, df), self.resplit, (-most, most))

    def difference(self, kind, method, against):
        """Summarize the difference of two methods."""
        return self.contrast(kind, {method: 1.0, against: -1.0})

    def correlation(self, kind, *pair):
        """Return the correlation of two methods over at least three seeds."""
        both = self.tables[kind].reindex(columns=list(pair)).dropna()
        varies = len(both) > 2 and (both.std() > 0).all()
        return np.corrcoef(both.T)[0, 1] if varies else np.nan
