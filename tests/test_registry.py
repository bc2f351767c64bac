"""Parts of every kind are registered alike."""

import functools

import pytest

import ofq
from ofq.errors import UserError
from ofq.quantization.activations import activation_quantizers
from ofq.quantization.quantizers.base import weight_quantizers
from ofq.quantization.techniques.base import techniques
from ofq.registry import built_in_names
from ofq.report.figures import FIGURES
from ofq.training.data.source import sources

DOORS = {
    registry.kind: (register, registry)
    for register, registry in (
        (ofq.register_weight_quantizer, weight_quantizers),
        (ofq.register_activation_quantizer, activation_quantizers),
        (ofq.register_technique, techniques),
        (ofq.register_figure, FIGURES),
        (ofq.register_dataset, sources),
    )
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
    with pytest.raises(UserError, match=f"^another {kind} is registered as 'mine'$"):
        register(other)
    assert registry["mine"] is first


def test_partial_functions_are_told_apart(door):
    _, register, _ = door
    register(functools.partial(print, 1))
    with pytest.raises(UserError, match="is registered as 'mine'"):
        register(functools.partial(print, 2))


def test_images_are_no_source_of_data_that_come_ready():
    with pytest.raises(UserError, match="registered as 'images'"):
        ofq.register_dataset("images")(defined())


@pytest.mark.parametrize(
    ("decorator", "package", "registry"),
    [
        ("register_weight_quantizer", "quantization/quantizers", weight_quantizers),
        ("register_activation_quantizer", "quantization/quantizers", activation_quantizers),
        ("register_technique", "quantization/techniques", techniques),
        ("register_figure", "report/figures", FIGURES),
        ("register_dataset", "training/data", sources),
    ],
)
def test_names_read_from_the_source_are_those_that_are_registered(decorator, package, registry):
    own = [name for name, part in registry.items() if part.__module__.startswith("ofq.")]
    assert built_in_names(decorator, package) == tuple(sorted(own))
