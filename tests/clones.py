"""A copy of the repository at a scale of seconds, for tests that drive DVC."""

import hashlib
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

from .conftest import ROOT, run

TEST_IMAGES = 500
NAMES = ("pretrained-finetuned-adam", "pretrained-frozen-sgd", "random-frozen-sgd")
TINY = {"image_size": 32, "training_images": 128, "validation_images": 20, "test_images": TEST_IMAGES,
        "batch_size": 32, "n_epochs": 1, "probe_budgets": [50, 100]}  # fmt: skip


def tiny_clone(clone: Path, *, all_configurations: bool = False) -> Path:
    """Commit a copy of the working tree, with settings at a scale of seconds, in a new repository in ``clone``.

    Args:
        all_configurations: keep all of them, not only the three of NAMES, which use every code path.
    """
    listed = subprocess.run(
        ["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).exists() and not name.startswith(("metrics/", "plots/")) and name != "dvc.lock":
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, clone / name)
    edit(clone, lambda settings: shrink(settings, all_configurations=all_configurations))
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


def shrink(settings, *, all_configurations: bool) -> None:
    settings["studies"]["quick"] |= TINY
    # A second study with the other code paths: recomputed activations, two seeds, a label budget.
    settings["studies"]["full"] = settings["studies"]["quick"] | {
        "training_images": 96, "cache_activations": False, "seeds": [0, 7], "label_budgets": [80],
    }  # fmt: skip
    if not all_configurations:
        settings["configurations"] = {name: settings["configurations"][name] for name in NAMES}


def lock(clone: Path) -> dict[str, Any]:
    """Return the entry of each stage in dvc.lock: the hashes of its inputs and outputs."""
    return yaml.safe_load((clone / "dvc.lock").read_text(encoding="utf-8"))["stages"]


def results(clone: Path) -> dict[str, str]:
    """Return the hashes of all files that must not differ from run to run. runs/ has times and is left out."""
    folders = ("data", "models", "predictions", "probes", "audit", "scores", "metrics", "plots", "report")
    paths = [path for folder in folders for path in (clone / folder).rglob("*")]
    return {
        str(path.relative_to(clone)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
        if path.is_file() and path.name not in (".gitignore", "record.json") and "pictures" not in path.parts
    }
