"""Fetch the files of this study's data set, verified and unpacked, so that every source gives the same bytes."""

from headstart import files, params
from headstart.console import run
from headstart.data import catalogue
from stages.paths import DOWNLOADS, PICTURES, RAW


def main() -> None:
    settings = params.read()
    with files.replacing(RAW) as raw:
        catalogue.fetch(settings.current.dataset, settings.data_folder, PICTURES, downloads=DOWNLOADS, into=raw)


if __name__ == "__main__":
    run(main)
