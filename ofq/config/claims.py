"""Claims as data: what papers say, how a study tests it, and what it is compared with."""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, model_validator

from ofq.config.fields import Bits, Line, Name, Text
from ofq.config.files import Strict
from ofq.config.schema import Study

Quantity = Literal[
    "top1",
    "loss",
    "oscillation_rate_mid",
    "oscillation_rate_end",
    "flips_mid",
    "flips_end",
    "co_flips",
    "noise_gain",
    "accuracy_by_oscillation",
]
"""Numbers that claims are about: columns of ``runs.csv`` (docs/reports.md), and

- ``co_flips``: joint flips of query and key over those expected of independent ones;
- ``noise_gain``: accuracy with injected noise minus that without, in points, mean over draws;
- ``accuracy_by_oscillation``: Spearman's correlation of accuracy with the oscillation rate mid-run,
  over a study's methods that end with QAT, three at least, one for each seed.
"""


class Pair(Strict):
    """Difference of two methods, or a number of one method.

    Attributes:
        method: The method.
        against: The method whose number is subtracted; None to test the first's own number.
    """

    method: Name
    against: Name | None = None

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the methods."""
        return (self.method,) if self.against is None else (self.method, self.against)


class Claim(Strict):
    """Claim, and its test.

    Attributes:
        claim: The claim in a sentence.
        source: Who claims it: paper, table or section.
        published: The size of the effect as published; empty if it isn't known.
        measure: The number that it is about.
        expected: Sign of the tested number if the claim is true: ``above`` 0, ``below`` it, or
            ``equal``, within the margin.
        margin: Differences up to this size count as none.
        bits: Bits at which it is tested.
        and_bits: Bits at which the tested number is subtracted, for claims on how an effect
            changes with bits.
        test: The methods whose difference tests it; None for ``accuracy_by_oscillation``, which is
            over all methods.
        control: The matched comparison that shows what else could explain the difference.
    """

    claim: Line
    source: Line
    published: Text = ""
    measure: Quantity
    expected: Literal["above", "below", "equal"]
    margin: NonNegativeFloat = 0.0
    bits: Bits = "W2A2"
    and_bits: Bits | None = None
    test: Pair | None = None
    control: Pair | None = None

    @model_validator(mode="after")
    def _has_what_its_measure_needs(self) -> Self:
        if (self.test is None) != (self.measure == "accuracy_by_oscillation"):
            raise ValueError(
                f"measure {self.measure}: "
                + ("leave 'test' out, it is over all methods" if self.test else "'test' is missing")
            )
        if self.control is not None and self.test is None:
            raise ValueError(f"measure {self.measure}: leave 'control' out, it is over all methods")
        if self.expected == "equal" and not self.margin:
            raise ValueError("expected: equal needs a 'margin' above 0")
        return self

    def compared_by(self, study: Study, pair: Pair | None) -> bool:
        """Return whether a study has a pair's methods (None: any) at the claim's bits."""
        wanted = {self.bits, self.and_bits} - {None}
        methods = pair.methods if pair else ()
        tried = [study.bits_of(m) if m in study.methods else [] for m in methods]
        return all(wanted <= set(bits) for bits in (study.bits, *tried))


class Claims(Strict):
    """Claims of a file of ``config/claims``.

    Attributes:
        title: Where the claims are from.
        claims: The claims by name.
    """

    title: Line
    claims: Annotated[dict[Name, Claim], Field(min_length=1)]
