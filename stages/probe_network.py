"""Compute the features of all images with one pretrained network, and fit linear probes on them."""

import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headstart import files, probes
from headstart.console import progress, run_cli
from headstart.data import splits
from headstart.data.label_subsets import LabelSubset, label_subsets
from headstart.data.splits import SPLITS
from headstart.network import cost, initial_weights, splitting
from headstart.network.saved_model import SavedModel
from headstart.params import Study
from headstart.probes import CrossValidatedProbe, Examples
from headstart.training import compute
from headstart.training.compute import Compute
from headstart.training.inference import extract_features
from pipeline.provenance import Run
from stages.paths import network_file, network_probes_file, prepared_file

Features = dict[str, np.ndarray]  # by split, float32 [N, features]


def main(name: str, study_name: str = "") -> None:
    run, device = Run(f"probe_network@{name}", study_name), compute.configure()
    settings, study = run.settings, run.settings.network_study(name)
    prepared = prepared_file(settings)
    images = {split: torch.from_numpy(splits.read_split(prepared, split).images) for split in SPLITS}
    initial = initial_weights.build_initial_model(
        study, seed=0, images=None, classes=splits.read_metadata(prepared).classes,
        prepared_size=images["test"].shape[-1],
    )  # fmt: skip
    features, seconds = _extract(images, initial, device)
    budgets = (*study.probe_budgets, study.full_budget)
    fitted = _fit(prepared, study, features, budgets)
    content = {
        "model_name": study.model_name,
        "weights": initial.weights,
        "weights_sha256": initial.sha256,
        "license": initial_weights.resolve_weights(study.model_name, study.weights, study.image_size).license,
        **dataclasses.asdict(cost.measure(study.model_name, study.image_size)),
        "features": features["test"].shape[1],
        "precision": device.precision,
        "label_budgets": budgets,
        "seeds": study.seeds,
        "C": _by_budget_and_seed(fitted, lambda probe: probe.C),
        "cross_validated_accuracy": _by_budget_and_seed(fitted, lambda probe: round(probe.accuracy, 4)),
    }
    predictions = _by_budget_and_seed(fitted, lambda probe: probe.predictions)
    with files.atomic_write(network_file(settings, name).parent) as folder:
        files.write_json(folder / network_file(settings, name).name, content)
        files.write_arrays(folder / network_probes_file(settings, name).name, {"predictions": np.array(predictions)})
    run.finish(**device.describe(), **device.peak_memory(), milliseconds_per_image=round(1_000 * seconds, 3))


def _extract(images: dict[str, torch.Tensor], initial: SavedModel, device: Compute) -> tuple[Features, float]:
    """Return the features of the images of each split, and the seconds per image of the fastest batch.

    A batch starts when it is preprocessed; the features of the one before are then in RAM.
    """
    backbone, _ = splitting.split_backbone_head(initial.build(), initial.classifier)
    features: Features = {}
    seconds: list[float] = []
    starts: list[float] = []  # of the batches of a split

    def prepare(batch: torch.Tensor) -> torch.Tensor:
        starts.append(time.perf_counter())
        return initial.preprocess(batch)

    for split, values in images.items():
        [rows] = extract_features(
            values, (backbone,), compute=device, prepare=prepare, label=f"features of {split} images"
        )
        features[split] = rows.float().numpy()  # NumPy has no bfloat16
        if len(values):
            seconds += np.diff([*starts, time.perf_counter()]).tolist()
        starts.clear()
    return features, min(seconds) / device.inference_batch_size


def _fit(
    prepared: Path, study: Study, features: Features, budgets: tuple[int, ...]
) -> dict[tuple[int, int], CrossValidatedProbe]:
    """Return the probe of each label budget and seed."""
    subsets = label_subsets(prepared, study, budgets)
    labels = {split: splits.read_labels(prepared, split)[0] for split in SPLITS}
    n_classes = len(splits.read_metadata(prepared).classes)
    fitted: dict[tuple[int, int], CrossValidatedProbe] = {}
    by_images: dict[bytes, CrossValidatedProbe] = {}
    with progress(len(subsets), "probes", unit=" probes") as bar:
        for (seed, budget), subset in subsets.items():
            subset = LabelSubset(*map(np.sort, subset))  # seeds may have the same images in another order
            key = b"".join(indices.tobytes() for indices in subset)
            if key not in by_images:
                by_images[key] = probes.fit_cross_validated(
                    _select(features, labels, subset), features["test"], n_classes=n_classes
                )
            fitted[budget, seed] = by_images[key]
            bar.update()
    return fitted


def _select(features: Features, labels: dict[str, np.ndarray], subset: LabelSubset) -> Examples:
    """Return the features and labels of ``subset``: of its training images, then of its validation images."""
    indices = {"training": subset.training, "validation": subset.validation}
    return Examples(
        *(np.concatenate([rows[split][indices[split]] for split in indices]) for rows in (features, labels))
    )


def _by_budget_and_seed(
    fitted: dict[tuple[int, int], CrossValidatedProbe], value: Callable[[CrossValidatedProbe], Any]
) -> list[list[Any]]:
    """Return a value of each probe, [budgets, seeds]."""
    budgets, seeds = (list(dict.fromkeys(keys)) for keys in zip(*fitted, strict=True))
    return [[value(fitted[budget, seed]) for seed in seeds] for budget in budgets]


if __name__ == "__main__":
    run_cli(main, *sys.argv[1:])
