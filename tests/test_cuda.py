"""What must hold on a GPU. Tests of both devices run on the CPU alone where there is no GPU, the others are skipped."""

import copy
import dataclasses
import gc
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import nn

from headstart.console import UserError
from headstart.console import run_cli as run_stage
from headstart.data.preprocessing import Preprocess
from headstart.network import models, splitting
from headstart.params import Configuration
from headstart.training import compute as computing
from headstart.training.compute import Compute
from headstart.training.convolutions import use_matmul
from headstart.training.inference import extract_features
from headstart.training.inputs import CachedInputs, Examples, cache_or_recompute, predict
from headstart.training.optimizers import make_optimizer
from headstart.training.pooling import use_deterministic
from headstart.training.schedules import learning_rate

from .conftest import ROOT, trained

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")

ADAM = Configuration(pretrained=True, finetuning=True, optimizer="Adam", lr=0.001)
SGD = Configuration(pretrained=True, finetuning=True, optimizer="SGD", lr=0.001, momentum=0.9, weight_decay=0.1)
ADAMW_COSINE = dataclasses.replace(ADAM, optimizer="AdamW", schedule="cosine")
SGD_ONE_CYCLE = dataclasses.replace(SGD, schedule="one-cycle")
OPTIMIZERS = pytest.mark.parametrize("configuration", [ADAM, SGD], ids=["adam", "sgd"])
SIZE = 64
PREPROCESS = Preprocess(SIZE, (0.5,) * 3, (0.5,) * 3)
BATCH = 32
GB = 10**9


@pytest.fixture
def gpu() -> Compute:
    return computing.configure("cuda")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=needs_gpu)])
def device(request) -> Compute:
    """Each device, as every stage sets it up."""
    return computing.configure(request.param)


def skip_all_but_one_on_a_cpu(compute: Compute, network: str) -> None:
    if compute.device.type == "cpu" and network != "mobilenet_v3_small":
        pytest.skip("on a CPU, one network is enough to try the test itself")


@pytest.fixture
def no_waiting() -> Iterator:
    """A function that makes every wait for the GPU an error, or no longer; undone at the end in any case."""
    yield lambda forbidden: torch.cuda.set_sync_debug_mode("error" if forbidden else "default")
    if torch.cuda.is_available():
        torch.cuda.set_sync_debug_mode("default")


def train(images, labels, compute, configuration, *, network="resnet18", layer="layer4", place="device", epochs=2):
    """Train on ``images`` kept at ``place``; return all that changes, by name, and the records of the epochs."""
    torch.manual_seed(0)
    model = models.build(network, 10, SIZE)
    backbone, head = splitting.split_backbone_head(model, layer)
    inputs = cache_or_recompute(images, backbone, compute=compute, prepare=PREPROCESS, reuse=place != "recompute")
    if place == "host":
        inputs = dataclasses.replace(inputs, rows=inputs.rows.cpu())
    assert inputs.storage == place
    examples, optimizer = Examples(inputs, labels), make_optimizer(configuration, head, compute)
    rates = partial(learning_rate, configuration, n_steps=100) if configuration.has_schedule else None
    records = trained(head, examples, examples, configuration=configuration, n_epochs=epochs, batch_size=BATCH, seed=3,
                      compute=compute, optimizer=optimizer, learning_rate=rates)  # fmt: skip
    state = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    for number, moments in optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{number}.{key}": tensor.cpu() for key, tensor in moments.items()}
    state |= {f"generator.{name}": tensor for name, tensor in computing.generator_states(compute.device).items()}
    return state, [dataclasses.replace(record, seconds=0.0) for record in records]


def assert_equal(one, other) -> None:
    assert one[1] == other[1]
    assert one[0].keys() == other[0].keys()
    for name, tensor in one[0].items():
        assert torch.equal(other[0][name], tensor), name


@pytest.mark.parametrize(
    "configuration", [ADAM, SGD, ADAMW_COSINE, SGD_ONE_CYCLE], ids=lambda c: f"{c.optimizer}-{c.schedule}"
)
@pytest.mark.parametrize(("network", "layer"), [("resnet18", "layer4"), ("mobilenet_v3_small", "features.11")])
def test_replaying_is_training_step_by_step(training_set, device, configuration, network, layer):
    """To the bit, dropout, the optimizer's state and the random generators included."""
    skip_all_but_one_on_a_cpu(device, network)
    images, labels = (tensor[:104] for tensor in training_set)  # three full batches and one of eight
    graphed, eager = (
        train(images, labels, dataclasses.replace(device, graphs=graphs), configuration, network=network, layer=layer)
        for graphs in (True, False)
    )
    assert_equal(graphed, eager)


NETWORKS = [
    ("tf_efficientnet_lite0", "blocks.5"),  # depthwise convolutions
    ("tf_efficientnet_lite0", "conv_stem"),  # the whole network
    ("resnet18", "conv1"),  # the gradient of max pooling
    ("alexnet", "avgpool"),  # adaptive pooling to several pixels
    pytest.param("vgg11", "avgpool", marks=needs_gpu),
    ("vit_b_16", "encoder.layers.encoder_layer_11"),  # attention
    ("swin_t", "features.7"),  # the gradient of indexing
]


@pytest.mark.parametrize(("network", "layer"), NETWORKS)
def test_two_runs_give_the_same_bytes_for_every_kind_of_layer(training_set, device, network, layer):
    skip_all_but_one_on_a_cpu(device, network)
    images, labels = (tensor[:72] for tensor in training_set)
    first, second = (train(images, labels, device, ADAM, network=network, layer=layer, epochs=1) for _ in range(2))
    assert_equal(first, second)


@needs_gpu
@OPTIMIZERS
def test_all_places_give_the_same_bytes(training_set, gpu, configuration):
    images, labels = (tensor[:600] for tensor in training_set)
    first = train(images, labels, gpu, configuration)
    for place in ("device", "host", "recompute"):
        assert_equal(train(images, labels, gpu, configuration, place=place), first)


@needs_gpu
def test_where_activations_go_when_memory_is_short(training_set, gpu, monkeypatch):
    """``HEADSTART_MEMORY_GB`` is a limit that PyTorch holds to: nothing runs out of memory, and no bit changes."""
    images, labels = (tensor[:600] for tensor in training_set)
    expected = train(images, labels, gpu, ADAM)
    torch.cuda.empty_cache()
    try:
        monkeypatch.setenv("HEADSTART_MEMORY_GB", "2")
        little = computing.configure("cuda")
        assert_equal(train(images, labels, little, ADAM, place="recompute"), expected)
        backbone, _ = splitting.split_backbone_head(models.build("resnet18", 10), "layer4")
        kept = cache_or_recompute(images, backbone, compute=little, prepare=PREPROCESS, reuse=True)
        assert kept.storage == "host"
        monkeypatch.setattr(computing, "free_ram", lambda: 0)
        assert (
            cache_or_recompute(images, backbone, compute=little, prepare=PREPROCESS, reuse=True).storage == "recompute"
        )
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@needs_gpu
def test_images_stay_in_host_memory_on_a_real_gpu(training_set, gpu):
    images = training_set[0]
    backbone, _ = splitting.split_backbone_head(models.build("resnet18", 10), "layer4")
    backbone.to(gpu.device)
    before = torch.cuda.memory_allocated()
    recomputed = cache_or_recompute(images, backbone, compute=gpu, prepare=PREPROCESS, reuse=False)
    assert torch.cuda.memory_allocated() - before < images.nbytes / 10
    [batch] = recomputed.batches(torch.arange(5), 5)
    assert batch.device == gpu.device


def gradients(head, inputs, labels, compute: Compute | None) -> dict[str, torch.Tensor]:
    """Return the gradients of the mean loss by parameter, in float64; without ``compute`` they are exact."""
    head = copy.deepcopy(head).train()
    if compute is None:
        loss = F.cross_entropy(head.double()(inputs.double()), labels)
    else:
        head.to(compute.device, memory_format=torch.channels_last)
        if compute.matmul_convolutions:
            use_matmul(head)
        inputs = inputs.to(compute.device, memory_format=torch.channels_last)
        with compute.autocast():
            loss = F.cross_entropy(head(inputs), labels.to(compute.device))
    loss.backward()
    return {name: parameter.grad.double().cpu() for name, parameter in head.named_parameters()}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.2)], ids=str)
def test_gradients_are_right(device, dtype, tolerance):
    """Of each parameter, against float64 on the CPU: with TF32 in place of float32 they are far from it.

    Few images, so that hardly any activation is so close to zero that rounding decides whether it has a gradient.
    """
    torch.manual_seed(0)
    _, head = splitting.split_backbone_head(models.build("resnet18", 10), "layer4")
    inputs, labels = torch.randn(16, 256, 4, 4).relu(), torch.randint(0, 10, (16,))
    exact = gradients(head, inputs, labels, None)
    found = gradients(head, inputs, labels, dataclasses.replace(device, dtype=dtype))
    assert found.keys() == exact.keys()
    for name, gradient in exact.items():
        assert (found[name] - gradient).norm() <= tolerance * gradient.norm(), name


@needs_gpu
def test_float32_agrees_with_the_cpu(training_set, gpu, compute):
    images, labels = (tensor[:200] for tensor in training_set)
    exact = dataclasses.replace(gpu, dtype=torch.float32)
    for configuration in (ADAM, SGD):
        _, [record] = train(images, labels, exact, configuration, epochs=1)
        _, [expected] = train(images, labels, compute, configuration, epochs=1)
        assert record.train_loss == pytest.approx(expected.train_loss, rel=1e-3)


@needs_gpu
def test_bfloat16_is_within_two_percent(test_set, gpu, compute):
    torch.manual_seed(0)
    network = models.build("resnet18", 10)
    [exact] = extract_features(test_set[0][:256], (network,), compute=compute, prepare=PREPROCESS)
    [coarse] = extract_features(test_set[0][:256], (network,), compute=gpu, prepare=PREPROCESS)
    assert (coarse - exact).std() <= 0.02 * exact.std()


@needs_gpu
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("image_size", [28, 64, 224])
@pytest.mark.parametrize("channels", [1, 3])
def test_preprocessing_is_the_cpus(training_set, gpu, interpolation, image_size, channels):
    images = training_set[0][:20]
    images = images if channels == 1 else torch.stack([images, images.flip(0), 255 - images], dim=1)
    preprocess = Preprocess(image_size, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), interpolation)
    found = preprocess(images.to(gpu.device))
    torch.testing.assert_close(found.cpu(), preprocess(images), rtol=1e-5, atol=1e-5)


@OPTIMIZERS
@pytest.mark.parametrize("layer", ["layer4", "fc"])
@pytest.mark.parametrize("place", ["device", pytest.param("host", marks=needs_gpu)])
@pytest.mark.parametrize("batch_size", [32, 512])
def test_nothing_in_an_epoch_waits_for_the_gpu(
    training_set, device, configuration, layer, place, batch_size, no_waiting
):
    """A batch larger than the training set is never full, so no step is recorded."""
    images, labels = (tensor[:256] for tensor in training_set)
    torch.manual_seed(0)
    backbone, head = splitting.split_backbone_head(models.build("resnet18", 10), layer)
    inputs = cache_or_recompute(images, backbone, compute=device, prepare=PREPROCESS, reuse=True)
    if place == "host":
        inputs = dataclasses.replace(inputs, rows=inputs.rows.cpu())
    nothing = Examples(CachedInputs.from_tensor(torch.empty(0, 1), device), labels[:0])
    seen: list[int] = []

    def on_batch(images: int) -> None:  # the first batch records; from the second on a wait is an error
        seen.append(images)
        if device.device.type == "cuda":
            no_waiting(sum(seen) < len(labels))

    trained(head, Examples(inputs, labels), nothing, configuration=configuration, n_epochs=1, batch_size=batch_size,
            seed=0, compute=device, on_batch=on_batch)  # fmt: skip
    assert seen == ([32] * 8 if batch_size == 32 else [256])
    assert predict(head, inputs, 5, device).shape == (5, 10)


def digest(device: str) -> str:
    """Train on made-up images, and return one SHA-256 of all that comes of it."""
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (104, 28, 28), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 10, (104,), generator=generator)
    state, records = train(images, labels, computing.configure(device), ADAM)
    made = hashlib.sha256(repr(records).encode())
    for name in sorted(state):
        made.update(state[name].reshape(-1).view(torch.uint8).numpy().tobytes())
    return made.hexdigest()


def test_a_training_is_the_same_after_others_and_in_a_process_of_its_own(device):
    chosen = str(device.device)
    first = digest(chosen)
    gc.collect()
    before = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
    assert digest(chosen) == first
    gc.collect()
    if torch.cuda.is_available():  # graphs and optimizers have given back what they held
        assert torch.cuda.memory_allocated() == before
    code = f"from tests.test_cuda import digest; print(digest({chosen!r}))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT), *sys.path])}
    alone = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True,
                           check=True)  # fmt: skip
    assert alone.stdout.split() == [first]


@needs_gpu
def test_more_than_two_to_the_31_elements(gpu):
    n, shape = 70_000, (14, 14, 256)
    if torch.cuda.mem_get_info()[0] < 10 * GB:
        pytest.skip("needs 10 GB of GPU memory")
    rows = torch.empty(n, *shape, dtype=torch.bfloat16, device=gpu.device)
    assert rows.numel() > 2**31
    chosen = torch.tensor([0, 1, n // 2, n - 2, n - 1])
    for number, row in enumerate(chosen.tolist()):
        rows[row] = number + 1
    [batch] = CachedInputs(rows, gpu.device).batches(chosen, len(chosen))
    for number, maps in enumerate(batch):
        assert (maps == number + 1).all()


@needs_gpu
def test_the_peak_of_a_stage_is_its_own(gpu):
    """Not what PyTorch still holds of a larger stage before it in the same process."""
    large = torch.empty(1 * GB, dtype=torch.uint8, device=gpu.device)
    assert gpu.peak_memory()["peak_gpu_memory_mb"] >= 1_000
    del large
    gc.collect()
    small = computing.configure("cuda")
    _, taken = small.measure(lambda: torch.empty(200_000_000, dtype=torch.uint8, device=gpu.device).max())
    assert 200_000_000 <= taken < 210_000_000
    left = torch.cuda.memory_allocated() / 1e6
    assert left + 200 <= small.peak_memory()["peak_gpu_memory_mb"] < left + 300


@needs_gpu
def test_a_full_gpu_is_one_line(gpu, monkeypatch):
    monkeypatch.delenv("HEADSTART_TRACEBACK", raising=False)
    with pytest.raises(SystemExit, match="out of GPU memory") as stopped:
        run_stage(lambda: torch.empty(1 << 50, dtype=torch.uint8, device=gpu.device))
    assert "\n" not in str(stopped.value.code)


def test_a_loss_that_is_not_finite_names_its_batch(device):
    """In a replayed step too: the third batch, of the second image that is too large."""
    head = nn.Linear(1, 2)
    nn.init.constant_(head.weight, 1.0)
    inputs = torch.ones(16, 1)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))  # seed 0, epoch 1
    inputs[order[9]] = torch.inf
    examples = Examples(CachedInputs.from_tensor(inputs, device), torch.zeros(16, dtype=torch.int64))
    with pytest.raises(UserError) as error:
        trained(
            head, examples, examples, configuration=ADAM, n_epochs=1, batch_size=4, seed=0, compute=device, name="x"
        )
    assert str(error.value) == "x: the loss is not finite from epoch 1, batch 3 on. Lower lr."


class Waiting(nn.Module):
    """A layer that asks the GPU for a value."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return maps * float(maps.mean().item() > 0) + maps


@needs_gpu
def test_a_step_that_cannot_be_recorded_says_how_to_train_without():
    """In a process of its own, since a recording that failed leaves the GPU's stream unusable."""
    code = """
import torch
from torch import nn
from headstart.console import run_cli
from headstart.training import compute
from headstart.training.inputs import Examples, CachedInputs
from tests.conftest import trained
from tests.test_cuda import ADAM, Waiting
device = compute.configure("cuda")
examples = Examples(CachedInputs.from_tensor(torch.randn(64, 8), device), torch.zeros(64, dtype=torch.int64))
head = nn.Sequential(Waiting(), nn.Linear(8, 2))
options = {"n_epochs": 1, "batch_size": 32, "seed": 0, "compute": device}
run_cli(lambda: trained(head, examples, examples, configuration=ADAM, **options))
print("done")
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT), *sys.path])}
    for graphs, status in (("1", 1), ("0", 0)):
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment | {"HEADSTART_GRAPHS": graphs},
                              capture_output=True, text=True, check=False)  # fmt: skip
        assert done.returncode == status, done.stderr
        assert ("HEADSTART_GRAPHS=0" in done.stderr) == (graphs == "1")


@needs_gpu
@pytest.mark.parametrize("network", ["alexnet", "vgg11"])
def test_pytorchs_own_adaptive_pooling_is_refused_and_ours_is_not(gpu, network):
    model = models.build(network, 10).to(gpu.device)
    images = torch.randn(2, 3, 224, 224, device=gpu.device)
    with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
        model(images).sum().backward()
    use_deterministic(model)
    model(images).sum().backward()


def pipeline(folder: Path, **changes) -> Path:
    """Copy the pipeline, without git, with a study of seconds of the published network; return the copy."""
    for name in ("src", "stages", "pipeline", "dvc.yaml"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy2)(ROOT / name, folder / name)
    settings = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    settings["study"] = "full"
    settings["dataset_dir"] = str((ROOT / settings["dataset_dir"]).resolve())
    weights = folder.parent / "weights.pth"
    if not weights.exists():
        torch.manual_seed(1)
        torch.save(models.build("resnet50", 1_000).state_dict(), weights)
    # 272 = 4 × 64 + 16: with a smaller last batch. With some labels and patience, too.
    settings["studies"]["full"] |= {
        "image_size": 32, "training_images": 272, "validation_images": 40, "n_epochs": 3, "patience": 3,
        "label_budgets": [100], "weights": str(weights),
    } | changes  # fmt: skip
    (folder / "params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return folder


def made(folder: Path) -> dict[str, str]:
    kinds = ("data", "models", "predictions", "probes", "audit", "scores", "metrics")
    paths = [path for kind in kinds for path in sorted((folder / kind).rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.mark.slow
@needs_gpu
def test_the_pipeline_twice_and_killed_gives_the_same_bytes(tmp_path):
    """SIGKILL after the first checkpoint of a fine-tuned training; with the graphs of that process it ends as well."""
    command = (sys.executable, "-m", "stages")
    first, killed = (pipeline(tmp_path / name) for name in ("first", "killed") if not (tmp_path / name).mkdir())
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(["src", ".", *sys.path])}
    done = subprocess.run(command, cwd=first, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    process = subprocess.Popen(command, cwd=killed, env=environment, stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE, text=True)  # fmt: skip
    checkpoint = killed / "checkpoints/full/pretrained-finetuned-adam/0.safetensors"
    while process.poll() is None and not checkpoint.exists():
        time.sleep(0.01)
    process.kill()
    _, complaint = process.communicate()
    assert process.returncode == -signal.SIGKILL, complaint
    done = subprocess.run(command, cwd=killed, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    expected = made(first)
    assert any("pretrained-finetuned-adam/model-0" in name for name in expected)
    assert made(killed) == expected
