"""What is in a folder of images: which folders are classes, which files are images, and what is wrong with them.

Layouts: `<class>/…`; `train/<class>/…` and `test/<class>/…`; `train/…` and `val/…`, with or without `test/…`. A layout
that is not one of these is rejected: folders never become classes by accident.
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

# What systems, NAS boxes, and tools leave next to images; so is everything whose name starts with a dot.
JUNK = frozenset({
    "@eadir", "@tmp", "@sharebin", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "~snapshot", "__macosx",
    "network trash folder", "temporary items", "lost+found", "system volume information", "$recycle.bin", "recycler",
    "__pycache__", "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini",
})  # fmt: skip
TABLES = (".csv", ".tsv", ".xlsx", ".xls", ".parquet", ".jsonl", ".mat")  # which may have the labels of images
# Of a folder with files of these kinds only, nobody means a class: annotations, notes, code.
NOTES = frozenset({".xml", ".json", ".txt", ".csv", ".md", ".yaml", ".yml", ".py", ".ipynb", ".html", ".log"})
SPLITS = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validate", "validation", "dev", "development"),
    "test": ("test", "testing", "tst", "eval", "evaluation", "holdout"),
}
_KINDS = {word: kind for kind, words in SPLITS.items() for word in words}
_ADDED = "set|sets|data|dataset|image|images|img|imgs|picture|pictures|photo|photos|split|folder|dir"  # train_set
_SPLIT_WORD = re.compile(rf"({'|'.join(_KINDS)})(?:{_ADDED})?\d*")
_GLUED = re.compile(r"(train(?:ing)?|test(?:ing)?|val(?:id|idation)?)(.*)|(.*?)(train|test|val)")  # trainA, testA
_FOLD = re.compile(r"(k?fold|cv|split|partition)s?[\W_]*\d+|\d+[\W_]*fold|fold[\W_]*[a-z]")
_PERHAPS_FOLD = re.compile(r"(part|subset|set|batch|chunk|shard)[\W_]*\d+")


class ImageFile(NamedTuple):
    """An image file, and what the folders it lies in say of it."""

    path: Path
    part: str  # "train", "test", or empty where there are no such folders
    label: str


class Scan(NamedTuple):
    """What is in a folder of images."""

    folder: Path
    pictures: list[ImageFile]  # by path
    problems: dict[Path, str]  # files and folders of which it is plain without reading that they cannot be used
    labels: set[str]  # the names of the classes' folders
    ignored: Counter[str]  # how many files in these are no images, by suffix
    notes: list[str]  # what a reader should know of how the folders were understood


class _Layout(NamedTuple):
    classes: list[tuple[str, Path]]  # "train", "test" or an empty text, and the folder of a class
    notes: list[str]


def scan(folder: Path, *, follow_links: bool) -> Scan:
    """Return what is in ``folder``, without decoding any image.

    Args:
        follow_links: read what is behind links to folders. DVC does not, so nothing in data/pictures may be one.

    Raises:
        UserError: there is no such folder, it cannot be read, or its layout is none that is understood.
    """
    if folder.is_symlink() and not follow_links:
        raise UserError(f"{folder} is a link, and DVC does not see what is behind it: put the folder itself there")
    classes, notes = _layout(folder)
    pictures, problems, ignored = [], {}, Counter[str]()
    for part, top in classes:
        for path, problem in _walk(top, follow_links, (folder.resolve(),)):
            if problem:
                problems[path] = problem
            elif problem is None:
                ignored[path.suffix.lower()] += 1
            else:
                pictures.append(ImageFile(path, part, top.name))
    for place in {top.parent for _, top in classes} | {folder}:
        strays = (path for path in _entries(place)[1] if path.suffix.lower() in SUFFIXES)
        problems |= dict.fromkeys(strays, "is in no class")
    labels = {top.name for _, top in classes}
    return Scan(folder, sorted(pictures, key=lambda picture: picture.path), problems, labels, ignored, notes)


def _layout(folder: Path) -> _Layout:
    """Return the folders of the classes.

    Raises:
        UserError: there are none, or folders of several kinds.
    """
    folders = _folders(folder)
    ignored = [top for top in folders if _has_notes_only(top)]
    notes = [f"{display_name(top.name)} has no images and is ignored" for top in ignored]
    tops = [top for top in folders if top not in ignored]
    if not tops:
        raise UserError(f"{folder} has no folders: give each class one, with its pictures in it{_table_hint(folder)}")
    splits = _splits(tops)
    others = [top for top in tops if top not in splits]
    _reject_folds(folder, [top for top in others if _FOLD.fullmatch(top.name.lower())], others)
    _reject_folds(folder, _alike([top for top in others if _PERHAPS_FOLD.fullmatch(top.name.lower())]), others)
    if not splits:
        _reject_glued(folder, tops)
        return _Layout([("", top) for top in tops], notes + _unused_splits(tops))
    with_classes = [top for top in splits if _entries(top)[0]]
    if others and not with_classes and len(splits) == 1:
        name = display_name(next(iter(splits)).name)
        notes.append(f"{name} is a class here, because it has no folders of classes")
        return _Layout([("", top) for top in tops], notes)
    if beside := [top for top in others if _has_images(top)]:
        raise UserError(f"{folder} has {_names(beside)} beside {_names(splits)}: put its pictures into these, or remove"
                        f" it{'; or rename the class' if not with_classes else ''}")  # fmt: skip
    _require_splits(folder, splits, with_classes)
    has_test = "test" in splits.values()
    parts = {"train": "train", "test": "test", "val": "train" if has_test else "test"}
    by_kind = {kind: display_name(top.name) for top, kind in splits.items()}
    notes += [f"{display_name(top.name)} has no images and is ignored" for top in others]
    if "val" in by_kind and has_test:
        notes.append(f"{by_kind['train']} and {by_kind['val']} are joined: validation images are drawn from both")
    elif "val" in by_kind:
        notes.append(f"{by_kind['val']} is the test set, because there is no folder test")
    return _Layout([(parts[kind], each) for top, kind in splits.items() for each in _folders(_unwrapped(top))], notes)


def _splits(tops: Sequence[Path]) -> dict[Path, str]:
    """Return which of the folders are named like parts of a data set, each with "train", "val" or "test".

    Without any of such a name, `seg_train` and `seg_test` are: what has folders, and the same name but for that word.
    """
    found = {top: parsed for top in tops if (parsed := _parsed(top.name))}
    exact = {top: kind for top, (kind, rest) in found.items() if not rest}
    if exact:
        return exact
    for rest in {rest for _, rest in found.values()}:
        group = {top: kind for top, (kind, own) in found.items() if own == rest and _entries(top)[0]}
        if "train" in group.values() and len(set(group.values())) > 1:
            return group
    return {}


def _parsed(name: str) -> tuple[str, tuple[str, ...]] | None:
    """Return the split that ``name`` names, and its other words: `Training_set` is ("train", ())."""
    words = [word for word in re.split(r"[\W_]+", name.lower()) if word]
    kinds = [match[1] for word in words if (match := _SPLIT_WORD.fullmatch(word))]
    if len(kinds) != 1:
        return None
    rest = (word for word in words if not _SPLIT_WORD.fullmatch(word) and not re.fullmatch(rf"{_ADDED}|\d+", word))
    return _KINDS[kinds[0]], tuple(rest)


def _require_splits(folder: Path, splits: dict[Path, str], with_classes: Sequence[Path]) -> None:
    """Raise UserError where the folders of splits are not one of each kind, all with folders of classes in them."""
    if flat := [top for top in splits if top not in with_classes]:
        remedy = f"give each class a folder in it, such as {_quoted(flat[0] / 'cat')}"
        if len(with_classes) == 1:
            remedy += f"; or use the other one only: make pictures FOLDER={_quoted(with_classes[0])}"
        raise UserError(f"{folder} has no folders of classes in {_names(flat)}: {remedy}{_table_hint(folder)}")
    counts = Counter(splits.values())
    if twice := [kind for kind, count in counts.items() if count > 1]:
        same = [top for top in splits if splits[top] == twice[0]]
        raise UserError(f"{folder} has {_names(same)}, which are the same part of a data set: join or rename them")
    if len(splits) == 1:
        [only] = splits
        raise UserError(f"{folder} has {_names(splits)} and no other part: make pictures FOLDER={_quoted(only)} holds "
                        "out a fifth of each class for testing")  # fmt: skip
    if "train" not in counts:
        raise UserError(f"{folder} has {_names(splits)}, and no folder train: rename the one to train with")


def _reject_folds(folder: Path, folds: Sequence[Path], others: Sequence[Path]) -> None:
    if len(folds) > 1 and len(folds) == len(others):
        raise UserError(f"{folder} has {_names(folds)}, which look like folds for cross-validation, and a study has "
                        "one split: make one of them test, and join the others, class by class, in train")  # fmt: skip


def _reject_glued(folder: Path, tops: Sequence[Path]) -> None:
    """Raise UserError where names differ only in what part of a data set they name: trainA and testA, or cats_test."""
    parts: dict[str, list[tuple[str, Path]]] = {}
    for top in tops:
        if match := _GLUED.fullmatch(top.name.lower()):
            kind, rest = (match[1], match[2]) if match[1] else (match[4], match[3])
            parts.setdefault(re.sub(r"[\W_]", "", rest), []).append((_KINDS[kind], top))
    for group in parts.values():
        kinds = {kind for kind, _ in group}
        if "train" in kinds and len(kinds) > 1:
            raise UserError(f"{folder} has {_names(top for _, top in group)}, which look like parts of a data set: "
                            "make folders train and test, and in each a folder for each class")  # fmt: skip


def _alike(tops: Sequence[Path]) -> Sequence[Path]:
    """Return ``tops`` if all have the same two or more folders and no images, as folds of the same classes have."""
    inside = {frozenset(path.name for path in _entries(top)[0]) for top in tops}
    is_alike = len(inside) == 1 and len(next(iter(inside))) > 1 and not any(_image_files(top) for top in tops)
    return tops if is_alike else []


def _unused_splits(tops: Sequence[Path]) -> list[str]:
    """Return a note where all classes have folders of splits in them, which are not used as such."""
    inside = [[path.name for path in _entries(top)[0]] for top in tops]
    if all(len(names) > 1 and all(map(_parsed, names)) for names in inside):
        return [
            f"{', '.join(map(display_name, inside[0]))} within the classes are joined: a fifth of each class is held out"
        ]
    return []


def _unwrapped(top: Path) -> Path:
    """Return the only folder in ``top`` if it has its name, as archives unpack, or is called images; or ``top``."""
    folders, files = _entries(top)
    if len(folders) != 1 or files or not _entries(folders[0])[0]:
        return top
    name = folders[0].name.lower()
    return folders[0] if name == top.name.lower() or re.fullmatch(_ADDED, name) else top


def _folders(folder: Path) -> list[Path]:
    """Return the folders in ``folder``, by name.

    Raises:
        UserError: there is no such folder, or it cannot be read.
    """
    try:
        return _listed(folder)[0]
    except FileNotFoundError:
        raise UserError(f"there is no folder {folder}") from None
    except NotADirectoryError:
        is_archive = re.search(r"\.(zip|rar|7z|tar|tgz|gz|bz2|xz)$", folder.name.lower())
        raise UserError(f"{folder} is no folder{': decode_bits it' if is_archive else ''}") from None
    except OSError as error:
        raise UserError(f"{folder} {_unreadable(error)}") from None


def _entries(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the folders and the other files in ``folder``, none if it cannot be read: who walks it reports that."""
    try:
        return _listed(folder)
    except OSError:
        return [], []


def _listed(folder: Path) -> tuple[list[Path], list[Path]]:
    folders: list[Path] = []
    others: list[Path] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith(".") and entry.name.lower() not in JUNK:
                (folders if _is_folder(entry) else others).append(folder / entry.name)
    return sorted(folders), sorted(others)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to where nobody may look
        return False


def _walk(top: Path, follow_links: bool, ancestors: tuple[Path, ...]) -> Iterator[tuple[Path, str | None]]:
    """Yield the files in ``top`` and below, each with its problem, an empty text, or None if it is no image."""
    real = top.resolve()
    if top.is_symlink() and not follow_links:
        yield top, "is a link to a folder, and DVC does not see what is behind it: put the folder itself there"
        return
    if any(ancestor.is_relative_to(real) for ancestor in ancestors):  # a link to what it is in
        return
    try:
        folders, files = _listed(top)
    except OSError as error:
        yield top, _unreadable(error)
        return
    for path in files:
        yield path, _problem(path)
    for path in folders:
        yield from _walk(path, follow_links, (*ancestors, real))


def _problem(path: Path) -> str | None:
    """Return what is plainly wrong with ``path``, an empty text if nothing is, or None if it is no image.

    A file with the suffix of an image counts as one, and every other that is one.
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
        return "is a link to nothing"
    except Image.DecompressionBombError:  # an image, of which more is said when it is read
        return ""
    except OSError as error:
        return _unreadable(error) if error.errno else None
    except Exception:  # whatever a file that is no image makes Pillow raise
        return None


def _unreadable(error: OSError) -> str:
    return f"cannot be read ({error.strerror}): change its permissions"


def _has_notes_only(top: Path) -> bool:
    """Return whether there are files in ``top`` and below, all of them annotations, notes or code."""
    files = [*_files(top)]
    return bool(files) and all(path.suffix.lower() in NOTES for path in files)


def _has_images(top: Path) -> bool:
    return any(path.suffix.lower() in SUFFIXES for path in _files(top))


def _files(top: Path) -> Iterator[Path]:
    folders, files = _entries(top)
    yield from files
    for path in folders:
        if not path.is_symlink():
            yield from _files(path)


def _image_files(top: Path) -> bool:
    return any(path.suffix.lower() in SUFFIXES for path in _entries(top)[1])


def _table_hint(folder: Path) -> str:
    tables = [display_name(path.name) for path in _entries(folder)[1] if path.suffix.lower() in TABLES]
    return f" (data/pictures/README.md has a script that reads the labels from {tables[0]})" if tables else ""


def _names(tops: Iterable[Path]) -> str:
    return ", ".join(display_name(top.name) for top in tops)


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def display_name(name: str | Path) -> str:
    """Return a name of the file system as text: one form of every letter, no control characters, valid Unicode."""
    plain = str(name).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    printable = "".join("\ufffd" if unicodedata.category(letter) == "Cc" else letter for letter in plain)
    return unicodedata.normalize("NFC", printable)
