"""What a record says, and that the gate holds every study's record against params.yaml."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import yaml

from headstart import files, params
from headstart.console import UserError
from pipeline.dvc_yaml import lookup, stages
from pipeline.provenance import run_file
from scripts import lock_gate, record

from .conftest import ROOT

SETTINGS = params.read(ROOT / "params.yaml")
OTHER = {str: "other", int: 7, bool: False, tuple: (5,), type(None): 7}
RUN = {
    "commit": "abc", "started_at": "2026-01-01T00:00:00+00:00", "finished_at": "2026-01-01T01:00:00+00:00", "seconds": 3.0,
    "device": "a GPU", "precision": "bfloat16", "peak_memory_mb": 100, "weights": "w", "weights_sha256": "123",
}  # fmt: skip


@pytest.fixture
def settings(tmp_path, monkeypatch, request) -> params.Params:
    """Of a complete study, the one that the test names: its runs and its results are there, and the record of them."""
    study = request.param
    monkeypatch.chdir(tmp_path)
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, name)
    settings = dataclasses.replace(SETTINGS, study=study)
    for file in record.results(settings):
        files.write_text(file, f"the content of {file}")
    write_runs(study)  # with the hashes of the results
    record.main(study)
    return settings


def write_runs(study: str) -> None:
    """Write the provenance that every stage of ``study`` leaves if it runs with params.yaml as it is."""
    document = {**params.read_yaml(), "study": study}
    for stage in stages(document):
        seconds = {"training_seconds": 2.5} if stage.name.startswith("train") else {}
        settings = {key: lookup(document, key) for key in stage.params}
        outputs = {path.as_posix(): files.sha256(path) for path in files.list_source_files(stage.outs)}
        files.write_json(run_file(study, stage.name), {**RUN, **seconds, "settings": settings, "sha256": outputs})


def every_study(test):
    return pytest.mark.parametrize("settings", SETTINGS.studies, indirect=True)(test)


@every_study
def test_a_record_fits_the_settings_it_was_made_with(settings):
    lock_gate.check_record(settings.study, settings)
    made = files.read_json(record.path(settings.study))
    assert made["settings"]["image_size"] == settings.selected_study.image_size
    assert made["commit"] == ["abc"]
    assert (made["device"], made["precision"]) == (["a GPU"], ["bfloat16"])
    assert (made["started_at"], made["finished_at"]) == (RUN["started_at"], RUN["finished_at"])
    assert made["training_seconds"] == 8 * 2.5
    assert len(made["stage_seconds"]) == 1 + 1 + 2 + 2 + 2 + 8 + 8 + 1
    assert made["weights"]["name"] == "w"
    by_labels = 3 if settings.study in ("quick", "labels") else 0
    assert len(made["sha256"]) == 4 + 8 + 3 + 3 + by_labels
    assert made["peak_memory_mb"] == 100
    assert "peak_gpu_memory_mb" not in made


@every_study
@pytest.mark.parametrize("key", [field.name for field in dataclasses.fields(params.Study)])
def test_every_setting_of_every_study_is_held_against_its_record(settings, key):
    was, name = getattr(settings.selected_study, key), settings.study
    now = OTHER[type(was)] if OTHER[type(was)] != was else not was
    study = object.__new__(params.Study)  # whether the value is possible is not asked here
    vars(study).update({**vars(settings.selected_study), key: now})
    changed = object.__new__(params.Params)
    vars(changed).update({**vars(settings), "studies": {**settings.studies, name: study}})
    with pytest.raises(UserError) as error:
        lock_gate.check_record(name, changed)
    assert str(error.value).startswith(f"the study {name} was made with studies.{name}.{key} ")
    remedy = f"set it back, or run the study with `study: {name}` in params.yaml, then `make record`"
    assert str(error.value).endswith(f": {remedy}")


@every_study
def test_a_record_is_checked_against_the_configurations_that_it_contains(settings):
    name = "random-frozen-adam"
    tuned = {**settings.configurations, name: dataclasses.replace(settings.configurations[name], lr=0.01)}
    with pytest.raises(
        UserError, match=f"study {settings.study} was made with configurations.{name}.lr 0.001, and params.yaml"
    ):
        lock_gate.check_record(settings.study, dataclasses.replace(settings, configurations=tuned))
    more = {**settings.configurations, "one-more": dataclasses.replace(settings.configurations[name], lr=0.01)}
    lock_gate.check_record(settings.study, dataclasses.replace(settings, configurations=more))
    fewer = {key: value for key, value in settings.configurations.items() if key != name}
    with pytest.raises(UserError, match=f"made with configurations.{name}.pretrained False, and params.yaml has None"):
        lock_gate.check_record(settings.study, dataclasses.replace(settings, configurations=fewer))


@pytest.mark.parametrize("settings", ["quick"], indirect=True)
def test_results_that_are_not_those_of_the_record(settings):
    file = Path("metrics/quick/study.json")
    file.write_text("{}", encoding="utf-8")
    with pytest.raises(
        UserError, match=r"metrics/quick/study\.json is not what the record of the study quick says: take"
    ):
        lock_gate.check_record("quick", settings)
    record.path("quick").unlink()
    with pytest.raises(UserError, match=r"metrics/quick/record\.json is missing: run the study with `study: quick` in"):
        lock_gate.check_record("quick", settings)
    with pytest.raises(
        UserError, match=r"metrics/gone has results of a study that params\.yaml does not have: put it back"
    ):
        lock_gate.check_record("gone", settings)


@pytest.mark.parametrize("settings", ["quick"], indirect=True)
def test_a_record_is_of_what_was_run_and_not_of_what_params_yaml_says_now(settings):
    Path("params.yaml").write_text(Path("params.yaml").read_text().replace("n_epochs: 2", "n_epochs: 3", 1))
    with pytest.raises(UserError) as error:
        record.record(params.read())
    was = r"train@pretrained-finetuned-adam was run with another studies.quick.n_epochs than params.yaml has (2, now 3)"
    assert str(error.value) == f"{was}: set it back, or run `dvc repro`"


@pytest.mark.parametrize("settings", ["quick"], indirect=True)
def test_a_record_of_uncommitted_code_is_refused(settings):
    file = run_file("quick", "prepare")
    files.write_json(file, {**files.read_json(file), "commit": "abc+"})
    with pytest.raises(UserError, match="prepare was run with code that is not committed: commit it, and run `dvc"):
        record.record(settings)


@pytest.mark.parametrize("settings", ["quick"], indirect=True)
def test_a_record_is_of_the_outputs_that_are_there(settings):
    """After DVC has restored outputs of another run, the times and the device of the last run are not theirs."""
    name = "evaluate@random-frozen-sgd"
    files.write_text("metrics/quick/random-frozen-sgd.json", "{}")
    with pytest.raises(UserError) as error:
        record.record(settings)
    assert str(error.value) == (
        f"runs/quick/{name}.json does not describe metrics/quick/random-frozen-sgd.json, which comes from another run: "
        f"run `dvc repro --force --single-item {name}`"
    )
    run_file("quick", name).unlink()
    with pytest.raises(UserError, match=f"runs/quick/{name}.json is missing: {name} did not run here, or DVC restored"):
        record.record(settings)


@pytest.mark.parametrize("settings", ["resnet50"], indirect=True)
def test_weights_from_a_file_stand_in_for_those_of_params_yaml(settings, tmp_path):
    weights = tmp_path / "elsewhere" / "mine.pth"
    weights.parent.mkdir()
    weights.touch()
    text = Path("params.yaml").read_text(encoding="utf-8").replace("IMAGENET1K_V2", str(weights), 1)
    Path("params.yaml").write_text(text, encoding="utf-8")
    write_runs("resnet50")
    record.main("resnet50")
    assert files.read_json(record.path("resnet50"))["weights"] == {
        "name": "w", "sha256": "123", "imagenet_top1_percent": None,
    }  # fmt: skip
    with pytest.raises(
        UserError, match=r"made with studies\.resnet50\.weights mine\.pth, and params\.yaml has IMAGENET1K_V2"
    ):
        lock_gate.check_record("resnet50", settings)
    lock_gate.check_record("resnet50", dataclasses.replace(params.read(), study="resnet50"))  # a path fits itself
    with pytest.raises(
        UserError, match="--substitute-for, --top1 and --license belong together: give all three, or none"
    ):
        record.main("resnet50", "--substitute-for", "IMAGENET1K_V2")
    record.main("resnet50", "--substitute-for", "IMAGENET1K_V2", "--top1", "72.18", "--license", "a license")
    lock_gate.check_record("resnet50", settings)
    assert files.read_json(record.path("resnet50"))["weights"] == {
        "name": "w", "sha256": "123", "imagenet_top1_percent": 72.18, "substitute_for": "IMAGENET1K_V2",
        "license": "a license",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["raw", "data", "quick"])
def test_the_raw_data_of_another_study_do_not_matter(tmp_path, monkeypatch, name):
    """All studies share data/raw, whatever they are called; the other outputs are the study's own."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "dvc.yaml", "dvc.yaml")
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    text = text.replace("study: quick", f"study: {name}", 1).replace("\n  quick:\n", f"\n  {name}:\n", 1)
    Path("params.yaml").write_text(text, encoding="utf-8")
    settings = params.read()
    for file in [Path("data/raw/images"), Path(f"data/prepared/{name}.safetensors"), *record.results(settings)]:
        files.write_text(file, f"the content of {file}")
    write_runs(name)
    files.write_text("data/raw/images", "of another study")
    record.record(settings)
    files.write_text(f"data/prepared/{name}.safetensors", "of another run")
    with pytest.raises(UserError, match=f"does not describe data/prepared/{name}.safetensors, which comes"):
        record.record(settings)


def test_the_stages_of_dvc_yaml_in_order():
    found = list(stages(params.read_yaml(ROOT / "params.yaml"), str(ROOT / "dvc.yaml")))
    assert len(found) == 1 + 1 + 2 + 2 + 2 + 8 + 8 + 1
    names = [stage.name for stage in found]
    assert (names[0], names[-1]) == ("download", "compare")
    assert names.index("initialize@random") < names.index("features@random") < names.index("train@random-frozen-sgd")
    [train] = [stage for stage in found if stage.name == "train@random-frozen-sgd"]
    assert (train.module, train.arguments) == ("stages.train", ("random-frozen-sgd", "quick"))
    assert "data/features/quick/pretrained-false" in train.deps
    assert "configurations.random-frozen-sgd" in train.params
    name = "quick/random-frozen-sgd"
    assert train.outs == (f"models/{name}", f"predictions/{name}")


def test_a_stage_in_dvc_lock_that_is_gone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, name)
    lock = {"schema": "2.0", "stages": {"prepare": {}, "train@renamed": {}}}
    Path("dvc.lock").write_text(yaml.safe_dump(lock), encoding="utf-8")
    with pytest.raises(UserError, match=r"dvc\.lock has stages that dvc\.yaml does not have.*\(train@renamed\)"):
        lock_gate._check_lock()
