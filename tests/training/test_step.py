"""A recorded step does what a plain one does; here with graphs that run their function anew."""

import copy

import pytest
import torch

import ofq
from ofq.study import Training
from ofq.training import step as stepping
from ofq.training.devices import ALONE
from ofq.training.models import build
from ofq.training.objective import Distillation
from ofq.training.optimization import make_optimizer
from ofq.training.precision import loss_scaler
from ofq.training.step import RecordedStep, Step
from ofq.training.stepping import AnnealedStep
from ofq.training.teacher import Teacher

TRAINING = Training(epochs=1, batch_size=8, lr=1e-2)


class Anew:
    """Stands in for a CUDA graph on the CPU."""

    forgotten = 0

    def __init__(self, function):
        self.function = function

    def __call__(self, *inputs):
        return self.function(*inputs)

    def forget(self):
        Anew.forgotten += 1


@pytest.fixture
def parts():
    """What a step under CGA with a teacher consists of, and its images."""
    torch.manual_seed(0)
    images = torch.randn(8, 1, 8, 8)
    teacher = Teacher(build("micro_deit_patch2_8", 10))
    model = ofq.quantize(build("micro_deit_patch2_8", 10), qkr=True).train()
    ofq.calibrate(model, images)

    def make(kind, passes):
        own = copy.deepcopy(model)
        return kind(
            model=own,
            objective=Distillation(teacher),
            optimizer=make_optimizer(own, TRAINING),
            stepper=AnnealedStep(ofq.ConfidenceGuidedAnnealing(own, 0.1)),
            scaler=loss_scaler("fp32", torch.device("cpu")),
            tracker=ofq.OscillationTracker(own),
            process=ALONE,
            passes=passes,
        )

    return make, images


@pytest.mark.parametrize("passes", [1, 4])
def test_recorded_step_leaves_the_same_weights_and_histories(parts, passes, monkeypatch):
    monkeypatch.setattr(stepping, "Graph", Anew)
    make, images = parts
    labels = torch.arange(8)
    ends = []
    for kind in (Step, RecordedStep):
        step = make(kind, passes)
        losses = []
        for _ in range(3):
            losses.append(step.backward(images, labels, progress=0.5))
            step.update(progress=0.5)
        step.renew()
        ends.append([*losses, *step.model.parameters(), *step.tracker.state_dict().values()])
    for one, other in zip(*ends, strict=True):
        assert torch.equal(one, other)
    assert Anew.forgotten > 0
