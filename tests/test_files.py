import hashlib
import json
import os
import subprocess
import sys

import pytest
import torch

from headstart import files
from headstart.console import UserError


def test_a_file_appears_complete_or_not_at_all(tmp_path):
    path = tmp_path / "result.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(RuntimeError, match="killed"), files.atomic_write(path) as beside:  # noqa: PT012
        beside.write_text('{"a": 2')
        raise RuntimeError("killed")
    assert files.read_json(path) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]


def test_a_folder_appears_complete_or_not_at_all(tmp_path):
    path = tmp_path / "models" / "one"
    for content in ("old", "new"):
        with files.atomic_write(path) as beside:
            beside.mkdir()
            (beside / content).write_text(content)
    assert [file.name for file in path.iterdir()] == ["new"]
    with pytest.raises(RuntimeError, match="killed"), files.atomic_write(path) as beside:  # noqa: PT012
        beside.mkdir()
        (beside / "half").write_text("half")
        raise RuntimeError("killed")
    assert [file.name for file in path.iterdir()] == ["new"]
    assert [file.name for file in path.parent.iterdir()] == ["one"]


def test_what_a_killed_process_left_is_swept_away(tmp_path):
    path = tmp_path / "x.json"
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    # The second is still writing, and of the third only its own machine knows.
    for host, pid in ((files.HOST, ended.pid), (files.HOST, os.getpid()), ("other", ended.pid)):
        (tmp_path / f".x.json.abc.{host}.{pid}.writing").mkdir()
    files.write_json(path, {})
    assert {file.name for file in tmp_path.iterdir()} == {
        "x.json", f".x.json.abc.{files.HOST}.{os.getpid()}.writing", f".x.json.abc.other.{ended.pid}.writing",
    }  # fmt: skip


def test_tensors_come_back_as_they_were_and_the_bytes_are_the_same(tmp_path):
    tensors = {name: torch.arange(24.0).view(1, 2, 3, 4) + number for number, name in enumerate("abcdefgh")}
    tensors["a"] = tensors["a"].contiguous(memory_format=torch.channels_last)
    description = {"mean": [0.5, 0.5], "name": "x", "empty": ""}
    hashes = set()
    for attempt in range(5):
        path = tmp_path / f"{attempt}.safetensors"
        files.write_tensors(path, tensors, description)
        hashes.add(hashlib.sha256(path.read_bytes()).hexdigest())
    assert len(hashes) == 1
    back = files.read_tensors(path)
    assert back.description == description
    assert all(torch.equal(back.tensors[name], tensors[name]) for name in tensors)
    assert list(files.read_tensors(path, "c").tensors) == ["c"]


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, json.dumps({"a": 1}).encode()])
def test_a_damaged_file(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"x\.safetensors is damaged \(.*\): delete it, and `dvc repro` makes it anew"):
        files.read_tensors(path)


def test_a_missing_file_and_a_missing_tensor(tmp_path):
    with pytest.raises(UserError, match=r"x\.safetensors is missing: `dvc repro` makes it"):
        files.read_tensors(tmp_path / "x.safetensors")
    files.write_tensors(tmp_path / "y.safetensors", {"a": torch.zeros(1)})
    with pytest.raises(UserError, match=r"y\.safetensors is damaged"):
        files.read_tensors(tmp_path / "y.safetensors", "b")


def test_csv_round_trip(tmp_path):
    files.write_csv(tmp_path / "x.csv", ["epoch", "loss"], [[1, 0.1], [2, None]])
    assert (tmp_path / "x.csv").read_bytes() == b"epoch,loss\n1,0.1\n2,\n"
    assert files.read_csv(tmp_path / "x.csv") == [{"epoch": "1", "loss": "0.1"}, {"epoch": "2", "loss": ""}]


def test_sources_are_all_files_but_bytecode(tmp_path):
    for name in (
        "room/b.py",
        "room/a.html",
        "room/inner/c.py",
        "room/__pycache__/b.cpython-311.pyc",
        "one.py",
        "two.py",
    ):
        files.write_text(tmp_path / name, name)
    found = files.list_source_files([tmp_path / "one.py", tmp_path / "room"])
    assert [path.relative_to(tmp_path).as_posix() for path in found] == [
        "one.py", "room/a.html", "room/b.py", "room/inner/c.py",
    ]  # fmt: skip
