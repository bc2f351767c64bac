"""Compare the loss curves of compiled and plain training.

DeiT-T at W2A2 (StatsQ, QKR) is trained from scratch on synthetic images whose classes differ. At
two bits, rounding in the last bits of a sum can change an activation's code, and such differences
grow, so the two curves can't be equal. As a reference, a third curve is of plain training whose
initial weights differ by one part in ten million.

    python benchmarks/agreement.py [--steps 200] [--batch 4] [--threads 2] [--json FILE]
"""

import argparse
from pathlib import Path

import torch
from machine import keep
from torch import nn

import ofq
from ofq.config import Training
from ofq.models.compiling import compile_blocks
from ofq.training.distributed import seed_everything
from ofq.training.models import build
from ofq.training.optimization import make_optimizer

CLASSES = 8
WINDOW = 25  # steps averaged in each point of a curve
CURVES = ("plain", "compiled", "plain, last bits changed")


def losses(options: argparse.Namespace, curve: str) -> torch.Tensor:
    """Return the loss of each step of one training."""
    seed_everything(0)
    model: nn.Module = build("deit_tiny_patch16_224", CLASSES)
    patterns = torch.randn(CLASSES, 3, 224, 224)
    labels = torch.randint(0, CLASSES, (options.steps, options.batch))
    seeds = torch.Generator().manual_seed(1)
    if curve == CURVES[2]:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1 + 1e-7 * torch.randn_like(parameter))
    model = ofq.quantize(model, 2, 2, "statsq", True)
    ofq.calibrate(model, patterns)
    model.train()
    if curve == "compiled":
        compile_blocks(model, torch.device("cpu"))
    training = Training(epochs=1, batch_size=options.batch, lr=3e-4, weight_decay=0.05)
    optimizer = make_optimizer(model, training)
    curve_losses = []
    for step in range(options.steps):
        noise = torch.randn(options.batch, 3, 224, 224, generator=seeds)
        logits = model(patterns[labels[step]] + noise)
        loss = nn.functional.cross_entropy(logits, labels[step])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        curve_losses.append(loss.detach())
    return torch.stack(curve_losses)


def main() -> None:
    """Print the curves and their distances, and save them if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    smooth = {c: losses(options, c).unflatten(0, (-1, WINDOW)).mean(1) for c in CURVES}
    print(f"{'steps':<10}" + "".join(f"{curve:>26}" for curve in CURVES))
    for point in range(options.steps // WINDOW):
        values = "".join(f"{smooth[curve][point]:>26.3f}" for curve in CURVES)
        print(f"{(point + 1) * WINDOW:<10}{values}")
    plain, compiled, changed = smooth.values()
    distances = [float((other - plain).square().mean().sqrt()) for other in (compiled, changed)]
    print("distance to plain (rms): compiled {:.4f}, last bits changed {:.4f}".format(*distances))
    curves = {curve: [round(v, 4) for v in values.tolist()] for curve, values in smooth.items()}
    keep(options.json, {"steps": options.steps, "batch": options.batch, "loss": curves})


if __name__ == "__main__":
    main()
