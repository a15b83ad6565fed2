"""Fit linear probes on features or on pixels, for each label budget and on all labels."""

import sys
from itertools import product

import numpy as np

from headstart import files, probes
from headstart.console import progress, run_cli
from headstart.data import splits
from headstart.data.label_subsets import label_subsets
from headstart.params import Params
from headstart.probes import Examples
from pipeline.provenance import Run
from stages.paths import features_file, prepared_file, probes_file, probes_stage

COLUMNS = ["label_budget", "seed", "C"]


def main(inputs: str, study: str = "") -> None:
    run = Run(probes_stage(inputs), study)
    settings, path = run.settings, probes_file(run.settings, inputs)
    seeds, budgets = settings.selected_study.seeds, settings.selected_study.all_probe_budgets
    fitted = _fit(settings, inputs) if budgets else {}
    with files.atomic_write(path.parent) as folder:
        rows = [[budget, seed, probe.C] for (budget, seed), probe in fitted.items()]
        files.write_csv(folder / "selected_c.csv", COLUMNS, rows)
        predictions = [[fitted[budget, seed].predictions for seed in seeds] for budget in budgets]
        files.write_arrays(folder / path.name, {"predictions": np.array(predictions, dtype=np.int64)})
    run.finish()


def _fit(settings: Params, inputs: str) -> dict[tuple[int, int], probes.FittedProbe]:
    """Return the probe of each label budget and seed."""
    study, prepared = settings.selected_study, prepared_file(settings)
    subsets = label_subsets(prepared, study, study.all_probe_budgets)
    labels = {split: splits.read_labels(prepared, split)[0] for split in splits.SPLITS}
    n_classes = len(splits.read_metadata(prepared).classes)
    fitted: dict[tuple[int, int], probes.FittedProbe] = {}
    loaded: str | None = None
    with progress(len(subsets), f"probes of {inputs}", unit=" probes") as bar:
        for seed, budget in product(study.seeds, study.all_probe_budgets):
            path = prepared if inputs == "pixels" else features_file(settings, inputs == "pretrained", seed)
            if str(path) != loaded:  # seeds share pixels and pretrained features
                rows, loaded = {split: _read(settings, inputs, split, seed) for split in splits.SPLITS}, str(path)
            training, validation = (
                Examples(rows[split][indices], labels[split][indices])
                for split, indices in zip(("training", "validation"), subsets[seed, budget], strict=True)
            )
            fitted[budget, seed] = probes.fit(training, validation, rows["test"], n_classes=n_classes)
            bar.update()
    return fitted


def _read(settings: Params, inputs: str, split: str, seed: int) -> np.ndarray:
    """Return what the probes are fitted on for the images of ``split``: float32 [N, features]."""
    if inputs == "pixels":
        return probes.pixels(splits.read_split(prepared_file(settings), split).images)
    key = f"{split}_features"
    tensors = files.read_tensors(features_file(settings, inputs == "pretrained", seed), key).tensors
    return tensors[key].float().numpy()  # NumPy has no bfloat16


if __name__ == "__main__":
    run_cli(main, *sys.argv[1:])
