"""Step times of methods over LSQ's, against medians by NumPy and by hand."""

import numpy as np
import pytest

from ofq.monitor.cost import costs
from ofq.monitor.estimate import Sample
from ofq.monitor.kind import Kind
from ofq.monitor.span import Range

LSQ = Kind(
    dataset="digits", model="micro", stage="qat", bits="W2A2", method="lsq", batch_size=32,
    taught=True, gpus=0,
)  # fmt: skip
STATSQ = LSQ.model_copy(update={"method": "statsq"})


def times(kind, seconds, device="A processor", source="run"):
    return [Sample(kind, device, source, Range(each, each)) for each in seconds]


def test_cost_is_the_ratio_of_medians_over_runs():
    rng = np.random.default_rng(0)
    ours, theirs = rng.uniform(3, 9, 6), rng.uniform(2, 4, 5)
    found = costs([*times(STATSQ, ours), *times(LSQ, theirs)])
    assert found[STATSQ].ratio == pytest.approx(np.median(ours) / np.median(theirs), rel=1e-12)
    quartiles = np.quantile(ours, [0.25, 0.75]) / np.median(theirs)
    assert [found[STATSQ].low, found[STATSQ].high] == pytest.approx(quartiles, rel=1e-12)
    assert found[STATSQ].seconds == pytest.approx(np.median(ours), rel=1e-12)
    assert (found[STATSQ].count, found[LSQ].count, found[LSQ].ratio) == (6, 5, 1)


def test_run_slowed_by_others_changes_no_cost():
    calm = costs([*times(STATSQ, [3, 3, 3]), *times(LSQ, [2, 2, 2])])[STATSQ]
    busy = costs([*times(STATSQ, [3, 9, 3]), *times(LSQ, [2, 2, 7])])[STATSQ]
    assert calm.ratio == busy.ratio == 1.5
    assert (calm.high, busy.low, busy.high) == (1.5, 1.5, 3)


@pytest.mark.parametrize(
    "change",
    [
        {"bits": "W3A3"}, {"batch_size": 64}, {"model": "mini"}, {"stage": "cga"}, {"gpus": 1},
        {"precision": "bf16"}, {"taught": False},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_runs_that_differ_in_more_than_method_are_not_compared(change):
    other = STATSQ.model_copy(update=change)
    assert other not in costs([*times(other, [3]), *times(LSQ, [2])])


def test_other_devices_and_calibrations_are_not_compared_with_runs_here():
    apart = [*times(STATSQ, [3], device="Another"), *times(STATSQ, [3], source="calibration")]
    assert STATSQ not in costs([*apart, *times(LSQ, [2])])


def test_runs_count_before_calibrations_and_many_before_few():
    calibrated = [
        Sample(kind, "A", "calibration", Range(1, t)) for kind, t in ((STATSQ, 9), (LSQ, 1))
    ]
    assert costs(calibrated)[STATSQ].ratio == 5  # from the middle of 1 to 9
    few = [*times(STATSQ, [4], "A"), *times(LSQ, [2], "A")]
    many = [*times(STATSQ, [3, 3], "B"), *times(LSQ, [1], "B")]
    assert costs([*calibrated, *few])[STATSQ].ratio == 2
    assert costs([*calibrated, *few, *many])[STATSQ].ratio == 3
