"""Records: what they contain, and that the lock gate compares every record with params.yaml."""

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
CHANGED = {str: "changed", int: 7, bool: False, tuple: (5,), type(None): 7}  # another value, by type
RUN = {
    "commit": "abc", "started_at": "2026-01-01T00:00:00+00:00", "finished_at": "2026-01-01T01:00:00+00:00",
    "seconds": 3.0, "device": "a GPU", "precision": "bfloat16", "peak_memory_mb": 100, "weights": "w",
    "weights_sha256": "123",
}  # fmt: skip


@pytest.fixture
def settings(tmp_path, monkeypatch, request) -> params.Params:
    """Write a complete study, named by the test: its provenance, its results and its record. Return its settings."""
    study = request.param
    monkeypatch.chdir(tmp_path)
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, name)
    settings = dataclasses.replace(SETTINGS, study=study)
    for file in record.result_files(settings):
        files.write_text(file, f"the content of {file}")
    write_runs(study)  # last, because it hashes the results
    record.main(study)
    return settings


def write_runs(study: str) -> None:
    """Write the provenance of every stage of ``study``, as if it had run with the present params.yaml."""
    document = {**params.read_yaml(), "study": study}
    for stage in stages(document):
        seconds = {"training_seconds": 2.5} if stage.name.startswith("train") else {}
        settings = {key: lookup(document, key) for key in stage.params}
        outputs = {path.as_posix(): files.sha256(path) for path in files.list_source_files(stage.outs)}
        files.write_json(run_file(study, stage.name), {**RUN, **seconds, "settings": settings, "sha256": outputs})


def for_every_study(test):
    return pytest.mark.parametrize("settings", SETTINGS.studies, indirect=True)(test)


@for_every_study
def test_record_matches_the_settings_of_its_runs(settings):
    lock_gate.check_record(settings.study, settings)
    content = files.read_json(record.path(settings.study))
    assert content["settings"]["image_size"] == settings.selected_study.image_size
    assert content["commit"] == ["abc"]
    assert (content["device"], content["precision"]) == (["a GPU"], ["bfloat16"])
    assert (content["started_at"], content["finished_at"]) == (RUN["started_at"], RUN["finished_at"])
    assert content["training_seconds"] == 8 * 2.5
    assert len(content["stage_seconds"]) == 1 + 1 + 2 + 2 + 2 + 1 + 1 + 8 + 8 + 1
    assert content["weights"]["name"] == "w"
    n_label_files = 3 if settings.study in ("quick", "labels", "labels-doubled", "trashnet") else 0
    assert len(content["sha256"]) == 4 + 8 + 3 + 3 + n_label_files
    assert content["peak_memory_mb"] == 100
    assert "peak_gpu_memory_mb" not in content


@for_every_study
@pytest.mark.parametrize("key", [field.name for field in dataclasses.fields(params.Study)])
def test_every_setting_of_every_study_is_compared_with_its_record(settings, key):
    value, name = getattr(settings.selected_study, key), settings.study
    new_value = CHANGED[type(value)] if CHANGED[type(value)] != value else not value
    study = object.__new__(params.Study)  # without validation
    vars(study).update({**vars(settings.selected_study), key: new_value})
    changed = object.__new__(params.Params)
    vars(changed).update({**vars(settings), "studies": {**settings.studies, name: study}})
    with pytest.raises(UserError) as error:
        lock_gate.check_record(name, changed)
    remedy = f"set `study: {name}` in params.yaml, run `dvc repro`, and run `make record`"
    assert str(error.value).startswith(
        f"studies.{name}.{key} differs from the record of the study {name}. Restore it in params.yaml, or {remedy}. "
    )


@for_every_study
def test_record_is_compared_with_the_configurations_that_it_contains(settings):
    name = "random-frozen-adam"
    tuned = {**settings.configurations, name: dataclasses.replace(settings.configurations[name], lr=0.01)}
    with pytest.raises(
        UserError, match=rf"^configurations\.{name}\.lr differs from the record .* Got 0\.01 instead of 0\.001\.$"
    ):
        lock_gate.check_record(settings.study, dataclasses.replace(settings, configurations=tuned))
    more = {**settings.configurations, "one-more": dataclasses.replace(settings.configurations[name], lr=0.01)}
    lock_gate.check_record(settings.study, dataclasses.replace(settings, configurations=more))
    fewer = {key: value for key, value in settings.configurations.items() if key != name}
    lock_gate.check_record(settings.study, dataclasses.replace(settings, configurations=fewer))


@pytest.mark.parametrize("settings", ["quick"], indirect=True)
def test_results_that_do_not_match_the_record_are_rejected(settings):
    file = Path("metrics/quick/study.json")
    file.write_text("{}", encoding="utf-8")
    with pytest.raises(
        UserError,
        match=r"metrics/quick/study\.json does not match the record of the study quick\. Restore both from git, or set",
    ):
        lock_gate.check_record("quick", settings)
    record.path("quick").unlink()
    with pytest.raises(UserError, match=r"missing record: metrics/quick/record\.json\. To create it, set `study"):
        lock_gate.check_record("quick", settings)
    with pytest.raises(
        UserError, match=r"metrics/gone has results, but params\.yaml has no study gone\. Restore the study, or delete"
    ):
        lock_gate.check_record("gone", settings)


@pytest.mark.parametrize("settings", ["quick"], indirect=True)
def test_runs_with_other_settings_than_params_yaml_are_rejected(settings):
    Path("params.yaml").write_text(Path("params.yaml").read_text().replace("n_epochs: 2", "n_epochs: 3", 1))
    with pytest.raises(UserError) as error:
        record.build_record(params.read())
    assert str(error.value) == (
        "studies.quick.n_epochs in params.yaml changed after train@pretrained-finetuned-adam ran. Restore it, or run "
        "`dvc repro`. Got 3 instead of 2."
    )


@pytest.mark.parametrize("settings", ["quick"], indirect=True)
def test_runs_with_uncommitted_code_are_rejected(settings):
    file = run_file("quick", "prepare")
    files.write_json(file, {**files.read_json(file), "commit": "abc+"})
    with pytest.raises(UserError, match=r"prepare was run with uncommitted code\. Commit the code, and run `dvc"):
        record.build_record(settings)


@pytest.mark.parametrize("settings", ["quick"], indirect=True)
def test_outputs_of_another_run_are_rejected(settings):
    """If DVC restored outputs of another run, the provenance of the last run does not describe them."""
    name = "evaluate@random-frozen-sgd"
    files.write_text("metrics/quick/random-frozen-sgd.json", "{}")
    with pytest.raises(UserError) as error:
        record.build_record(settings)
    assert str(error.value) == (
        f"runs/quick/{name}.json does not describe metrics/quick/random-frozen-sgd.json, which is from another run. "
        f"To update it, run `dvc repro --force --single-item {name}`."
    )
    run_file("quick", name).unlink()
    with pytest.raises(UserError, match=rf"missing provenance: runs/quick/{name}\.json\. {name} did not run here"):
        record.build_record(settings)


@pytest.mark.parametrize("settings", ["resnet50"], indirect=True)
def test_weights_from_a_file_substitute_for_those_in_params_yaml(settings, tmp_path):
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
        UserError, match=r"^studies\.resnet50\.weights differs .* Got IMAGENET1K_V2 instead of mine\.pth\.$"
    ):
        lock_gate.check_record("resnet50", settings)
    lock_gate.check_record("resnet50", dataclasses.replace(params.read(), study="resnet50"))  # the same path is valid
    with pytest.raises(
        UserError, match=r"--substitute-for, --top1 and --license must be used together\. Give all three, or none"
    ):
        record.main("resnet50", "--substitute-for", "IMAGENET1K_V2")
    record.main("resnet50", "--substitute-for", "IMAGENET1K_V2", "--top1", "72.18", "--license", "a license")
    lock_gate.check_record("resnet50", settings)
    assert files.read_json(record.path("resnet50"))["weights"] == {
        "name": "w", "sha256": "123", "imagenet_top1_percent": 72.18, "substitute_for": "IMAGENET1K_V2",
        "license": "a license",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["raw", "data", "quick"])
def test_raw_data_of_another_study_are_accepted(tmp_path, monkeypatch, name):
    """All studies share data/raw, whatever their names. No other output is shared."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "dvc.yaml", "dvc.yaml")
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    text = text.replace("study: quick", f"study: {name}", 1).replace("\n  quick:\n", f"\n  {name}:\n", 1)
    Path("params.yaml").write_text(text, encoding="utf-8")
    settings = params.read()
    for file in [Path("data/raw/images"), Path(f"data/prepared/{name}.safetensors"), *record.result_files(settings)]:
        files.write_text(file, f"the content of {file}")
    write_runs(name)
    files.write_text("data/raw/images", "of another study")
    record.build_record(settings)
    files.write_text(f"data/prepared/{name}.safetensors", "of another run")
    with pytest.raises(UserError, match=f"does not describe data/prepared/{name}.safetensors, which is from"):
        record.build_record(settings)


def test_stages_of_dvc_yaml_are_in_topological_order():
    pipeline = list(stages(params.read_yaml(ROOT / "params.yaml"), str(ROOT / "dvc.yaml")))
    assert len(pipeline) == 1 + 1 + 2 + 2 + 2 + 1 + 1 + 8 + 8 + 1
    names = [stage.name for stage in pipeline]
    assert (names[0], names[-1]) == ("download", "compare")
    assert names.index("initialize@random") < names.index("features@random") < names.index("train@random-frozen-sgd")
    [train] = [stage for stage in pipeline if stage.name == "train@random-frozen-sgd"]
    assert (train.module, train.arguments) == ("stages.train", ("random-frozen-sgd", "quick"))
    assert "data/features/quick/pretrained-false" in train.deps
    assert "configurations.random-frozen-sgd" in train.params
    name = "quick/random-frozen-sgd"
    assert train.outs == (f"models/{name}", f"predictions/{name}")


def test_stages_in_dvc_lock_that_dvc_yaml_does_not_define_are_rejected(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, name)
    lock = {"schema": "2.0", "stages": {"prepare": {}, "train@renamed": {}}}
    Path("dvc.lock").write_text(yaml.safe_dump(lock), encoding="utf-8")
    with pytest.raises(
        UserError, match=r"dvc\.lock has stages that dvc\.yaml does not define\. Remove them.*Got train@renamed\."
    ):
        lock_gate._check_lock()
