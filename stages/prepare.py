"""Decode the images once, and choose the training and the validation images of this study."""

import numpy as np

from headstart import files, params
from headstart.console import run
from headstart.data import datasets
from headstart.runs import Clock
from stages.paths import prepared_file, write_run


def prepared(study: params.Study) -> dict[str, np.ndarray]:
    """Images, uint8 [N, 28, 28], and labels, int64 [N], of the three splits."""
    raw = {name: datasets.read_raw("data/raw", name) for name in datasets.SHA256}
    images, labels = raw["train-images-idx3-ubyte"], raw["train-labels-idx1-ubyte"].astype(np.int64)
    # Validation comes first: its images stay the same when the number of training images changes.
    sizes = [study.validation_images, study.training_images]
    validation, training = datasets.stratified_split(labels, sizes=sizes, seed=study.seed)
    return {
        "training_images": images[training],
        "training_labels": labels[training],
        "validation_images": images[validation],
        "validation_labels": labels[validation],
        "test_images": raw["t10k-images-idx3-ubyte"],
        "test_labels": raw["t10k-labels-idx1-ubyte"].astype(np.int64),
    }


def main() -> None:
    clock = Clock()
    settings = params.read()
    files.write_arrays(prepared_file(settings), prepared(settings.current))
    write_run(settings, "prepare", clock, {})


if __name__ == "__main__":
    run(main)
