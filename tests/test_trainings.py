"""A training that resumes from a checkpoint ends like an uninterrupted one."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from headstart import params
from headstart.network import models
from headstart.network.saved_model import SavedModel
from headstart.params import Configuration
from headstart.training import loading, trainings
from headstart.training.checkpoints import Checkpoint
from headstart.training.inputs import CachedInputs, Examples
from headstart.training.loop import EpochMetrics
from headstart.training.trainings import Training

from .conftest import ROOT

SPLITS = {"training": slice(0, 32), "validation": slice(32, 40), "test": slice(32, 40)}
STUDY = {"model_name": "mobilenet_v3_small", "finetune_from": "auto", "image_size": 64, "training_images": 32,
         "validation_images": 8, "batch_size": 16, "n_epochs": 4, "probe_budgets": ()}  # fmt: skip


class Killed(BaseException):
    """An error that nothing catches."""


@pytest.fixture
def training(tmp_path, monkeypatch, compute) -> Callable[..., Training]:
    """Return a function that makes the same training each time, of a network with dropout."""
    study = params.Study(**{**vars(params.read(ROOT / "params.yaml").studies["quick"]), **STUDY})
    torch.manual_seed(1)
    model = models.build(study.model_name, 3, 64)
    initial = SavedModel(
        state=model.state_dict(), model_name=study.model_name, prepared_size=64, image_size=64, mean=(0.0,) * 3,
        std=(1.0,) * 3, interpolation="bilinear", classes=("a", "b", "c"), weights="", sha256="",
        classifier=models.classifier_name(model),
    )  # fmt: skip
    images, labels = torch.randint(0, 255, (40, 64, 64), dtype=torch.uint8), torch.arange(40) % 3
    monkeypatch.setattr(trainings, "CHECKPOINT_COST_RATIO", -1)  # a checkpoint after each epoch

    def make(layer: str | None, **recipe: Any) -> Training:
        configuration = Configuration(
            pretrained=True, finetuning=True, optimizer="Adam", lr=0.001, finetune_from=layer, **recipe
        )
        _, backbone, head, _ = loading.split_for_training(configuration, study, initial)
        with torch.no_grad():
            features = backbone.eval()(initial.preprocess(images))

        def examples(data: loading.TrainingData, split: str, reuse: bool = True) -> Examples:
            rows = SPLITS[split]
            return Examples(CachedInputs.from_tensor(features[rows], compute), labels[rows])

        monkeypatch.setattr(loading.TrainingData, "_read", examples)
        monkeypatch.setattr(loading.TrainingData, "_compute", examples)
        monkeypatch.setattr(
            loading.splits,
            "read_split",
            lambda path, split: (images[SPLITS[split]].numpy(), labels[SPLITS[split]].numpy(), ("a", "b", "c")),
        )
        paths = loading.InputFiles(Path(), Path(), Path())
        data = loading.TrainingData(configuration, study, initial, backbone, paths, compute)
        checkpoint = Checkpoint(tmp_path / f"{layer}.safetensors", "fingerprint")
        return Training(name="t", budget=40, head=head, data=data, configuration=configuration, study=study, seed=0,
                        n_classes=3, checkpoint=checkpoint)  # fmt: skip

    return make


def metrics(epochs: list[EpochMetrics]) -> list[tuple[float | None, ...]]:
    return [(epoch.train_loss, epoch.train_accuracy, epoch.validation_loss) for epoch in epochs]


@pytest.mark.parametrize(
    ("layer", "recipe"),
    [
        (None, {}),
        ("features.8", {}),
        (None, {"augmentation": "crop-flip", "schedule": "cosine", "warmup_epochs": 1}),
        (None, {"augmentation": "trivial", "schedule": "one-cycle", "class_weights": "balanced"}),
    ],
)
def test_a_resumed_training_ends_with_the_same_weights(training, monkeypatch, compute, layer, recipe):
    """If a configuration has a layer and the study has auto, loading the inputs builds a network, which draws some."""
    make = partial(training, layer, **recipe)
    uninterrupted = make()
    expected = metrics(uninterrupted.run(compute))
    uninterrupted.checkpoint.path.unlink()
    save, saved = Checkpoint.save, []

    def save_and_die(self, *arguments) -> None:
        save(self, *arguments)
        saved.append(self)
        if len(saved) == 2:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", save_and_die)
        with pytest.raises(Killed):
            make().run(compute)
    torch.manual_seed(99)  # as in another process
    resumed = make()
    assert metrics(resumed.run(compute)) == expected
    weights = resumed.head.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in uninterrupted.head.state_dict().items())
