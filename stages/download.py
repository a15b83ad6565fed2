"""Download the dataset of the study, verified and unpacked, so that every source gives the same bytes."""

import sys

from headstart import files
from headstart.console import run_cli
from headstart.data import registry
from pipeline.provenance import Run
from stages.paths import DOWNLOADS, PICTURES, RAW


def main(study: str = "") -> None:
    run = Run("download", study)
    settings = run.settings
    with files.atomic_write(RAW) as raw:
        registry.fetch(settings.selected_study.dataset, settings.dataset_dir, PICTURES, downloads=DOWNLOADS, dest=raw)
    run.finish()


if __name__ == "__main__":
    run_cli(main, *sys.argv[1:])
