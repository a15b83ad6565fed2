"""A new metric, dataset, stage, schedule or augmentation is one entry of its registry, as CONTRIBUTING.md says."""

import dataclasses
import shutil
from typing import get_args

import numpy as np
import pytest
import torch
import torchvision.datasets
import yaml
from PIL import Image
from torchvision.transforms import v2

from headstart import params
from headstart.data import registry, torchvision_sets
from headstart.data.torchvision_sets import DatasetSpec
from headstart.results import evaluation
from headstart.training import augmentation, schedules
from pipeline.dvc_yaml import stages

from .conftest import ROOT


def test_a_metric_is_an_entry_of_summary(monkeypatch):
    def second_guess(*, logits: np.ndarray, labels: np.ndarray) -> float:
        return float((logits.argsort(1)[:, -2] == labels).mean())

    monkeypatch.setitem(evaluation.SUMMARY, "second_guess", second_guess)
    logits = np.array([[[3.0, 2.0, 1.0], [1.0, 3.0, 2.0]]])  # one seed, two images, three classes
    assert evaluation.summary(logits=logits, labels=np.array([1, 1]))["second_guess"] == 0.5


class Toy:
    """A dataset with the interface of torchvision's: four red and green images."""

    classes = ("red", "green")

    def __init__(self, root: str, *, download: bool, split: str) -> None:
        self.targets = [0, 1, 0, 1]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.new("RGB", (40, 50), self.classes[self.targets[index]]), self.targets[index]


def test_a_dataset_of_torchvision_is_an_entry_of_sets(tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision.datasets, "Toy", Toy, raising=False)
    monkeypatch.setitem(torchvision_sets.SETS, "toy", DatasetSpec("Toy", "Toy", archives=()))
    assert "toy" in registry.names()
    dataset = registry.load("toy", tmp_path, tmp_path, image_size=32, skip_unusable=False)
    assert (dataset.title, dataset.classes) == ("Toy", ("red", "green"))
    images = dataset.training.read(np.array([0, 1]))
    assert images.shape == (2, 3, 32, 32)
    assert images[:, :, 0, 0].tolist() == [[255, 0, 0], [0, 128, 0]]


def test_a_schedule_and_an_augmentation_are_entries_of_their_registries(monkeypatch):
    """params.py also has their names; a test below compares the two."""
    monkeypatch.setitem(schedules.SCHEDULES, "halves", lambda step, n_steps: 0.5 ** (4 * step // n_steps))
    configuration = dataclasses.replace(params.read(ROOT / "params.yaml").configurations["random-frozen-adam"], lr=1.0)
    vars(configuration)["schedule"] = "halves"
    rates = [schedules.learning_rate(configuration, step, n_steps=8) for step in range(8)]
    assert rates == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125]
    monkeypatch.setitem(augmentation.AUGMENTATIONS, "upside-down", lambda side: v2.RandomVerticalFlip(p=1))
    images = torch.arange(2 * 9, dtype=torch.uint8).view(2, 3, 3)
    flipped = augmentation.augment("upside-down", images, range(2), seed=0, number=1)
    assert torch.equal(flipped, images.flip(1))


def test_params_has_the_names_of_both_registries():
    assert set(get_args(params.Schedule)) == set(schedules.SCHEDULES)
    assert set(get_args(params.Augmentation)) == {"none", *augmentation.AUGMENTATIONS}


@pytest.mark.parametrize("each", [False, True])
def test_a_stage_is_a_section_of_dvc_yaml(tmp_path, monkeypatch, each):
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "dvc.yaml", "dvc.yaml")
    document = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    toy = {
        "cmd": "python -m stages.toy ${study}",
        "deps": ["models/${study}", "stages/toy.py"],
        "outs": ["toy/${study}"],
    }
    document["stages"]["toy"] = {"foreach": {"a": {}}, "do": toy} if each else toy
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    document_of_params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    names = [stage.name for stage in stages(document_of_params)]
    [stage] = [stage for stage in stages(document_of_params) if stage.module == "stages.toy"]
    assert (stage.name, stage.arguments, stage.outs) == ("toy@a" if each else "toy", ("quick",), ("toy/quick",))
    assert names.index(stage.name) > max(i for i, name in enumerate(names) if name.startswith("train@"))
