"""Fetch the four files of Fashion-MNIST, verified and uncompressed, so that every source gives the same bytes."""

from headstart import files, params
from headstart.console import run
from headstart.data import datasets


def main() -> None:
    folder = params.read().dataset.folder
    with files.replacing("data/raw") as raw:
        raw.mkdir()
        for name in datasets.SHA256:
            (raw / name).write_bytes(datasets.fetch(name, folder))


if __name__ == "__main__":
    run(main)
