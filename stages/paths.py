"""Where the stages put what they make; dvc.yaml says the same."""

from pathlib import Path

from headstart.params import Params


def prepared_file(settings: Params) -> Path:
    """The images and labels of the three splits."""
    return Path(f"data/prepared/{settings.scale}.safetensors")


def start_file(settings: Params, pretrained: bool, seed: int) -> Path:
    """The network that configurations with and without pretrained weights begin from with ``seed``."""
    return Path(f"data/start/{settings.scale}/pretrained-{str(pretrained).lower()}/seed-{seed}.safetensors")


def features_file(settings: Params, pretrained: bool, seed: int) -> Path:
    """What the frozen network of a start puts out; pretrained weights are the same whatever the seed is."""
    name = "every-seed" if pretrained else f"seed-{seed}"
    return Path(f"data/features/{settings.scale}/pretrained-{str(pretrained).lower()}/{name}.safetensors")


def model_file(settings: Params, name: str, seed: int) -> Path:
    """The network of the configuration ``name`` that was trained with ``seed``."""
    return Path(f"models/{settings.scale}/{name}/model-{seed}.safetensors")
