import subprocess

from headstart import run_info

from .conftest import ROOT


def test_an_environment_variable_sets_the_commit_of_a_copy_without_git(monkeypatch):
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    monkeypatch.delenv("HEADSTART_COMMIT", raising=False)
    assert run_info.commit().rstrip("+") == head.strip()
    monkeypatch.setenv("HEADSTART_COMMIT", "0123abc")
    assert run_info.commit() == "0123abc"
    assert run_info.RunInfo().describe()["commit"] == "0123abc"
