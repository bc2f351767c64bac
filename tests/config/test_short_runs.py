"""Which runs a cluster starts without submitting them."""

import re

import pytest

from ofq.config.targets import Targets

RUN = "digits/micro_deit_patch2_8/w2a2-lsq-s0-3d478fac"
SHORT = "resources: {fp: {runtime: 15}, qat: {runtime: 15}, cga: {runtime: 15}}\n"


def recipe(checkout, text, name="small"):
    path = checkout / "config/recipes/small.yaml"
    (path.with_name(f"{name}.yaml")).write_text(path.read_text() + text)


def is_short(checkout, run=RUN):
    return re.fullmatch(Targets(checkout).short_runs(), run) is not None


def test_runs_of_a_quarter_of_an_hour_without_gpu_are_short(checkout):
    recipe(checkout, SHORT)
    assert is_short(checkout)
    assert not is_short(checkout, RUN.replace("digits", "imagenet"))
    assert not is_short(checkout, f"more/{RUN}")


@pytest.mark.parametrize(
    "resources", ["", SHORT.replace("15", "16"), SHORT.replace("qat: {", "qat: {gpu: 1, ")]
)
def test_runs_of_unknown_or_long_duration_or_with_gpu_are_not(checkout, resources):
    recipe(checkout, resources)
    assert not is_short(checkout)


def test_recipes_that_share_a_model_must_agree(checkout):
    recipe(checkout, "", name="long")
    recipe(checkout, SHORT)
    assert not is_short(checkout)


def test_runs_of_a_study_on_its_own_data_set_are_as_short_as_its_recipe(checkout):
    recipe(checkout, SHORT)
    study = checkout / "config/studies/tiny.yaml"
    study.write_text(study.read_text() + "dataset: imagenet\n")
    assert is_short(checkout, RUN.replace("digits", "imagenet"))


def test_recipe_that_is_wrong_is_passed_over(checkout):
    recipe(checkout, SHORT)
    recipe(checkout, "stags: {}\n", name="wrong")
    assert is_short(checkout)
