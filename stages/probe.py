"""Fit linear probes to the features of one start, with every number of labels that probe_counts names, and with all."""

import sys
from itertools import product
from pathlib import Path

import numpy as np

from headstart import files, probes
from headstart.console import progress, run
from headstart.data import splits
from headstart.params import Params
from headstart.probes import Examples
from stages.labelled import labelled
from stages.paths import features_file, prepared_file, probes_file
from stages.provenance import Run

COLUMNS = ["labels", "seed", "strength"]


def main(pretrained: str, study: str = "") -> None:
    record = Run(f"probe@{'pretrained' if pretrained == 'true' else 'random'}", study)
    settings = record.settings
    found = _fit(settings, pretrained == "true") if settings.current.probe_counts else {}
    path = probes_file(settings, pretrained == "true")
    with files.replacing(path.parent) as folder:
        rows = [[n, seed, probe.strength] for (n, seed), probe in found.items()]
        files.write_csv(folder / "choices.csv", COLUMNS, rows)
        predictions = [[found[n, seed].predictions for seed in settings.current.seeds] for n in settings.current.probed]
        files.write_arrays(folder / path.name, {"predictions": np.array(predictions, dtype=np.int64)})
    record.finish()


def _fit(settings: Params, pretrained: bool) -> dict[tuple[int, int], probes.Probe]:
    """The probe of each number of labels and seed."""
    study, prepared = settings.current, prepared_file(settings)
    chosen = labelled(settings, study.probed)
    labels = {split: splits.read_labels(prepared, split)[0] for split in splits.SPLITS}
    n_classes = len(splits.read_description(prepared).classes)
    found: dict[tuple[int, int], probes.Probe] = {}
    features: dict[str, np.ndarray] = {}
    source: Path | None = None
    with progress(len(study.seeds) * len(study.probed), "probes", unit=" probes") as bar:
        for seed, n in product(study.seeds, study.probed):
            if (path := features_file(settings, pretrained, seed)) != source:  # pretrained, all seeds share them
                stored = {split: f"{split}_features" for split in splits.SPLITS}
                tensors = files.read_tensors(path, *stored.values()).tensors  # NumPy has no bfloat16
                features, source = {split: tensors[key].float().numpy() for split, key in stored.items()}, path
            training, validation = (
                Examples(features[split][rows], labels[split][rows])
                for split, rows in zip(("training", "validation"), chosen[seed, n], strict=True)
            )
            found[n, seed] = probes.fit(training, validation, features["test"], n_classes=n_classes)
            bar.update()
    return found


if __name__ == "__main__":
    run(main, *sys.argv[1:])
