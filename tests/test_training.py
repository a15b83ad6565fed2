import copy
import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from headstart.console import UserError
from headstart.data.preprocessing import Preprocess
from headstart.network import initial_weights, models, splitting
from headstart.params import Configuration
from headstart.training import plain
from headstart.training.inference import extract_features
from headstart.training.inputs import CachedInputs, Examples, cache_or_recompute
from headstart.training.loop import image_order

from .conftest import trained

ADAM = Configuration(pretrained=True, finetuning=True, optimizer="Adam", lr=0.001)
SGD = Configuration(pretrained=True, finetuning=True, optimizer="SGD", lr=0.001, momentum=0.9, weight_decay=0.1)
PREPROCESS = Preprocess(64, (0.5,) * 3, (0.5,) * 3)


def prepare(images: torch.Tensor) -> torch.Tensor:
    return PREPROCESS(images).to(torch.get_default_dtype())


def start(name: str, images: torch.Tensor) -> nn.Module:
    """A random network with batch-norm statistics of real images."""
    torch.manual_seed(0)
    model = models.build(name, 10)
    initial_weights.estimate_batch_norm(model, [prepare(images)])
    return model


def plain_optimizer(head: nn.Module, configuration: Configuration) -> torch.optim.Optimizer:
    if configuration.optimizer == "Adam":
        return torch.optim.Adam(head.parameters(), lr=configuration.lr)
    return torch.optim.SGD(head.parameters(), lr=0.001, momentum=0.9, weight_decay=0.1)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    ("name", "layer", "configuration", "reuse"),
    [
        ("tf_efficientnet_lite0", "blocks.5", ADAM, True),
        ("tf_efficientnet_lite0", "blocks.5", SGD, False),
        ("tf_efficientnet_lite0", "classifier", ADAM, True),
        ("resnet18", "layer4", SGD, True),
        ("resnet18", "layer4", ADAM, False),
        ("tf_efficientnet_lite0", "conv_stem", ADAM, True),  # the whole network
        ("resnet18", "conv1", SGD, False),
    ],
)
def test_training_equals_the_plain_loop(training_set, compute, name, layer, configuration, reuse):
    # 40 images in batches of 16: two full batches and one of 8.
    images, labels = (tensor[:40] for tensor in training_set)
    network = start(name, images)
    slow = copy.deepcopy(network)
    slow_backbone, slow_head = splitting.split_backbone_head(slow, layer)
    expected = plain.train(
        slow, slow_backbone, slow_head, plain_optimizer(slow_head, configuration), prepare, images, labels,
        n_epochs=2, batch_size=16, seed=5,
    )  # fmt: skip

    backbone, head = splitting.split_backbone_head(network, layer)
    inputs = cache_or_recompute(images, backbone, compute=compute, prepare=prepare, reuse=reuse)
    examples = Examples(inputs, labels)
    epochs = trained(
        head, examples, examples, configuration=configuration, n_epochs=2, batch_size=16, seed=5, compute=compute
    )
    assert [epoch.epoch for epoch in epochs] == [1, 2]
    for epoch, (loss, accuracy) in zip(epochs, expected, strict=True):
        assert epoch.train_loss == pytest.approx(loss, rel=1e-6)
        assert epoch.train_accuracy == pytest.approx(accuracy, rel=1e-6)
    theirs = slow.state_dict()
    for key, tensor in network.state_dict().items():
        torch.testing.assert_close(
            tensor, theirs[key], rtol=1e-6, atol=1e-8, msg=lambda text, key=key: f"{key}: {text}"
        )


@pytest.mark.parametrize("configuration", [ADAM, SGD], ids=["adam", "sgd"])
def test_frozen_means_frozen_and_finetuned_means_all_of_it(training_set, compute, configuration):
    images, labels = (tensor[:64] for tensor in training_set)
    network = start("tf_efficientnet_lite0", images)
    before = copy.deepcopy(network.state_dict())
    backbone, head = splitting.split_backbone_head(network, "blocks.5")
    of_head = {id(tensor) for tensor in head.state_dict(keep_vars=True).values()}
    in_head = {name for name, tensor in network.state_dict(keep_vars=True).items() if id(tensor) in of_head}
    assert 0 < len(in_head) < len(before)

    [inputs] = extract_features(images, (backbone,), compute=compute, prepare=PREPROCESS)
    examples = Examples(CachedInputs.from_tensor(inputs, compute), labels)
    trained(head, examples, examples, configuration=configuration, n_epochs=1, batch_size=32, seed=0, compute=compute)
    after = network.state_dict()
    assert list(after) == list(before)
    for name in before:
        assert torch.equal(after[name], before[name]) == (name not in in_head), name


def by_hand(configuration: Configuration, weight: torch.Tensor, gradients: list[torch.Tensor]) -> torch.Tensor:
    """Adam of Kingma and Ba 2015, algorithm 1; SGD with weight decay and momentum as PyTorch documents it."""
    first, second, velocity = torch.zeros_like(weight), torch.zeros_like(weight), torch.zeros_like(weight)
    for step, gradient in enumerate(gradients, start=1):
        if configuration.optimizer == "Adam":
            first = 0.9 * first + 0.1 * gradient
            second = 0.999 * second + 0.001 * gradient**2
            unbiased = first / (1 - 0.9**step), second / (1 - 0.999**step)
            weight = weight - configuration.lr * unbiased[0] / (unbiased[1].sqrt() + 1e-8)
        else:
            velocity = 0.9 * velocity + gradient + 0.1 * weight
            weight = weight - configuration.lr * velocity
    return weight


@pytest.mark.parametrize("configuration", [ADAM, SGD], ids=["adam", "sgd"])
def test_the_optimizer_keeps_its_state_from_batch_to_batch(compute, configuration):
    # A classifier without bias on five batches of different gradients; the gradients are softmax minus one-hot.
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(10, 3, generator=generator)
    labels = torch.randint(0, 4, (10,), generator=generator)
    head = nn.Linear(3, 4, bias=False)
    initial = head.weight.detach().clone()
    weight, gradients = initial, []
    for batch in image_order(7, 1, 10).split(2):
        residual = (inputs[batch] @ weight.T).softmax(1) - F.one_hot(labels[batch], 4)
        gradients.append(residual.T @ inputs[batch] / 2)
        weight = by_hand(configuration, initial, gradients)
    examples = Examples(CachedInputs.from_tensor(inputs, compute), labels)
    trained(head, examples, examples, configuration=configuration, n_epochs=1, batch_size=2, seed=7, compute=compute)
    torch.testing.assert_close(head.weight.detach(), weight, rtol=1e-5, atol=1e-7)
    reset = initial  # the published script made a new optimizer for each batch
    for gradient in gradients:
        reset = by_hand(configuration, reset, [gradient])
    assert (head.weight.detach() - reset).abs().max() > 1e-4


def test_training_in_bfloat16_stays_within_two_percent(training_set, compute):
    images, labels = (tensor[:64] for tensor in training_set)
    losses = []
    for dtype in (torch.float32, torch.bfloat16):
        precision = dataclasses.replace(compute, dtype=dtype)
        backbone, head = splitting.split_backbone_head(start("tf_efficientnet_lite0", images), "blocks.5")
        inputs = cache_or_recompute(images, backbone, compute=precision, prepare=PREPROCESS, reuse=True)
        assert next(inputs.batches(torch.arange(2), 2)).dtype == dtype  # kept in the precision it was computed in
        examples = Examples(inputs, labels)
        [epoch] = trained(
            head, examples, examples, configuration=ADAM, n_epochs=1, batch_size=16, seed=0, compute=precision
        )
        assert {parameter.dtype for parameter in head.parameters()} == {torch.float32}
        losses.append(epoch.train_loss)
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert losses[1] != losses[0]


def test_every_image_is_used_once_an_epoch_in_an_order_of_its_own():
    orders = [image_order(seed, epoch, 100).tolist() for seed in (0, 1) for epoch in (1, 2)]
    assert all(sorted(order) == list(range(100)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert image_order(0, 1, 100).tolist() == orders[0]


def test_the_last_smaller_batch_is_trained_on_and_losses_are_means_over_images(compute):
    head = nn.Linear(1, 2)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    sizes: list[int] = []
    configuration = Configuration(
        pretrained=True, finetuning=False, optimizer="SGD", lr=1e-12, momentum=0, weight_decay=0
    )
    examples = Examples(CachedInputs.from_tensor(torch.ones(7, 1), compute), torch.tensor([0, 0, 0, 0, 0, 1, 1]))
    nothing = Examples(CachedInputs.from_tensor(torch.ones(0, 1), compute), torch.tensor([], dtype=torch.int64))
    [epoch] = trained(head, examples, nothing, configuration=configuration, n_epochs=1, batch_size=3, seed=0,
                      compute=compute, on_batch=sizes.append)  # fmt: skip
    assert sizes == [3, 3, 1]
    assert epoch.train_loss == pytest.approx(math.log(2))
    assert epoch.train_accuracy == pytest.approx(5 / 7, abs=2 / 7)  # equal logits: which class wins is rounding
    assert (epoch.validation_loss, epoch.validation_accuracy) == (None, None)


def test_batch_norm_cannot_train_on_one_image(compute):
    data = Examples(CachedInputs.from_tensor(torch.randn(4, 3, 1, 1), compute), torch.tensor([0, 1, 0, 1]))
    options = {"configuration": ADAM, "n_epochs": 1, "batch_size": 1, "seed": 0, "compute": compute}
    for norm in (nn.BatchNorm2d(3), nn.Sequential(nn.Flatten(), nn.BatchNorm1d(3))):
        with pytest.raises(UserError, match="batch_size is 1, and batch norm cannot"):
            trained(nn.Sequential(norm, nn.Flatten(), nn.Linear(3, 2)), data, data, **options)
    [epoch] = trained(nn.Sequential(nn.Flatten(), nn.LayerNorm(3), nn.Linear(3, 2)), data, data, **options)
    assert math.isfinite(epoch.train_loss)


def test_a_loss_that_is_not_finite_names_epoch_and_batch(compute):
    examples = Examples(CachedInputs.from_tensor(torch.full((8, 1), 1e38), compute), torch.zeros(8, dtype=torch.int64))
    head = nn.Linear(1, 2)
    nn.init.constant_(head.weight, 1e10)
    with pytest.raises(UserError) as error:
        trained(
            head, examples, examples, configuration=ADAM, n_epochs=1, batch_size=4, seed=0, compute=compute, name="x"
        )
    assert str(error.value) == "x: the loss is not finite from epoch 1, batch 1 on. Lower lr."
