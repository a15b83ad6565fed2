import hashlib
import json
import os
import subprocess
import sys

import pytest
import torch

from headstart import files
from headstart.console import UserError


def test_a_file_is_written_completely_or_not_at_all(tmp_path):
    path = tmp_path / "result.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(RuntimeError, match="killed"), files.atomic_write(path) as tmp:  # noqa: PT012
        tmp.write_text('{"a": 2')
        raise RuntimeError("killed")
    assert files.read_json(path) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]


def test_a_folder_is_written_completely_or_not_at_all(tmp_path):
    path = tmp_path / "models" / "a"
    for content in ("old", "new"):
        with files.atomic_write(path) as tmp:
            tmp.mkdir()
            (tmp / content).write_text(content)
    assert [file.name for file in path.iterdir()] == ["new"]
    with pytest.raises(RuntimeError, match="killed"), files.atomic_write(path) as tmp:  # noqa: PT012
        tmp.mkdir()
        (tmp / "half").write_text("half")
        raise RuntimeError("killed")
    assert [file.name for file in path.iterdir()] == ["new"]
    assert [file.name for file in path.parent.iterdir()] == ["a"]


def test_temporary_folders_of_killed_processes_are_deleted(tmp_path):
    path = tmp_path / "x.json"
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    # The second process is still writing, and only the machine "other" knows whether the third one is alive.
    for host, pid in ((files.HOST, dead.pid), (files.HOST, os.getpid()), ("other", dead.pid)):
        (tmp_path / f".x.json.abc.{host}.{pid}.writing").mkdir()
    files.write_json(path, {})
    assert {file.name for file in tmp_path.iterdir()} == {
        "x.json", f".x.json.abc.{files.HOST}.{os.getpid()}.writing", f".x.json.abc.other.{dead.pid}.writing",
    }  # fmt: skip


def test_zombies_and_younger_processes_do_not_write(tmp_path):
    """A killed process stays a zombie until its parent waits for it, and a new process may get its id."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert files.has_running_creator(tmp_path, process.pid)
    os.utime(tmp_path, (1e9, 1e9))  # long before the process started
    assert not files.has_running_creator(tmp_path, process.pid)
    os.utime(tmp_path)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it is a zombie now
    assert not files.has_running_creator(tmp_path, process.pid)
    process.communicate()
    assert not files.has_running_creator(tmp_path, process.pid)


def test_tensors_survive_a_round_trip_with_reproducible_bytes(tmp_path):
    tensors = {name: torch.arange(24.0).view(1, 2, 3, 4) + number for number, name in enumerate("abcdefgh")}
    tensors["a"] = tensors["a"].contiguous(memory_format=torch.channels_last)
    metadata = {"mean": [0.5, 0.5], "name": "x", "empty": ""}
    hashes = set()
    for attempt in range(5):
        path = tmp_path / f"{attempt}.safetensors"
        files.write_tensors(path, tensors, metadata)
        hashes.add(hashlib.sha256(path.read_bytes()).hexdigest())
    assert len(hashes) == 1
    result = files.read_tensors(path)
    assert result.metadata == metadata
    assert all(torch.equal(result.tensors[name], tensors[name]) for name in tensors)
    assert list(files.read_tensors(path, "c").tensors) == ["c"]


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, json.dumps({"a": 1}).encode()])
def test_a_damaged_file_is_an_error(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"^damaged file: .*x\.safetensors \(.*\)\. Delete it and run `dvc repro`\.$"):
        files.read_tensors(path)


def test_a_missing_file_and_a_missing_tensor_are_errors(tmp_path):
    with pytest.raises(UserError, match=r"^missing file: .*x\.safetensors\. Run `dvc repro` to create it\.$"):
        files.read_tensors(tmp_path / "x.safetensors")
    files.write_tensors(tmp_path / "y.safetensors", {"a": torch.zeros(1)})
    with pytest.raises(UserError, match=r"^damaged file: .*y\.safetensors"):
        files.read_tensors(tmp_path / "y.safetensors", "b")


def test_csv_files_survive_a_round_trip(tmp_path):
    files.write_csv(tmp_path / "x.csv", ["epoch", "loss"], [[1, 0.1], [2, None]])
    assert (tmp_path / "x.csv").read_bytes() == b"epoch,loss\n1,0.1\n2,\n"
    assert files.read_csv(tmp_path / "x.csv") == [{"epoch": "1", "loss": "0.1"}, {"epoch": "2", "loss": ""}]


def test_source_files_are_all_files_except_bytecode(tmp_path):
    for name in (
        "package/b.py",
        "package/a.html",
        "package/inner/c.py",
        "package/__pycache__/b.cpython-311.pyc",
        "a.py",
        "b.py",
    ):
        files.write_text(tmp_path / name, name)
    paths = files.list_source_files([tmp_path / "a.py", tmp_path / "package"])
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == [
        "a.py", "package/a.html", "package/b.py", "package/inner/c.py",
    ]  # fmt: skip
