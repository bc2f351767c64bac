import pytest
import torch


@pytest.fixture(autouse=True)
def _reproducible():
    torch.manual_seed(0)


@pytest.fixture
def micro_model():
    from ofq.training.models import build

    return build("micro_deit_patch2_8", classes=10)
