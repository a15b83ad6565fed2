"""Read the images of this study once, and choose which are trained with, validated with and tested with."""

from headstart import params
from headstart.console import run
from headstart.data import catalogue, splits
from headstart.runs import Clock
from stages.paths import PICTURES, RAW, prepared_file, write_run


def main() -> None:
    clock = Clock()
    settings = params.read()
    study = settings.current
    dataset = catalogue.load(
        study.dataset, RAW, PICTURES, image_size=study.image_size, skip_unusable=study.skip_unusable_images
    )
    sizes = {"training": study.training_images, "validation": study.validation_images}
    splits.write(prepared_file(settings), dataset, sizes=sizes, seed=study.seed)
    write_run(settings, "prepare", clock, {})


if __name__ == "__main__":
    run(main)
