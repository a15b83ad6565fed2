"""Fit linear probes to the features of one start, with every number of labels that probe_budgets names, and with all."""

import sys
from itertools import product
from pathlib import Path

import numpy as np

from headstart import files, probes
from headstart.console import progress, run_cli
from headstart.data import splits
from headstart.params import Params
from headstart.probes import Examples
from pipeline.provenance import Run
from stages.label_subsets import label_subsets
from stages.paths import features_file, prepared_file, probes_file

COLUMNS = ["label_budget", "seed", "C"]


def main(pretrained: str, study: str = "") -> None:
    record = Run(f"probe@{'pretrained' if pretrained == 'true' else 'random'}", study)
    settings = record.settings
    found = _fit(settings, pretrained == "true") if settings.selected_study.probe_budgets else {}
    path = probes_file(settings, pretrained == "true")
    with files.atomic_write(path.parent) as folder:
        rows = [[n, seed, probe.C] for (n, seed), probe in found.items()]
        files.write_csv(folder / "selected_c.csv", COLUMNS, rows)
        predictions = [
            [found[n, seed].predictions for seed in settings.selected_study.seeds]
            for n in settings.selected_study.all_probe_budgets
        ]
        files.write_arrays(folder / path.name, {"predictions": np.array(predictions, dtype=np.int64)})
    record.finish()


def _fit(settings: Params, pretrained: bool) -> dict[tuple[int, int], probes.FittedProbe]:
    """The probe of each number of labels and seed."""
    study, prepared = settings.selected_study, prepared_file(settings)
    chosen = label_subsets(settings, study.all_probe_budgets)
    labels = {split: splits.read_labels(prepared, split)[0] for split in splits.SPLITS}
    n_classes = len(splits.read_metadata(prepared).classes)
    found: dict[tuple[int, int], probes.FittedProbe] = {}
    features: dict[str, np.ndarray] = {}
    source: Path | None = None
    with progress(len(study.seeds) * len(study.all_probe_budgets), "probes", unit=" probes") as bar:
        for seed, n in product(study.seeds, study.all_probe_budgets):
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
    run_cli(main, *sys.argv[1:])
