import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import ofq
from ofq.errors import UserError
from ofq.quantization import CodeHistory, combine


def reference_history(codes, momentum):
    """Frequency, oscillations and flips by a loop over weights and steps, float64."""
    steps, *shape = codes.shape
    frequency, oscillations = np.zeros(shape), np.zeros(shape, int)
    flips = np.zeros(shape, int)
    for index in np.ndindex(*shape):
        last = 0
        for step in range(1, steps):
            delta = int(codes[(step - 1, *index)]) - int(codes[(step, *index)])
            oscillated = delta != 0 and np.sign(delta) == -last
            frequency[index] = momentum * oscillated + (1 - momentum) * frequency[index]
            oscillations[index] += oscillated
            flips[index] += delta != 0
            last = np.sign(delta) if delta else last
    return frequency, oscillations, flips


@given(arrays(np.int8, (12, 2, 3), elements=st.integers(-128, 127)), st.sampled_from([0.01, 0.3]))
def test_history_is_that_of_a_loop_over_weights(codes, momentum):
    history = CodeHistory(torch.from_numpy(codes[0]), momentum)
    total = sum(history.observe(torch.from_numpy(step)) for step in codes[1:])
    frequency, oscillations, flips = reference_history(codes, momentum)
    np.testing.assert_allclose(history.frequency, frequency, atol=1e-6)
    assert np.array_equal(total, oscillations)
    assert np.array_equal(history.flips, flips.sum(1))


def test_one_oscillation_keeps_a_weight_above_the_threshold_for_69_steps():
    history = CodeHistory(torch.zeros(1, 1, dtype=torch.int8))
    for code in (1, 0):
        history.observe(torch.full((1, 1), code, dtype=torch.int8))
    steps = 0
    while history.frequency.item() > 0.005:
        history.observe(torch.zeros(1, 1, dtype=torch.int8))
        steps += 1
    assert steps == 69


def test_summary_counts_each_role_apart(micro_model):
    model = ofq.quantize(micro_model)
    tracker = ofq.OscillationTracker(model)
    weight = model.blocks[1].attn.scores.qkv.weight
    with torch.no_grad():
        weight[48] *= -1  # the first row of k
    tracker.update()
    tracker.update()
    found = {(part.layer, part.role): part for part in tracker.summary()}
    flipped = found["blocks.1.attn.scores.qkv", "k"]
    assert flipped.flips == pytest.approx(1000 * 48 / (48 * 48) / 2)
    assert sum(part.flips > 0 for part in found.values()) == 1
    assert {role for _, role in found} == {"q", "k", "v", "proj", "fc1", "fc2"}
    assert all(part.flips == 0 for part in tracker.summary())


def test_oscillation_rate_counts_weights_above_the_threshold(micro_model):
    model = ofq.quantize(micro_model)
    tracker = ofq.OscillationTracker(model)
    for _ in range(2):  # there and back: one oscillation, frequency 0.01
        with torch.no_grad():
            model.blocks[0].mlp.fc1.weight[:3] *= -1
        tracker.update()
    rates = {(part.layer, part.role): part.oscillation_rate for part in tracker.summary()}
    assert rates.pop(("blocks.0.mlp.fc1", "fc1")) == pytest.approx(100 * 3 / 192)
    assert set(rates.values()) == {0}


def test_roles_with_qkr(micro_model):
    tracker = ofq.OscillationTracker(ofq.quantize(micro_model, qkr=True))
    parts = tracker.summary()
    assert {part.role for part in parts} == {"qk", "v", "proj", "fc1", "fc2"}
    assert next(part.weights for part in parts if part.role == "qk") == 3 * 48 * 48


def test_state_resumes_exactly(micro_model):
    model = ofq.quantize(micro_model)
    one = ofq.OscillationTracker(model)
    linear = model.blocks[0].mlp.fc1
    for step in range(6):
        if step == 3:
            other = ofq.OscillationTracker(model)
            other.load_state_dict(one.state_dict())
        with torch.no_grad():
            linear.weight.neg_()
        one.update()
        if step >= 3:
            other.update()
    assert one.summary() == other.summary()


def test_tracker_of_a_further_stage_goes_on(micro_model):
    model = ofq.quantize(micro_model)
    whole, tracker = ofq.OscillationTracker(model), ofq.OscillationTracker(model)
    linear = model.blocks[0].mlp.fc1
    for step in range(6):
        if step == 3:  # a stage ends, its last summary is taken, and another one begins
            whole.summary()
            history = {name: tensor.clone() for name, tensor in tracker.history().items()}
            tracker = ofq.OscillationTracker(model)
            tracker.go_on_from(history)
        with torch.no_grad():
            linear.weight.neg_()
        whole.update()
        tracker.update()
    assert tracker.summary() == whole.summary()
    assert max(part.oscillation_rate for part in tracker.summary()) > 50


def test_history_of_another_model_is_refused(micro_model):
    tracker = ofq.OscillationTracker(ofq.quantize(micro_model))
    other = ofq.OscillationTracker(ofq.quantize(micro_model, qkr=True))
    with pytest.raises(UserError, match="of another model"):
        tracker.go_on_from(other.history())


def test_combined_figures_are_weighted_by_the_number_of_weights(micro_model):
    parts = ofq.OscillationTracker(ofq.quantize(micro_model)).summary()
    total = sum(part.weights for part in parts)
    expected = sum(part.in_boundary_range * part.weights for part in parts) / total
    assert combine(parts)["in_boundary_range"] == pytest.approx(expected)
