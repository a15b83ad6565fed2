import dataclasses
from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch

from headstart.console import UserError
from headstart.training import compute as computing
from headstart.training.compute import Compute, choose_place

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
    assert choose_place(25 * GB, device=device, host=host) == place


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
    assert compute.place(size) == place


def test_what_pytorch_holds_but_does_not_use_counts_as_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 * GB, 40 * GB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 38 * GB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 5 * GB)
    monkeypatch.setattr(computing, "free_ram", lambda: 0)
    compute = Compute(torch.device("cuda"), torch.bfloat16)
    room = 34 * GB - computing.WORKSPACE["cuda"]
    assert (compute.place(room), compute.place(room + 1)) == ("device", "recompute")
    compute = dataclasses.replace(compute, memory=20 * GB)  # of which 5 are in use
    room = 15 * GB - computing.WORKSPACE["cuda"]
    assert (compute.place(room), compute.place(room + 1)) == ("device", "recompute")


def test_a_cpu_computes_in_float32_whatever_it_is(monkeypatch):
    """Else the precision of a result would depend on which CPU is at hand, and CI compares results of several."""
    monkeypatch.delenv("HEADSTART_DTYPE", raising=False)
    assert computing.choose("cpu").precision == "float32"


@pytest.mark.parametrize(
    ("limit", "used", "inactive_file", "free"),
    [(8 * GB, 6 * GB, 5 * GB, 7 * GB), (8 * GB, 6 * GB, 0, 2 * GB), ("max", 6 * GB, 0, 16 * GB)],
    ids=["files that were read", "none", "no limit"],
)
def test_files_that_may_be_forgotten_are_free_memory(tmp_path, monkeypatch, limit, used, inactive_file, free):
    monkeypatch.setattr(computing.psutil, "virtual_memory", lambda: SimpleNamespace(available=16 * GB))
    (tmp_path / "memory.max").write_text(f"{limit}\n", encoding="ascii")
    (tmp_path / "memory.current").write_text(f"{used}\n", encoding="ascii")
    stat = f"anon 1\nactive_file 7\ninactive_file {inactive_file}\nslab 3\n"
    (tmp_path / "memory.stat").write_text(stat, encoding="ascii")
    assert computing.free_ram(tmp_path) == free


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
    assert computing.choose() == Compute(torch.device("cpu"), torch.bfloat16, memory=1_500_000_000)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("HEADSTART_DEVICE", "gpu", "HEADSTART_DEVICE is 'gpu': it must be cpu, cuda or cuda:N"),
        ("HEADSTART_DTYPE", "half", "HEADSTART_DTYPE is 'half': it must be one of float32, bfloat16"),
        ("HEADSTART_MEMORY_GB", "much", "HEADSTART_MEMORY_GB is 'much': it must be a number of gigabytes greater "),
        ("HEADSTART_MEMORY_GB", "-1", "HEADSTART_MEMORY_GB is '-1': it must be a number of gigabytes greater than 0"),
        ("HEADSTART_MEMORY_GB", "nan", "HEADSTART_MEMORY_GB is 'nan': it must be a number of gigabytes greater than"),
    ],
)
def test_an_impossible_wish_is_named(monkeypatch, name, value, message):
    monkeypatch.setenv("HEADSTART_DEVICE", "cpu")
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="HEADSTART") as error:
        computing.choose()
    assert str(error.value).startswith(message)
