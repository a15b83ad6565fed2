"""Read the images of this study once, and choose which are trained with, validated with and tested with."""

import sys

from headstart.console import run_cli
from headstart.data import registry, splits
from pipeline.provenance import Run
from stages.paths import PICTURES, RAW, prepared_file


def main(study_name: str = "") -> None:
    record = Run("prepare", study_name)
    settings = record.settings
    study = settings.selected_study
    dataset = registry.load(
        study.dataset, RAW, PICTURES, image_size=study.image_size, skip_unusable=study.skip_unusable_images
    )
    sizes = {"training": study.training_images, "validation": study.validation_images}
    splits.write_splits(prepared_file(settings), dataset, sizes=sizes, seed=study.split_seed)
    record.finish()


if __name__ == "__main__":
    run_cli(main, *sys.argv[1:])
