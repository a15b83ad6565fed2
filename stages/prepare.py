"""Decode the images once, and choose the training and the validation images of this scale."""

from pathlib import Path

from headstart import datasets, files, params
from headstart.console import run


def main() -> None:
    settings = params.read()
    raw = {name: datasets.parse_idx(Path("data/raw", name).read_bytes()) for name in datasets.SHA256}
    images, labels = raw["train-images-idx3-ubyte"], raw["train-labels-idx1-ubyte"].long()
    # Validation comes first: its images stay the same when the number of training images changes.
    sizes = [settings.current.validation_images, settings.current.training_images]
    validation, training = datasets.stratified_split(labels, sizes=sizes, seed=settings.current.seed)
    tensors = {
        "training_images": images[training],
        "training_labels": labels[training],
        "validation_images": images[validation],
        "validation_labels": labels[validation],
        "test_images": raw["t10k-images-idx3-ubyte"],
        "test_labels": raw["t10k-labels-idx1-ubyte"].long(),
    }
    files.write_tensors(f"data/prepared/{settings.scale}.safetensors", tensors)


if __name__ == "__main__":
    run(main)
