"""The pipeline without DVC: `python -m stages`, in a copy of the repository, at a scale of seconds.

That it makes the same bytes as `dvc repro` is in test_reliability.py.
"""

import re
import signal
import subprocess
import sys
from functools import partial

import pytest
import torch
from filelock import FileLock
from torchvision.models import get_model

import headstart
from headstart import files
from headstart.data import splits

from .clones import NAMES, edit, results, tiny_clone
from .conftest import run

pytestmark = pytest.mark.pipeline


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, str]:
    """What `python -m stages` makes when nothing happens to it."""
    clone = tiny_clone(tmp_path_factory.mktemp("alone"))
    run(sys.executable, "-m", "stages", cwd=clone)
    return results(clone)


@pytest.mark.slow
def test_interrupted_killed_and_changed_from_outside(alone, tmp_path):
    """`python -m stages` resumes after an interruption, and notices outputs that changed."""
    clone = tiny_clone(tmp_path / "clone")
    stages = (sys.executable, "-m", "stages")
    (clone / "checkpoints").mkdir()
    with FileLock(clone / "checkpoints/stages.lock"):
        busy = "headstart: another `python -m stages` runs in this folder. Wait until it ends, or stop it.\n"
        assert run(*stages, cwd=clone, check=False).stderr == busy
    heeding = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # workers of pytest-xdist ignore Ctrl-C
    process = subprocess.Popen(stages, cwd=clone, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               preexec_fn=heeding)  # fmt: skip
    for line in process.stdout:
        if "features@pretrained" in line:
            break
    process.send_signal(signal.SIGINT)
    interrupted = "headstart: interrupted: no partial output was left. Run the same command again to resume.\n"
    assert process.communicate()[1] == interrupted
    assert process.returncode == 1
    assert ran(run(*stages, cwd=clone).stdout).isdisjoint({"download", "prepare", "features@pretrained"})
    assert results(clone) == alone
    assert ran(run(*stages, cwd=clone).stdout) == {"all"}

    edit(clone, lambda settings: settings["configurations"][NAMES[1]].update(lr=0.002))
    assert ran(run(*stages, cwd=clone).stdout) == {f"train@{NAMES[1]}", f"evaluate@{NAMES[1]}", "compare", "all"}
    # Killed while it writes outputs, then run with the earlier settings: the outputs on disk are not theirs.
    edit(clone, lambda settings: settings["configurations"][NAMES[1]].update(lr=0.003))
    process = subprocess.Popen(stages, cwd=clone, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if f"s  train@{NAMES[1]}" in line:
            process.kill()
    process.wait()
    edit(clone, lambda settings: settings["configurations"][NAMES[1]].update(lr=0.001))
    assert ran(run(*stages, cwd=clone).stdout) == {f"train@{NAMES[1]}", f"evaluate@{NAMES[1]}", "compare", "all"}
    assert results(clone) == alone
    # An output was changed from outside.
    (clone / f"metrics/quick/{NAMES[0]}.json").write_text("{}", encoding="utf-8")
    assert ran(run(*stages, cwd=clone).stdout) == {f"evaluate@{NAMES[0]}", "all"}
    assert results(clone) == alone


def ran(printed: str) -> set[str]:
    """Return the stages that ran, and "all"."""
    return set(re.findall(r"^ *[0-9.]+ s  (\S+)$", printed, re.MULTILINE))


@pytest.mark.slow
def test_a_seed_is_the_same_alone_and_among_others(tmp_path):
    runs = []
    for seeds in ([0, 1], [1]):
        clone = tiny_clone(tmp_path / str(seeds))
        edit(clone, lambda settings, seeds=seeds: settings["studies"]["quick"].update(seeds=seeds))
        run(sys.executable, "-m", "stages", cwd=clone)
        runs.append(results(clone))
        logits = files.read_arrays(clone / f"predictions/quick/{NAMES[2]}/logits.safetensors").arrays["logits"]
        runs[-1]["logits of seed 1"] = str(logits[-1].tolist())
    both, alone = runs
    of_seed_1 = {name for name in alone if "seed-1." in name or "model-1." in name or name == "logits of seed 1"}
    assert len(of_seed_1) == 2 + 1 + len(NAMES) + 1  # starts, features of the random one, networks
    assert {name: both[name] for name in of_seed_1} == {name: alone[name] for name in of_seed_1}
    for name in of_seed_1 - {"logits of seed 1", "data/initial/quick/pretrained-true/seed-1.safetensors"}:
        assert both[name] != both[name.replace("-1.", "-0.")], name  # and another one than seed 0


def test_another_network(tmp_path):
    """A network whose classifier is nested and follows dropout; its weights come from a file."""
    name, layer = "mobilenet_v3_small", "features.11"
    torch.manual_seed(1)
    torch.save(get_model(name).state_dict(), tmp_path / "weights.pth")
    clone = tiny_clone(tmp_path / "clone")
    change = {"model_name": name, "finetune_from": layer, "weights": str(tmp_path / "weights.pth")}
    edit(clone, lambda settings: settings["studies"]["quick"].update(change))
    run(sys.executable, "-m", "stages", cwd=clone)
    images = splits.read_split(clone / "data/prepared/quick.safetensors", "test").images
    for configuration in NAMES:
        logits = files.read_arrays(clone / f"predictions/quick/{configuration}/logits.safetensors").arrays["logits"]
        with torch.inference_mode():
            loaded = headstart.load(clone / f"models/quick/{configuration}")(torch.from_numpy(images))
        torch.testing.assert_close(loaded, torch.from_numpy(logits[0]), rtol=1e-3, atol=1e-3)
    assert (clone / "report/quick/index.html").stat().st_size > 100_000
