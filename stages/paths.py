"""The paths of the outputs of the stages, as in dvc.yaml."""

from pathlib import Path

from headstart.params import Params

PICTURES = Path("data/pictures")  # each folder in it is a dataset with its name
DOWNLOADS = Path("data/downloads")  # not an output: downloaded files, shared by all studies
PROBE_INPUTS = ("pretrained", "random", "pixels")  # features of pretrained or random initial weights, or pixels
RAW = Path("data/raw")  # the files of a built-in dataset


def prepared_file(settings: Params) -> Path:
    """Return the file with the images and labels of the three splits."""
    return Path(f"data/prepared/{settings.study}.safetensors")


def initial_file(settings: Params, pretrained: bool, seed: int) -> Path:
    """Return the file with the network before training."""
    return Path(f"data/initial/{settings.study}/pretrained-{str(pretrained).lower()}/seed-{seed}.safetensors")


def features_file(settings: Params, pretrained: bool, seed: int) -> Path:
    """Return the file with the features of the frozen network. With pretrained weights, all seeds share it."""
    name = "all-seeds" if pretrained else f"seed-{seed}"
    return Path(f"data/features/{settings.study}/pretrained-{str(pretrained).lower()}/{name}.safetensors")


def model_file(settings: Params, name: str, seed: int) -> Path:
    """Return the file with the network of the configuration ``name`` trained with ``seed``."""
    return Path(f"models/{settings.study}/{name}/model-{seed}.safetensors")


def training_file(settings: Params, name: str) -> Path:
    """Return the file with precision, weights and trained layers of the configuration ``name``, for the report."""
    return model_file(settings, name, 0).with_name("training.json")


def predictions_file(settings: Params, name: str) -> Path:
    """Return the file with the logits of the configuration ``name`` for the test images, [seeds, images, classes]."""
    return Path(f"predictions/{settings.study}/{name}/logits.safetensors")


def probes_file(settings: Params, inputs: str) -> Path:
    """Return the file with the classes that the probes of ``inputs`` predict, [budgets, seeds, test images]."""
    return Path(f"probes/{settings.study}/{inputs}/predictions.safetensors")


def probes_stage(inputs: str) -> str:
    """Return the name of the stage that fits the probes of ``inputs``."""
    return "probe_pixels" if inputs == "pixels" else f"probe@{inputs}"


def network_file(settings: Params, network: str) -> Path:
    """Return the file with the costs of the network and the accuracies of its probes."""
    return Path(f"networks/{settings.study}/{network}/probes/network.json")


def network_probes_file(settings: Params, network: str) -> Path:
    """Return the file with the classes that the network's probes predict, [budgets, seeds, test images]."""
    return network_file(settings, network).with_name("predictions.safetensors")


def finetuned_folder(settings: Params, network: str) -> Path:
    """Return the folder of the fine-tuned network: its models and, in a file, the logits of the test images."""
    return Path(f"networks/{settings.study}/{network}/finetuned")


def audit_file(settings: Params) -> Path:
    """Return the file with the possible issues of the dataset."""
    return Path(f"audit/{settings.study}/issues.json")


def checkpoints_folder(settings: Params, name: str) -> Path:
    """Return the folder with the checkpoints of the configuration ``name``."""
    return Path(f"checkpoints/{settings.study}/{name}")


def checkpoint_file(settings: Params, name: str, seed: int, budget: int) -> Path:
    """Return the checkpoint file of one training of the configuration ``name``."""
    is_full = budget == settings.selected_study.full_budget
    return checkpoints_folder(settings, name) / f"{seed}{'' if is_full else f'-{budget}'}.safetensors"


def scores_folder(settings: Params, name: str) -> Path:
    """Return the folder with the per-class tables of the configuration ``name``, all its seeds together."""
    return Path(f"scores/{settings.study}/{name}")


def stale_outputs_message(settings: Params) -> str:
    """Return a message about outputs of configurations that are no longer in params.yaml; an empty text without any."""
    expected = {probes_file(settings, inputs).parent for inputs in PROBE_INPUTS}
    for name in settings.configurations:
        expected |= {model_file(settings, name, 0).parent, predictions_file(settings, name).parent,
                 scores_folder(settings, name)}  # fmt: skip
    folders = (Path(kind, settings.study) for kind in ("models", "predictions", "probes", "scores"))
    stale = sorted(path.as_posix() for folder in folders for path in folder.glob("*") if path not in expected)
    return (
        (
            f"stale outputs of configurations that are no longer in params.yaml: {', '.join(stale)}. `dvc repro` would "
            "include them in dvc.lock. Delete these paths and run `dvc repro`."
        )
        if stale
        else ""
    )
