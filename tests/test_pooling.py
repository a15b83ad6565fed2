import pytest
import torch
from torch import nn
from torchvision.models import get_model

from headstart.training.pooling import MatmulAdaptiveAvgPool2d, use_deterministic


@pytest.mark.parametrize(
    ("size", "after"),
    [((7, 7), 7), ((1, 1), (6, 6)), ((2, 2), (7, 7)), ((13, 13), (6, 6)), ((14, 14), (7, 7)), ((6, 5), (3, None)),
     ((9, 4), (2, 3))],
    ids=str,
)  # fmt: skip
def test_matrix_products_are_adaptive_average_pooling(size, after):
    torch.manual_seed(0)
    pool = nn.AdaptiveAvgPool2d(after)
    maps = torch.randn(3, 5, *size, requires_grad=True)
    expected, got = pool(maps), MatmulAdaptiveAvgPool2d(pool)(maps)
    torch.testing.assert_close(got, expected)
    directions = torch.randn_like(expected)
    gradients = [torch.autograd.grad(pooled, maps, directions)[0] for pooled in (got, expected)]
    torch.testing.assert_close(*gradients)
    if size == expected.shape[2:]:
        assert torch.equal(got, maps)


def test_in_bfloat16_sums_are_in_float32():
    pool = nn.AdaptiveAvgPool2d(6)
    maps = torch.randn(3, 5, 13, 13).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        got = MatmulAdaptiveAvgPool2d(pool)(maps)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), pool(maps.float()), rtol=2**-8, atol=1e-6)  # rounded once, at the end


@pytest.mark.parametrize(("name", "replaced"), [("alexnet", True), ("vgg11", True), ("resnet18", False)])
def test_only_pooling_to_several_pixels_is_replaced(name, replaced):
    """The gradient of a mean over all pixels is deterministic, and its bits stay as they are."""
    torch.manual_seed(0)
    model = get_model(name).eval()
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        expected = model(images)
        use_deterministic(model)
        got = model(images)
    assert any(isinstance(layer, MatmulAdaptiveAvgPool2d) for layer in model.modules()) == replaced
    assert type(model.avgpool) is (MatmulAdaptiveAvgPool2d if replaced else nn.AdaptiveAvgPool2d)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert model.state_dict().keys() == get_model(name).state_dict().keys()
