"""Injected noise: accuracy of models with changed codes, compared with the trained models."""

import pandas as pd

from ofq.report.collect import Records
from ofq.report.curves import KEYS


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
