import pytest
import torch

from headstart.data.preprocessing import Preprocess


def test_resizing_and_normalization_computed_by_hand():
    # 2×2 to 4×4, bilinear with pixel centers at half-integers: the outer pixels are copied, the inner ones mixed 3:1.
    images = torch.tensor([[[0, 255], [0, 255]]], dtype=torch.uint8)
    result = Preprocess(4, (0.5, 0.0, 0.25), (0.5, 1.0, 0.25))(images)
    row = torch.tensor([0, 0.25, 0.75, 1])
    assert result.shape == (1, 3, 4, 4)
    for channel, expected in enumerate([(row - 0.5) / 0.5, row, (row - 0.25) / 0.25]):
        torch.testing.assert_close(result[0, channel], expected.expand(4, 4))


def test_results_equal_torchvision_transforms(test_set):
    from torchvision.transforms.v2.functional import normalize, resize

    images = test_set[0][:16]
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = resize(images[:, None].float().div(255), [64, 64], antialias=True).expand(-1, 3, -1, -1)
    torch.testing.assert_close(Preprocess(64, mean, std)(images), normalize(expected, list(mean), list(std)))


def test_shrinking_is_antialiased():
    stripes = torch.zeros(1, 28, 28, dtype=torch.uint8)
    stripes[:, :, ::2] = 255
    result = Preprocess(7, (0.0,) * 3, (1.0,) * 3)(stripes)
    assert (result - 0.5).abs().max().item() == pytest.approx(0, abs=0.1)  # without antialias, 0.5 would be 0 or 1


def test_results_do_not_depend_on_the_batch_and_are_channels_last(test_set):
    preprocess = Preprocess(32, (0.5,) * 3, (0.5,) * 3)
    batch = preprocess(test_set[0][:8])
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(batch[3:5], preprocess(test_set[0][3:5]))


def test_each_color_channel_is_processed_like_a_gray_image():
    images = torch.randint(0, 256, (4, 3, 20, 20), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    preprocess = Preprocess(32, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    result = preprocess(images)
    assert result.is_contiguous(memory_format=torch.channels_last)
    for channel in range(3):
        assert torch.equal(result[:, channel], preprocess(images[:, channel])[:, channel])


def test_bicubic_equals_torchvision_and_is_clamped(test_set):
    from torchvision.transforms.v2.functional import InterpolationMode, resize

    images = test_set[0][:16]
    gray = images[:, None].float().div(255)
    expected = resize(gray, [64, 64], interpolation=InterpolationMode.BICUBIC, antialias=True)
    assert expected.min() < -0.02  # it overshoots at edges
    result = Preprocess(64, (0.0,) * 3, (1.0,) * 3, "bicubic")(images)
    torch.testing.assert_close(result[:, :1], expected.clamp(0, 1))
