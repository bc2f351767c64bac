"""The docs name every key that a config file may have."""

import re
from pathlib import Path

import pytest

from ofq.config.datasets import Dataset, Download
from ofq.config.images import Images
from ofq.config.method import CgaConfig, CgaRatioConfig, Dampening, Freezing, Method, Noise, Tuned
from ofq.config.schema import Contrast, Override, Recipe, Site, Study
from ofq.config.stage import ProbeConfig, Resources, Teaching, Training

TEXT = (Path(__file__).parents[2] / "docs/config.md").read_text()
WORDS = set(re.findall(r"[a-z_]+", " ".join(re.findall(r"`([^`]+)`", TEXT))))
MODELS = [
    Study, Contrast, Method, CgaConfig, CgaRatioConfig, Freezing, Dampening, Noise, Tuned, Recipe,
    Override, Training, Teaching, ProbeConfig, Images, Resources, Site, Dataset,
    Download,
]  # fmt: skip


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_key_is_documented(model):
    assert set(model.model_fields) <= WORDS
