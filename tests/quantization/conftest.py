import pytest


@pytest.fixture
def micro_model():
    from ofq.training.models import build

    return build("micro_deit_patch2_8", classes=10)
