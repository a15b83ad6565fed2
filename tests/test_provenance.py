"""What a stage was run with: its study, its parameters, and the hashes of its outputs."""

import dataclasses
import shutil
import subprocess
from pathlib import Path

import pytest

from headstart import files, params
from headstart.console import UserError
from headstart.data import fashion_mnist
from pipeline import provenance
from pipeline.provenance import Run, run_file
from stages import download, paths

from .conftest import ROOT


@pytest.fixture(autouse=True)
def workspace(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, name)
    return tmp_path


def edit(old: str, new: str) -> None:
    text = Path("params.yaml").read_text(encoding="utf-8")
    assert old in text
    Path("params.yaml").write_text(text.replace(old, new, 1), encoding="utf-8")


def test_a_stage_runs_the_study_that_it_was_started_for():
    edit("study: quick", "study: labels")
    run = Run("prepare", "quick")
    assert (run.settings.study, run.settings.selected_study.image_size) == ("quick", 64)
    run.finish()
    assert run_file("quick", "prepare").is_file()
    assert Run("prepare").settings.study == "labels"
    with pytest.raises(params.ParamsError, match="study: Choose one of quick, "):
        Run("prepare", "gone")


def test_the_study_is_changed_while_a_stage_runs():
    run = Run("prepare", "quick")
    edit("study: quick", "study: labels")
    run.finish()
    assert not Path("runs/labels").exists()


def test_a_parameter_is_changed_while_a_stage_runs():
    run = Run("prepare", "quick")
    edit("    image_size: 64", "    image_size: 96")
    with pytest.raises(UserError) as error:
        run.finish()
    problem = "params.yaml changed while prepare ran: studies.quick.image_size was 64 and is 96. "
    assert str(error.value) == f"{problem}Run `dvc repro` again."
    assert not Path("runs").exists()
    edit("    image_size: 96", "    image_size: 64")
    edit("    n_epochs: 2", "    n_epochs: 3")  # which prepare does not use
    run.finish()


def test_provenance_has_settings_times_and_hashes():
    files.write_text("data/prepared/quick.safetensors", "images")
    Run("prepare", "quick").finish(device="2 CPU cores")
    content = files.read_json(run_file("quick", "prepare"))
    assert content["settings"]["studies.quick.image_size"] == 64
    assert content["settings"].keys() == set(provenance.find_stage("prepare", params.read_yaml(), "quick").params)
    assert content["sha256"] == {
        "data/prepared/quick.safetensors": files.sha256("data/prepared/quick.safetensors"),
    }  # fmt: skip
    assert content["device"] == "2 CPU cores"
    assert {"seconds", "started_at", "finished_at", "commit"} <= content.keys()


def test_no_output_of_a_stage_is_in_the_folder_of_provenance():
    for stage in provenance.stages(params.read_yaml()):
        assert not any(out.startswith("runs") for out in (*stage.outs, *stage.deps))


def test_the_data_are_those_of_the_study_that_dvc_names(folder):
    edit("study: quick", "study: other")
    edit("  quick-seeds:", "  other:\n" + Path("params.yaml").read_text().split("  quick:\n")[1].split("  resnet50:")[0]
         .replace("dataset: fashion-mnist", "dataset: nothing") + "  quick-seeds:")  # fmt: skip
    download.main("quick")
    assert {path.name for path in paths.RAW.iterdir()} == set(fashion_mnist.SHA256)


def test_stages_without_outputs_of_random_weights_leave_nothing_over():
    """With pretrained configurations alone, the stages of the random initialization run all the same."""
    settings = params.read()
    pretrained = {name: value for name, value in settings.configurations.items() if value.pretrained}
    settings = dataclasses.replace(settings, configurations=pretrained)
    for stage in provenance.stages({**params.read_yaml(), "configurations": {name: vars(value) for name, value in
                                                                       pretrained.items()}}):  # fmt: skip
        for out in stage.outs:
            files.write_text(out if Path(out).suffix else f"{out}/file", "")
    assert paths.stale_outputs_message(settings) == ""
    files.write_text("models/quick/random-frozen-sgd/file", "")
    assert ": models/quick/random-frozen-sgd. " in paths.stale_outputs_message(settings)


def test_git_does_not_take_provenance():
    ignored = subprocess.run(["git", "check-ignore", "-q", "runs/quick/prepare.json"], cwd=ROOT, check=False)
    assert ignored.returncode == 0
