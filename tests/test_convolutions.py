import copy
import itertools

import pytest
import torch
from timm.layers import Conv2dSame
from torch import nn

from headstart.training.convolutions import MatmulConv2d, use_matmul

SHAPES = [
    (size, kernel, stride, padding, groups)
    for size, kernel, stride, padding, groups in itertools.product(
        [(1, 1), (2, 2), (3, 2), (4, 4)], [1, 3, 5], [1, 2], [0, 1, 2], [1, 6]
    )
    if min(size) + 2 * padding >= kernel
]


@pytest.mark.parametrize(("size", "kernel", "stride", "padding", "groups"), SHAPES)
@pytest.mark.parametrize("bias", [True, False])
def test_the_same_numbers_forward_and_backward(size, kernel, stride, padding, groups, bias):
    own = nn.Conv2d(6, 6 if groups == 6 else 4, kernel, stride, padding, groups=groups, bias=bias).double()
    assert_equal(own, torch.randn(3, 6, *size, dtype=torch.float64))


@pytest.mark.parametrize("own", [
    nn.Conv2d(6, 4, 3, padding=2, dilation=2),
    nn.Conv2d(6, 4, (1, 3), padding="same"),
    nn.Conv2d(6, 4, 3, padding="valid"),
    nn.Conv2d(6, 4, 3, groups=2, padding=1),
    nn.Conv2d(6, 12, 3, groups=6, padding=1),
    Conv2dSame(6, 6, 5, stride=2, groups=6, bias=False),
    Conv2dSame(6, 4, 3, stride=2),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("size", [(3, 3), (4, 4), (7, 7)])
def test_other_convolutions_too(own, size):
    assert_equal(copy.deepcopy(own).double(), torch.randn(2, 6, *size, dtype=torch.float64))


def assert_equal(own: nn.Conv2d, maps: torch.Tensor) -> None:
    ours = MatmulConv2d(copy.deepcopy(own))
    results = []
    for module in (own, ours):
        inputs = maps.clone().contiguous(memory_format=torch.channels_last).requires_grad_()
        output = module(inputs)
        gradient = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)
        output.backward(gradient)
        results.append([output, inputs.grad, *(parameter.grad for parameter in module.parameters())])
    assert len(results[0]) == len(results[1])
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def test_replacing_keeps_parameters_and_names():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU()))
    before = dict(network.named_parameters())
    use_matmul(network)
    assert isinstance(network[1][0], MatmulConv2d)
    after = dict(network.named_parameters())
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)


def test_no_random_numbers_are_used_up():
    ours = MatmulConv2d(nn.Conv2d(4, 4, 3, padding=1))
    before = torch.get_rng_state()
    ours(torch.ones(1, 4, 2, 2))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_fast_way_is_taken_where_maps_are_small(monkeypatch):
    own = nn.Conv2d(4, 4, 3, padding=1)
    ours = MatmulConv2d(own)
    monkeypatch.setattr(nn.Conv2d, "forward", lambda self, maps: pytest.fail("PyTorch's own convolution ran"))
    monkeypatch.setattr(ours, "_connections", {torch.Size((2, 2)): (torch.zeros(9, 4, 4), torch.Size((2, 2)))})
    assert ours(torch.ones(1, 4, 2, 2)).shape == (1, 4, 2, 2)
