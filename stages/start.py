"""Write the complete initial network that all configurations of one start begin from."""

import sys

from headstart import compute, datasets, files, params, starts
from headstart.console import Clock, run


def main(pretrained: str) -> None:
    clock = Clock()
    settings, device = params.read(), compute.choose()
    images = None
    if pretrained == "false":
        images = datasets.read_split(f"data/prepared/{settings.scale}.safetensors", "training").images
    start = starts.make(settings.current, images=images, classes=datasets.CLASSES, compute=device)
    start.write(f"data/start/{settings.scale}/pretrained-{pretrained}.safetensors")
    files.write_json(f"runs/{settings.scale}/start-pretrained-{pretrained}.json", clock.describe())


if __name__ == "__main__":
    run(main, *sys.argv[1:])
