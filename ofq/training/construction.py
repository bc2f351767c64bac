"""Checks that what a study's runs construct can be constructed, without memory for weights."""

from collections.abc import Iterable, Iterator

from ofq.config.construction import Construction
from ofq.config.modules import import_module
from ofq.errors import UserError
from ofq.models.building import draft
from ofq.quantization.layers import quantized_activations
from ofq.quantization.techniques.base import check_technique, techniques
from ofq.training import models


def mistakes(wanted: Construction) -> Iterator[str]:
    """Yield a line for each mistake in a model, its quantizations and their techniques.

    Everything is made on torch's meta device. A mistake that several cells share is told once, with
    their number.
    """
    found = [*_unregistered(wanted)]
    if not found:
        ways = [(way.source, way.quantization) for way in wanted.ways]
        found += models.mistakes(
            wanted.model,
            ways,
            wanted.source,
            dataset=wanted.dataset,
            drop_path=wanted.drop_path,
            args=wanted.args,
        )
        wrong = {place for place, _ in found}
        found += _of_techniques(wanted, wrong) if wanted.source not in wrong else []
    yield from _merged(found, {way.source: way.cells for way in wanted.ways})


def _unregistered(wanted: Construction) -> Iterator[tuple[str, str]]:
    """Yield why the user's own modules can't be imported, or the model has no weights to load."""
    for module, place in wanted.modules.items():
        try:
            import_module(module, f"{wanted.model} on {wanted.dataset}")
        except UserError as error:
            yield place, str(error)
            return
    if wanted.hub is not None:
        try:
            models.check_hub(wanted.model, wanted.classes)
        except UserError as error:
            yield wanted.hub, str(error)


def _of_techniques(wanted: Construction, wrong: set[str]) -> Iterator[tuple[str, str]]:
    """Yield the mistakes in techniques' options, of ways that have no other mistake."""
    ways = [way for way in wanted.ways if way.techniques and way.source not in wrong]
    model = draft(wanted.model, 2, wanted.drop_path, wanted.args) if ways else None
    for way in ways:
        assert model is not None
        for config in way.techniques:
            try:
                check_technique(config.technique, config.options())
                quantized = models.quantized(model, way.quantization)
                for activation in quantized_activations(quantized):
                    activation.quantizer.awaits_calibration = False  # a copy needs no scales here
                techniques[config.technique](quantized, **config.options())
            except UserError as error:
                yield way.source, str(error)
            except Exception:  # the user's code may need values, which the meta device lacks
                continue


def _merged(found: Iterable[tuple[str, str]], cells: dict[str, int]) -> Iterator[str]:
    """Yield each mistake once, at its first place, with the number of other cells that have it."""
    places: dict[str, list[str]] = {}
    for place, mistake in found:
        places.setdefault(mistake, []).append(place)
    for mistake, [first, *others] in places.items():
        count = sum(cells.get(place, 0) for place in [first, *others]) - 1
        more = f" (and so in {count} more cells)" if count > 0 else ""
        yield f"{first}: {mistake}{more}"
