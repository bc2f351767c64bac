import pytest
import torch

from ofq import LSQ
from ofq.quantization.layers import Passthrough, PreShifted, Shifted
from ofq.quantization.products import Linear, MergedLogits, Values

PRODUCTS = [
    pytest.param(Linear, (2, 5, 8), [(6, 8), (6,)], id="linear"),
    pytest.param(Values, (2, 3, 5, 5), [(2, 3, 5, 4)], id="values"),
    pytest.param(MergedLogits, (2, 5, 3, 8), [(2, 5, 8)], id="merged-logits"),
]


def gradients(output, leaves, upstream):
    return torch.autograd.grad(output, leaves, upstream)


@pytest.mark.parametrize(("product", "shape", "others"), PRODUCTS)
@pytest.mark.parametrize("signed", [True, False])
def test_equals_the_product_of_the_quantized_operand_as_autograd_differentiates_it(
    product, shape, others, signed
):
    quantizer = LSQ(2, axis=1, signed=signed)
    x = torch.randn(shape, requires_grad=True)
    quantizer.initialize(x)
    tensors = [torch.randn(s, requires_grad=True) for s in others]
    leaves = [x, quantizer.scale, *tensors]
    plain = product.forward(quantizer(x), *tensors)
    fused = quantizer.product(product, x, *tensors)
    torch.testing.assert_close(fused, plain, rtol=0, atol=0)
    upstream = torch.randn_like(plain)
    for ours, theirs in zip(
        gradients(fused, leaves, upstream), gradients(plain, leaves, upstream), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_merged_logits_are_each_query_with_each_merged_key():
    z, x = torch.randn(2, 5, 3, 8), torch.randn(2, 5, 8)
    expected = torch.einsum("bnc,bmhc->bhnm", x, z)
    torch.testing.assert_close(MergedLogits.forward(z, x), expected)


@pytest.mark.parametrize("signed", [True, False])
def test_gradients_under_autocast_are_those_of_autograd(signed):
    quantizer = LSQ(2, axis=1, signed=signed)
    x = torch.randn(4, 16, 32, requires_grad=True)
    quantizer.initialize(x)
    weight, bias = torch.randn(24, 32, requires_grad=True), torch.randn(24, requires_grad=True)
    leaves = [x, quantizer.scale, weight, bias]
    with torch.autocast("cpu", torch.bfloat16):
        fused = quantizer.product(Linear, x, weight, bias)
        plain = torch.nn.functional.linear(quantizer(x), weight, bias)
    assert fused.dtype is torch.bfloat16
    assert torch.equal(fused, plain)
    upstream = torch.randn_like(plain)
    for ours, theirs in zip(
        gradients(fused, leaves, upstream), gradients(plain, leaves, upstream), strict=True
    ):
        assert ours.dtype is torch.float32
        # both round to bfloat16 (8 bits), in another order
        torch.testing.assert_close(ours, theirs, rtol=2**-7, atol=2**-7 * float(theirs.abs().max()))


@pytest.mark.parametrize(
    "quantizer",
    [Passthrough(), PreShifted(LSQ(2, -2), 8), Shifted(LSQ(2, -2), 8)],
    ids=lambda quantizer: type(quantizer).__name__,
)
def test_every_quantizer_multiplies_what_it_gives(quantizer):
    for parameter in quantizer.parameters():
        parameter.data.normal_()
    x, weight = torch.randn(2, 5, 8), torch.randn(6, 8)
    expected = quantizer.shifted(x) @ weight.T
    torch.testing.assert_close(quantizer.product(Linear, x, weight, None), expected)


def copies_kept(x, multiply):
    """How many tensors of x's size, beside x itself, autograd keeps of a product."""
    kept = set()

    def pack(tensor):
        if tensor.numel() == x.numel():
            kept.add(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        product = multiply()  # bound, so that no storage is freed and its address taken again
    assert product.requires_grad
    return len(kept - {x.untyped_storage().data_ptr()})


@pytest.mark.parametrize(("product", "shape", "others"), PRODUCTS)
def test_keeps_no_copy_of_the_operand_where_autograd_keeps_one(product, shape, others):
    quantizer = LSQ(2, axis=1)
    x = torch.randn(shape, requires_grad=True)
    quantizer.initialize(x)
    tensors = [torch.randn(s, requires_grad=True) for s in others]
    assert copies_kept(x, lambda: product.forward(quantizer(x), *tensors)) == 1
    assert copies_kept(x, lambda: quantizer.product(product, x, *tensors)) == 0
