"""A copy of the repository at a scale of seconds, for tests that drive DVC."""

import hashlib
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

from .conftest import ROOT, run

# No settings, because a study chooses from all there are and is tested on all: so the clone's code is changed.
TRAINING_IMAGES, TEST_IMAGES = 1_000, 500
FEW = f"""
    if study.dataset == "fashion-mnist":
        few = [(dataset.training, {TRAINING_IMAGES}), (dataset.test, {TEST_IMAGES})]
        few = [splits.Partition(part.labels[:n], part.read) for part, n in few]
        dataset = splits.Dataset(dataset.title, dataset.classes, *few)
"""
KEPT = ("pretrained-finetuned-adam", "pretrained-frozen-sgd", "random-frozen-sgd")
TINY = {"image_size": 32, "training_images": 128, "validation_images": 20, "batch_size": 32, "n_epochs": 1,
        "probe_budgets": [50, 100]}  # fmt: skip


def tiny_clone(clone: Path, *, every: bool = False) -> Path:
    """What git has or would take of the working tree, committed anew in the folder ``clone``, at a scale of seconds.

    ``every``: with every configuration, not only three that use every way through the code.
    """
    listed = subprocess.run(
        ["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).exists() and not name.startswith(("metrics/", "plots/")) and name != "dvc.lock":
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, clone / name)
    edit(clone, lambda settings: shrink(settings, every=every))
    prepare = clone / "stages/prepare.py"
    code, last = prepare.read_text(encoding="utf-8"), "    sizes = {"
    assert last in code
    prepare.write_text(code.replace(last, FEW + last), encoding="utf-8")
    run("git", "init", "-q", cwd=clone)
    run("git", "add", "-A", cwd=clone)
    run("git", "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-qm", "tiny", cwd=clone)
    return clone


def repro(clone: Path, *options: str) -> set[str]:
    """Run ``dvc repro``; return the stages that ran."""
    return set(re.findall(r"^Running stage '(.*)':", run("dvc", "repro", *options, cwd=clone).stdout, re.MULTILINE))


def edit(clone: Path, change) -> None:
    settings = yaml.safe_load((clone / "params.yaml").read_text(encoding="utf-8"))
    change(settings)
    (clone / "params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")


def shrink(settings, *, every: bool) -> None:
    settings["studies"]["quick"] |= TINY
    # Another study of the same model, which recomputes its activations, has two seeds, and trains with some of the
    # labels too: so all ways run.
    settings["studies"]["full"] = settings["studies"]["quick"] | {
        "training_images": 96, "cache_activations": False, "seeds": [0, 7], "label_budgets": [80],
    }  # fmt: skip
    if not every:
        settings["configurations"] = {name: settings["configurations"][name] for name in KEPT}


def lock(clone: Path) -> dict[str, Any]:
    """Return what dvc.lock says of each stage: the hashes of all that it read and wrote."""
    return yaml.safe_load((clone / "dvc.lock").read_text(encoding="utf-8"))["stages"]


def results(clone: Path) -> dict[str, str]:
    """Hashes of everything that must not differ from run to run."""
    kinds = (
        "data",
        "models",
        "predictions",
        "probes",
        "scores",
        "metrics",
        "plots",
        "report",
    )  # not runs/, which has the times
    paths = [path for kind in kinds for path in (clone / kind).rglob("*")]
    return {
        str(path.relative_to(clone)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
        if path.is_file() and path.name not in (".gitignore", "record.json") and "pictures" not in path.parts
    }
