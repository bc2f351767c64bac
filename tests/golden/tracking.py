"""Kind g: the oscillation tracker, with and without freezing; all exact."""

import torch
from torch import Tensor

from ofq.quantization import CodeHistory
from ofq.quantization.techniques.freezing import FreezingHistory

from tests.golden.case import EXACT, Case


def tracker(case: Case) -> None:
    """Every recorded quantity after each recorded step, and the sequences of all steps."""
    sequence = case["x_int_sequence"].to(torch.int8)
    history = _history(case, sequence[0])
    recorded = case.groups(r"step\d+")
    returned, counts = [], []
    total = torch.zeros_like(sequence[0], dtype=torch.int32)
    for step, codes in enumerate(sequence, start=1):
        returned.append(_hold(history, codes).float())
        oscillated = history.observe(codes)
        total += oscillated.int()
        counts.append(oscillated.sum())
        if f"step{step}" in recorded:
            _check(case, f"step{step}", history, counts[-1], total)
            recorded.remove(f"step{step}")
    assert not recorded
    case.compare("returned_sequence", torch.stack(returned), EXACT)
    case.compare("oscillated_sum_sequence", torch.stack(counts), EXACT)
    case.compare("skip_tracking_output", _hold(history, sequence[0]), EXACT)


def _history(case: Case, codes: Tensor) -> CodeHistory:
    momentum, threshold = case.settings["momentum"], case.settings["freeze_threshold"]
    if not threshold:
        return CodeHistory(codes, momentum)
    return FreezingHistory(codes, threshold, momentum, case.settings["use_ema_x_int"])


def _hold(history: CodeHistory, codes: Tensor) -> Tensor:
    return history.hold(codes) if isinstance(history, FreezingHistory) else codes


def _check(case: Case, step: str, history: CodeHistory, count: Tensor, total: Tensor) -> None:
    ours = {
        "ema_oscillation": history.frequency,
        "total_oscillation": total,
        "oscillated_sum": count,
        "prev_switch_dir": history.direction,
    }
    if isinstance(history, FreezingHistory):
        ours["frozen"] = history.frozen
        ours["frozen_x_int"] = history.frozen_codes
        if history.at_average:
            ours["ema_x_int"] = history.average
    for name, value in ours.items():
        case.compare(f"{step}.{name}", value, EXACT)
