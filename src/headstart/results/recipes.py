"""Training recipes for the report: a table, learning rates over the epochs, and augmented images."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from headstart.params import Configuration
from headstart.results.label_efficiency import Table
from headstart.training.augmentation import augment
from headstart.training.schedules import learning_rate

POINTS_PER_EPOCH = 50  # of a learning-rate curve
N_IMAGES = 8  # augmented images in a row
PASSES = (1, 2, 3)  # over the training images, one row each
COLUMNS = {  # of the table: title and key
    "schedule": "schedule",
    "warm-up epochs": "warmup_epochs",
    "label smoothing": "label_smoothing",
    "class weights": "class_weights",
    "augmentation": "augmentation",
}
DEFAULT = Configuration(pretrained=True, finetuning=True, optimizer="Adam", lr=1.0)


def table(configurations: Mapping[str, Configuration]) -> Table:
    """Return the recipe of each configuration, one row each; empty if all of them have the default recipe."""
    columns = {title: key for title, key in COLUMNS.items()
               if any(getattr(value, key) != getattr(DEFAULT, key) for value in configurations.values())}  # fmt: skip
    if not columns and not any(configuration.options for configuration in configurations.values()):
        return []
    rows: Table = [["configuration", "optimizer", "learning rate", "options", *columns]]
    for name, configuration in configurations.items():
        options = ", ".join(f"{key} {value}" for key, value in configuration.optimizer_options.items())
        values = [getattr(configuration, key) for key in columns.values()]
        rows.append([name, configuration.optimizer, f"{configuration.lr:g}", options or "–", *values])
    return rows


def learning_rates(
    configurations: Mapping[str, Configuration], n_epochs: int
) -> dict[str, tuple[Sequence[float], Sequence[float]]]:
    """Return epochs and learning rates of each configuration; empty if all learning rates are constant."""
    if not any(configuration.has_schedule for configuration in configurations.values()):
        return {}
    n_steps = n_epochs * POINTS_PER_EPOCH
    epochs = [step / POINTS_PER_EPOCH for step in range(n_steps)]
    return {
        name: (epochs, [learning_rate(configuration, step, n_steps=n_steps,
                                      warmup_steps=configuration.warmup_epochs * POINTS_PER_EPOCH)
                        for step in range(n_steps)])
        for name, configuration in configurations.items()
    }  # fmt: skip


def augmented_images(
    configurations: Mapping[str, Configuration], images: np.ndarray, seed: int
) -> dict[str, np.ndarray]:
    """Return the first training images and what becomes of them in the first passes, by name of the augmentation.

    Args:
        images: of the training split, uint8 [N, height, width] or [N, 3, height, width].

    Returns:
        uint8 [1 + passes, images, height, width] or [1 + passes, images, height, width, 3]; the first row has the
        images without augmentation.
    """
    sample = torch.from_numpy(images[:N_IMAGES])
    names = dict.fromkeys(configuration.augmentation for configuration in configurations.values())
    rows = {
        name: torch.stack([sample, *(augment(name, sample, range(len(sample)), seed=seed, number=number)
                                     for number in PASSES)])
        for name in names if name != "none"
    }  # fmt: skip
    return {name: (row.movedim(2, -1) if row.dim() == 5 else row).numpy() for name, row in rows.items()}
