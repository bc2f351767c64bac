"""Published recipes as data, and the differences of a run's config from them."""

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
"""Value of a key that a config lacks, such as one of mixup where nothing is mixed."""


class Setting(Strict):
    """Published values for some runs.

    Attributes:
        source: Their place in the publication.
        match: The runs that they are for; left out, all.
        set: The values, by a dotted key of :class:`~ofq.config.stage.Training`, or by ``devices``,
            ``start``, ``first_last``, ``boundary_range`` or ``cga_rule``. null stands for a setting
            that is off.
    """

    source: Text
    match: Match = Match()
    set: dict[str, Any]


class Deviation(Strict):
    """Difference from the publication that no config removes.

    Attributes:
        text: A sentence.
        match: The runs that it is for; left out, all.
    """

    text: Text
    match: Match = Match()


class Published(Strict):
    """Published recipe: one file of ``config/published``, named after its data set.

    Attributes:
        title: Its name where differences are listed.
        dataset, models, bits: The runs that it was published for.
        settings: Its values; the last match wins.
        deviations: Differences that no config removes.
    """

    title: Line
    dataset: Line
    models: Names
    bits: Annotated[list[Bits], AfterValidator(distinct)]
    settings: tuple[Setting, ...]
    deviations: tuple[Deviation, ...] = Field(default=())


@dataclass(frozen=True)
class Difference:
    """Value that differs from the published one.

    Attributes:
        key: A dotted key of the stage's hyperparameters, or one of :class:`Setting`'s others.
        published: The published value.
        ours: The run's value.
        source: Place of the published value in the publication.
    """

    key: str
    published: Any
    ours: Any
    source: str

    def __str__(self) -> str:
        return f"{self.key}: {self.ours} (published: {self.published}; {self.source})"


@dataclass(frozen=True)
class Comparison:
    """Comparison of a run with the published recipe.

    Attributes:
        title: Name of the published recipe.
        differences: Values that differ, in the published file's order; none for a run that follows
            the recipe.
        deviations: Differences that no config removes.
    """

    title: str
    differences: tuple[Difference, ...]
    deviations: tuple[str, ...]

    def payload(self) -> dict[str, Any]:
        """Return the comparison as plain JSON data, for a run's record."""
        return {
            "published": self.title,
            "differences": [asdict(difference) for difference in self.differences],
            "deviations": list(self.deviations),
        }


def compare(config: RunConfig, devices: int, published: Published | None) -> Comparison | None:
    """Compare a run's config with the published recipe.

    Args:
        config: The run's config.
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
    """Return the published values for a run, each with its source."""
    values: dict[str, tuple[Any, str]] = {}
    for setting in published.settings:
        if setting.match.fits(config.model, config.bits, config.stage):
            for key, value in setting.set.items():
                values[key] = (ABSENT if value is None else value, setting.source)
    if not _has_boundary_range(config):
        values.pop("boundary_range", None)
        values.pop("cga_rule", None)
    return values


def _facts(config: QuantizedTraining, devices: int) -> dict[str, Any]:
    """Return a run's values of the keys that a published recipe may name."""
    facts: dict[str, Any] = dict(_flat(config.training.model_dump()))
    facts["devices"] = devices
    facts["start"] = config.pretrained or "trained here"
    facts["first_last"] = config.quantization.first_last
    if isinstance(config, CgaRun) and isinstance(config.annealing, CgaConfig):
        facts["boundary_range"] = config.annealing.boundary_range
        facts["cga_rule"] = config.annealing.rule
    return facts


def _has_boundary_range(config: QuantizedTraining) -> bool:
    """Return whether a run is of CGA itself, not of a variant or a control."""
    return isinstance(config, CgaRun) and isinstance(config.annealing, CgaConfig)


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield nested values by dotted keys, mappings included; None becomes :data:`ABSENT`."""
    for name, value in values.items():
        key = prefix + name
        yield key, ABSENT if value is None else value
        if isinstance(value, dict):
            yield from _flat(value, f"{key}.")


def _equal(ours: Any, published: Any) -> bool:
    """Return whether two values are the same number, list or word."""
    if isinstance(ours, (list, tuple)) and isinstance(published, (list, tuple)):
        pairs = zip(ours, published, strict=False)
        return len(ours) == len(published) and all(_equal(a, b) for a, b in pairs)
    return bool(ours == published)
