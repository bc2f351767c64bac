"""Equality with the released code, case by case, on data that stays out of the repository."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.golden.case import FOLDER, Case, entries, unlisted
from tests.golden.kinds import check_of

pytestmark = pytest.mark.golden


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _cases() -> list[Any]:
    if not (FOLDER / "INDEX.json").exists():
        reason = f"no golden data at {FOLDER}; set OFQ_GOLDEN to their folder"
        return [pytest.param(None, id="absent", marks=pytest.mark.skip(reason=reason))]
    assert not unlisted(), f"cases that INDEX.json doesn't list: {unlisted()}"
    return [pytest.param(entry, id=entry["case"]) for entry in entries()]


@pytest.mark.parametrize("entry", _cases())
def test_equals_the_released_code(entry: dict[str, Any]) -> None:
    case = Case(entry)
    check = check_of(case)
    if check is None:
        pytest.fail(f"no check for a case computed by '{case.source}'")
    check(case)
    assert not case.left, "neither checked nor ignored"
