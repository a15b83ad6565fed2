import dataclasses

import pytest
import torch
from torch import nn

from headstart.data.preprocessing import Preprocess
from headstart.network import models, splitting
from headstart.training.compute import Compute
from headstart.training.inference import BatchedInference, extract_features
from headstart.training.inputs import CachedInputs, RecomputedInputs, cache_or_recompute, predict

PREPROCESS = Preprocess(64, (0.5,) * 3, (0.5,) * 3)
MEMORY = {"device": 10**9, "recompute": 0}


@pytest.fixture
def halves() -> tuple[nn.Sequential, nn.Sequential]:
    torch.manual_seed(0)
    return splitting.split_backbone_head(models.build("tf_efficientnet_lite0", 10), "blocks.5")


def with_memory(compute: Compute, n_bytes: int, monkeypatch) -> Compute:
    monkeypatch.setattr("headstart.training.compute.free_ram", lambda: n_bytes + (1 << 30))
    return dataclasses.replace(compute)


@pytest.mark.parametrize("layer", ["blocks.5", "conv_stem"])
@pytest.mark.parametrize("batch_size", [7, 64, 100])
def test_cached_and_recomputed_inputs_are_bit_identical(test_set, compute, layer, batch_size, monkeypatch):
    torch.manual_seed(0)
    halves = splitting.split_backbone_head(models.build("tf_efficientnet_lite0", 10), layer)
    images = test_set[0][:150]
    order = torch.randperm(150, generator=torch.Generator().manual_seed(1))
    batches = {}
    for storage, n_bytes in MEMORY.items():
        limited = with_memory(compute, n_bytes, monkeypatch)
        made = cache_or_recompute(images, halves[0], compute=limited, prepare=PREPROCESS, reuse=True)
        assert made.storage == storage
        batches[storage] = [batch.clone() for batch in made.batches(order, batch_size)]
    full, rest = divmod(150, batch_size)
    assert [len(batch) for batch in batches["recompute"]] == [batch_size] * full + [rest] * bool(rest)
    for cached, recomputed in zip(batches["device"], batches["recompute"], strict=True):
        assert cached.is_contiguous(memory_format=torch.channels_last)
        assert recomputed.is_contiguous(memory_format=torch.channels_last)  # another layout gives other bits
        assert torch.equal(cached, recomputed)
    # The features that the stage `features` writes to disk are the same too.
    [stored] = extract_features(images, halves[:1], compute=compute, prepare=PREPROCESS)
    assert torch.equal(stored[order], torch.cat(batches["device"]))


def test_cached_features_are_not_changed_by_a_later_layer_that_works_in_place(test_set, compute):
    """A network may be split before a layer that works in place, such as the activations of MobileNetV3."""
    torch.manual_seed(0)
    network = models.build("mobilenet_v3_small", 10)
    backbone, pooled, _ = splitting.split_model(network, ["features.12.2", "classifier.3"])
    images = test_set[0][:40]
    stored, _ = extract_features(images, (backbone, pooled), compute=compute, prepare=PREPROCESS)
    [alone] = extract_features(images, (backbone,), compute=compute, prepare=PREPROCESS)
    assert torch.equal(stored, alone)


def test_of_no_images_there_are_no_outputs(test_set, compute, halves):
    backbone, head = halves
    shapes = [
        result.shape
        for result in extract_features(test_set[0][:0], (backbone, head), compute=compute, prepare=PREPROCESS)
    ]
    assert shapes == [(0, 112, 4, 4), (0, 10)]


def test_inputs_used_once_are_not_kept(test_set, compute, halves):
    made = cache_or_recompute(test_set[0][:9], halves[0], compute=compute, prepare=PREPROCESS, reuse=False)
    assert isinstance(made, RecomputedInputs)


def test_images_stay_in_host_memory(test_set, compute, halves):
    """A data set can be larger than a GPU; "meta" is a device without memory."""
    images = test_set[0][:9]
    elsewhere = dataclasses.replace(compute, device=torch.device("meta"))
    made = cache_or_recompute(images, halves[0], compute=elsewhere, prepare=PREPROCESS, reuse=False)
    assert made.images is images


@pytest.mark.parametrize("n", [1, 64, 65])
def test_trunk_and_head_are_the_whole_network(test_set, compute, halves, n):
    images = test_set[0][:n]
    backbone, head = halves
    with torch.no_grad():
        expected = head(backbone(PREPROCESS(images)))
    made = cache_or_recompute(images, backbone, compute=compute, prepare=PREPROCESS, reuse=True)
    got = predict(head, made, n, compute)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_an_image_s_result_does_not_depend_on_the_others_in_its_chunk(test_set, compute, halves):
    run = BatchedInference((halves[0],), compute, PREPROCESS)
    images = test_set[0][:64]
    [together] = run(images)
    [alone] = run(images[5:6])
    assert torch.equal(alone[0], together[5])


def test_kept_inputs_come_in_the_order_asked_for(compute):
    inputs = torch.arange(12.0).view(6, 2)
    batches = list(CachedInputs.from_tensor(inputs, compute).batches(torch.tensor([4, 0, 5, 1]), 3))
    assert [batch.tolist() for batch in batches] == [[[8, 9], [0, 1], [10, 11]], [[2, 3]]]


def test_bfloat16_logits_are_float32_and_close(test_set, compute):
    """bfloat16 has 8 significant bits; through 50 layers an error of 2 % of the logits' spread is what it costs."""
    torch.manual_seed(0)
    network = models.build("resnet18", 10)
    [exact] = extract_features(test_set[0][:64], (network,), compute=compute, prepare=PREPROCESS)
    run = BatchedInference((network,), dataclasses.replace(compute, dtype=torch.bfloat16), PREPROCESS)
    [coarse] = run(test_set[0][:64])
    assert coarse.dtype == torch.float32
    assert (coarse - exact).std() <= 0.02 * exact.std()
    assert not torch.equal(coarse, exact)
    assert (coarse.bfloat16().float() != coarse).any()  # the classifier itself computes in float32
