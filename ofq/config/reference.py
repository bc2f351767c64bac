"""Results that others reported, as data: what a study's numbers are held against."""

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from ofq.config.fields import Bits, Line, Name, Text
from ofq.config.files import Strict

Status = Literal["published", "released README", "derived", "third-party", "this suite"]
"""How a number is known: in the paper, in the authors' README, by arithmetic from these, by someone
else's account, or by runs of this suite."""


class Value(Strict):
    """One reported number.

    Attributes:
        model, bits, method: The cell that it is about; ``FP`` and ``fp`` for full precision.
        value: The number, in percent.
        runs: Over how many trainings it is a mean.
        status: How it is known.
        source: Where it stands, or how it is derived.
    """

    model: Line
    bits: Bits | Literal["FP"]
    method: Name
    value: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)]
    runs: PositiveInt = 1
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

    @property
    def cell(self) -> tuple[str, str, str]:
        """Model, bits and method."""
        return self.model, self.bits, self.method


class Reference(Strict):
    """A file of ``config/reference``.

    Attributes:
        title: What tables call it.
        dataset: The data set that the numbers are about.
        measure: Which number of a run they are to be compared with.
        notes: What a reader must know to compare.
        values: The numbers; what isn't known has none.
    """

    title: Line
    dataset: Line
    measure: Literal["top1"]
    notes: tuple[Text, ...] = ()
    values: tuple[Value, ...]

    @model_validator(mode="after")
    def _one_value_per_cell(self) -> Self:
        cells = [value.cell for value in self.values]
        for cell in cells:
            if cells.count(cell) > 1:
                raise ValueError(f"two values for {' '.join(cell)}; allowed: one for each cell")
        return self
