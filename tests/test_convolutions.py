import copy
import itertools

import pytest
import timm
import torch
from timm.layers import Conv2dSame, ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

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


class Halved(nn.Conv2d):
    def forward(self, maps):
        return super().forward(maps) / 2


class Shifted(nn.Conv2d):
    def _conv_forward(self, maps, weight, bias):
        return super()._conv_forward(maps, weight, bias) + 1


class Square(nn.Conv2d):
    """A plain convolution that is constructed with other arguments."""

    def __init__(self, channels):
        super().__init__(channels, 4, 3, padding=1)


def patched() -> nn.Conv2d:
    convolution = nn.Conv2d(6, 4, 1)
    convolution.forward = lambda maps: maps[:, :4]
    return convolution


def hooked() -> nn.Conv2d:
    convolution = nn.Conv2d(6, 4, 1)
    convolution.register_forward_hook(lambda module, inputs, output: output + 1)
    return convolution


SPECIAL = [
    StdConv2d(6, 4, 1), StdConv2dSame(6, 4, 3), ScaledStdConv2d(6, 4, 1), ScaledStdConv2dSame(6, 4, 3),
    Halved(6, 4, 1), Shifted(6, 4, 1), Square(6), patched(), hooked(), weight_norm(nn.Conv2d(6, 4, 1)),
    spectral_norm(nn.Conv2d(6, 4, 1)), nn.utils.spectral_norm(nn.Conv2d(6, 4, 1)),
    nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect"),
]  # fmt: skip


@pytest.mark.parametrize("own", SPECIAL, ids=lambda own: type(own).__name__)
@pytest.mark.parametrize("training", [False, True])
def test_what_is_more_than_a_convolution_stays_what_it_is(own, training):
    """Or another network would be trained than the one that is saved."""
    network = nn.Sequential(copy.deepcopy(own), nn.Conv2d(4, 4, 1)).train(training)
    replaced = copy.deepcopy(network)
    use_matmul(replaced)
    assert (type(replaced[0]), type(replaced[1])) == (type(network[0]), MatmulConv2d)
    maps = torch.randn(2, 6, 3, 3)
    torch.testing.assert_close(replaced(maps), network(maps))
    assert list(replaced.state_dict()) == list(network.state_dict())


@pytest.mark.parametrize("name", ["eca_nfnet_l0", "nf_resnet26", "resnetv2_50x1_bit", "vit_small_r26_s32_224"])
@pytest.mark.parametrize("training", [False, True])
def test_a_network_computes_the_same(name, training):
    size = 224 if name.startswith("vit") else 64
    network = timm.create_model(name, num_classes=5).train(training)
    replaced = copy.deepcopy(network)
    use_matmul(replaced)
    outputs = []
    for model in (network, replaced):
        torch.manual_seed(0)  # of dropout
        outputs.append(model(torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))))
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-3, atol=1e-4)


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
