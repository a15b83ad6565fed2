"""Studies of the user's own images in a copy of the repository: `make pictures`, the stages, and DVC."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import headstart
import scripts.pictures
from headstart import files
from headstart.data import fashion_mnist, pictures, splits
from headstart.data.splits import Dataset, Partition
from scripts import time_estimate

from .clones import NAMES, edit, repro, tiny_clone
from .conftest import run

STAMPS = Path("/usr/share/tuxpaint/stamps")  # Debian's package tuxpaint-stamps-default

pytestmark = pytest.mark.pipeline


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    return tiny_clone(tmp_path_factory.mktemp("clone"))


def export(images, labels, folder: Path) -> None:
    """Write images as PNG files to class folders; the file names give the order."""
    for number, (image, label) in enumerate(zip(images.numpy(), labels.tolist(), strict=True)):
        path = folder / f"{label} {fashion_mnist.CLASSES[label]}".replace("/", " or ") / f"{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)


def test_fashion_mnist_as_a_folder_of_images_is_prepared_identically(tmp_path, training_set, test_set):
    """The original files and a folder of the same images differ only in the names of the classes."""
    originals = [[tensor[:n] for tensor in dataset] for dataset, n in ((training_set, 1_000), (test_set, 500))]
    for tensors, name in zip(originals, ("train", "test"), strict=True):
        export(*tensors, tmp_path / "png" / name)
    partitions = [Partition(labels.numpy(), images.numpy().__getitem__) for images, labels in originals]
    datasets = {
        "original": Dataset("Fashion-MNIST", fashion_mnist.CLASSES, *partitions),
        "png": pictures.load(tmp_path / "png", image_size=32, skip_unusable=False),
    }
    for name, dataset in datasets.items():
        path = tmp_path / f"{name}.safetensors"
        splits.write_splits(path, dataset, training_images=128, validation_images=20, seed=0)
    for split in splits.SPLITS:
        original, from_images = (splits.read_split(tmp_path / f"{name}.safetensors", split) for name in datasets)
        assert (from_images.images == original.images).all()
        assert (from_images.labels == original.labels).all()


@pytest.fixture(scope="module")
def stamps(tmp_path_factory) -> Path:
    """Drawings and photographs with transparency; image sizes and class sizes differ widely."""
    if not STAMPS.is_dir():
        pytest.skip("Debian's tuxpaint-stamps-default is not installed")
    folder = tmp_path_factory.mktemp("own") / "Stamps & more"
    for path in STAMPS.rglob("*.png"):
        category, *rest = path.relative_to(STAMPS).parts
        target = folder / category / "-".join(rest)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return folder


def make_pictures(clone: Path, *arguments: object, check: bool = True):
    return run(sys.executable, "-m", "scripts.pictures", *map(str, arguments), cwd=clone, check=check)


def test_a_folder_of_images_becomes_a_study(clone, stamps):
    before = (clone / "params.yaml").read_text(encoding="utf-8")
    failure = make_pictures(clone, stamps, check=False)
    assert failure.returncode == 1
    assert re.fullmatch(rf"headstart: [\d,]+ files? cannot be used: {stamps}\. .*", failure.stderr.splitlines()[0])
    # This is the only transparent drawing that is blank on white.
    assert [line.split()[0] for line in failure.stderr.splitlines() if "transparent" in line] == [
        "naturalforces/lightningbolt.png"
    ]
    assert not (clone / "data/pictures/stamps-more").exists()
    assert (clone / "params.yaml").read_text(encoding="utf-8") == before

    output = make_pictures(clone, stamps, "--skip-unusable").stdout
    n, classes, skipped_files = map(int, re.findall(r"(\d+) (?:images|classes|skipped files)", output))
    assert n + skipped_files == sum(path.is_file() for path in stamps.rglob("*"))
    assert classes == 16
    settings = yaml.safe_load((clone / "params.yaml").read_text(encoding="utf-8"))
    assert settings["study"] == settings["studies"]["stamps-more"]["dataset"] == "stamps-more"
    small = {"image_size": 48, "n_epochs": 2, "seeds": [0]}
    edit(clone, lambda settings: settings["studies"]["stamps-more"].update(small))
    run(sys.executable, "-m", "stages", cwd=clone)

    metrics = {name: files.read_json(clone / f"metrics/stamps-more/{name}.json") for name in NAMES}
    assert metrics[NAMES[0]]["test_accuracy"] > metrics[NAMES[2]]["test_accuracy"] + 0.2
    assert 0 < metrics[NAMES[0]]["balanced_accuracy"] < metrics[NAMES[0]]["test_accuracy"]
    page = (clone / "report/stamps-more/index.html").read_text(encoding="utf-8")
    assert f">{skipped_files} skipped files</a>" in page
    assert "Balanced<br>accuracy" in page
    assert "Possible issues in the data" in page
    rows = files.read_csv(clone / "audit/stamps-more/issues.csv")
    assert {row["issue"] for row in rows} >= {"near-duplicate", "label error", "outlier"}
    assert all((stamps / row["file"]).is_file() for row in rows if row["file"])
    images, _, names = splits.read_split(clone / "data/prepared/stamps-more.safetensors", "test")
    assert images.shape[1:] == (3, 48, 48)
    network = headstart.load(clone / f"models/stamps-more/{NAMES[0]}")
    assert network.classes == names == tuple(sorted(path.name for path in stamps.iterdir()))
    logits = files.read_arrays(clone / f"predictions/stamps-more/{NAMES[0]}/logits.safetensors").arrays["logits"]
    with torch.inference_mode():
        torch.testing.assert_close(network(torch.from_numpy(images)), torch.from_numpy(logits[0]), rtol=1e-4, atol=1e-4)


def noise(folder: Path, numbers: range) -> None:
    """Draw small squares of noise in the classes a and b."""
    for number in numbers:
        path = folder / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(path)


def test_dvc_detects_changed_images(tmp_path):
    clone = tiny_clone(tmp_path / "clone")
    folder = clone / "data/pictures/two"
    noise(folder, range(40))
    few = {"dataset": "two", "training_images": 20, "validation_images": 5, "test_images": None, "probe_budgets": []}
    edit(clone, lambda settings: settings["studies"]["quick"].update(few))
    stages = ("download", "prepare", "initialize@random")
    assert repro(clone, *stages) == set(stages)
    assert repro(clone, *stages) == set()
    noise(clone / "data/pictures/other", range(4))  # another dataset: DVC tracks data/pictures as a whole
    assert repro(clone, *stages) == {"prepare"}
    noise(folder, range(40, 42))
    assert repro(clone, *stages) == {"prepare", "initialize@random"}
    # DVC restores versioned images unchanged.
    run("dvc", "add", "-q", "data/pictures/two", cwd=clone)
    assert run("git", "status", "-s", "-uall", "data", cwd=clone).stdout == "?? data/pictures/two.dvc\n"
    repro(clone, *stages)
    shutil.rmtree(folder)
    run("dvc", "checkout", "-q", "data/pictures/two.dvc", cwd=clone)
    assert len(list(folder.rglob("*.png"))) == 42
    assert repro(clone, *stages) == set()


def commit(clone: Path) -> None:
    run("git", "add", "-A", cwd=clone)
    run("git", "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-qm", "images", cwd=clone)


def list_images(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))


@pytest.mark.slow
def test_images_versioned_with_dvc_survive_all_commands(tmp_path):
    """After `dvc add`: status, push, gc, pull, a second `make pictures`, `exp run --temp`, and a job on a cluster."""
    clone = tiny_clone(tmp_path / "clone")
    noise(tmp_path / "two", range(40))
    make_pictures(clone, tmp_path / "two")
    copy, expected = clone / "data/pictures/two", list_images(tmp_path / "two")
    run("dvc", "add", "-q", "data/pictures/two", cwd=clone)
    commit(clone)
    run("dvc", "remote", "add", "-q", "-d", "shared", str(tmp_path / "remote"), cwd=clone)
    assert "two.dvc" not in run("dvc", "status", cwd=clone).stdout
    noise(tmp_path / "two", range(40, 42))
    make_pictures(clone, tmp_path / "two")  # adds to files that are links into DVC's cache
    assert list_images(copy) == list_images(tmp_path / "two")
    assert "data/pictures/two.dvc:" in run("dvc", "status", cwd=clone).stdout
    run("dvc", "add", "-q", "data/pictures/two", cwd=clone)
    commit(clone)
    expected = list_images(copy)

    run("dvc", "gc", "-q", "--workspace", "--force", cwd=clone)
    shutil.rmtree(copy)
    run("dvc", "checkout", "-q", "data/pictures/two.dvc", cwd=clone)
    assert list_images(copy) == expected
    run("dvc", "push", "-q", cwd=clone)
    shutil.rmtree(copy)
    shutil.rmtree(clone / ".dvc/cache")
    run("dvc", "pull", "-q", cwd=clone, check=False)  # the remote does not have the outputs of the study
    assert list_images(copy) == expected

    run("dvc", "exp", "run", "--temp", "prepare", cwd=clone)
    job = ("cluster.job", "prepare", "--commit", run("git", "rev-parse", "HEAD", cwd=clone).stdout.strip())
    run(sys.executable, "-m", "cluster.job", "download", *job[2:], cwd=clone)
    run(sys.executable, "-m", *job, cwd=clone, check=False)
    assert list_images(copy) == expected
    run("make", "clean", cwd=clone)
    assert list_images(copy) == expected
    assert (clone / ".dvc/cache").is_dir()


def test_a_second_run_adds_new_images_and_deletes_none(clone, tmp_path):
    folder = tmp_path / "two"
    noise(folder, range(8))
    assert "8 images in 2 classes" in make_pictures(clone, folder).stdout
    assert sizes(clone, "two") == (6, 0)
    (clone / "data/pictures/two/.DS_Store").write_bytes(b"x")  # a file of the operating system
    shutil.copyfile(folder / "a/0.png", tmp_path / "0.png")
    Image.new("RGB", (9, 9), "red").save(folder / "a/9.png")
    noise(folder, range(100, 160))
    assert "69 images in 2 classes" in make_pictures(clone, folder).stdout
    assert sizes(clone, "two") == (50, 5)
    edit(clone, lambda settings: settings["studies"]["two"].update(n_epochs=4))
    assert "kept your settings of the study two in params.yaml" in make_pictures(clone, folder).stdout
    assert sizes(clone, "two") == (50, 5)
    (folder / "a/0.png").unlink()
    failure = make_pictures(clone, folder, check=False)
    assert failure.stderr == (
        f"headstart: data/pictures/two has images that are not in {folder}. Choose another study name with NAME=…, or "
        "delete data/pictures/two.\n"
    )
    assert (clone / "data/pictures/two/a/0.png").read_bytes() == (tmp_path / "0.png").read_bytes()
    # Targets of links are copied; broken links are skipped.
    (tmp_path / "more").mkdir()
    Image.new("RGB", (9, 9), "blue").save(tmp_path / "more/blue.png")
    (folder / "a/more").symlink_to("../../more")
    (folder / "b/0.png").symlink_to("nowhere")
    output = make_pictures(clone, folder, "--name", "fewer", "--skip-unusable").stdout
    assert "69 images in 2 classes, 1 skipped files" in output
    copy = clone / "data/pictures/fewer"
    assert {path.relative_to(copy) for path in copy.rglob("*.png")} == {
        path.relative_to(folder) for path in folder.rglob("*.png") if not path.is_symlink()
    } | {Path("a/more/blue.png")}
    assert sizes(clone, "fewer")[0] > 40


def test_the_first_result_comes_before_the_trainings(tmp_path):
    """`make pictures` prints the probes and writes a page; the trainings add to it, and `compare` replaces it."""
    clone = tiny_clone(tmp_path / "clone")
    noise(tmp_path / "two", range(40))
    shutil.copyfile(tmp_path / "two/a/0.png", tmp_path / "two/b/copy.png")
    make_pictures(clone, tmp_path / "two", "--skip-unusable")
    edit(clone, lambda settings: settings["studies"]["two"].update(image_size=32, n_epochs=1, seeds=[0]))
    page, stages = clone / "report/two/index.html", []
    process = subprocess.Popen(
        [sys.executable, "-m", "scripts.run_study"], cwd=clone, stdout=subprocess.PIPE, text=True
    )
    pages = {}
    for line in process.stdout:
        if match := re.match(r"\[\d+/(\d+)\] (\S+), about ", line):
            stages.append(match[2])
            pages[match[2]] = page.read_text(encoding="utf-8") if page.exists() else ""
        elif line.startswith("First result, "):
            stages.append("first result")
    assert process.wait() == 0
    first = stages.index("first result")
    assert set(stages[:first]) == set(time_estimate.FIRST_STAGES)
    assert not any(name.startswith("train@") for name in stages[:first])
    assert pages[stages[0]] == ""
    assert "This page is incomplete" in pages[f"train@{NAMES[0]}"]
    assert f"<strong>Not finished yet:</strong> {', '.join(NAMES)}." in pages[f"train@{NAMES[0]}"]
    assert f"<strong>Not finished yet:</strong> {', '.join(NAMES[1:])}." in pages[f"train@{NAMES[1]}"]
    assert f'<th scope="row">{NAMES[0]}</th>' in pages[f"train@{NAMES[1]}"]
    complete = page.read_text(encoding="utf-8")
    assert "This page is incomplete" not in complete
    assert 'id="data-issues"' in complete
    assert repro(clone) == set()
    assert run(sys.executable, "-m", "scripts.run_study", cwd=clone).stdout == ""
    assert page.read_text(encoding="utf-8") == complete


@pytest.mark.parametrize("seed", range(20))
def test_every_probe_budget_has_all_classes(seed):
    """Whatever the class sizes are, and whichever images are labeled first."""
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(8), generator.integers(5, 200, 8))
    training, validation = len(labels), len(labels) // 9
    budgets = scripts.pictures._probe_budgets(training, validation, labels)
    assert budgets == sorted(budgets)
    assert len(budgets) < 5 or budgets[-1] == (training + validation) // 2
    for n in budgets:
        n_training = n - round(n * validation / (training + validation))
        assert set(labels[splits.nested_subset(labels, n_training, seed=seed)]) == set(range(8))


def sizes(clone: Path, study: str) -> tuple[int, int]:
    settings = yaml.safe_load((clone / "params.yaml").read_text(encoding="utf-8"))["studies"][study]
    return settings["training_images"], settings["validation_images"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no folder of images given. For example: make pictures FOLDER=~/flowers"),
        (("nowhere",), "no such folder: nowhere"),
        (("docs", "--name", "mnist"), "reserved study name: mnist is a built-in dataset. Choose another name with N"),
        (("docs", "--name", "quick"), "study name in use: params.yaml has a study quick of other images. Choose "),
        (("docs", "--name", "../x"), "invalid study name: '../x'. Choose a name with NAME=…, and use letters, "),
        (("docs",), "no class folders: docs. Create one folder per class and put its images there"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_errors(clone, arguments, message):
    before = (clone / "params.yaml").read_bytes()
    failure = make_pictures(clone, *arguments, check=False)
    assert failure.returncode == 1
    assert failure.stderr.startswith(f"headstart: {message}")
    assert len(failure.stderr.splitlines()) == 1
    assert (clone / "params.yaml").read_bytes() == before
