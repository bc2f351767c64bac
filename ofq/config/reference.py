"""Reported results as data, with which a study's results are compared."""

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from ofq.config.fields import Bits, Line, Name, Text
from ofq.config.files import Strict

Status = Literal["published", "released README", "derived", "third-party", "this suite"]
"""Provenance of a number: the paper, the authors' README, arithmetic on these, a third party, or
runs of this suite, which are on record but nothing that others reported."""


class Value(Strict):
    """Reported result of one cell, or difference of two methods.

    Attributes:
        model, bits, method: The cell that it is about; ``FP`` and ``fp`` for full precision.
        against: The method whose result is subtracted, if it is a difference.
        value: The number, in percent; a difference, in points.
        runs: Number of trainings of which it is the mean.
        std: Their sample standard deviation, in points, where it is known.
        status: Its provenance.
        source: Its source, or derivation.
    """

    model: Line
    bits: Bits | Literal["FP"]
    method: Name
    against: Name | None = None
    value: Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]
    runs: PositiveInt = 1
    std: Annotated[float, Field(gt=0, lt=100, allow_inf_nan=False)] | None = None
    status: Status
    source: Annotated[Text, Field(min_length=1)]

    @model_validator(mode="after")
    def _full_precision_by_both_names(self) -> Self:
        if (self.bits == "FP") != (self.method == "fp"):
            raise ValueError(
                f"bits {self.bits} with method {self.method}; allowed: FP with fp, other bits with "
                "a method of config/methods"
            )
        return self

    @model_validator(mode="after")
    def _accuracy_is_above_zero(self) -> Self:
        if self.against is None and self.value <= 0:
            raise ValueError(f"value {self.value:g}: an accuracy in percent is above 0")
        return self

    @model_validator(mode="after")
    def _spread_is_of_several_runs(self) -> Self:
        if self.std is not None and self.runs == 1:
            raise ValueError("std is the spread of several runs; say of how many, in 'runs'")
        return self

    @property
    def by_others(self) -> bool:
        """Return whether others reported it, so that results are held against it."""
        return self.status != "this suite"

    @property
    def cell(self) -> tuple[str, str, str]:
        """Model, bits and method of the cell."""
        return self.model, self.bits, self.method


class Reference(Strict):
    """Reported results: a file of ``config/reference``.

    Attributes:
        title: Its name in tables.
        dataset: The data set that the numbers are about.
        measure: The measure of a run with which they are compared.
        notes: Notes for readers on the comparison.
        values: The known numbers.
    """

    title: Line
    dataset: Line
    measure: Literal["top1"]
    notes: tuple[Text, ...] = ()
    values: tuple[Value, ...]

    @property
    def by_others(self) -> bool:
        """Return whether any of its numbers was reported by others."""
        return any(value.by_others for value in self.values)

    @model_validator(mode="after")
    def _one_value_per_cell(self) -> Self:
        cells = [(*value.cell, value.against) for value in self.values]
        for place in cells:
            if cells.count(place) > 1:
                over = f" over {place[3]}" if place[3] else ""
                raise ValueError(
                    f"two values for {' '.join(place[:3])}{over}; allowed: one for each cell"
                )
        return self
