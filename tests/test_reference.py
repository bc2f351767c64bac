"""The API reference: it builds, and would say so if something were missing in it."""

import importlib.util
import sys
import types
from pathlib import Path

import pytest

import ofq

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def reference():
    """The script that builds it."""
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs/reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_public_name_has_a_place_in_the_reference(reference, tmp_path):
    reference.build(tmp_path / "api")
    page = (tmp_path / "api/ofq.html").read_text()
    assert [name for name in ofq.__all__ if f'id="{name}"' not in page] == []
    assert 'id="set_gradient_batch"' in (tmp_path / "api/ofq/quantization.html").read_text()
    assert 'href="ofq/quantization.html"' in page
    assert "ofq.html" in (tmp_path / "api/index.html").read_text()


@pytest.mark.parametrize(
    ("docstring", "hole"),
    [
        ("", "ofq.made_up.double: no docstring"),
        ("Double as :func:`triple`.", "ofq.made_up.double: 'triple' isn't on the pages"),
        ("Double as :func:`double` does.", None),
    ],
)
def test_hole_in_the_reference_is_told(reference, monkeypatch, docstring, hole):
    def double(x):
        return 2 * x

    double.__doc__, double.__module__, double.__qualname__ = docstring, "ofq.made_up", "double"
    module = types.ModuleType("ofq.made_up", "A module.")
    module.__all__, module.double = ["double"], double
    monkeypatch.setitem(sys.modules, "ofq.made_up", module)
    holes = [*reference.holes({"ofq.made_up": reference.load("ofq.made_up")})]
    assert holes == ([hole] if hole else [])
