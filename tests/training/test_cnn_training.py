"""Training of a convolutional network: the flow of study nagel, and its two optimizers."""

import copy

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

import ofq
from ofq.cli import app
from ofq.config import Training, Workspace
from ofq.models.building import build
from ofq.training.optimization import make_optimizer, make_schedule

CONFIG = {
    "config.yaml": "studies: [networks]\n",
    "methods/known.yaml": """
lsq: {label: LSQ, weight_quantizer: lsq, layers: {conv_stem: W8A32}}
lsq+bn:
  label: LSQ, BN re-estimated
  weight_quantizer: lsq
  layers: {conv_stem: W8A32}
  techniques: [{form: bn_reestimation, batches: 3}]
""",
    "recipes/networks.yaml": """
dataset: digits
models: [micro_mobilenetv2]
stages:
  fp: {epochs: 1, batch_size: 128, lr: 2.0e-3}
  qat: {epochs: 1, batch_size: 128, lr: 0.01, optimizer: sgd, momentum: 0.9, scale_adam: 1.0e-3}
""",
    "studies/networks.yaml": """
title: Networks
recipe: networks
models: [micro_mobilenetv2]
bits: [W3A3]
methods: [lsq, lsq+bn]
seeds: [0]
""",
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Weights of QAT without and with re-estimation, from one full-precision run."""
    root = tmp_path_factory.mktemp("networks")
    for name, text in CONFIG.items():
        path = root / "config" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for run in Workspace(root).grid("networks").runs():
            done = CliRunner().invoke(app, ["train", "--no-track", run])
            assert done.exit_code == 0, (done.output, done.exception)
    folders = [root / "results/runs" / run for run in Workspace(root).grid("networks").runs()]
    return {
        "bn" if "bn_reestimation" in folder.name else "plain": folder
        for folder in folders
        if "w3a3" in folder.name
    }


def test_reestimation_changes_statistics_and_no_weights(trained):
    plain, other = (load_file(trained[key] / "model.safetensors") for key in ("plain", "bn"))
    differing = {name for name in plain if not torch.equal(plain[name], other[name])}
    norms = {name for name in plain if "running" in name or "num_batches_tracked" in name}
    assert differing <= norms
    assert {name for name in norms if name.endswith("running_mean")} <= differing


def test_finished_run_tells_oscillation_by_the_roles_of_a_network(trained):
    metrics = (trained["bn"] / "metrics.jsonl").read_text().splitlines()
    keys = yaml.safe_load(metrics[-1]).keys()
    assert {"oscillation_rate/depthwise", "oscillation_rate/pointwise", "top1"} <= keys


def two_steps(optimizer, parameters):
    """Numbers of parameters after two steps by gradients 1 and 2."""
    for gradient in (1.0, 2.0):
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, gradient)
        optimizer.step()
    return [parameter.detach().double().numpy() for parameter in parameters]


@pytest.fixture
def model():
    torch.manual_seed(0)
    quantized = ofq.quantize(build("micro_mobilenetv2", 5), 3, 3, "lsq")
    ofq.calibrate(quantized, torch.randn(2, 1, 12, 12))
    return quantized


TRAINING = Training(
    epochs=2, batch_size=8, optimizer="sgd", momentum=0.9, lr=0.1, weight_decay=0.01,
    scale_adam=1e-3,
)  # fmt: skip


def test_scales_are_stepped_by_adam_and_all_else_by_sgd_with_momentum(model):
    layer = model.blocks[1][0].conv_pw
    chosen = [layer.weight, layer.weight_quantizer.lsq.scale, layer.input_quantizer.quantizer.scale]
    start = [parameter.detach().double().numpy().copy() for parameter in chosen]
    weight, *scales = two_steps(make_optimizer(model, TRAINING), chosen)
    first = 1 + 0.01 * start[0]
    after = start[0] - 0.1 * first
    second = 0.9 * first + 2 + 0.01 * after
    np.testing.assert_allclose(weight, after - 0.1 * second, rtol=1e-5, atol=1e-6)
    m, v = 0.9 * 0.1 + 0.1 * 2, 0.999 * 0.001 + 0.001 * 4
    step = m / (1 - 0.9**2) / np.sqrt(v / (1 - 0.999**2))
    for scale, begin in zip(scales, start[1:], strict=True):
        np.testing.assert_allclose(scale, begin - 1e-3 * (1 + step), rtol=1e-4)


def test_schedule_leaves_the_scales_rate_as_it_is(model):
    optimizer = make_optimizer(model, TRAINING)
    make_schedule(optimizer, TRAINING).step(1)
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates == pytest.approx([0.05, 0.05, 1e-3])


def test_both_optimizers_go_on_from_their_state(model):
    twin = copy.deepcopy(model)
    optimizer, other = make_optimizer(model, TRAINING), make_optimizer(twin, TRAINING)
    two_steps(optimizer, list(model.parameters()))
    twin.load_state_dict(model.state_dict())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    ends = [two_steps(o, list(m.parameters())) for o, m in ((optimizer, model), (other, twin))]
    assert all(np.array_equal(one, two) for one, two in zip(*ends, strict=True))


def test_momentum_without_sgd_is_refused():
    with pytest.raises(ValueError, match=r"momentum 0.9 is SGD's, but optimizer is adamw"):
        Training(epochs=1, batch_size=1, lr=1.0, momentum=0.9)


def test_ranks_average_what_batch_norm_has_seen():
    from ofq.training.distributed import statistics

    names = [type(m) for m in build("micro_mobilenetv2", 5).modules()]
    norms = sum(issubclass(kind, nn.BatchNorm2d) for kind in names)
    assert len([*statistics(build("micro_mobilenetv2", 5))]) == 2 * norms
    assert [*statistics(build("micro_deit_patch2_8", 5))] == []
