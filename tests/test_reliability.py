"""Short forms of the checks in docs/reliability.md: kills, and several people at the same time."""

import re
import sys

import pytest

from . import kill_resume, shared_cache
from .clones import lock, results, tiny_clone
from .conftest import run

pytestmark = pytest.mark.pipeline
N_FILES = 63  # of the results of a small study


@pytest.mark.slow
def test_a_killed_study_ends_with_the_same_bytes(tmp_path):
    """The short form of `python -m tests.kill_resume`, which kills twenty times."""
    clone = tmp_path / "clone"
    clone.mkdir()
    expected, actual, killed = kill_resume.run_with_kills(tiny_clone(clone), kills=3, seed=1)
    assert killed.total() == 3
    assert len(expected) == N_FILES
    assert kill_resume.differing_files(expected, actual) == []
    for dvc_file in kill_resume.DVC_FILES.values():
        (clone / dvc_file).write_text("", encoding="utf-8")
    assert kill_resume.repro(clone) is None
    log = (tmp_path / "log").read_text(encoding="utf-8")
    assert re.findall(r"^Running stage '(.*)':", log, re.MULTILINE) == ["compare"]
    assert kill_resume.differing_files(expected, results(clone)) == []


@pytest.mark.slow
def test_people_who_share_a_cache_get_the_same_bytes_as_a_run_without_dvc(tmp_path):
    """The short form of `python -m tests.shared_cache`, which trains eight configurations."""
    shared, problems = shared_cache.run_two_users(tmp_path, all_configurations=False)
    assert not problems, "\n".join(problems)
    clone = tiny_clone(tmp_path / "alone")
    run(sys.executable, "-m", "stages", cwd=clone)
    expected = results(clone)
    assert len(expected) == N_FILES
    assert shared == [expected, expected]
    # The commands end in any order, and DVC appends each stage to dvc.lock; the entries must be equal.
    assert lock(tmp_path / "user1") == lock(tmp_path / "user2")
