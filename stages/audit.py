"""Find possible issues in a dataset of image files, such as near-duplicates: see `headstart.results.audit`."""

import sys
from collections.abc import Iterator

import numpy as np

from headstart import files
from headstart.console import run_cli
from headstart.data import splits
from headstart.data.splits import SPLITS
from headstart.params import Params
from headstart.results import audit
from headstart.results.audit import Issues
from pipeline.provenance import Run
from stages.paths import audit_file, features_file, prepared_file

COLUMNS = ["issue", "file", "split", "class", "score", "similar_file", "similar_split", "other_class"]


def main(study: str = "") -> None:
    run = Run("audit", study)
    path, prepared = audit_file(run.settings), prepared_file(run.settings)
    file_names = splits.read_metadata(prepared).file_names
    # Built-in datasets have no files that you could correct.
    issues = _find_issues(run.settings) if file_names else audit.NO_ISSUES
    names = [(name, split) for split in SPLITS for name in file_names.get(split, ())]
    labels, classes = _read_labels(run.settings)
    with files.atomic_write(path.parent) as folder:
        files.write_csv(
            folder / "issues.csv", COLUMNS, _rows(issues, names, [classes[label] for label in labels], classes)
        )
        audit.write(folder / path.name, issues)
    run.finish()


def _find_issues(settings: Params) -> Issues:
    images = np.concatenate([splits.read_split(prepared_file(settings), split).images for split in SPLITS])
    path, keys = features_file(settings, True, 0), [f"{split}_features" for split in SPLITS]
    tensors = files.read_tensors(path, *keys).tensors
    features = np.concatenate([tensors[key].float().numpy() for key in keys])
    labels, _ = _read_labels(settings)
    n_test = len(tensors["test_features"])
    is_test = np.arange(len(labels)) >= len(labels) - n_test
    issues = audit.find_issues(images, features, labels, is_test)
    # Groups of images make the test set differ from the others by design.
    return issues._replace(shift_auc=None) if settings.selected_study.group_by else issues


def _read_labels(settings: Params) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the labels of the images of all splits, in the order of ``SPLITS``, and the class names."""
    labels = [splits.read_labels(prepared_file(settings), split) for split in SPLITS]
    return np.concatenate([values for values, _ in labels]), labels[0][1]


def _rows(
    issues: Issues, names: list[tuple[str, str]], labels: list[str], classes: tuple[str, ...]
) -> Iterator[list[str]]:
    for pair in issues.near_duplicates:
        similar_file, similar_split = names[pair.second]
        yield ["near-duplicate", *names[pair.first], labels[pair.first], f"{pair.similarity:.3f}",
               similar_file, similar_split, labels[pair.second]]  # fmt: skip
    for error in issues.label_errors:
        yield ["label error", *names[error.image], labels[error.image], f"{error.score:.3f}", "", "",
               classes[error.suggestion]]  # fmt: skip
    for outlier in issues.outliers:
        yield ["outlier", *names[outlier.image], labels[outlier.image], f"{outlier.distance:.3f}", "", "", ""]
    for confusable in issues.confusable:
        yield ["confusable classes", "", "", classes[confusable.first], f"{confusable.auc:.3f}", "", "",
               classes[confusable.second]]  # fmt: skip
    if issues.shift_auc is not None:
        yield ["shifted test set", "", "test", "", f"{issues.shift_auc:.3f}", "", "", ""]


if __name__ == "__main__":
    run_cli(main, *sys.argv[1:])
