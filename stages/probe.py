"""Fit linear probes on the features of one initialization, for each label budget and on all labels."""

import sys
from itertools import product
from pathlib import Path

import numpy as np

from headstart import files, probes
from headstart.console import progress, run_cli
from headstart.data import splits
from headstart.data.label_subsets import label_subsets
from headstart.params import Params
from headstart.probes import Examples
from pipeline.provenance import Run
from stages.paths import features_file, prepared_file, probes_file

COLUMNS = ["label_budget", "seed", "C"]


def main(pretrained: str, study: str = "") -> None:
    run = Run(f"probe@{'pretrained' if pretrained == 'true' else 'random'}", study)
    settings, path = run.settings, probes_file(run.settings, pretrained == "true")
    seeds, budgets = settings.selected_study.seeds, settings.selected_study.all_probe_budgets
    fitted = _fit(settings, pretrained == "true") if budgets else {}
    with files.atomic_write(path.parent) as folder:
        rows = [[budget, seed, probe.C] for (budget, seed), probe in fitted.items()]
        files.write_csv(folder / "selected_c.csv", COLUMNS, rows)
        predictions = [[fitted[budget, seed].predictions for seed in seeds] for budget in budgets]
        files.write_arrays(folder / path.name, {"predictions": np.array(predictions, dtype=np.int64)})
    run.finish()


def _fit(settings: Params, pretrained: bool) -> dict[tuple[int, int], probes.FittedProbe]:
    """Return the probe of each label budget and seed."""
    study, prepared = settings.selected_study, prepared_file(settings)
    subsets = label_subsets(prepared, study, study.all_probe_budgets)
    labels = {split: splits.read_labels(prepared, split)[0] for split in splits.SPLITS}
    n_classes = len(splits.read_metadata(prepared).classes)
    fitted: dict[tuple[int, int], probes.FittedProbe] = {}
    features: dict[str, np.ndarray] = {}
    loaded: Path | None = None
    with progress(len(subsets), "probes", unit=" probes") as bar:
        for seed, budget in product(study.seeds, study.all_probe_budgets):
            if (path := features_file(settings, pretrained, seed)) != loaded:  # pretrained: all seeds share it
                keys = {split: f"{split}_features" for split in splits.SPLITS}
                tensors = files.read_tensors(path, *keys.values()).tensors  # NumPy has no bfloat16
                features, loaded = {split: tensors[key].float().numpy() for split, key in keys.items()}, path
            training, validation = (
                Examples(features[split][indices], labels[split][indices])
                for split, indices in zip(("training", "validation"), subsets[seed, budget], strict=True)
            )
            fitted[budget, seed] = probes.fit(training, validation, features["test"], n_classes=n_classes)
            bar.update()
    return fitted


if __name__ == "__main__":
    run_cli(main, *sys.argv[1:])
