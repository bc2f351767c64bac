"""Convolutional networks: conversion, arithmetic, and the techniques on them."""

import numpy as np
import pytest
import timm
import torch
from timm.layers import BatchNormAct2d
from torch import nn

import ofq
from ofq.errors import UserError
from ofq.models.building import build
from ofq.quantization import low_bit_weights, make_technique
from ofq.quantization.convolution import QuantizedConvolution
from ofq.quantization.layers import Unshifted
from ofq.quantization.quantizers.base import make_weight_quantizer
from ofq.quantization.quantizers.lsq import LSQ, ImageLSQ, LSQWeight

NAMES = ["mobilenetv2_035", "efficientnet_lite0", "tf_efficientnet_lite0", "resnet18", "resnet50"]


@pytest.fixture
def micro():
    torch.manual_seed(0)
    return build("micro_mobilenetv2", 5)


@pytest.fixture
def calibrated(micro):
    model = ofq.quantize(micro, 3, 3, "lsq")
    ofq.calibrate(model, torch.randn(4, 1, 12, 12))
    return model


@pytest.mark.parametrize("name", NAMES)
def test_unquantized_network_has_the_logits_of_timms_exactly(name):
    model = timm.create_model(name, num_classes=5).eval()
    unquantized = ofq.quantize(model, 32, 32, first_last_bits=(32, 32))
    images = torch.randn(1, 3, 33, 33)  # an odd size, for which TensorFlow pads unevenly
    with torch.no_grad():
        assert torch.equal(unquantized(images), model(images))


def test_signs_roles_and_bits_of_each_layer():
    model = ofq.quantize(timm.create_model("mobilenetv2_035", num_classes=5), 3, 4)
    signed = {n: m.quantizer.signed for n, m in model.named_modules() if isinstance(m, Unshifted)}
    assert not signed["blocks.0.0.conv_dw.input_quantizer"]  # behind the stem's ReLU6
    assert signed["blocks.1.0.conv_pw.input_quantizer"]  # behind a linear bottleneck
    assert signed["blocks.1.1.conv_pw.input_quantizer"]
    assert not signed["blocks.1.1.conv_pwl.input_quantizer"]
    assert signed["conv_head.input_quantizer"]
    assert not signed["classifier.input_quantizer"]  # the mean behind a ReLU6
    roles = {w.layer: list(w.roles) for w in low_bit_weights(model)}
    assert roles["blocks.0.0.conv_dw"] == ["depthwise"]
    assert roles["blocks.0.0.conv_pw"] == roles["conv_head"] == ["pointwise"]
    assert {w.quantizer.bits for w in low_bit_weights(model)} == {3}
    for layer in (model.conv_stem, model.classifier):
        assert isinstance(layer.weight_quantizer, LSQWeight)
        assert layer.weight_quantizer.bits == layer.input_quantizer.quantizer.bits == 8
    assert isinstance(model.conv_stem.input_quantizer.quantizer, ImageLSQ)
    assert model.blocks[1][0].conv_pw.input_quantizer.quantizer.bits == 4


def test_residual_network_has_unsigned_inputs_and_quantized_shortcuts():
    model = ofq.quantize(timm.create_model("resnet18", num_classes=5), 3, 3)
    signed = {n: m.quantizer.signed for n, m in model.named_modules() if isinstance(m, Unshifted)}
    assert signed.pop("conv1.input_quantizer")  # images; the data set the sign
    assert not any(signed.values())
    assert "layer2.0.downsample.0.input_quantizer" in signed
    assert next(w for w in low_bit_weights(model) if w.layer == "layer1.0.conv1").roles == {
        "conv": slice(0, 64)
    }


def test_scale_follows_the_table(calibrated):
    sizes = {n: m.scale.numel() for n, m in calibrated.named_modules() if isinstance(m, LSQ)}
    assert sizes.pop("conv_stem.input_quantizer.quantizer") == 1  # grey images
    assert {size for name, size in sizes.items() if "input_quantizer" in name} == {1}
    assert sizes["blocks.1.0.conv_dw.weight_quantizer.lsq"] == 32


def reference_lsq(x, scale, low, high, factor):
    """LSQ's value, and the function from its gradient to those of x and of the scales."""
    ratio = x / scale
    code = np.clip(np.round(ratio), low, high)
    inside = (ratio >= low) & (ratio <= high)

    def gradients(upstream):
        slope = np.where(inside, code - ratio, code) * upstream * factor
        return upstream * inside, slope

    return code * scale, gradients


def reference_conv(x, kernel, stride, groups):
    """Convolution with padding 1 by loops over places, and its gradients."""
    batch, _, height, width = x.shape
    out, inner, h, w = kernel.shape
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    rows, columns = (height + 2 - h) // stride + 1, (width + 2 - w) // stride + 1
    grouped = kernel.reshape(groups, out // groups, inner, h, w)

    def windows():
        for row, column in np.ndindex(rows, columns):
            yield (
                row,
                column,
                np.s_[:, :, row * stride : row * stride + h, column * stride : column * stride + w],
            )

    result = np.zeros((batch, out, rows, columns))
    for row, column, at in windows():
        window = padded[at].reshape(batch, groups, inner, h, w)
        result[:, :, row, column] = np.einsum("bgihw,goihw->bgo", window, grouped).reshape(
            batch, out
        )

    def gradients(upstream):
        of_x, of_kernel = np.zeros_like(padded), np.zeros_like(grouped)
        for row, column, at in windows():
            up = upstream[:, :, row, column].reshape(batch, groups, out // groups)
            window = padded[at].reshape(batch, groups, inner, h, w)
            of_kernel += np.einsum("bgo,bgihw->goihw", up, window)
            of_x[at] += np.einsum("bgo,goihw->bgihw", up, grouped).reshape(padded[at].shape)
        return of_x[:, :, 1:-1, 1:-1], of_kernel.reshape(kernel.shape)

    return result, gradients


@pytest.mark.parametrize(
    ("channels", "out", "groups", "stride"), [(4, 6, 1, 2), (4, 4, 4, 1), (4, 6, 2, 1)]
)
def test_quantized_convolution_and_its_gradients_are_those_of_numpy(channels, out, groups, stride):
    generator = torch.Generator().manual_seed(channels + groups)
    conv = nn.Conv2d(channels, out, 3, stride, padding=1, groups=groups, bias=False)
    conv.weight.data = torch.randn(conv.weight.shape, generator=generator)
    matrix = conv.weight.detach().flatten(1)
    activation = LSQ(3, signed=False)
    layer = QuantizedConvolution(
        conv, make_weight_quantizer("lsq", 3, matrix), Unshifted(activation), {}
    )
    x = torch.randn(2, channels, 6, 6, generator=generator).abs().requires_grad_()
    y = layer(x)
    upstream = torch.randn(y.shape, generator=generator)
    y.backward(upstream)

    numbers = x.detach().double().numpy()
    s_x = 2 * numbers.mean() / np.sqrt(7)
    x_hat, of_x = reference_lsq(numbers, s_x, 0, 7, 1 / np.sqrt(7 * numbers.size))
    weight = matrix.double().numpy()
    s_w = 2 * np.abs(weight).mean(1, keepdims=True) / np.sqrt(3)
    w_hat, of_w = reference_lsq(weight, s_w, -4, 3, 1 / np.sqrt(3 * weight.shape[1]))
    expected, gradients = reference_conv(x_hat, w_hat.reshape(conv.weight.shape), stride, groups)
    np.testing.assert_allclose(y.detach(), expected, rtol=1e-5, atol=1e-5)
    to_x, to_kernel = gradients(upstream.double().numpy())
    to_x, to_s_x = of_x(to_x)
    to_w, to_s_w = of_w(to_kernel.reshape(weight.shape))
    close = {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(x.grad, to_x, **close)
    np.testing.assert_allclose(layer.weight.grad, to_w, **close)
    np.testing.assert_allclose(activation.scale.grad, to_s_x.sum(keepdims=False), **close)
    np.testing.assert_allclose(layer.weight_quantizer.lsq.scale.grad, to_s_w.sum(1), **close)


def test_statsq_has_a_scale_for_each_output_channel(micro):
    model = ofq.quantize(micro, 2, 32)
    kernel = micro.blocks[1][0].conv_dw.weight.detach().double().numpy()
    scale = 2 * np.abs(kernel).mean((1, 2, 3))
    level = scale[:, None, None, None] * (
        np.clip(np.floor(kernel / scale[:, None, None, None] * 2), -2, 1) + 0.5
    ) / 2  # fmt: skip
    layer = model.blocks[1][0].conv_dw
    quantized = layer.weight_quantizer(layer.weight).view(kernel.shape)
    np.testing.assert_allclose(quantized.detach(), level, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("seresnet50", "layer1.0.se: SEModule"),
        ("efficientnet_b0", "bn1.act: SiLU"),
        ("resnet50_gn", "bn1: GroupNorm"),
        ("resnetblur18", "maxpool.1: BlurPool2d"),
        ("mixnet_s", "blocks.1.0.conv_pw: MixedConv2d"),
        ("mobilenetv3_small_050", "a MobileNetV3"),
        ("swinv2_cr_tiny_224", "a SwinTransformerV2Cr"),
    ],
)
def test_parts_that_cannot_be_quantized_faithfully_are_refused_by_name(name, part):
    with torch.device("meta"):
        model = timm.create_model(name)
    with pytest.raises(UserError, match=f"can't quantize {part}"):
        ofq.quantize(model)


def test_query_key_reparameterization_is_refused(micro):
    with pytest.raises(UserError, match="EfficientNet has no query and key"):
        ofq.quantize(micro, qkr=True)


def test_images_of_other_channels_are_refused(micro):
    with pytest.raises(UserError, match=r"\(2, 3, 12, 12\).*with 1 channels"):
        ofq.calibrate(ofq.quantize(micro), torch.randn(2, 3, 12, 12))


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("cga", {"boundary_range": 0.05}),
        ("cga_ratio", {}),
        ("freeze_all", {}),
        ("dampening", {"strength": 1.0, "aggregation": "kernel_mean"}),
        ("freezing", {"start": 0.02, "end": 0.005}),
        ("bn_reestimation", {"batches": 1}),
    ],
)
def test_technique_and_tracker_run_on_a_network(calibrated, form, options):
    technique = make_technique(form, calibrated, options)
    tracker = ofq.OscillationTracker(calibrated)
    optimizer = torch.optim.SGD(calibrated.parameters(), lr=0.3)
    before = [w.latent().detach().clone() for w in low_bit_weights(calibrated)]
    images = torch.randn(4, 1, 12, 12)
    for _ in range(3):
        optimizer.zero_grad()
        (calibrated(images).logsumexp(1).mean() + technique.penalty(0.5)).backward()
        technique.step(optimizer, progress=0.5)
        tracker.update()
    technique.before_evaluation([images])
    changed = [
        (w.latent() != old).float().mean().item()
        for w, old in zip(low_bit_weights(calibrated), before, strict=True)
    ]
    assert (max(changed) == 0) == (form == "freeze_all")
    parts = tracker.summary()
    assert {part.role for part in parts} == {"depthwise", "pointwise"}
    assert any(part.flips > 0 for part in parts)  # learned scales move codes of frozen weights too
    assert calibrated(images).isfinite().all()


def test_reestimated_statistics_are_the_means_over_the_batches(calibrated):
    norm = calibrated.bn1
    assert isinstance(norm, BatchNormAct2d)
    batches = [torch.randn(4, 1, 12, 12) for _ in range(3)]
    seen = []
    handle = calibrated.conv_stem.register_forward_hook(
        lambda _, __, y: seen.append(y.double().numpy())
    )
    calibrated.train()
    before = {name: p.detach().clone() for name, p in calibrated.named_parameters()}
    make_technique("bn_reestimation", calibrated, {"batches": 2}).before_evaluation(iter(batches))
    handle.remove()
    assert len(seen) == 2
    mean = np.mean([y.mean((0, 2, 3)) for y in seen], 0)
    variance = np.mean([y.var((0, 2, 3), ddof=1) for y in seen], 0)
    np.testing.assert_allclose(norm.running_mean, mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(norm.running_var, variance, rtol=1e-4)
    assert norm.momentum == 0.1
    assert all(module.training for module in calibrated.modules())
    assert all(torch.equal(before[name], p) for name, p in calibrated.named_parameters())


def test_later_layers_are_estimated_behind_normalized_earlier_ones(calibrated):
    """With one batch, evaluation after re-estimation is training mode's output, but for n − 1."""
    images = torch.randn(64, 1, 12, 12)
    make_technique("bn_reestimation", calibrated, {}).before_evaluation([images])
    with torch.no_grad():
        evaluated = calibrated.eval()(images)
        trained = calibrated.train()(images)
    assert torch.corrcoef(torch.stack([evaluated.flatten(), trained.flatten()]))[0, 1] > 0.9


def test_reestimation_is_refused_without_batch_norm(micro_model):
    with pytest.raises(UserError, match="VisionTransformer has no batch norm"):
        make_technique("bn_reestimation", ofq.quantize(micro_model), {})


def test_kernel_mean_weighs_each_row_by_its_length(calibrated):
    total, by_row = (
        make_technique("dampening", calibrated, {"strength": 1.0, "aggregation": a}).penalty(1.0)
        for a in ("sum", "kernel_mean")
    )
    sums, means = 0.0, 0.0
    for weight in low_bit_weights(calibrated):
        w = weight.latent().detach()
        scale = weight.quantizer.lsq.scale.detach()[:, None]
        distance = ((w / scale).clamp(-4, 3).round() * scale - w.clamp(-4 * scale, 3 * scale)) ** 2
        sums += distance.double().sum().item()
        means += distance.double().mean(1).sum().item()
    assert total.item() == pytest.approx(sums, rel=1e-4)
    assert by_row.item() == pytest.approx(means, rel=1e-4)


def test_schedules_begin_after_their_share_of_the_training(calibrated):
    dampening = make_technique("dampening", calibrated, {"strength": 2.0, "begin": 0.25})
    whole = make_technique("dampening", calibrated, {"strength": 2.0})
    assert dampening.penalty(0.25) == 0
    assert dampening.penalty(0.625).item() == pytest.approx(whole.penalty(0.5).item())
    freezing = make_technique("freezing", calibrated, {"start": 1e-9, "end": 1e-9, "begin": 0.5})
    for progress, frozen in ((0.4, False), (0.6, True)):
        for _ in range(2):  # there and back: every weight oscillates
            with torch.no_grad():
                for weight in low_bit_weights(calibrated):
                    weight.latent().neg_()
            freezing.after_step(progress)
        assert (freezing.frozen_share() > 50) == frozen
        if not frozen:
            assert freezing.frozen_share() == 0


def test_shares_outside_the_training_are_refused(calibrated):
    with pytest.raises(UserError, match=r"begin 1.0; allowed"):
        make_technique("freezing", calibrated, {"begin": 1.0})


def test_packed_network_has_the_logits_of_the_exported_one(calibrated, tmp_path):
    ofq.save_packed(calibrated, tmp_path / "packed.safetensors", name="micro_mobilenetv2")
    images = torch.randn(3, 1, 12, 12)
    with torch.no_grad():
        packed = ofq.load_packed(tmp_path / "packed.safetensors")(images)
        assert torch.equal(packed, calibrated.eval()(images))
