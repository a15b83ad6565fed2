"""What several tests share: the real images, and where the repository is."""

import os
import subprocess
from pathlib import Path

import pytest
import torch

from headstart import params
from headstart.data import fashion_mnist
from headstart.training.compute import Compute, configure
from headstart.training.loop import EpochMetrics, fit
from headstart.training.optimizers import make_optimizer

ROOT = Path(__file__).parent.parent
DOWNLOADS = ROOT / "data/downloads"


@pytest.fixture(scope="session")
def folder() -> str:
    """Where this machine has the four files of Fashion-MNIST, or a place without them: then they are downloaded."""
    return f"{params.read(ROOT / 'params.yaml').dataset_dir}/fashion-mnist"


@pytest.fixture(scope="session")
def test_set(folder: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The official test set: uint8 [10000, 28, 28] and int64 [10000]."""
    return _tensors("t10k", folder)


@pytest.fixture(scope="session")
def training_set(folder: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The official training set: uint8 [60000, 28, 28] and int64 [60000]."""
    return _tensors("train", folder)


def _tensors(split: str, folder: str) -> tuple[torch.Tensor, torch.Tensor]:
    names = f"{split}-images-idx3-ubyte", f"{split}-labels-idx1-ubyte"
    contents = (fashion_mnist.fetch(name, folder, DOWNLOADS) for name in names)
    images, labels = (torch.from_numpy(fashion_mnist.parse_idx(content)) for content in contents)
    return images, labels.long()


@pytest.fixture(scope="session")
def compute() -> Compute:
    """The CPU, as every stage sets it up."""
    return configure("cpu")


@pytest.fixture
def double():
    """Compute in float64: then rounding is no excuse, and the two ways agree to the last few digits or differ."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def usable_optimizers() -> list[str]:
    names = []
    for name in params._optimizers():
        try:
            params.option_names(name)
        except ValueError:
            continue
        names.append(name)
    return names


def pytest_collection_modifyitems(items) -> None:
    """Those that take minutes come first, so that no worker is left alone with them."""
    items.sort(key=lambda item: item.get_closest_marker("pipeline") is None)


def trained(
    head, training, validation, *, configuration, n_epochs, compute, optimizer=None, **options
) -> list[EpochMetrics]:
    """Train ``head``, with a new optimizer unless there is one; return the records of the epochs."""
    optimizer = optimizer or make_optimizer(configuration, head, compute)
    epochs = range(1, n_epochs + 1)
    return list(fit(head, optimizer, training, validation, epochs=epochs, compute=compute, **options))


def run(*command: str, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run ``command`` without a terminal; show its output where it fails and should not."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    if check and done.returncode:
        pytest.fail(f"{' '.join(command)} exited with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done
