import json
import shutil

import pytest
import yaml

from headstart.console import UserError
from scripts import lock_gate, select_study

from .conftest import ROOT

TWO_ARMS = {
    "pretrained": {"pretrained": True, "finetuning": True, "optimizer": "AdamW", "lr": 0.001, "betas": [0.9, 0.98]},
    "random": {"pretrained": False, "finetuning": True, "optimizer": "SGD", "lr": 0.1, "momentum": 0.9,
               "weight_decay": 0.0001, "schedule": "cosine", "finetune_from": None},
}  # fmt: skip


@pytest.fixture(autouse=True)
def workspace(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    shutil.copytree(ROOT / "metrics", "metrics")


def read() -> dict:
    with open("params.yaml", encoding="utf-8") as file:
        return yaml.safe_load(file)


def test_only_the_line_of_the_study_changes_if_the_configurations_are_the_same(capsys):
    before = (ROOT / "params.yaml").read_text(encoding="utf-8")
    select_study.main("resnet50")
    with open("params.yaml", encoding="utf-8") as file:
        assert file.read() == before.replace("study: quick\n", "study: resnet50\n", 1)
    assert capsys.readouterr().out == "selected resnet50 with 8 configurations: run `dvc repro`\n"


def test_the_configurations_of_the_record_are_selected_and_pass_the_gate():
    path = "metrics/labels/record.json"
    with open(path, encoding="utf-8") as file:
        content = json.load(file)
    content["configurations"] = TWO_ARMS
    with open(path, "w", encoding="utf-8") as file:
        json.dump(content, file)
    studies = read()["studies"]
    select_study.main("labels")
    selected = read()
    assert selected["study"] == "labels"
    assert selected["studies"] == studies
    assert list(selected["configurations"]) == ["pretrained", "random"]
    assert selected["configurations"]["pretrained"] == TWO_ARMS["pretrained"]
    assert "finetune_from" not in selected["configurations"]["random"]
    settings = lock_gate.params.read()
    with pytest.raises(UserError, match=r"\.json does not match the record"):  # its settings match
        lock_gate.check_record("labels", settings)


def test_an_unknown_study_changes_nothing():
    before = read()
    with pytest.raises(UserError, match=r"^unknown study\. Choose one of quick, resnet50, .* Got 'quik'\.$"):
        select_study.main("quik")
    assert read() == before
