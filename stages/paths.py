"""Where the stages put what they make; dvc.yaml says the same."""

from pathlib import Path
from typing import Any

from headstart import files, params
from headstart.params import Params
from headstart.runs import Clock

PICTURES = Path("data/pictures")  # a folder in it is a data set of that name
DOWNLOADS = Path("data/downloads")  # no output: what is downloaded, for all studies
RAW = Path("data/raw")  # the files of a data set that is known by name


def prepared_file(settings: Params) -> Path:
    """The images and labels of the three splits."""
    return Path(f"data/prepared/{settings.study}.safetensors")


def start_file(settings: Params, pretrained: bool, seed: int) -> Path:
    """The network that configurations with and without pretrained weights begin from with ``seed``."""
    return Path(f"data/start/{settings.study}/pretrained-{str(pretrained).lower()}/seed-{seed}.safetensors")


def features_file(settings: Params, pretrained: bool, seed: int) -> Path:
    """What the frozen network of a start puts out; pretrained weights are the same whatever the seed is."""
    name = "every-seed" if pretrained else f"seed-{seed}"
    return Path(f"data/features/{settings.study}/pretrained-{str(pretrained).lower()}/{name}.safetensors")


def model_file(settings: Params, name: str, seed: int) -> Path:
    """The network of the configuration ``name`` that was trained with ``seed``."""
    return Path(f"models/{settings.study}/{name}/model-{seed}.safetensors")


def predictions_file(settings: Params, name: str) -> Path:
    """What the networks of the configuration ``name`` say of the test images: logits, [seeds, images, classes]."""
    return Path(f"predictions/{settings.study}/{name}/logits.safetensors")


def probes_file(settings: Params, pretrained: bool) -> Path:
    """What linear probes of a start's features say of the test images: logits, [counts, seeds, images, classes]."""
    return Path(f"probes/{settings.study}/pretrained-{str(pretrained).lower()}/logits.safetensors")


def scores_folder(settings: Params, name: str) -> Path:
    """The tables of how the configuration ``name`` does on the test images, all its seeds together."""
    return Path(f"scores/{settings.study}/{name}")


def run_file(study: str, stage: str) -> Path:
    """What is worth knowing of the run of ``stage``."""
    return Path(f"runs/{study}/{stage}.json")


def made_with(study: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """What ``study`` and the configurations were when its results were made; nothing where nobody has noted it."""
    run, record = run_file(study, "prepare"), Path(f"metrics/{study}/record.json")
    if run.is_file():
        settings = files.read_json(run)["settings"]
        return settings["studies"][study], settings["experiments"]
    if record.is_file():
        found = files.read_json(record)
        return found["settings"], found["experiments"]
    return None


def stage_names(settings: Params) -> list[str]:
    """The stages that leave a file of their run, under its name."""
    starts = sorted({str(experiment.pretrained).lower() for experiment in settings.experiments.values()})
    return [
        "prepare",
        *(f"{stage}-pretrained-{start}" for stage in ("start", "features", "probe") for start in starts),
        *(f"{stage}-{name}" for stage in ("train", "evaluate") for name in settings.experiments),
    ]


def left_over(settings: Params) -> str:
    """What to say of files in the folders that `compare` depends on that no configuration has; nothing without any."""
    ours = {run_file(settings.study, stage) for stage in stage_names(settings)}
    for name in settings.experiments:
        ours |= {model_file(settings, name, 0).parent, predictions_file(settings, name).parent,
                 scores_folder(settings, name)}  # fmt: skip
    ours |= {probes_file(settings, pretrained).parent for pretrained in (True, False)}
    folders = (Path(kind, settings.study) for kind in ("models", "predictions", "probes", "runs", "scores"))
    others = sorted(path.as_posix() for folder in folders for path in folder.glob("*") if path not in ours)
    remedy = "dvc.lock counts in what is of no configuration in params.yaml: delete it, and run `dvc repro`"
    return f"{', '.join(others)}: {remedy}" if others else ""


def write_run(settings: Params, stage: str, clock: Clock, facts: dict[str, Any]) -> None:
    """Write the ``facts`` of a run, with its times and with the settings that it was made with."""
    document = params.load()
    made_with = {"studies": {settings.study: document["studies"][settings.study]},
                 "experiments": document["experiments"]}  # fmt: skip
    content = {**clock.describe(), **facts, "settings": made_with}
    files.write_json(run_file(settings.study, stage), content)
