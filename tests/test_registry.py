"""Parts of every kind are registered alike."""

import functools

import pytest

import ofq
from ofq.errors import UserError
from ofq.quantization import activations
from ofq.quantization.quantizers import base as weights
from ofq.quantization.techniques import base as techniques
from ofq.report.figures import registry as figures
from ofq.training.data import source

DOORS = {
    "a weight quantizer": (weights.register_weight_quantizer, weights._REGISTRY),
    "an activation quantizer": (activations.register_activation_quantizer, activations._REGISTRY),
    "a technique": (techniques.register_technique, techniques._REGISTRY),
    "a figure": (figures.register_figure, figures.FIGURES),
    "a data set's source": (source.register_dataset, source._SOURCES),
}


def defined():
    """Return a function that a re-run notebook cell would define anew."""

    def part():
        """Stand for any part."""

    return part


@pytest.fixture(params=DOORS)
def door(request, monkeypatch):
    register, registry = DOORS[request.param]
    monkeypatch.delitem(registry, "mine", raising=False)
    yield request.param, register("mine"), registry
    registry.pop("mine", None)


def test_part_that_is_defined_again_replaces_itself(door):
    _, register, registry = door
    register(defined())
    again = register(defined())
    assert registry["mine"] is again


@pytest.mark.parametrize("other", [lambda: None, functools.partial(print)])
def test_name_of_another_part_is_refused(door, other):
    kind, register, registry = door
    first = register(defined())
    with pytest.raises(UserError, match=f"^{kind} named 'mine' is already registered$"):
        register(other)
    assert registry["mine"] is first


def test_partial_functions_are_told_apart(door):
    _, register, _ = door
    register(functools.partial(print, 1))
    with pytest.raises(UserError, match="already registered"):
        register(functools.partial(print, 2))


def test_images_are_no_source_of_data_that_come_ready():
    with pytest.raises(UserError, match="'images' is already registered"):
        ofq.register_dataset("images")(defined())
