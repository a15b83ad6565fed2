"""Estimate how long the stages of a study of your own images take on this machine.

The network of `make pictures` is timed here at two image sizes; its time per image is linear in the number of pixels.
The other constants were measured on two CPU cores.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from headstart import files
from headstart.params import Configuration

if TYPE_CHECKING:
    from headstart.training.compute import Compute

TIMED_SIZES = (64, 160)  # pixels
N_TIMED = 32  # images
N_CLASSES = 10  # of the timed network; more classes hardly take more time
START_SECONDS = 4.0  # of a stage: the process and DVC's work for it
# Measured time of the stage `features` over that of the timed batches: the first batches of a process are slower.
FEATURES_FACTOR = 1.3
COMPARE_SECONDS = 8.0  # figures and page
FIT_SECONDS = 6e-8  # of a linear probe, per image, feature and class
N_FEATURES = 1_280  # of the network
FITS_PER_PROBE = 5  # candidates for C, and the final fit
FITS_PER_AUDIT = 10
FITS_PER_NETWORK = 20  # cross-validation: candidates for C in five folds, and the final fit
N_INFERENCE = 8  # images of a timed network on a CPU
NETWORK_START_SECONDS = 8.0  # of the stage `probe_network`: its process, its weights and the cost of the network
BATCH_NORM_IMAGES = 1_024  # with which the statistics of random networks are estimated
FROZEN_SECONDS = 4e-5  # of a frozen training, per image and epoch


# The stages that give a first result, and those that they need.
FIRST_STAGES = (
    "download", "prepare", "initialize@pretrained", "features@pretrained", "probe@pretrained", "audit",
)  # fmt: skip


class LinearTime(NamedTuple):
    """Seconds per image as a linear function of the number of pixels."""

    constant: float
    per_pixel: float

    def seconds(self, image_size: int) -> float:
        return self.constant + self.per_pixel * image_size**2


class Speed(NamedTuple):
    """Seconds per image on this machine."""

    features: LinearTime  # of the whole network, forward
    step: LinearTime  # of an optimizer step of the fine-tuned layers
    predict: LinearTime  # of the fine-tuned layers, forward
    decode: float  # of reading a file
    batch_size: int = 1  # of inference; the last batch of each split is padded


def measure(decode: float) -> Speed:
    """Time the network of `make pictures`, for some seconds.

    Args:
        decode: seconds to read a file.
    """
    from headstart.training import compute

    device = compute.configure()
    rows = [_time_network(size, device) for size in TIMED_SIZES]
    features, step, predict = (_line([row[index] for row in rows]) for index in range(3))
    return Speed(features, step, predict, decode, device.inference_batch_size)


def _time_network(size: int, device: Compute) -> list[float]:
    """Return the seconds per image of the network, of a step of its fine-tuned layers, and of their prediction."""
    import torch
    import torch.nn.functional as F

    from headstart.network import models, splitting
    from headstart.training import convolutions

    network = models.build(models.LITE0_MODEL, N_CLASSES, size)
    backbone, head = (
        part.to(device.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        for part in splitting.split_backbone_head(network, splitting.AUTO)
    )
    trained = copy.deepcopy(head).train()
    if device.device.type == "cpu":
        convolutions.use_matmul(trained)
    images = torch.randn(N_TIMED, 3, size, size, device=device.device).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(N_TIMED, device=device.device) % N_CLASSES
    with device.autocast():
        activations = _forward(backbone, images)

        def step() -> None:
            F.cross_entropy(trained(activations), labels).backward()

        functions = (lambda: _forward(head, _forward(backbone, images)), step, lambda: _forward(head, activations))
        return [_seconds(function) / N_TIMED for function in functions]


def measure_inference(network: Any, image_size: int) -> float:
    """Return the seconds per image of a forward pass of ``network`` on this machine."""
    import torch

    from headstart.training import compute

    device = compute.configure()
    network.to(device.device, memory_format=torch.channels_last)
    n_images = N_INFERENCE if device.device.type == "cpu" else device.inference_batch_size  # a GPU needs many
    images = torch.randn(n_images, 3, image_size, image_size, device=device.device)
    images = images.contiguous(memory_format=torch.channels_last)
    with device.autocast():
        return _seconds(lambda: _forward(network, images), repeats=2) / n_images


def network_seconds(study: Mapping[str, Any], counts: Counts, seconds: float, n_features: int) -> float:
    """Return the seconds of the stage `probe_network` for a network with ``seconds`` per image."""
    fit = FIT_SECONDS * (counts.training + counts.validation) * n_features * counts.classes
    budgets = 2 if study["probe_budgets"] else 1  # each label budget is half of the next one
    budgets += (len(study["seeds"]) - 1) * (budgets - 1)  # seeds share the images of the largest one
    return NETWORK_START_SECONDS + FEATURES_FACTOR * counts.total * seconds + budgets * FITS_PER_NETWORK * fit


def _forward(module: Any, inputs: Any) -> Any:
    import torch

    with torch.no_grad():
        return module(inputs)


def _seconds(function: Callable[[], None], repeats: int = 3) -> float:
    """Return the shortest of several times of ``function``, after one that is not counted."""
    import torch

    times = []
    for _ in range(1 + repeats):
        started = time.perf_counter()
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return min(times[1:])


def _line(seconds: Sequence[float]) -> LinearTime:
    pixels = [size**2 for size in TIMED_SIZES]
    slope = max((seconds[1] - seconds[0]) / (pixels[1] - pixels[0]), 0.0)
    return LinearTime(max(seconds[0] - slope * pixels[0], 0.0), slope)


class Counts(NamedTuple):
    """The size of a dataset."""

    training: int
    validation: int
    test: int
    classes: int

    @property
    def total(self) -> int:
        return self.training + self.validation + self.test


def stage_seconds(
    study: Mapping[str, Any], configurations: Mapping[str, Configuration], counts: Counts, speed: Speed
) -> dict[str, float]:
    """Return the seconds of each stage of dvc.yaml.

    Args:
        study: its section in params.yaml.
        counts: of the images in each split.
    """
    from headstart.results.audit import MAX_LOGISTIC  # imports slowly

    size, n_seeds, n_epochs = study["image_size"], len(study["seeds"]), study["n_epochs"]
    n_labels = counts.training + counts.validation
    fit = FIT_SECONDS * n_labels * N_FEATURES * counts.classes
    # Each label budget is half of the next one, so all of them together have less than twice the images of the largest.
    probe = 2 * FITS_PER_PROBE * fit * n_seeds if study["probe_budgets"] else 0.0
    padded = [-(-n // speed.batch_size) * speed.batch_size for n in (counts.training, counts.validation, counts.test)]
    features = FEATURES_FACTOR * sum(padded) * speed.features.seconds(size)
    frozen = n_seeds * n_epochs * counts.training * FROZEN_SECONDS
    passes = n_epochs * padded[1] + padded[2]
    finetuned = n_seeds * (n_epochs * counts.training * speed.step.seconds(size) + passes * speed.predict.seconds(size))
    work = {
        "download": 0.0,
        "prepare": counts.total * speed.decode,
        "initialize@pretrained": 0.0,
        "initialize@random": n_seeds * min(counts.training, BATCH_NORM_IMAGES) * speed.features.seconds(size),
        "features@pretrained": features,
        "features@random": features * n_seeds,
        "probe@pretrained": probe,
        "probe@random": probe,
        "probe_pixels": probe,
        "audit": FITS_PER_AUDIT * min(fit, FIT_SECONDS * MAX_LOGISTIC),
        **{f"train@{name}": finetuned if value.finetuning else frozen for name, value in configurations.items()},
        **{f"evaluate@{name}": 0.0 for name in configurations},
        "compare": COMPARE_SECONDS,
    }
    return {name: START_SECONDS + seconds for name, seconds in work.items()}


def path(study: str, command: str = "estimate") -> Path:
    """Return the file with the estimate of a study, or of its comparison of `networks`."""
    return Path(f"runs/{study}/{command}/seconds.json")


def read(study: str, command: str = "estimate") -> dict[str, float]:
    """Return the estimated seconds of each stage; empty if there is no estimate."""
    file = path(study, command)
    return files.read_json(file) if file.is_file() else {}


def in_words(seconds: float) -> str:
    """Return a duration in whole minutes, or in tens of seconds below one minute."""
    if seconds < 55:
        return f"{max(10, round(seconds / 10) * 10)} s"
    return f"{round(seconds / 60):,} min"
