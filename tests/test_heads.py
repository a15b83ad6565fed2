"""Many heads at once: each is trained as it would be alone."""

import copy
import dataclasses

import pytest
import torch

from headstart.console import UserError
from headstart.network.models import Float32Linear
from headstart.training import convergence
from headstart.training.forward import Examples, Kept
from headstart.training.heads import Head, fit

from .conftest import trained
from .studies import SETTINGS
from .test_training import ADAM, SGD

N, FEATURES, CLASSES = 200, 20, 4
SIZES = (30, 64, 33, 90)  # in batches of 32: some smaller last ones, and one of them of one image


@pytest.fixture
def sets(compute) -> tuple[Examples, Examples]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, CLASSES, (2, N), generator=generator)
    features = torch.randn(2, N, FEATURES, generator=generator) + 2 * torch.nn.functional.one_hot(labels, FEATURES)
    return tuple(Examples(Kept.of(rows, compute), of_rows) for rows, of_rows in zip(features, labels, strict=True))


def heads() -> list[Head]:
    torch.manual_seed(1)
    made = []
    for seed, size in enumerate(SIZES):
        rows = torch.randperm(N)[:size], torch.randperm(N)[: size // 2]
        made.append(Head(Float32Linear(FEATURES, CLASSES), *rows, seed=seed, passes=1 + seed % 2, name=f"head {seed}"))
    return made


@pytest.mark.parametrize("experiment", [ADAM, SGD], ids=["adam", "sgd"])
@pytest.mark.parametrize("patience", [None, 1])
def test_each_head_is_trained_as_it_would_be_alone(sets, compute, experiment, patience):
    experiment = dataclasses.replace(experiment, lr=0.05)
    study = dataclasses.replace(SETTINGS.current, batch_size=32, n_epochs=6, patience=patience)
    ours = heads()
    found = dict(fit(ours, *sets, experiment=experiment, study=study, compute=compute))
    assert sorted(found) == list(range(len(SIZES)))
    lengths = set()
    for at, head in enumerate(heads()):
        training, validation = sets[0].subset(head.training), sets[1].subset(head.validation)
        states, epochs = [], []
        for n_epochs in range(1, 7):
            layer = copy.deepcopy(head.layer)
            epochs = trained(layer, training, validation, experiment=experiment, n_epochs=n_epochs, batch_size=32,
                             seed=head.seed, passes=head.passes, compute=compute)  # fmt: skip
            states.append(layer.state_dict())
            if convergence.stops_early([epoch.validation_loss for epoch in epochs], patience):
                break
        lengths.add(len(epochs))
        assert len(found[at]) == len(epochs)
        for one, other in zip(found[at], epochs, strict=True):
            expected = {**vars(other), "seconds": one.seconds}
            assert vars(one) == pytest.approx(expected, rel=1e-4)
        kept = states[convergence.kept([epoch.validation_loss for epoch in epochs], patience) - 1]
        for key, tensor in ours[at].layer.state_dict().items():
            torch.testing.assert_close(tensor, kept[key], rtol=1e-4, atol=1e-5)
    assert len(lengths) > 1 or patience is None  # so some heads have gone on without others


def test_without_validation_images_the_last_epoch_is_kept(sets, compute):
    study = dataclasses.replace(SETTINGS.current, batch_size=32, n_epochs=2)
    [head, *_] = heads()
    alone = copy.deepcopy(head.layer)
    head = dataclasses.replace(head, validation=head.validation[:0])
    [(at, epochs)] = fit([head], *sets, experiment=ADAM, study=study, compute=compute)
    assert (at, [epoch.validation_loss for epoch in epochs]) == (0, [None, None])
    trained(alone, sets[0].subset(head.training), sets[1].subset(head.validation), experiment=ADAM, n_epochs=2,
            batch_size=32, seed=head.seed, passes=head.passes, compute=compute)  # fmt: skip
    torch.testing.assert_close(head.layer.weight, alone.weight, rtol=1e-4, atol=1e-6)


def test_a_loss_that_is_not_finite_names_the_head(sets, compute):
    study = dataclasses.replace(SETTINGS.current, batch_size=32, n_epochs=2)
    ours = heads()
    torch.nn.init.constant_(ours[2].layer.weight, torch.nan)
    with pytest.raises(UserError, match=r"^head 2: the loss is not finite in epoch 1: lower its lr$"):
        list(fit(ours, *sets, experiment=ADAM, study=study, compute=compute))


def test_no_heads(sets, compute):
    assert list(fit([], *sets, experiment=ADAM, study=SETTINGS.current, compute=compute)) == []
