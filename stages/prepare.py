"""Read the images of this study once, and choose which are trained with, validated with and tested with."""

import sys

from headstart.console import run
from headstart.data import catalogue, splits
from stages.paths import PICTURES, RAW, prepared_file
from stages.provenance import Run


def main(study_name: str = "") -> None:
    record = Run("prepare", study_name)
    settings = record.settings
    study = settings.current
    dataset = catalogue.load(
        study.dataset, RAW, PICTURES, image_size=study.image_size, skip_unusable=study.skip_unusable_images
    )
    sizes = {"training": study.training_images, "validation": study.validation_images}
    splits.write(prepared_file(settings), dataset, sizes=sizes, seed=study.seed)
    record.finish()


if __name__ == "__main__":
    run(main, *sys.argv[1:])
