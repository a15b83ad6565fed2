"""Provenance of a stage: settings, code, device, times and hashes, in `runs/<study>/<stage>.json`.

The file is not an output of the stage. Its times differ from run to run, and DVC would run every stage again on the
next machine. Where DVC restores the outputs from its cache, there is no such file, or one of an earlier run.
"""

from pathlib import Path
from typing import Any

from headstart import files, params
from headstart.console import UserError
from headstart.run_info import RunInfo
from pipeline.dvc_yaml import Stage, lookup, stages

PIPELINE = Path(__file__).parent.parent / "dvc.yaml"


class Run:
    """One run of a stage: its settings when it begins, its provenance when it ends."""

    def __init__(self, stage: str, study: str = "") -> None:
        """Read the settings.

        Args:
            stage: its name in dvc.yaml, such as `train@random-frozen-sgd`.
            study: the study that DVC started the stage for, whatever `params.yaml` selects meanwhile; without one, the
                study that `params.yaml` selects.
        """
        self._clock = RunInfo()
        self._stage = stage
        self._document = params.read_yaml()
        settings = params.read()
        self.settings = params.for_study(settings, study) if study else settings

    def finish(self, **facts: Any) -> None:
        """Write the provenance, with ``facts``.

        Raises:
            UserError: a parameter of the stage was changed while it ran. DVC would record the new value.
        """
        study = self.settings.study
        stage = find(self._stage, self._document, study)
        used, now = (_values(stage, document) for document in (self._document, params.read_yaml()))
        for key, value in used.items():
            if now[key] != value:
                raise UserError(f"params.yaml was changed while {stage.name} ran: run `dvc repro` again "
                                f"({key} was {value}, and is {now[key]})")  # fmt: skip
        outputs = {path.as_posix(): files.cached_sha256(path) for path in files.list_source_files(stage.outs)}
        content = {**self._clock.describe(), **facts, "settings": used, "sha256": outputs}
        files.write_json(run_file(study, stage.name), content)


def run_file(study: str, stage: str) -> Path:
    """Return the path of the provenance of ``stage``."""
    return Path(f"runs/{study}/{stage}.json")


def find(name: str, document: dict[str, Any], study: str) -> Stage:
    """Return the stage ``name`` of dvc.yaml as it is with the parameters ``document`` and ``study``."""
    return next(stage for stage in stages({**document, "study": study}, str(PIPELINE)) if stage.name == name)


def _values(stage: Stage, document: dict[str, Any]) -> dict[str, Any]:
    """Return the values of the stage's parameters; None for one that is missing."""
    values = {}
    for key in stage.params:
        try:
            values[key] = lookup(document, key)
        except (KeyError, TypeError):
            values[key] = None
    return values
