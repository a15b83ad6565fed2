"""What docs/reliability.md promises, in its short form: kills, and several at once."""

import re
import sys

import pytest

from . import kill_resume, shared_cache
from .clones import lock, results, tiny_clone
from .conftest import run

pytestmark = pytest.mark.pipeline


def test_a_study_that_is_killed_ends_as_one_that_is_not(tmp_path):
    """The short form of `make kills`, which kills twenty times."""
    clone = tmp_path / "clone"
    clone.mkdir()
    expected, got, fell = kill_resume.study(tiny_clone(clone), kills=3, seed=1)
    assert fell.total() == 3
    assert len(expected) == 62
    assert kill_resume.different(expected, got) == []
    for own_file in kill_resume.OWN_FILES.values():
        (clone / own_file).write_text("", encoding="utf-8")
    assert kill_resume.repro(clone) is None
    log = (tmp_path / "log").read_text(encoding="utf-8")
    assert re.findall(r"^Running stage '(.*)':", log, re.MULTILINE) == ["compare"]
    assert kill_resume.different(expected, results(clone)) == []


def test_people_at_once_get_what_one_gets_alone(tmp_path):
    """The short form of `make reliability`, which does it with eight configurations."""
    both, failed = shared_cache.study(tmp_path, every=False)
    assert not failed, "\n".join(failed)
    alone = tiny_clone(tmp_path / "alone")
    run(sys.executable, "-m", "stages", cwd=alone)  # without DVC, too
    expected = results(alone)
    assert len(expected) == 62
    assert both == [expected, expected]
    # The commands end in any order, and DVC adds each stage at the end.
    assert lock(tmp_path / "one") == lock(tmp_path / "other")
