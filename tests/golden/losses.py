"""Kind i: the distillation loss."""

import torch
from torch import Tensor, nn

from ofq.training.objective import Distillation, distillation_loss
from ofq.training.teacher import Teacher as Answers

from tests.golden.case import FORWARD, GRADIENT, Case


def distillation(case: Case) -> None:
    """Loss and gradients for one head and two, hard labels and mixed ones."""
    case.ignore(
        r"klsoft(_tuple)?\..*",
        "the released option without hard labels, which the suite doesn't offer",
    )
    case.ignore(
        "teacher_other", "a training teacher's second head; ours is in eval mode, one tensor"
    )
    for group in case.groups(r"(tuple|single)_\w+"):
        heads = ["cls", "dist"] if group.startswith("tuple") else ["single"]
        outputs = [case[head].clone().requires_grad_() for head in heads]
        target = case["target" if "_int" in group else "target_probs"]
        teacher = case["teacher"].clone().requires_grad_()
        given = (outputs[0], outputs[1]) if len(outputs) == 2 else outputs[0]
        loss = distillation_loss(given, target, teacher)
        loss.backward()
        case.compare(f"{group}.loss", loss, FORWARD)
        for head, output in zip(heads, outputs, strict=True):
            assert output.grad is not None
            case.compare(f"{group}.grad_{head}", output.grad, GRADIENT)
        assert teacher.grad is not None
        case.compare(f"{group}.grad_teacher", teacher.grad, GRADIENT)
        _check_the_teacher_learns_nothing(teacher, given, target, loss)


def _check_the_teacher_learns_nothing(
    logits: Tensor, outputs: Tensor | tuple[Tensor, Tensor], target: Tensor, loss: Tensor
) -> None:
    """Our training keeps the teacher out of the graph, unlike the released code."""

    class Teacher(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logits = nn.Parameter(logits.detach().clone())
            self.dropout = nn.Dropout(0.9)

        def forward(self, _: Tensor) -> Tensor:
            return self.dropout(self.logits)

    teacher = Teacher()
    objective = Distillation(Answers(teacher))
    ours = objective.loss(outputs, target, objective.teacher.logits(torch.empty(0)))
    assert torch.equal(ours, loss)
    ours.backward()
    assert teacher.logits.grad is None
