import numpy as np
import pytest
import torch

from ofq import LSQ
from ofq.errors import UserError
from ofq.quantization.quantizers.lsq import ImageLSQ, LSQWeight

from tests.support.reference import lsq, lsq_gradients

FORMS = [
    pytest.param((2, 7, 12), (-2,), id="token"),
    pytest.param((2, 7, 12), (-1,), id="channel"),
    pytest.param((2, 3, 7, 7), (-2,), id="query"),
    pytest.param((2, 5, 3, 8), (1, 2), id="token-and-head"),
    pytest.param((6, 12), (0,), id="row"),
    pytest.param((2, 7, 12), (), id="tensor"),
]


def broadcast(scale, shape, axes):
    return scale.detach().reshape([n if d in [a % len(shape) for a in axes] else 1
                                   for d, n in enumerate(shape)])  # fmt: skip


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("shape", "axes"), FORMS)
def test_values_and_gradients_are_those_of_the_definition(shape, axes, bits, signed):
    quantizer = LSQ(bits, axes or None, signed)
    x = torch.randn(shape)
    quantizer.initialize(x)
    quantizer.scale.data *= torch.rand_like(quantizer.scale) + 0.5
    x.requires_grad_()
    upstream = torch.randn(shape)
    y = quantizer(x)
    y.backward(upstream)
    scale = broadcast(quantizer.scale, shape, axes).numpy()
    value, _ = lsq(x.detach(), scale, bits, signed)
    grad_x, grad_s = lsq_gradients(x.detach(), scale, upstream, bits, signed, axes)
    np.testing.assert_allclose(y.detach().numpy(), value, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(x.grad.numpy(), grad_x, atol=1e-6)
    np.testing.assert_allclose(
        quantizer.scale.grad.numpy(), grad_s.reshape(-1), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("axis", "signed", "factor"), [(-2, True, 2), (-2, False, 4), (None, False, 2), (None, True, 2)]
)
def test_first_tensor_sets_the_scale(axis, signed, factor):
    quantizer = LSQ(3, axis, signed)
    x = torch.randn(2, 5, 8)
    quantizer(x)
    high = 3 if signed else 7
    mean = np.abs(x.double().numpy()).mean((0, 2) if axis else None)
    np.testing.assert_allclose(quantizer.scale.detach(), factor * mean / np.sqrt(high), rtol=1e-6)


def test_second_tensor_leaves_the_scale():
    quantizer = LSQ(2)
    quantizer(torch.ones(4))
    before = quantizer.scale.clone()
    quantizer(torch.full((4,), 9.0))
    assert torch.equal(before, quantizer.scale)


def test_scale_below_the_floor_is_floored_and_still_gets_a_gradient():
    quantizer = LSQ(2)
    quantizer.scale.data = torch.tensor([-1.0])
    y = quantizer(torch.tensor([1.0]))
    y.backward()
    assert y.item() == pytest.approx(1e-5)
    assert quantizer.scale.grad.item() == pytest.approx(1.0)  # high / sqrt(high · 1)


def test_gradient_passes_on_the_closed_interval():
    quantizer = LSQ(2)
    quantizer.scale.data = torch.tensor([1.0])
    x = torch.tensor([-2.0, 1.0, -2.0001, 1.0001], requires_grad=True)
    quantizer(x).sum().backward()
    assert x.grad.tolist() == [1, 1, 0, 0]


def test_optimizer_made_before_calibration_trains_the_scale():
    quantizer = LSQ(2)
    optimizer = torch.optim.SGD(quantizer.parameters(), 0.1)
    quantizer(torch.randn(50)).sum().backward()
    before = quantizer.scale.clone()
    optimizer.step()
    assert not torch.equal(before, quantizer.scale)


def test_loaded_state_counts_as_calibrated():
    one, other = LSQ(2, -2), LSQ(2, -2)
    one(torch.randn(2, 5, 3))
    other.load_state_dict(one.state_dict())
    other(torch.randn(2, 5, 3))
    assert torch.equal(one.scale, other.scale)


def test_state_is_loaded_into_the_same_memory():
    """A recorded CUDA graph goes on reading there."""
    one = LSQ(2, -2)
    one(torch.randn(2, 5, 3))
    place, state = one.scale.data_ptr(), {"scale": torch.arange(1.0, 6.0)}
    one.load_state_dict(state)
    assert one.scale.data_ptr() == place
    assert torch.equal(one.scale.data, state["scale"])


def test_other_number_of_tokens_is_explained():
    quantizer = LSQ(2, -2)
    quantizer(torch.randn(2, 5, 3))
    with pytest.raises(UserError, match=r"5 scales along axis \(-2,\).*\(2, 6, 3\)"):
        quantizer(torch.randn(2, 6, 3))


@pytest.mark.parametrize(("low", "signed", "high"), [(0.0, False, 255), (-1.0, True, 127)])
def test_images_get_a_sign_only_if_they_have_one(low, signed, high):
    quantizer = ImageLSQ(8)
    x = torch.rand(2, 3, 4, 4) * (1 - low) + low
    quantizer(x)
    assert quantizer.signed is signed
    expected = 2 * np.abs(x.double().numpy()).mean((0, 2, 3)) / np.sqrt(high)
    np.testing.assert_allclose(quantizer.scale.detach(), expected, rtol=1e-5)
    copy = ImageLSQ(8)
    copy.load_state_dict(quantizer.state_dict())
    assert torch.equal(copy(x), quantizer(x))


def test_weight_position_rounds_to_the_code_of_the_forward_pass():
    quantizer = LSQWeight(3)
    w = torch.randn(6, 10)
    quantizer.initialize(w)
    codes = quantizer.codes(w)
    torch.testing.assert_close(quantizer(w), codes * quantizer.scale(w))
    assert codes.min() >= -4
    assert codes.max() <= 3
