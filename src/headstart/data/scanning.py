"""Scan a folder of images: find its class folders and image files, and the problems that are visible without decoding.

Layouts: `<class>/…`; `train/<class>/…` and `test/<class>/…`; `train/…` and `val/…`, with or without `test/…`. All other
layouts are rejected, so that folders never become classes by accident.
"""

import os
import re
import shlex
import stat
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from headstart.console import UserError
from headstart.data.decoding import FORMATS, SUFFIXES, UNREADABLE_SUFFIXES

# Files of operating systems, NAS boxes and tools next to images. Names that start with a dot are ignored too.
JUNK = frozenset({
    "@eadir", "@tmp", "@sharebin", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "~snapshot", "__macosx",
    "network trash folder", "temporary items", "lost+found", "system volume information", "$recycle.bin", "recycler",
    "__pycache__", "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini",
})  # fmt: skip
TABLES = (".csv", ".tsv", ".xlsx", ".xls", ".parquet", ".jsonl", ".mat")  # may have the labels of images
# Annotations, notes and code: a folder with files of these kinds only is not a class.
NOTES = frozenset({".xml", ".json", ".txt", ".csv", ".md", ".yaml", ".yml", ".py", ".ipynb", ".html", ".log"})
SPLIT_WORDS = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validate", "validation", "dev", "development"),
    "test": ("test", "testing", "tst", "eval", "evaluation", "holdout"),
}
_SPLIT_OF_WORD = {word: split for split, words in SPLIT_WORDS.items() for word in words}
_SUFFIX_WORDS = "set|sets|data|dataset|image|images|img|imgs|picture|pictures|photo|photos|split|folder|dir"
# As in train_set, val2017.
_SPLIT_WORD = re.compile(rf"({'|'.join(_SPLIT_OF_WORD)})(?:{_SUFFIX_WORDS})?\d*")
_AFFIXED_SPLIT = re.compile(r"(train(?:ing)?|test(?:ing)?|val(?:id|idation)?)(.*)|(.*?)(train|test|val)")  # trainA
_FOLD = re.compile(r"(k?fold|cv|split|partition)s?[\W_]*\d+|\d+[\W_]*fold|fold[\W_]*[a-z]")
_POSSIBLE_FOLD = re.compile(r"(part|subset|set|batch|chunk|shard)[\W_]*\d+")


class ImageFile(NamedTuple):
    """An image file, with the partition and the class of its folder."""

    path: Path
    partition: str  # "train" or "test", or an empty string if there are no split folders
    class_name: str


class Scan(NamedTuple):
    """The contents of a folder of images."""

    folder: Path
    image_files: list[ImageFile]  # by path
    problems: dict[Path, str]  # files and folders that cannot be used, as far as is known without decoding
    class_names: set[str]  # names of the class folders
    ignored: Counter[str]  # number of other files in the class folders, by suffix
    notes: list[str]  # how the layout was interpreted, for the user


class _Layout(NamedTuple):
    class_folders: list[tuple[str, Path]]  # each with its partition: "train", "test" or an empty string
    notes: list[str]


def scan(folder: Path, *, follow_links: bool) -> Scan:
    """Scan ``folder`` without decoding any image.

    Args:
        follow_links: follow links to folders. DVC does not, so data/pictures must not contain any.

    Raises:
        UserError: the folder does not exist, cannot be read, or has an unknown layout.
    """
    if folder.is_symlink() and not follow_links:
        raise UserError(f"link to a folder: {folder}. DVC does not follow links. Replace the link with the folder.")
    class_folders, notes = _find_class_folders(folder)
    image_files, problems, ignored = [], {}, Counter[str]()
    for partition, top in class_folders:
        for path, problem in _walk(top, follow_links, (folder.resolve(),)):
            if problem:
                problems[path] = problem
            elif problem is None:
                ignored[path.suffix.lower()] += 1
            else:
                image_files.append(ImageFile(path, partition, top.name))
    for parent in {top.parent for _, top in class_folders} | {folder}:
        problems |= dict.fromkeys(_image_files(parent), "is not in a class folder")
    class_names = {top.name for _, top in class_folders}
    return Scan(folder, sorted(image_files, key=lambda file: file.path), problems, class_names, ignored, notes)


def find_images(folder: Path) -> tuple[list[Path], dict[Path, str]]:
    """Return the images below ``folder``, by path, and the files and folders that cannot be read, each with the reason.

    Links are followed. Files that are not images, and those in ``JUNK``, are left out.
    """
    images, problems = [], {}
    for path, problem in _walk(folder, True, ()):
        if problem:
            problems[path] = problem
        elif problem is not None:
            images.append(path)
    return sorted(images), problems


def _find_class_folders(folder: Path) -> _Layout:
    """Interpret the folders in ``folder`` as classes or as splits with classes in them.

    Raises:
        UserError: there are no class folders, or the layout is unknown.
    """
    folders = _subfolders(folder)
    ignored = [top for top in folders if _has_notes_only(top)]
    notes = [f"{display_name(top.name)} has no images and is ignored" for top in ignored]
    tops = [top for top in folders if top not in ignored]
    if not tops:
        raise UserError(f"no class folders: {folder}. Create one folder per class and put its images there"
                        f"{_table_hint(folder)}.")  # fmt: skip
    splits = _find_splits(tops)
    other_folders = [top for top in tops if top not in splits]
    _reject_folds(folder, [top for top in other_folders if _FOLD.fullmatch(top.name.lower())], other_folders)
    possible_folds = [top for top in other_folders if _POSSIBLE_FOLD.fullmatch(top.name.lower())]
    _reject_folds(folder, possible_folds if _have_same_subfolders(possible_folds) else [], other_folders)
    if not splits:
        _reject_affixed_splits(folder, tops)
        return _Layout([("", top) for top in tops], notes + _nested_split_notes(tops))
    with_classes = [top for top in splits if _entries(top)[0]]
    if other_folders and not with_classes and len(splits) == 1:
        name = display_name(next(iter(splits)).name)
        notes.append(f"{name} is used as a class, because it has no class folders")
        return _Layout([("", top) for top in tops], notes)
    if unknown := [top for top in other_folders if _has_images(top)]:
        remedy = f"Move the images of {_names(unknown)} into the split folders, or remove them"
        if not with_classes:
            remedy += f". If {_names(splits)} are classes, rename them"
        raise UserError(f"split folders next to other folders: {folder} has {_names(splits)} next to "
                        f"{_names(unknown)}. {remedy}.")  # fmt: skip
    _require_splits(folder, splits, with_classes)
    has_test = "test" in splits.values()
    partitions = {"train": "train", "test": "test", "val": "train" if has_test else "test"}
    names = {split: display_name(top.name) for top, split in splits.items()}
    notes += [f"{display_name(top.name)} has no images and is ignored" for top in other_folders]
    if "val" in names and has_test:
        notes.append(f"{names['train']} and {names['val']} are merged: validation images are drawn from both")
    elif "val" in names:
        notes.append(f"{names['val']} is used as the test set, because there is no test folder")
    return _Layout(
        [(partitions[split], path) for top, split in splits.items() for path in _subfolders(_unwrap(top))], notes
    )


def _find_splits(tops: Sequence[Path]) -> dict[Path, str]:
    """Return the folders that are named like splits, each with "train", "val" or "test".

    If no name is exactly that of a split, accept folders that have subfolders and share all other words of their names,
    for example `seg_train` and `seg_test`.
    """
    parsed_names = {top: parsed for top in tops if (parsed := _parse_split_name(top.name))}
    exact = {top: split for top, (split, words) in parsed_names.items() if not words}
    if exact:
        return exact
    for shared_words in {words for _, words in parsed_names.values()}:
        group = {
            top: split for top, (split, words) in parsed_names.items() if words == shared_words and _entries(top)[0]
        }
        if "train" in group.values() and len(set(group.values())) > 1:
            return group
    return {}


def _parse_split_name(name: str) -> tuple[str, tuple[str, ...]] | None:
    """Return the split in ``name`` and the other words, or None without a split: `Training_set` gives ("train", ())."""
    words = [word for word in re.split(r"[\W_]+", name.lower()) if word]
    split_words = [match[1] for word in words if (match := _SPLIT_WORD.fullmatch(word))]
    if len(split_words) != 1:
        return None
    other_words = (
        word for word in words if not _SPLIT_WORD.fullmatch(word) and not re.fullmatch(rf"{_SUFFIX_WORDS}|\d+", word)
    )
    return _SPLIT_OF_WORD[split_words[0]], tuple(other_words)


def _require_splits(folder: Path, splits: dict[Path, str], with_classes: Sequence[Path]) -> None:
    """Raise UserError unless each split has one folder with class folders in it, and there is a training split."""
    if flat := [top for top in splits if top not in with_classes]:
        remedy = f"Create one folder per class, such as {_quoted(flat[0] / 'cat')}"
        if len(with_classes) == 1:
            remedy += f", or use only {_names(with_classes)}: make pictures FOLDER={_quoted(with_classes[0])}"
        raise UserError(f"split without class folders: {folder} has no class folders in {_names(flat)}. {remedy}"
                        f"{_table_hint(folder)}.")  # fmt: skip
    counts = Counter(splits.values())
    if repeated := [split for split, count in counts.items() if count > 1]:
        tops = [top for top in splits if splits[top] == repeated[0]]
        raise UserError(f"several folders for the same split: {folder} has {_names(tops)}. Merge or rename them.")
    if len(splits) == 1:
        [only] = splits
        raise UserError(f"only one split: {folder} has {_names(splits)}. Run `make pictures FOLDER={_quoted(only)}`, "
                        "which holds out a fifth of each class for testing.")  # fmt: skip
    if "train" not in counts:
        raise UserError(f"no training split: {folder} has {_names(splits)}. Rename the folder to train with to train.")


def _reject_folds(folder: Path, folds: Sequence[Path], other_folders: Sequence[Path]) -> None:
    if len(folds) > 1 and len(folds) == len(other_folders):
        raise UserError(f"folders that look like cross-validation folds: {folder} has {_names(folds)}, but a study has "
                        "a single split. Rename one of them to test, and merge the others, class by class, into "
                        "train.")  # fmt: skip


def _reject_affixed_splits(folder: Path, tops: Sequence[Path]) -> None:
    """Raise UserError if names differ only in a split that is their prefix or suffix: trainA and testA, for example."""
    groups: dict[str, list[tuple[str, Path]]] = {}
    for top in tops:
        if match := _AFFIXED_SPLIT.fullmatch(top.name.lower()):
            word, stem = (match[1], match[2]) if match[1] else (match[4], match[3])
            groups.setdefault(re.sub(r"[\W_]", "", stem), []).append((_SPLIT_OF_WORD[word], top))
    for group in groups.values():
        splits = {split for split, _ in group}
        if "train" in splits and len(splits) > 1:
            raise UserError(f"folders that look like splits: {folder} has {_names(top for _, top in group)}. Create "
                            "the folders train and test, each with one folder per class.")  # fmt: skip


def _have_same_subfolders(tops: Sequence[Path]) -> bool:
    """Return whether all have the same two or more subfolders and no images, as cross-validation folds have."""
    subfolders = {frozenset(path.name for path in _entries(top)[0]) for top in tops}
    return len(subfolders) == 1 and len(next(iter(subfolders))) > 1 and not any(map(_image_files, tops))


def _nested_split_notes(tops: Sequence[Path]) -> list[str]:
    """Return a note if all classes contain split folders, which are not used as splits."""
    subfolders = [[path.name for path in _entries(top)[0]] for top in tops]
    if all(len(names) > 1 and all(map(_parse_split_name, names)) for names in subfolders):
        names = ", ".join(map(display_name, subfolders[0]))
        return [f"{names} inside the classes are merged: a fifth of each class is held out for testing"]
    return []


def _unwrap(top: Path) -> Path:
    """Return the only folder in ``top`` if it has the same name, as in unpacked archives, or a name such as images."""
    folders, files = _entries(top)
    if len(folders) != 1 or files or not _entries(folders[0])[0]:
        return top
    name = folders[0].name.lower()
    return folders[0] if name == top.name.lower() or re.fullmatch(_SUFFIX_WORDS, name) else top


def _subfolders(folder: Path) -> list[Path]:
    """Return the folders in ``folder``, by name.

    Raises:
        UserError: there is no such folder, or it cannot be read.
    """
    try:
        return _list_entries(folder)[0]
    except FileNotFoundError:
        raise UserError(f"no such folder: {folder}. Check the path.") from None
    except NotADirectoryError:
        is_archive = re.search(r"\.(zip|rar|7z|tar|tgz|gz|bz2|xz)$", folder.name.lower())
        raise UserError(
            f"not a folder: {folder}. {'Unpack it first.' if is_archive else 'Give the path of a folder.'}"
        ) from None
    except OSError as error:
        raise UserError(f"{folder} {_explain_unreadable(error)}") from None


def _entries(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the folders and the files in ``folder``, none if it cannot be read, which ``_walk`` reports."""
    try:
        return _list_entries(folder)
    except OSError:
        return [], []


def _list_entries(folder: Path) -> tuple[list[Path], list[Path]]:
    folders: list[Path] = []
    files: list[Path] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith(".") and entry.name.lower() not in JUNK:
                (folders if _is_folder(entry) else files).append(folder / entry.name)
    return sorted(folders), sorted(files)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to a path without permission
        return False


def _walk(top: Path, follow_links: bool, ancestors: tuple[Path, ...]) -> Iterator[tuple[Path, str | None]]:
    """Yield all files below ``top``, each with its problem; see ``_find_problem``."""
    real = top.resolve()
    if top.is_symlink() and not follow_links:
        yield top, "is a link to a folder, which DVC does not follow: replace the link with the folder"
        return
    if any(ancestor.is_relative_to(real) for ancestor in ancestors):  # a link to a folder that contains the link
        return
    try:
        folders, files = _list_entries(top)
    except OSError as error:
        yield top, _explain_unreadable(error)
        return
    for path in files:
        yield path, _find_problem(path)
    for path in folders:
        yield from _walk(path, follow_links, (*ancestors, real))


def _find_problem(path: Path) -> str | None:
    """Return a visible problem of the image ``path``, an empty string if it has none, or None if it is not an image.

    A file is an image if it has the suffix of an image or the content of one.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe, a socket, a device
            return None
        if path.suffix.lower() in SUFFIXES | UNREADABLE_SUFFIXES:
            path.open("rb").close()
            return ""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=list(FORMATS)):
                return ""
    except FileNotFoundError:
        return "is a broken link"
    except Image.DecompressionBombError:  # an image, whose problem is reported when it is decoded
        return ""
    except OSError as error:
        return _explain_unreadable(error) if error.errno else None
    except Exception:  # any error that a file without an image causes in Pillow
        return None


def _explain_unreadable(error: OSError) -> str:
    return f"cannot be read ({error.strerror}): change its permissions"


def _has_notes_only(top: Path) -> bool:
    """Return whether there are files below ``top``, and all of them are annotations, notes or code."""
    files = list(_walk_files(top))
    return bool(files) and all(path.suffix.lower() in NOTES for path in files)


def _has_images(top: Path) -> bool:
    return any(path.suffix.lower() in SUFFIXES for path in _walk_files(top))


def _walk_files(top: Path) -> Iterator[Path]:
    folders, files = _entries(top)
    yield from files
    for path in folders:
        if not path.is_symlink():
            yield from _walk_files(path)


def _image_files(folder: Path) -> list[Path]:
    return [path for path in _entries(folder)[1] if path.suffix.lower() in SUFFIXES]


def _table_hint(folder: Path) -> str:
    tables = [display_name(path.name) for path in _entries(folder)[1] if path.suffix.lower() in TABLES]
    return f" (for labels in {tables[0]}, data/pictures/README.md has a script)" if tables else ""


def _names(tops: Iterable[Path]) -> str:
    return ", ".join(display_name(top.name) for top in tops)


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def display_name(name: str | Path) -> str:
    """Return a file name as printable text: valid Unicode in normal form C, without control characters."""
    plain = str(name).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    printable = "".join("\ufffd" if unicodedata.category(letter) == "Cc" else letter for letter in plain)
    return unicodedata.normalize("NFC", printable)
