import dataclasses
import os
import platform
import subprocess
import sys
from collections import namedtuple
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from headstart.console import UserError
from headstart.training import compute as computing
from headstart.training.compute import Compute, choose_storage

from .conftest import ROOT, run

GB = 10**9


@pytest.mark.parametrize(
    ("device", "host", "place"),
    [
        (140 * GB, 100 * GB, "device"),
        (25 * GB, 0, "device"),
        (6 * GB, 100 * GB, "host"),
        (6 * GB, 25 * GB, "host"),
        (6 * GB, 24 * GB, "recompute"),
        (-GB, -GB, "recompute"),
    ],
)
def test_activations_go_to_the_first_place_with_room(device, host, place):
    assert choose_storage(25 * GB, device=device, host=host) == place


Properties = namedtuple("Properties", "total_memory")


@pytest.mark.parametrize(
    ("gpu", "ram", "place"),
    [(141, 100, "device"), (40, 16, "device"), (24, 64, "host"), (10, 64, "host"), (10, 16, "recompute")],
)
@pytest.mark.parametrize("limited", [False, True], ids=["all of a small GPU", "a part of a large one"])
def test_the_full_study_s_activations_on_gpus_of_several_sizes(monkeypatch, gpu, ram, place, limited):
    size = 60_000 * 1_024 * 14 * 14 * 2  # bfloat16 before layer4 of ResNet-50
    free = 141 if limited else gpu
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free * GB, free * GB))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(computing, "free_ram", lambda: ram * GB)
    compute = Compute(torch.device("cuda"), torch.bfloat16, memory=gpu * GB if limited else None)
    assert compute.storage_for(size) == place


def test_what_pytorch_holds_but_does_not_use_counts_as_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 * GB, 40 * GB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 38 * GB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 5 * GB)
    monkeypatch.setattr(computing, "free_ram", lambda: 0)
    compute = Compute(torch.device("cuda"), torch.bfloat16)
    room = 34 * GB - computing.RESERVED_BYTES["cuda"]
    assert (compute.storage_for(room), compute.storage_for(room + 1)) == ("device", "recompute")
    compute = dataclasses.replace(compute, memory=20 * GB)  # of which 5 are in use
    room = 15 * GB - computing.RESERVED_BYTES["cuda"]
    assert (compute.storage_for(room), compute.storage_for(room + 1)) == ("device", "recompute")
    room = 15 * GB - 6 * GB  # what a computation was seen to take beyond RESERVED_BYTES
    assert (compute.storage_for(room, 6 * GB), compute.storage_for(room + 1, 6 * GB)) == ("device", "recompute")


def test_what_a_computation_takes_is_measured_and_the_peak_of_the_stage_is_kept(monkeypatch):
    """On a GPU whose counters are these: PyTorch can only measure a part by forgetting the highest so far."""
    memory = SimpleNamespace(now=3 * GB, highest=30 * GB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: memory.now)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: memory.highest)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: vars(memory).update(highest=memory.now))
    compute = Compute(torch.device("cuda", 7), torch.bfloat16)

    def work() -> str:
        memory.highest = max(memory.highest, memory.now + 6 * GB)
        memory.now += 1 * GB  # the result
        return "result"

    assert compute.measure(work) == ("result", 5 * GB)
    assert compute.peak_memory() == {"peak_gpu_memory_mb": 30_000}
    memory.highest = 40 * GB
    assert compute.peak_memory() == {"peak_gpu_memory_mb": 40_000}


def test_on_a_cpu_nothing_is_measured(compute):
    assert compute.measure(lambda: "result") == ("result", 0)
    assert compute.peak_memory() == {}


def test_a_cpu_computes_in_float32_whatever_it_is(monkeypatch):
    """Else the precision of a result would depend on which CPU is at hand, and CI compares results of several."""
    monkeypatch.delenv("HEADSTART_DTYPE", raising=False)
    assert computing.configure("cpu").precision == "float32"


NAMES = {
    "2": ("memory.max", "memory.current", "inactive_file"),
    "1": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
FOLDER = {"2": "sys/fs/cgroup", "1": "sys/fs/cgroup/memory"}


def group(root: Path, path: str, *, version: str, limit: str | int, used: int, inactive_file: int = 0) -> None:
    """Make a control group as Linux shows it."""
    folder = root / FOLDER[version] / path
    folder.mkdir(parents=True, exist_ok=True)
    limit_file, used_file, entry = NAMES[version]
    (folder / limit_file).write_text(f"{limit}\n", encoding="ascii")
    (folder / used_file).write_text(f"{used}\n", encoding="ascii")
    stat = f"anon 1\nactive_file 7\n{entry} {inactive_file}\nslab 3\n"
    (folder / "memory.stat").write_text(stat, encoding="ascii")


def processes_groups(root: Path, *lines: str) -> None:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text("".join(f"{line}\n" for line in lines), encoding="ascii")


@pytest.fixture
def ram(monkeypatch) -> int:
    monkeypatch.setattr(computing.psutil, "virtual_memory", lambda: SimpleNamespace(available=16 * GB))
    return 16 * GB


@pytest.mark.parametrize("version", ["1", "2"])
@pytest.mark.parametrize(
    ("limit", "used", "inactive_file", "free"),
    [(8 * GB, 6 * GB, 5 * GB, 7 * GB), (8 * GB, 6 * GB, 0, 2 * GB), (1 << 62, 6 * GB, 0, 16 * GB)],
    ids=["cached files", "none", "no limit"],
)
@pytest.mark.usefixtures("ram")
def test_files_that_can_be_dropped_are_free_memory(tmp_path, version, limit, used, inactive_file, free):
    limit = "max" if version == "2" and limit == 1 << 62 else limit
    group(tmp_path, ".", version=version, limit=limit, used=used, inactive_file=inactive_file)
    processes_groups(tmp_path, "0::/" if version == "2" else "9:memory:/")
    assert computing.free_ram(tmp_path) == free


@pytest.mark.parametrize("version", ["1", "2"])
@pytest.mark.parametrize(
    ("limits", "free"),
    [
        ({"slurm/job_7": 8 * GB, "slurm/job_7/step_0": 4 * GB}, 3 * GB),
        ({"slurm/job_7": 4 * GB, "slurm/job_7/step_0": 8 * GB}, 3 * GB),
        ({"slurm/job_7": 4 * GB}, 3 * GB),
        ({"slurm": 2 * GB, "slurm/job_7": 4 * GB}, 1 * GB),
        ({"slurm/job_8": 2 * GB}, 16 * GB),
        ({}, 16 * GB),
    ],
    ids=["its own", "its job's", "the job's alone", "the node's share", "another job's", "none"],
)
@pytest.mark.usefixtures("ram")
def test_memory_is_limited_by_every_group_up_to_the_root(tmp_path, version, limits, free):
    """SLURM limits a job and its step in groups of their own, systemd a scope and its slice."""
    for path, limit in limits.items():
        group(tmp_path, path, version=version, limit=limit, used=1 * GB)
    own = "slurm/job_7/step_0/task_0"
    (tmp_path / FOLDER[version] / own).mkdir(parents=True, exist_ok=True)
    lines = [f"0::/{own}"] if version == "2" else ["9:name=systemd:/x", f"4:cpu,memory:/{own}", "3:cpuset:/", "0::/"]
    processes_groups(tmp_path, *lines)
    assert computing.free_ram(tmp_path) == free


@pytest.mark.usefixtures("ram")
def test_a_container_that_is_told_the_path_of_its_host(tmp_path):
    """It sees its own group as the root, and the path from the host's root in /proc."""
    group(tmp_path, ".", version="1", limit=6 * GB, used=2 * GB)
    processes_groups(tmp_path, "4:memory:/docker/0123:with:colons")
    assert computing.free_ram(tmp_path) == 4 * GB


def test_without_control_groups_the_systems_free_memory_counts(tmp_path, ram):
    assert computing.free_ram(tmp_path) == ram


def test_the_limit_of_a_nested_group_is_seen_for_real():
    """In a group that is made for it, where this machine lets us."""
    own = next(group for group in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
               if group.split(":")[1] in ("", "memory"))  # fmt: skip
    version = "2" if own.startswith("0::") else "1"
    parent = Path("/", FOLDER[version], own.split(":", 2)[2].lstrip("/"))
    nested = parent / f"headstart-{os.getpid()}"
    code = "from headstart.training.compute import free_ram; print(free_ram())"
    joined = f"echo $$ > {nested}/cgroup.procs && exec {sys.executable} -c '{code}'"
    try:
        nested.mkdir()
        (nested / NAMES[version][0]).write_text(str(GB), encoding="ascii")
    except OSError as error:
        with suppress(OSError):
            nested.rmdir()
        pytest.skip(f"no control group can be made here: {error}")
    try:
        free = int(run("bash", "-c", joined, cwd=ROOT).stdout)
    finally:
        nested.rmdir()
    assert 0 < free < GB


def test_a_checkpoint_fits_whatever_number_of_cores_a_machine_has(monkeypatch, compute):
    before = compute.reproducible_on()
    monkeypatch.setattr(os, "cpu_count", lambda: 1_000)
    assert compute.describe()["device"] == "1000 CPU cores"
    assert compute.reproducible_on() == before
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "another")
    assert compute.reproducible_on() != before
    assert dataclasses.replace(compute, dtype=torch.bfloat16).reproducible_on() != before
    assert {"threads", "torch", "python", "timm"} <= before.keys()


def test_float32_is_exact_on_a_gpu_whatever_the_environment_says():
    """Set without PyTorch's deprecated settings, so without a warning; matrix products accept the combination."""
    code = """
import torch
from headstart.training import compute
assert torch.backends.cuda.matmul.fp32_precision == "tf32"
compute.configure("cpu")
print(torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision)
torch.backends.cuda.matmul.allow_tf32  # raises where the old and the new setting differ
"""
    environment = {**os.environ, "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], env=environment, capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert (done.stderr, done.stdout) == ("", "ieee ieee\n")


def test_the_devices_generator_goes_to_whichever_device_it_is_now(monkeypatch):
    """As it was saved on cuda:1 it is restored on cuda:0, and on the CPU it is nobody's."""
    state, put = torch.tensor([7], dtype=torch.uint8), {}
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: state if device.index == 1 else None)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: put.update({str(device): state}))
    saved = computing.generator_states(torch.device("cuda:1"))
    assert set(saved) == {"cpu", "device"}
    computing.restore_generators(torch.device("cuda:0"), saved)
    computing.restore_generators(torch.device("cpu"), saved)
    assert put == {"cuda:0": state}
    assert set(computing.generator_states(torch.device("cpu"))) == {"cpu"}


def test_the_environment_decides(monkeypatch):
    monkeypatch.setenv("HEADSTART_DEVICE", "cpu")
    monkeypatch.setenv("HEADSTART_DTYPE", "bfloat16")
    monkeypatch.setenv("HEADSTART_MEMORY_GB", "1.5")
    assert computing.configure() == Compute(torch.device("cpu"), torch.bfloat16, memory=1_500_000_000)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("HEADSTART_DEVICE", "gpu", "unknown HEADSTART_DEVICE. Choose cpu, cuda or cuda:N. Got 'gpu'."),
        ("HEADSTART_DTYPE", "half", "unknown HEADSTART_DTYPE. Choose one of float32, bfloat16. Got 'half'."),
        ("HEADSTART_GRAPHS", "no", "HEADSTART_GRAPHS must be 0 or 1. Got 'no'."),
        ("HEADSTART_MEMORY_GB", "much", "HEADSTART_MEMORY_GB must be a number greater than 0. Got 'much'."),
        ("HEADSTART_MEMORY_GB", "-1", "HEADSTART_MEMORY_GB must be a number greater than 0. Got '-1'."),
        ("HEADSTART_MEMORY_GB", "nan", "HEADSTART_MEMORY_GB must be a number greater than 0. Got 'nan'."),
    ],
)
def test_an_impossible_wish_is_named(monkeypatch, name, value, message):
    monkeypatch.setenv("HEADSTART_DEVICE", "cpu")
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="HEADSTART") as error:
        computing.configure()
    assert str(error.value).startswith(message)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_counts_as_free():
    """Malloc keeps freed memory, also below a block that is in use; ``storage_for`` returns it before it measures."""
    code = """
import psutil, torch
from headstart.training import compute
device = compute.configure("cpu")
large = torch.ones(100_000_000)
small = torch.ones(1_000)
del large
before = psutil.Process().memory_info().rss
device.storage_for(1)
print(before - psutil.Process().memory_info().rss > 300_000_000)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
