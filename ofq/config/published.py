"""The published recipe as data, and how a run's config differs from it."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from ofq.config.fields import Bits, Line, Names, Text, distinct
from ofq.config.files import Strict
from ofq.config.method import CgaConfig
from ofq.config.run import CgaRun, QuantizedTraining, RunConfig
from ofq.config.schema import Match

ABSENT = "off"
"""Stands for a key that a config lacks, such as one of mixup where nothing is mixed."""


class Setting(Strict):
    """Some of the published values.

    Attributes:
        source: Where they stand.
        match: For which runs; left out, for all.
        set: The values, by a dotted key of :class:`~ofq.config.stage.Training`, or by ``devices``,
            ``start``, ``ends``, ``boundary_range`` or ``cga_rule``. null stands for something that
            is off.
    """

    source: Text
    match: Match = Match()
    set: dict[str, Any]


class Deviation(Strict):
    """What differs from the publication whatever the config says.

    Attributes:
        text: A sentence.
        match: For which runs; left out, for all.
    """

    text: Text
    match: Match = Match()


class Published(Strict):
    """A published recipe: one file of ``config/published``, named after its data set.

    Attributes:
        title: What it is called where differences are listed.
        dataset, models, bits: What it was published for.
        settings: Its values; the last match wins.
        deviations: What differs in any case.
    """

    title: Line
    dataset: Line
    models: Names
    bits: Annotated[list[Bits], AfterValidator(distinct)]
    settings: tuple[Setting, ...]
    deviations: tuple[Deviation, ...] = Field(default=())


@dataclass(frozen=True)
class Difference:
    """A value that differs.

    Attributes:
        key: A dotted key of the stage's hyperparameters, or one of :class:`Setting`'s others.
        published: The published value.
        ours: The run's.
        source: Where the published one stands.
    """

    key: str
    published: Any
    ours: Any
    source: str

    def __str__(self) -> str:
        return f"{self.key}: {self.ours} (published: {self.published}; {self.source})"


@dataclass(frozen=True)
class Comparison:
    """How a run compares with the published recipe.

    Attributes:
        title: What was compared with.
        differences: Values that differ, in the published file's order; none for a run that follows
            the recipe.
        deviations: What differs in any case.
    """

    title: str
    differences: tuple[Difference, ...]
    deviations: tuple[str, ...]

    def payload(self) -> dict[str, Any]:
        """The same as plain JSON data, for a run's record."""
        return {
            "published": self.title,
            "differences": [asdict(difference) for difference in self.differences],
            "deviations": list(self.deviations),
        }


def compare(config: RunConfig, devices: int, published: Published | None) -> Comparison | None:
    """Compare a run's config with the published recipe.

    Args:
        config: The run's.
        devices: Number of devices that it trains on.
        published: The recipe for its data set, if one was published.

    Returns:
        The differences; None if nothing was published for such a run.
    """
    if not isinstance(config, QuantizedTraining) or published is None:
        return None
    if not _covers(published, config):
        return None
    facts = _facts(config, devices)
    differences = tuple(
        Difference(key, value, facts.get(key, ABSENT), source)
        for key, (value, source) in _values(published, config).items()
        if not _equal(facts.get(key, ABSENT), value)
    )
    deviations = tuple(
        deviation.text
        for deviation in published.deviations
        if deviation.match.fits(config.model, config.bits, config.stage)
    )
    return Comparison(published.title, differences, deviations)


def _covers(published: Published, config: QuantizedTraining) -> bool:
    return (
        config.dataset == published.dataset
        and config.model in published.models
        and config.bits in published.bits
    )


def _values(published: Published, config: QuantizedTraining) -> dict[str, tuple[Any, str]]:
    """The published values for a run, each with its source."""
    found: dict[str, tuple[Any, str]] = {}
    for setting in published.settings:
        if setting.match.fits(config.model, config.bits, config.stage):
            for key, value in setting.set.items():
                found[key] = (ABSENT if value is None else value, setting.source)
    if not _has_boundary_range(config):
        found.pop("boundary_range", None)
        found.pop("cga_rule", None)
    return found


def _facts(config: QuantizedTraining, devices: int) -> dict[str, Any]:
    """What a run has at the keys that a published recipe may name."""
    facts: dict[str, Any] = dict(_flat(config.training.model_dump()))
    facts["devices"] = devices
    facts["start"] = config.pretrained or "trained here"
    facts["first_last"] = config.quantization.first_last
    if isinstance(config, CgaRun) and isinstance(config.annealing, CgaConfig):
        facts["boundary_range"] = config.annealing.boundary_range
        facts["cga_rule"] = config.annealing.rule
    return facts


def _has_boundary_range(config: QuantizedTraining) -> bool:
    """Return whether a run is CGA's, and not a variant's or a control's."""
    return isinstance(config, CgaRun) and isinstance(config.annealing, CgaConfig)


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested values by dotted keys, mappings themselves included; None becomes :data:`ABSENT`."""
    for name, value in values.items():
        key = prefix + name
        yield key, ABSENT if value is None else value
        if isinstance(value, dict):
            yield from _flat(value, f"{key}.")


def _equal(ours: Any, published: Any) -> bool:
    """Whether two values are the same number, list or word."""
    if isinstance(ours, (list, tuple)) and isinstance(published, (list, tuple)):
        pairs = zip(ours, published, strict=False)
        return len(ours) == len(published) and all(_equal(a, b) for a, b in pairs)
    return bool(ours == published)
