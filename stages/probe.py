"""Fit linear probes to the features of one start, with every number of labels that probe_counts names, and with all."""

import sys
from itertools import product
from pathlib import Path

import numpy as np

from headstart import files, params, probes
from headstart.console import progress, run
from headstart.data import splits
from headstart.params import Params
from headstart.probes import Examples
from headstart.runs import Clock
from stages.labelled import labelled
from stages.paths import features_file, prepared_file, probes_file, write_run

COLUMNS = ["labels", "seed", "strength", "validation_loss"]


def main(pretrained: str) -> None:
    clock = Clock()
    settings = params.read()
    found = _fit(settings, pretrained == "true") if settings.current.probe_counts else {}
    path = probes_file(settings, pretrained == "true")
    with files.replacing(path.parent) as folder:
        rows = [[n, seed, probe.strength, probe.validation_loss] for (n, seed), probe in found.items()]
        files.write_csv(folder / "choices.csv", COLUMNS, rows)
        logits = [[found[n, seed].logits for seed in settings.current.seeds] for n in settings.current.probed]
        files.write_arrays(folder / path.name, {"label_logits": np.array(logits, dtype=np.float32)})
    write_run(settings, f"probe-pretrained-{pretrained}", clock, {})


def _fit(settings: Params, pretrained: bool) -> dict[tuple[int, int], probes.Probe]:
    """The probe of each number of labels and seed."""
    study, prepared = settings.current, prepared_file(settings)
    chosen = labelled(settings, study.probed)
    read = {split: splits.read_split(prepared, split) for split in splits.SPLITS}
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
                Examples(features[split][one], read[split].labels[one])
                for split, one in zip(("training", "validation"), chosen[seed, n], strict=True)
            )
            found[n, seed] = probes.fit(training, validation, features["test"], n_classes=len(read["test"].classes))
            bar.update()
    return found


if __name__ == "__main__":
    run(main, *sys.argv[1:])
