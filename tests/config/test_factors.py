"""A contrast that claims to test one factor alone is refused if its methods differ in another."""

from pathlib import Path
from typing import get_args

import pytest

from ofq.config import Method, Workspace
from ofq.config.factors import Factor, differences, factors
from ofq.errors import UserError

from tests.support.synthetic import make_workspace

ROOT = Path(__file__).parents[2]
LSQ = {"label": "LSQ", "weight_quantizer": "lsq"}
STATSQ = {"label": "StatsQ", "weight_quantizer": "statsq"}


def between(first, second, bits="W2A2"):
    return list(differences(Method(**first), Method(**second), bits))


def test_every_key_of_a_method_is_a_factor_or_decides_some():
    assert set(factors(Method(**LSQ), "W2A2")) == set(get_args(Factor))
    keys = {"label", "weight_quantizer", "options", "module", "tuned"}
    of_quantizer = {"grid", "initial_step", "scale", "gradient"}
    assert set(get_args(Factor)) == set(Method.model_fields) - keys | of_quantizer


def test_statsq_and_lsq_differ_in_all_four_factors_of_a_quantizer():
    assert between(STATSQ, LSQ) == ["grid", "initial_step", "scale", "gradient"]
    assert between(STATSQ, LSQ, "W32A2") == []


@pytest.mark.parametrize(("bits", "factor"), [("W2A2", 1), ("W3A3", 0.8660), ("W4A4", 0.6614)])
def test_initial_steps_are_compared_at_the_study_s_bits(bits, factor):
    learned = STATSQ | {"weight_quantizer": "statsq_learned"}
    assert between(learned, LSQ | {"options": {"factor": factor}}, bits) == ["grid"]
    assert between(learned, LSQ | {"options": {"factor": factor}}, "W5A5") != ["grid"]


def test_further_stage_is_longer_training_too():
    none_frozen = STATSQ | {"cga": {"form": "no_freeze"}}
    annealed = STATSQ | {"cga": {"boundary_range": 0.005}}
    assert between(annealed, STATSQ) == ["cga", "training"]
    assert between(annealed, none_frozen) == ["cga"]
    assert between(STATSQ | {"training": {"cga": {"epochs": 9}}}, STATSQ) == []


def test_gradient_factor_of_a_learned_scale_is_part_of_the_scale():
    by_magnitude = LSQ | {"options": {"gradient_factor": "l1"}}
    assert between(by_magnitude, LSQ) == ["scale"]
    assert between(LSQ | {"options": {"gradient_factor": "count"}}, LSQ) == []


def test_quantizer_of_one_s_own_differs_in_all_that_a_quantizer_decides():
    own = {"label": "Mine", "weight_quantizer": "mine", "module": "mine"}
    assert between(own, STATSQ) == ["grid", "initial_step", "scale", "gradient"]
    assert between(own | {"qkr": True}, own) == ["qkr"]
    assert between(own | {"options": {"x": 1}}, own)[0] == "grid"


def study(tmp_path, alone, against="lsq"):
    contrast = {"question": "Alone:", "method": "statsq", "against": against, "alone": alone}
    workspace = make_workspace(tmp_path, contrasts=[contrast])
    return workspace.grid("small")


def test_contrast_of_more_than_its_factor_is_refused(tmp_path):
    with pytest.raises(UserError) as refused:
        study(tmp_path, "grid")
    assert str(refused.value) == (
        f"{tmp_path}/config/studies/small.yaml: key 'contrasts.0.alone' is 'grid', but at W2A2 "
        "'statsq' and 'lsq' differ in grid (a threshold at zero; a level at zero) and "
        "initial_step (1 mean|w|; 2 mean|w|) and scale (statistical; learned) and gradient "
        "(everywhere; inside); allowed: two methods that differ in grid and nothing else"
    )


def test_contrast_of_another_factor_than_declared_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"is 'cga', but at W2A2 .* differ in qkr;"):
        study(tmp_path, "cga", "statsq+qkr")
    with pytest.raises(UserError, match=r"differ in nothing; allowed"):
        study(tmp_path, "cga", "statsq")


def test_contrast_of_its_one_factor_is_taken(tmp_path):
    assert study(tmp_path, "qkr", "statsq+qkr").cells


def test_factor_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"contrasts\.0\.alone.*'grit'"):
        study(tmp_path, "grit")


@pytest.mark.parametrize("name", Workspace(ROOT).study_names)
def test_committed_contrasts_that_say_alone_are_checked(name):
    workspace = Workspace(ROOT)
    assert workspace.grid(name).cells
    for contrast in workspace.study(name).contrasts:
        assert contrast.alone is not None or "alone" not in contrast.question.lower()


@pytest.mark.parametrize("name", Workspace(ROOT).study_names)
def test_going_on_without_freezing_stands_beside_cga_in_every_study(name):
    workspace = Workspace(ROOT)
    study, methods = workspace.study(name), workspace.methods_of(name)
    if study.checkpoints:
        return  # trains nothing
    controls = [m for m in study.methods if getattr(methods[m].cga, "form", None) == "no_freeze"]
    for method in study.methods:
        tried = methods[method]
        if tried.cga is None or tried.noise is not None or method in controls:
            continue
        alike = [
            control
            for control in controls
            if list(differences(tried, methods[control], study.bits[0])) == ["cga"]
        ]
        assert alike, f"{name}: {method} has no control"
