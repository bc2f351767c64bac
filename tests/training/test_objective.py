import numpy as np
import pytest
import torch

from ofq.training.data.source import load
from ofq.training.models import build
from ofq.training.objective import Classification, Distillation, distillation_loss
from ofq.training.teacher import Teacher


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def test_distillation_loss_is_the_sum_of_two_cross_entropies():
    classes, distilled, teacher = (torch.randn(6, 10) for _ in range(3))
    targets = torch.randint(0, 10, (6,))
    one, other, soft = (log_softmax(t.double().numpy()) for t in (classes, distilled, teacher))
    hard = -one[np.arange(6), targets.numpy()].mean()
    expected = hard - (np.exp(soft) * other).sum(-1).mean()
    loss = distillation_loss((classes, distilled), targets, teacher)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_one_head_serves_both_terms():
    logits, teacher = torch.randn(4, 10), torch.randn(4, 10)
    targets = torch.randint(0, 10, (4,))
    both = distillation_loss((logits, logits), targets, teacher)
    assert torch.equal(distillation_loss(logits, targets, teacher), both)


def test_teacher_is_in_eval_mode_and_gets_no_gradient():
    teacher = build("micro_deit_patch2_8", 10).train()
    student = build("micro_deit_patch2_8", 10).train()
    objective = Distillation(Teacher(teacher))
    images, labels = torch.randn(3, 1, 8, 8), torch.tensor([0, 1, 2])
    objective.loss(student(images), labels, objective.teacher.logits(images)).backward()
    assert not teacher.training
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None for p in student.parameters())


@pytest.mark.parametrize("batch_size", [1, 7, 300, 900])
def test_evaluation_counts_each_image_once_whatever_the_batch(batch_size):
    data = load("digits", "micro_deit_patch2_8", seed=0)
    torch.manual_seed(0)
    model = build("micro_deit_patch2_8", 10)
    model.train()
    measures = Classification().evaluate(model, data.test_batches(batch_size)).measures
    assert model.training
    with torch.no_grad():
        right = (model.eval()(data.test_inputs).argmax(-1) == data.test_targets).sum().item()
    assert measures["images"] == 900
    assert measures["correct"] == right
    assert measures["top1"] == pytest.approx(100 * right / 900)
