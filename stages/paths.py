"""Where the stages put what they make; dvc.yaml says the same."""

from pathlib import Path

from headstart.params import Params

PICTURES = Path("data/pictures")  # a folder in it is a data set of that name
DOWNLOADS = Path("data/downloads")  # no output: what is downloaded, for all studies
RAW = Path("data/raw")  # the files of a data set that is known by name


def prepared_file(settings: Params) -> Path:
    """The images and labels of the three splits."""
    return Path(f"data/prepared/{settings.study}.safetensors")


def initial_file(settings: Params, pretrained: bool, seed: int) -> Path:
    """The network that configurations with and without pretrained weights begin from with ``seed``."""
    return Path(f"data/initial/{settings.study}/pretrained-{str(pretrained).lower()}/seed-{seed}.safetensors")


def features_file(settings: Params, pretrained: bool, seed: int) -> Path:
    """What the frozen network of a start puts out; pretrained weights are the same whatever the seed is."""
    name = "all-seeds" if pretrained else f"seed-{seed}"
    return Path(f"data/features/{settings.study}/pretrained-{str(pretrained).lower()}/{name}.safetensors")


def model_file(settings: Params, name: str, seed: int) -> Path:
    """The network of the configuration ``name`` that was trained with ``seed``."""
    return Path(f"models/{settings.study}/{name}/model-{seed}.safetensors")


def training_file(settings: Params, name: str) -> Path:
    """What the report says of the training of the configuration ``name``: precision, weights, trained layers."""
    return model_file(settings, name, 0).with_name("training.json")


def predictions_file(settings: Params, name: str) -> Path:
    """What the networks of the configuration ``name`` say of the test images: logits, [seeds, images, classes]."""
    return Path(f"predictions/{settings.study}/{name}/logits.safetensors")


def probes_file(settings: Params, pretrained: bool) -> Path:
    """The classes that linear probes of a start's features predict for the test images, [counts, seeds, images]."""
    return Path(f"probes/{settings.study}/pretrained-{str(pretrained).lower()}/predictions.safetensors")


def scores_folder(settings: Params, name: str) -> Path:
    """The tables of how the configuration ``name`` does on the test images, all its seeds together."""
    return Path(f"scores/{settings.study}/{name}")


def stale_outputs_message(settings: Params) -> str:
    """What to say of files in the folders that `compare` depends on that no configuration has; nothing without any."""
    ours = {probes_file(settings, pretrained).parent for pretrained in (True, False)}
    for name in settings.configurations:
        ours |= {model_file(settings, name, 0).parent, predictions_file(settings, name).parent,
                 scores_folder(settings, name)}  # fmt: skip
    folders = (Path(kind, settings.study) for kind in ("models", "predictions", "probes", "scores"))
    others = sorted(path.as_posix() for folder in folders for path in folder.glob("*") if path not in ours)
    remedy = "dvc.lock counts in what is of no configuration in params.yaml: delete it, and run `dvc repro`"
    return f"{', '.join(others)}: {remedy}" if others else ""
