"""Fetch the files of this study's data set, verified and unpacked, so that every source gives the same bytes."""

import sys

from headstart import files
from headstart.console import run
from headstart.data import catalogue
from stages.paths import DOWNLOADS, PICTURES, RAW
from stages.provenance import Run


def main(study: str = "") -> None:
    record = Run("download", study)
    settings = record.settings
    with files.replacing(RAW) as raw:
        catalogue.fetch(settings.current.dataset, settings.data_folder, PICTURES, downloads=DOWNLOADS, into=raw)
    record.finish()


if __name__ == "__main__":
    run(main, *sys.argv[1:])
