from colorsys import rgb_to_hls, rgb_to_hsv
from itertools import pairwise
from pathlib import Path

import pytest
from matplotlib.colors import to_rgb

from ofq.config import Workspace
from ofq.config.method import WEIGHT_QUANTIZERS, Method
from ofq.report.figures.looks import HUES, Look, bits_looks, looks

SUITE = Workspace(Path(__file__).parents[2])


def looks_of(study: str) -> dict[str, Look]:
    return looks({name: SUITE.methods_of(study)[name] for name in SUITE.study(study).methods})


def hue(color: str) -> float:
    return rgb_to_hsv(*to_rgb(color))[0]


def method(**keys: object) -> Method:
    return Method.model_validate({"label": "x", "weight_quantizer": "statsq", **keys})


@pytest.mark.parametrize("study", SUITE.study_names)
def test_no_colour_comes_twice_in_a_study_and_each_says_what_the_method_is(study: str) -> None:
    style = looks_of(study)
    assert len({look.color for look in style.values()}) == len(style)
    for name, look in style.items():
        config = SUITE.methods_of(study)[name]
        assert hue(look.color) == pytest.approx(hue(HUES[config.weight_quantizer]), abs=0.02)
        assert look.marker == {False: "o", True: "s", "lowrank": "D"}[config.qkr]
        assert look.filled == (config.cga is not None)


def test_each_built_in_quantizer_has_a_hue_of_its_own() -> None:
    assert set(HUES) == set(WEIGHT_QUANTIZERS)
    hues = sorted(map(hue, HUES.values()))
    assert min(b - a for a, b in pairwise(hues)) > 0.04


def test_a_plain_method_looks_the_same_in_every_study_that_has_it() -> None:
    for name in ("lsq", "statsq", "statsq+qkr", "statsq+qkr+cga"):
        studies = [s for s in SUITE.study_names if name in SUITE.study(s).methods]
        assert len({looks_of(study)[name] for study in studies}) == 1


def test_looks_do_not_depend_on_the_order_of_a_study() -> None:
    methods = SUITE.methods
    assert looks(methods) == looks(dict(reversed(methods.items())))


def test_siblings_are_far_apart_in_shade() -> None:
    style = looks_of("boundary_range")
    lightness = [rgb_to_hls(*to_rgb(style[name].color))[1] for name in style if "cga" in name]
    assert min(b - a for a, b in pairwise(sorted(lightness))) > 0.05


@pytest.mark.parametrize("form", ["freeze_all", "no_freeze", "ratio"])
def test_another_form_of_annealing_has_another_line_style(form: str) -> None:
    style = looks({"band": method(cga={}), "other": method(cga={"form": form})})
    assert style["band"].linestyle != style["other"].linestyle
    assert style["other"].filled


def test_techniques_during_training_have_line_styles() -> None:
    style = looks_of("variants")
    names = ("lsq", "lsq+freezing", "lsq+dampening")
    assert len({str(style[name].linestyle) for name in names}) == 3
    assert not any(style[name].filled for name in names)


def test_a_users_quantizer_has_its_hue_by_its_name_whatever_else_a_study_has() -> None:
    mine = method(weight_quantizer="halved", module="m")
    alone = looks({"mine": mine})["mine"]
    assert looks({"statsq": method(), "mine": mine})["mine"] == alone
    assert all(abs(hue(alone.color) - hue(known)) > 0.01 for known in HUES.values())


def test_users_quantizers_differ_in_colour_however_many_there_are() -> None:
    own = {f"q{i}": method(weight_quantizer=f"q{i}", module="m") for i in range(12)}
    assert len({look.color for look in looks(own).values()}) == 12


def test_shades_get_finer_where_many_methods_share_hue_marker_and_fill() -> None:
    many = {f"{i}": method(cga={"boundary_range": 0.001 * (i + 1)}) for i in range(30)}
    assert len({look.color for look in looks(many).values()}) == 30


def test_bits_differ_in_colour_and_keep_it() -> None:
    names = ["W2A2", "W2A4", "W2A32", "W3A3", "W4A4", "W8A8", "W32A8"]
    style = bits_looks(names)
    assert len({look.color for look in style.values()}) == len(names)
    assert bits_looks(["W4A4"])["W4A4"] == style["W4A4"]
