"""A graphed step does what a plain one does; here with graphs that run their function anew."""

import copy

import pytest
import torch

import ofq
from ofq.config import Training
from ofq.quantization import Technique
from ofq.training import trainer as loop
from ofq.training.data.source import Batch, Data
from ofq.training.models import build
from ofq.training.objective import Classification, Distillation
from ofq.training.teacher import Teacher
from ofq.training.trainer import GraphedTrainer, Session, Trainer

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
def data():
    torch.manual_seed(0)
    images, labels = torch.randn(8, 1, 8, 8), torch.arange(8)
    return Data(images, labels, images, labels, classes=10, seed=0)


@pytest.fixture
def model(data):
    model = ofq.quantize(build("micro_deit_patch2_8", 10), qkr=True).train()
    ofq.calibrate(model, data.train_inputs)
    return model


@pytest.mark.parametrize("passes", [1, 4])
def test_graphed_step_leaves_the_same_weights_and_histories(data, model, passes, monkeypatch):
    monkeypatch.setattr(loop, "Graph", Anew)
    teacher = Teacher(build("micro_deit_patch2_8", 10))
    ends = []
    for kind in (Trainer, GraphedTrainer):
        own = copy.deepcopy(model)
        cga = ofq.ConfidenceGuidedAnnealing(own, 0.1)
        trainer = kind(own, data, Distillation(teacher), [cga], TRAINING, Session(), passes=passes)
        for batch in [*data.train_batches(0, 8)] * 3:
            trainer.train_step(batch)
        trainer._renew()
        ends.append([trainer.loss_sum, *own.parameters(), *trainer.tracker.state_dict().values()])
    for one, other in zip(*ends, strict=True):
        assert torch.equal(one, other)
    assert Anew.forgotten > 0


class Told(Technique):
    """Notes what it is told, and adds a penalty whose gradient is known."""

    def __init__(self, name, model, notes):
        super().__init__()
        self.name, self.notes = name, notes
        self.weights = [model.head.weight]

    def penalty(self, progress):
        self.notes.append((self.name, "penalty", progress))
        return 3 * self.weights[0].sum()

    def before_step(self, progress):
        self.notes.append((self.name, "before_step", self.weights[0].detach().clone()))

    def after_step(self, progress):
        self.notes.append((self.name, "after_step", self.weights[0].detach().clone()))

    def evaluated(self, model):
        other = copy.deepcopy(model)
        torch.nn.init.zeros_(other.head.weight)
        torch.nn.init.zeros_(other.head.bias)
        return other

    def metrics(self):
        return {f"notes_{self.name}": len(self.notes)}


def test_techniques_act_around_the_optimizer_in_their_order(data):
    plain, model = (build("micro_deit_patch2_8", 10) for _ in range(2))
    model.load_state_dict(plain.state_dict())
    notes = []
    techniques = [Told(name, model, notes) for name in ("first", "second")]
    trainer = Trainer(model, data, Classification(), techniques, TRAINING, Session())
    trainer.train_step(Batch(data.train_inputs, data.train_targets))
    assert [(name, hook) for name, hook, _ in notes] == [
        ("first", "penalty"), ("second", "penalty"),
        ("first", "before_step"), ("second", "before_step"),
        ("first", "after_step"), ("second", "after_step"),
    ]  # fmt: skip
    before, after = notes[3][2], notes[4][2]
    assert not torch.equal(before, after)
    plain.train()
    torch.nn.functional.cross_entropy(plain(data.train_inputs), data.train_targets).backward()
    expected = plain.head.weight.grad + 6  # two penalties of 3 · sum
    assert torch.allclose(model.head.weight.grad, expected, atol=1e-5)


def test_evaluation_sees_the_model_that_techniques_make_of_the_trained_one(data):
    model = build("micro_deit_patch2_8", 10)
    trainer = Trainer(model, data, Classification(), [Told("own", model, [])], TRAINING, Session())
    metrics = trainer.run()
    assert metrics["loss"] == pytest.approx(torch.tensor(10.0).log().item())  # all logits equal
    assert metrics["notes_own"] == 3
    assert trainer.final_model() is not model
