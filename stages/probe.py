"""Fit linear probes on features or on pixels, for each label budget and on all labels."""

import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import groupby, product
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from headstart import files, probes
from headstart.console import progress, run_cli
from headstart.data import splits
from headstart.data.label_subsets import label_subsets
from headstart.params import Params
from headstart.probes import Examples, FittedProbe
from pipeline.provenance import Run
from stages.paths import features_file, prepared_file, probes_file, probes_stage

COLUMNS = ["label_budget", "seed", "C"]
MAX_PARALLEL = 4  # probes; each has its own copy of the features in float64


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


def _fit(settings: Params, inputs: str) -> dict[tuple[int, int], FittedProbe]:
    """Return the probe of each label budget and seed."""
    study, prepared = settings.selected_study, prepared_file(settings)
    subsets = label_subsets(prepared, study, study.all_probe_budgets)
    labels = {split: splits.read_labels(prepared, split)[0] for split in splits.SPLITS}
    n_classes = len(splits.read_metadata(prepared).classes)

    def fit(rows: dict[str, np.ndarray], key: tuple[int, int]) -> FittedProbe:
        training, validation = (
            Examples(rows[split][indices], labels[split][indices])
            for split, indices in zip(("training", "validation"), subsets[key], strict=True)
        )
        return probes.fit(training, validation, rows["test"], n_classes=n_classes)

    fitted: dict[tuple[int, int], FittedProbe] = {}
    n_threads = min(torch.get_num_threads(), MAX_PARALLEL)
    # Each probe is fitted with one thread. The limit is one of the process, so it is set before the threads start.
    with (
        progress(len(subsets), f"probes of {inputs}", unit=" probes") as bar,
        threadpool_limits(1),
        ThreadPoolExecutor(n_threads) as pool,
    ):
        # Seeds share pixels and pretrained features.
        for path, seeds in groupby(study.seeds, partial(_inputs_file, settings, inputs)):
            rows = {split: _read(path, inputs, split) for split in splits.SPLITS}
            keys = [(seed, budget) for budget, seed in product(reversed(study.all_probe_budgets), list(seeds))]
            for key, probe in zip(keys, pool.map(partial(fit, rows), keys), strict=True):
                fitted[key] = probe
                bar.update()
    return {(budget, seed): fitted[seed, budget] for seed, budget in product(study.seeds, study.all_probe_budgets)}


def _inputs_file(settings: Params, inputs: str, seed: int) -> Path:
    return prepared_file(settings) if inputs == "pixels" else features_file(settings, inputs == "pretrained", seed)


def _read(path: Path, inputs: str, split: str) -> np.ndarray:
    """Return what the probes are fitted on for the images of ``split``: float32 [N, features]."""
    if inputs == "pixels":
        return probes.pixels(splits.read_split(path, split).images)
    key = f"{split}_features"
    return files.read_tensors(path, key).tensors[key].float().numpy()  # NumPy has no bfloat16


if __name__ == "__main__":
    run_cli(main, *sys.argv[1:])
