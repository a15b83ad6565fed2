"""Decode the images of the study once, and split them into training, validation and test images."""

import sys

from headstart.console import run_cli
from headstart.data import registry, splits
from pipeline.provenance import Run
from stages.paths import PICTURES, RAW, prepared_file


def main(study_name: str = "") -> None:
    run = Run("prepare", study_name)
    settings = run.settings
    study = settings.selected_study
    dataset = registry.load(
        study.dataset, RAW, PICTURES, image_size=study.image_size, skip_unusable=study.skip_unusable_images,
        group_by=study.group_by,
    )  # fmt: skip
    training_images, validation_images = study.stored_sizes
    splits.write_splits(
        prepared_file(settings), dataset, training_images=training_images, validation_images=validation_images,
        test_images=study.test_images, seed=study.split_seed,
    )  # fmt: skip
    run.finish()


if __name__ == "__main__":
    run_cli(main, *sys.argv[1:])
