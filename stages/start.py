"""Write the complete initial network that all configurations of one start begin from."""

import sys

from headstart import compute, datasets, files, params, starts
from headstart.console import run


def main(pretrained: str) -> None:
    settings, device = params.read(), compute.choose()
    images = None
    if pretrained == "false":
        prepared = files.read_tensors(f"data/prepared/{settings.scale}.safetensors", "training_images")
        images = prepared.tensors["training_images"]
    start = starts.make(settings.current, images=images, classes=datasets.CLASSES, compute=device)
    start.write(f"data/start/{settings.scale}/pretrained-{pretrained}.safetensors")


if __name__ == "__main__":
    run(main, *sys.argv[1:])
