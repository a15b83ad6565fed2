"""Training recipes against PyTorch: schedules, training loss, augmentation, and what params.yaml rejects."""

import copy
import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import nn
from torch.optim import lr_scheduler

from headstart import params
from headstart.console import UserError
from headstart.network import splitting
from headstart.params import Configuration
from headstart.training import augmentation, plain
from headstart.training.criterion import Criterion, make_criterion
from headstart.training.inference import BatchedInference
from headstart.training.inputs import AugmentedPass, CachedInputs, Examples, RecomputedInputs, cache_or_recompute
from headstart.training.optimizers import GRAPHED, make_optimizer, set_learning_rate
from headstart.training.schedules import learning_rate

from .conftest import ROOT, trained, usable_optimizers
from .test_training import prepare, start

ADAMW: dict[str, Any] = {"pretrained": True, "finetuning": True, "optimizer": "AdamW", "lr": 0.01}
N_STEPS = 40


def recipe(**settings: Any) -> Configuration:
    return params.validate(ADAMW | settings, Configuration, {}, "test")


def pytorch_schedule(optimizer: torch.optim.Optimizer, schedule: str, warmup_steps: int) -> lr_scheduler.LRScheduler:
    n_steps = N_STEPS - warmup_steps
    if schedule == "one-cycle":
        return lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=n_steps, cycle_momentum=False)
    main: lr_scheduler.LRScheduler = lr_scheduler.ConstantLR(optimizer, factor=1)
    if schedule == "cosine":
        main = lr_scheduler.CosineAnnealingLR(optimizer, T_max=n_steps)
    if not warmup_steps:
        return main
    warmup = lr_scheduler.LinearLR(optimizer, 1 / warmup_steps, total_iters=warmup_steps - 1)
    return lr_scheduler.SequentialLR(optimizer, [warmup, main], milestones=[warmup_steps])


@pytest.mark.parametrize(("schedule", "warmup_steps"), [
    ("constant", 0), ("constant", 7), ("cosine", 0), ("cosine", 7), ("one-cycle", 0),
])  # fmt: skip
def test_the_learning_rate_of_each_step_is_pytorchs(schedule, warmup_steps):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.01)
    scheduler = pytorch_schedule(optimizer, schedule, warmup_steps)
    for step in range(N_STEPS):
        [expected] = scheduler.get_last_lr()
        rate = learning_rate(recipe(schedule=schedule), step, n_steps=N_STEPS, warmup_steps=warmup_steps)
        assert rate == pytest.approx(expected, rel=1e-9), step
        optimizer.step()
        if step < N_STEPS - 1:
            scheduler.step()


@pytest.mark.parametrize("schedule", ["constant", "cosine", "one-cycle"])
@pytest.mark.parametrize("n_steps", [1, 2, 3, 4])
def test_short_trainings_have_finite_positive_learning_rates(schedule, n_steps):
    rates = [learning_rate(recipe(schedule=schedule), step, n_steps=n_steps) for step in range(n_steps)]
    assert all(0 < rate <= 0.01 for rate in rates)


def test_a_learning_rate_that_a_cuda_graph_reads_changes_in_place():
    rate = torch.tensor(0.1)
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1))], lr=rate, capturable=False, foreach=False)
    set_learning_rate(optimizer, 0.05)
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate.item() == pytest.approx(0.05)


@pytest.mark.parametrize("name", GRAPHED)
def test_fused_optimizers_take_a_learning_rate_that_is_a_tensor(name):
    """On a GPU, the learning rate of a schedule is a tensor."""
    options: dict[str, Any] = {"momentum": 0.9, "weight_decay": 0.1} if name == "SGD" else {}
    weights = []
    for first_rate in (torch.tensor(0.1), 0.1):
        parameter = nn.Parameter(torch.ones(3))
        optimizer = getattr(torch.optim, name)([parameter], lr=first_rate, fused=True, **options)
        for rate in (0.1, 0.02):
            set_learning_rate(optimizer, rate)
            parameter.grad = torch.arange(3.0)
            optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())
        assert type(optimizer.param_groups[0]["lr"]) is type(first_rate)
        weights.append(parameter.detach())
    torch.testing.assert_close(*weights)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, [1.0, 0.2, 3.0]])
def test_the_training_loss_is_pytorchs_cross_entropy(smoothing, weights):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 3, generator=generator, requires_grad=True)
    labels = torch.randint(0, 3, (50,), generator=generator)
    weight = None if weights is None else torch.tensor(weights)
    criterion = Criterion(smoothing, weight)
    loss = criterion.mean(criterion.losses(logits, labels), labels)
    expected = F.cross_entropy(logits, labels, weight=weight, label_smoothing=smoothing)
    torch.testing.assert_close(loss, expected)
    [gradient] = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, logits)[0])


def test_balanced_weights_are_inverse_to_the_number_of_images(compute):
    labels = torch.tensor([0] * 6 + [1] * 3 + [2])
    weights = make_criterion(recipe(class_weights="balanced"), labels, 3, compute).class_weights
    assert weights.tolist() == pytest.approx([10 / 18, 10 / 9, 10 / 3])
    with pytest.raises(UserError, match="1 of 4 classes have none"):
        make_criterion(recipe(class_weights="balanced"), labels, 4, compute)


@pytest.mark.parametrize("name", augmentation.AUGMENTATIONS)
@pytest.mark.parametrize("shape", [(12, 32, 32), (12, 3, 32, 32)])
def test_augmentation_depends_on_seed_pass_and_image_alone(name, shape, monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", pytest.fail)  # dropout draws from the GPU's generator
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    state = torch.get_rng_state()
    augmented = augmentation.augment(name, images, range(12), seed=3, number=2)
    assert torch.equal(torch.get_rng_state(), state)  # dropout draws from the same generator
    assert (augmented.dtype, augmented.shape) == (torch.uint8, images.shape)
    assert not torch.equal(augmented, images)
    order = [7, 3, 11]
    torch.rand(1)
    assert torch.equal(augmentation.augment(name, images[order], order, seed=3, number=2), augmented[order])
    for seed, number in ((4, 2), (3, 3), (2, 3)):
        assert not torch.equal(augmentation.augment(name, images, range(12), seed=seed, number=number), augmented)
    repeated = images[:1].expand(12, *shape[1:])
    assert len(augmentation.augment(name, repeated, range(12), seed=0, number=1).unique(dim=0)) > 6


def test_no_image_seed_occurs_twice():
    seeds = {augmentation.image_seed(*key) for key in itertools.product(range(5), range(20), range(50))}
    assert len(seeds) == 5 * 20 * 50
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("name", "layer", "settings"), [
    ("resnet18", "layer4", {"augmentation": "crop-flip"}),
    ("tf_efficientnet_lite0", "classifier", {"augmentation": "trivial", "schedule": "one-cycle"}),
    ("resnet18", "conv1", {"augmentation": "crop-flip", "schedule": "cosine", "label_smoothing": 0.1}),
    ("tf_efficientnet_lite0", "blocks.5", {"schedule": "cosine", "class_weights": "balanced", "betas": [0.8, 0.9]}),
])  # fmt: skip
def test_a_recipe_equals_the_plain_loop(training_set, compute, name, layer, settings):
    """40 images in batches of 16, so an epoch has three steps; two epochs."""
    configuration = recipe(**settings)
    images, labels = (tensor[:40] for tensor in training_set)
    network = start(name, images)
    reference = copy.deepcopy(network)
    reference_backbone, reference_head = splitting.split_backbone_head(reference, layer)
    optimizer = torch.optim.AdamW(reference_head.parameters(), lr=0.01, **dict(configuration.options))
    scheduler = {
        "one-cycle": lambda: lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=7, cycle_momentum=False),
        "cosine": lambda: lr_scheduler.CosineAnnealingLR(optimizer, T_max=6),
        "constant": lambda: None,
    }[configuration.schedule]()
    criterion = make_criterion(configuration, labels, 10, compute)
    weights = None if criterion.class_weights is None else criterion.class_weights.double()
    loss = nn.CrossEntropyLoss(weight=weights, label_smoothing=configuration.label_smoothing)

    def augment(batch: torch.Tensor, indices: list[int], epoch: int) -> torch.Tensor:
        if configuration.augmentation == "none":
            return batch
        return augmentation.augment(configuration.augmentation, batch, indices, seed=5, number=epoch)

    # OneCycleLR cannot be stepped after its last step, so it has one step more than the training.
    n_steps = 7 if configuration.schedule == "one-cycle" else 6
    expected = list(plain.train(
        reference, reference_backbone, reference_head, optimizer, prepare, images, labels, n_epochs=2, batch_size=16,
        seed=5, criterion=loss, scheduler=scheduler, augment=augment,
    ))  # fmt: skip

    backbone, head = splitting.split_backbone_head(network, layer)
    inputs = cache_or_recompute(images, backbone, compute=compute, prepare=prepare, reuse=True)
    if configuration.augmentation != "none":
        inference = BatchedInference((backbone,), compute, prepare)
        inputs = RecomputedInputs(images, inference, AugmentedPass(configuration.augmentation))
    epochs = trained(
        head, Examples(inputs, labels), Examples(inputs, labels[:0]), configuration=configuration, n_epochs=2,
        batch_size=16, seed=5, compute=compute, criterion=Criterion(criterion.label_smoothing, weights),
        learning_rate=lambda step: learning_rate(configuration, step, n_steps=n_steps),
    )  # fmt: skip
    for epoch, (mean, accuracy) in zip(epochs, expected, strict=True):
        if weights is None:  # else the plain loop reports weighted means of batches
            assert epoch.train_loss == pytest.approx(mean, rel=1e-6)
        assert epoch.train_accuracy == pytest.approx(accuracy, rel=1e-6)
    for key, tensor in network.state_dict().items():
        torch.testing.assert_close(tensor, reference.state_dict()[key], rtol=1e-5, atol=1e-7)


def test_augmented_inputs_of_a_label_budget_are_those_of_the_same_images(compute):
    images = torch.randint(0, 256, (20, 32, 32), dtype=torch.uint8)
    inference = BatchedInference((nn.Flatten(),), compute, lambda batch: batch.float())
    examples = Examples(RecomputedInputs(images, inference, AugmentedPass("crop-flip")), torch.arange(20))
    chosen = torch.tensor([4, 9, 2])
    [of_subset] = examples.subset(chosen).for_pass(1, 6).inputs.batches(torch.tensor([2, 0]), 8)
    [of_all] = examples.for_pass(1, 6).inputs.batches(chosen[[2, 0]], 8)
    assert torch.equal(of_subset, of_all)
    [of_next_pass] = examples.for_pass(1, 7).inputs.batches(chosen[[2, 0]], 8)
    assert not torch.equal(of_all, of_next_pass)
    cached = Examples(CachedInputs.from_tensor(torch.zeros(3, 2), compute), torch.zeros(3))
    assert cached.for_pass(1, 7).inputs is cached.inputs


def test_all_optimizers_that_take_plain_steps_can_be_used():
    assert set(params._optimizers()) - set(usable_optimizers()) == {"LBFGS", "Muon", "SparseAdam"}


@pytest.mark.parametrize("name", usable_optimizers())
def test_an_optimizer_is_pytorchs(compute, name):
    options: dict[str, Any] = {"momentum": 0.9, "weight_decay": 0.1} if name == "SGD" else {}
    torch.manual_seed(0)
    head = nn.Linear(5, 3)
    reference = copy.deepcopy(head)
    optimizer = make_optimizer(recipe(optimizer=name, **options), head, compute)
    expected = getattr(torch.optim, name)(reference.parameters(), lr=0.01, **options)
    for module, update in ((head, optimizer), (reference, expected)):
        for step in range(3):
            update.zero_grad()
            F.cross_entropy(module(torch.eye(5) + step), torch.arange(5) % 3).backward()
            update.step()
    torch.testing.assert_close(head.weight, reference.weight)


CASES = [
    ({"optimizer": "adamw"}, "optimizer: torch.optim has no such optimizer. Did you mean AdamW? (got 'adamw')"),
    ({"optimizer": "LBFGS"}, "optimizer: LBFGS needs a closure. Choose another optimizer, such as Adam or SGD."),
    ({"optimizer": "SparseAdam"}, "optimizer: SparseAdam cannot be used (SparseAdam does not support dense gradients"),
    ({"optimizer": "Muon"}, "optimizer: Muon cannot be used (Muon only supports 2D parameters"),
    ({"beta": [0.9, 0.9]}, "beta: Not an option of AdamW. Did you mean betas? (got (0.9, 0.9))"),
    ({"fused": True}, "fused: Not an option of AdamW. Choose one of pretrained, finetuning,"),
    ({"momentum": 0.9}, "momentum: Not an option of AdamW. Remove it (got 0.9)"),
    ({"betas": [2, 3]}, "optimizer: AdamW cannot be used (Invalid beta parameter at index 0: 2). Change its options"),
    ({"shedule": "cosine"}, "shedule: Not an option of AdamW. Did you mean schedule? (got 'cosine')"),
    ({"schedule": "cosin"}, "schedule: Not a known value. Did you mean cosine? (got 'cosin')"),
    ({"schedule": "x"}, "schedule: Not a known value. Choose one of constant, cosine, one-cycle. (got 'x')"),
    ({"augmentation": "trivail"}, "augmentation: Not a known value. Did you mean trivial? (got 'trivail')"),
    ({"class_weights": "even"}, "class_weights: Not a known value. Choose one of none, balanced. (got 'even')"),
    ({"label_smoothing": 1}, "label_smoothing: Input should be less than 1 (got 1)"),
    ({"label_smoothing": -0.1}, "label_smoothing: Input should be greater than or equal to 0 (got -0.1)"),
    ({"warmup_epochs": 1, "schedule": "one-cycle"}, "warmup_epochs: The one-cycle schedule has its own warm-up."),
    ({"warmup_epochs": 2}, "warmup_epochs: Should be less than n_epochs of the study quick, 2 (got 2)"),
    ({"augmentation": "trivial"}, "augmentation: Augmented images change in each pass, so their activations cannot be "
                                  "cached. Set studies.quick.cache_activations to false, or remove augmentation"),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "message"), CASES, ids=[message.split(" (")[0] for _, message in CASES])
def test_a_wrong_recipe_is_rejected(tmp_path, settings, message):
    content = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    content["configurations"]["a"] = ADAMW | settings
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(params.ParamsError) as error:
        params.read(tmp_path / "params.yaml")
    assert f"params.yaml: configurations.a.{message}" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_configuration_has_its_settings_as_in_params_yaml():
    settings = ADAMW | {"betas": (0.9, 0.98), "weight_decay": 0.05, "schedule": "cosine", "warmup_epochs": 1}
    configuration = recipe(**settings)
    assert configuration.settings == settings
    assert configuration.optimizer_options == {"betas": (0.9, 0.98), "weight_decay": 0.05}
    assert hash(configuration) == hash(recipe(**settings | {"betas": [0.9, 0.98]}))
