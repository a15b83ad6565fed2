"""`make pictures`: the files that it copies, the name of the study, and its changes of params.yaml."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from dvc.utils.serialize import dumps_yaml
from dvc.utils.serialize._yaml import parse_yaml_for_update

import scripts.pictures
from headstart import params
from headstart.console import UserError
from headstart.data import decoding, pictures, registry, scanning
from scripts import params_lock, table, time_estimate, yaml_text
from scripts.time_estimate import LinearTime, Speed

from .conftest import ROOT
from .test_pictures import draw, save, smooth_image

TARGET = Path("data/pictures/pets")
SPEED = Speed(LinearTime(1e-3, 4e-7), LinearTime(2e-3, 4e-7), LinearTime(1e-3, 1e-7), 0.01)  # of two cores


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Return a folder of images. The working directory is like the repository, with its params.yaml."""
    (tmp_path / "repository/.git").mkdir(parents=True)
    (tmp_path / "repository/data/pictures").mkdir(parents=True)
    shutil.copyfile(ROOT / "params.yaml", tmp_path / "repository/params.yaml")
    monkeypatch.chdir(tmp_path / "repository")
    monkeypatch.setattr(time_estimate, "measure", lambda decode: SPEED._replace(decode=decode))
    draw(tmp_path / "pets", range(12), "cat", "dog")
    return tmp_path / "pets"


def list_files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def lines(path: str = "params.yaml") -> list[str]:
    return Path(path).read_bytes().decode().splitlines(keepends=True)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("end", ["", "\n", "\n# the end\n"])
def test_one_line_changes_and_a_section_is_added(folder, newline, end):
    text = Path("params.yaml").read_text(encoding="utf-8").rstrip("\n") + end
    text = text.replace("study: quick\n", "# selected\nstudy:   'quick'  # the study to run\n\n", 1)
    text = text.replace("image_size: 224", "image_size: 0xE0   # pixels").replace("\n", newline)
    Path("params.yaml").write_bytes(text.encode())
    before = lines()
    scripts.pictures.main(str(folder))
    after = lines()
    start = next(i for i, line in enumerate(after) if line.startswith("  pets:"))
    end = next(i for i, line in enumerate(after) if i > start and not line.startswith("    "))
    added, rest = after[start:end], after[:start] + after[end:]
    assert [(old, new) for old, new in zip(before, rest, strict=True) if old != new] == [
        (f"study:   'quick'  # the study to run{newline}", f"study:   pets  # the study to run{newline}"),
    ]
    assert all(line.endswith(newline) for line in added)
    study = params.read().selected_study
    assert (study.dataset, study.model_name, study.seeds) == ("pets", "tf_efficientnet_lite0", (0, 1, 2))


def test_a_study_is_added_at_the_end_of_a_file_without_a_final_newline(folder):
    document = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    studies = document.pop("studies")
    Path("params.yaml").write_text(yaml.safe_dump(document | {"studies": studies}, sort_keys=False).rstrip())
    before = Path("params.yaml").read_text()
    scripts.pictures.main(str(folder))
    assert Path("params.yaml").read_text().startswith(before.replace("study: quick", "study: pets") + "\n  pets:\n")
    assert params.read().study == "pets"


def test_a_second_run_changes_only_different_values(folder):
    scripts.pictures.main(str(folder))
    before = lines()
    scripts.pictures.main(str(folder))
    assert lines() == before
    draw(folder, range(100, 200), "cat", "dog")
    scripts.pictures.main(str(folder))
    document = yaml.safe_load("".join(lines()))
    settings = document["studies"].pop("pets")
    assert settings["training_images"] + settings["validation_images"] == 90
    assert settings["probe_budgets"]
    expected = yaml.safe_load("".join(before))
    del expected["studies"]["pets"]
    assert document == expected
    start = next(i for i, line in enumerate(before) if line.startswith("  pets:"))
    assert lines()[:start] == before[:start]
    assert lines()[-20:] == before[-20:]


def test_a_study_keeps_its_groups_until_they_are_removed(folder):
    for path in list(folder.rglob("*.png")):
        path.rename(path.with_name(f"clip{int(path.stem) // 4}-{path.name}"))
    for arguments, group_by in (
        (["--group-by=prefix"], "prefix"), ([], "prefix"), (["--minutes=2"], "prefix"), (["--group-by=none"], None),
    ):  # fmt: skip
        scripts.pictures.main(str(folder), *arguments)
        assert params.read().selected_study.group_by == group_by


def test_minutes_choose_size_and_seeds_again_and_keep_edited_settings(folder, capsys):
    scripts.pictures.main(str(folder))
    before = params.read().selected_study
    scripts.pictures.main(str(folder), "--minutes=0.1")
    assert params.read().selected_study.image_size == 64 < before.image_size
    text = Path("params.yaml").read_text(encoding="utf-8")
    start = text.index("  pets:")
    Path("params.yaml").write_text(text[:start] + text[start:].replace("batch_size: 32", "batch_size: 5", 1))
    capsys.readouterr()
    scripts.pictures.main(str(folder), "--minutes=100")
    study = params.read().selected_study
    assert (study.image_size, study.batch_size) == (before.image_size, 5)
    assert "kept your other settings of the study pets" in capsys.readouterr().out


def test_the_table_and_the_estimate_do_not_disturb_each_other(folder):
    scripts.pictures.main(str(folder))
    assert time_estimate.read("pets")["compare"] > 0
    assert table._times("pets") == ""


def test_a_file_in_flow_style_is_rewritten(folder):
    document = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    Path("params.yaml").write_text(yaml.safe_dump(document, default_flow_style=True, sort_keys=False))
    scripts.pictures.main(str(folder))
    settings = params.read()
    assert (settings.study, settings.selected_study.dataset, len(settings.studies)) == (
        "pets", "pets", len(document["studies"]) + 1,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["1e3", "0x10", "012", "1_000", "2024", "2024-05-01", "1-2", "0o17", "true", "null",
                                  "False", "y", "n", "e5", "102-flowers"])  # fmt: skip
def test_names_that_yaml_reads_as_other_types_are_quoted(folder, name):
    """Headstart and DVC read the name, also after DVC has rewritten the file, as `dvc exp run -S` does."""
    scripts.pictures.main(str(folder), f"--name={name}")
    for text in ("".join(lines()), dumps_yaml(parse_yaml_for_update("".join(lines()), "params.yaml"))):
        Path("params.yaml").write_text(text)
        assert params.read().study == params.read().selected_study.dataset == name
        assert parse_yaml_for_update(text, "params.yaml")["studies"][name]["dataset"] == name


@pytest.mark.parametrize(("name", "problem"), [
    ("no", "YAML reads it as true or false"), ("Yes", "YAML reads it as true or false"),
    ("on", "YAML reads it as true or false"), ("OFF", "YAML reads it as true or false"),
    ("con", "it is a device on Windows"), ("NUL", "it is a device on Windows"), ("com1", "it is a device on Windows"),
])  # fmt: skip
def test_reserved_words_are_invalid_study_names(folder, name, problem):
    before = lines()
    with pytest.raises(UserError, match=f"^invalid study name: {name.lower()}, because {problem}. Choose another"):
        scripts.pictures.main(str(folder.rename(folder.with_name(name))))
    with pytest.raises(UserError, match=f"^invalid study name: {name}, because {problem}. Choose another"):
        scripts.pictures.main(str(folder.with_name(name)), f"--name={name}")
    assert lines() == before
    assert not any(Path("data/pictures").iterdir())


@pytest.mark.parametrize("name", ["x" * 101, "a b", "-x", "$x", "a*", "a'b", "../x", "a\nb", "ä", "a:b", "a.b", "猫"])
def test_names_with_other_characters_or_too_many_are_invalid(folder, name):
    with pytest.raises(
        UserError, match=r"^(invalid study name: |study name of more than 100 characters\. .* Got 101\.$)"
    ):
        scripts.pictures.main(str(folder), f"--name={name}")
    assert not any(Path("data/pictures").iterdir())


ODD_NAMES = [
    "-x.png",
    " a .png",
    "a\nb.png",
    "a\\b.png",
    "a'b\"c.png",
    "$HOME.png",
    "*.png",
    "con.png",
    "x" * 250 + ".png",
]


def test_files_and_classes_with_odd_names_are_copied(folder):
    for number, name in enumerate(ODD_NAMES):
        save(smooth_image(20 + number), folder / name.removesuffix(".png") / name)
        save(smooth_image(40 + number), folder / name.removesuffix(".png") / "1.png")
    draw(folder, range(60, 68), "no", "null", "1e3", "~")
    scripts.pictures.main(str(folder))
    assert list_files(TARGET) == list_files(folder)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_file_names_that_dvc_cannot_store_are_errors(folder):
    save(smooth_image(50), Path(os.fsdecode(os.fsencode(folder / "cat") + b"/\xe4.png")))
    with pytest.raises(UserError, match=r"^file names that are not UTF-8, which DVC cannot store: ") as error:
        scripts.pictures.main(str(folder))
    assert error.value.details == ["cat/�.png"]
    assert not TARGET.exists()


def test_targets_of_links_are_copied(folder, tmp_path):
    (folder / "cat").rename(tmp_path / "cats")
    (folder / "cat").symlink_to("../cats")
    (tmp_path / "linked").symlink_to(folder)
    scripts.pictures.main(str(tmp_path / "linked"))
    copied = Path("data/pictures/linked")
    assert len(list_files(copied)) == 12
    assert not any(path.is_symlink() for path in (copied, *copied.rglob("*")))
    assert params.read().study == "linked"


def test_other_files_are_neither_copied_nor_deleted(folder, capsys):
    for name in ("cat/0.json", "cat/2.json", "dog/@eaDir/1.png/SYNOPHOTO_THUMB_M.jpg", "labels.csv"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    scripts.pictures.main(str(folder))
    assert list_files(TARGET) == [name for name in list_files(folder) if name.endswith("png")]
    assert "2 files that are not images are ignored (.json)" in capsys.readouterr().out
    (TARGET / "my notes.txt").write_text("mine")  # a file of the user
    (TARGET / "cat/0.png").chmod(0o444)  # as in DVC's cache
    inode = (TARGET / "cat/0.png").stat().st_ino
    save(smooth_image(99), folder / "cat/new/99.png")
    scripts.pictures.main(str(folder))
    assert (TARGET / "my notes.txt").read_text() == "mine"
    assert (TARGET / "cat/0.png").stat().st_ino == inode
    assert (TARGET / "cat/new/99.png").read_bytes() == (folder / "cat/new/99.png").read_bytes()
    assert [path.name for path in Path("data/pictures").iterdir()] == ["pets"]


@pytest.mark.parametrize("kind", ["hardlink", "symlink"])
def test_existing_images_can_be_links_into_the_cache_of_dvc(folder, tmp_path, kind):
    """`dvc add` makes such links. New images are added next to them, and the cache does not change."""
    scripts.pictures.main(str(folder))
    cache = tmp_path / "cache"
    cache.mkdir()
    for number, path in enumerate(sorted(TARGET.rglob("*.png"))):
        path.rename(cache / str(number))
        (cache / str(number)).chmod(0o444)
        if kind == "hardlink":
            os.link(cache / str(number), path)
        else:
            path.symlink_to(cache / str(number))
    before = {path.name: path.read_bytes() for path in cache.iterdir()}
    draw(folder, range(12, 16), "cat", "dog")
    scripts.pictures.main(str(folder))
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == before
    assert list_files(TARGET) == list_files(folder)
    dataset = pictures.load(TARGET, image_size=32, skip_unusable=False)
    assert len(dataset.training.labels) == 16


def test_notes_are_printed(folder, capsys):
    (folder / "cat").rename(folder / "test")
    scripts.pictures.main(str(folder))
    assert "test is used as a class, because it has no class folders\n" in capsys.readouterr().out


def test_a_missing_git_repository_is_reported(folder, capsys):
    Path(".git").rmdir()
    scripts.pictures.main(str(folder))
    assert "run `git init` first, or use `python -m stages` instead" in capsys.readouterr().out.splitlines()[0]


def test_reading_images_does_not_import_pytorch():
    modules = ", ".join(module.__name__ for module in (registry, decoding, pictures, scanning))
    program = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_make_passes_any_name_unchanged():
    """Neither the shell nor make interprets spaces, quotes, dollars and stars in a name."""
    name = "-a $HOME 'b' \"c\" `d` *;#"
    dry_run = subprocess.run(["make", "-n", "pictures", f"FOLDER={name}", f"NAME={name}"], cwd=ROOT, check=True,
                             capture_output=True, text=True)  # fmt: skip
    [line] = [line for line in dry_run.stdout.splitlines() if "scripts.pictures" in line]
    printed = subprocess.run(["sh", "-c", line.replace("python -m scripts.pictures", "printf '%s\\n'", 1)], check=True,
                             capture_output=True, text=True)  # fmt: skip
    assert printed.stdout.splitlines() == [f"--name={name}", "--", name]


def test_yaml_edited_by_hand_is_the_same():
    document = "a:  # first\n  b: [1, 2]   # flow\n  c:\n  - 1\n  # inner\n  - 2\n\n  # of d\n  d: ~\n# of e\ne: x\n"
    new = yaml_text.edit(document, [(("a", "b"), [3]), (("a", "c"), []), (("a", "d"), 5), (("e",), "1e3")])
    assert new == "a:  # first\n  b:\n  - 3   # flow\n  c: []\n\n  # of d\n  d: 5\n# of e\ne: '1e3'\n"
    section = {"x": True, "y": None}
    expected = document.replace("d: ~\n", "d: ~\n  n:\n    x: true\n    y: null\n")
    assert yaml_text.edit(document, [(("a", "n"), section)]) == expected


def test_the_script_in_the_readme_for_labels_in_a_table_works(folder, tmp_path):
    draw(tmp_path / "competition", range(8), "images")
    rows = [f"{number}.png,{'cat' if number % 3 else 'dog, large'}" for number in range(8)]
    lines = ["file,label", *(row.replace("dog, large", '"dog, large"') for row in rows)]
    (tmp_path / "competition/labels.csv").write_text("\n".join(lines), encoding="utf-8")
    readme = (ROOT / "data/pictures/README.md").read_text(encoding="utf-8")
    program = readme.partition("```python\n")[2].partition("```")[0]
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path / "competition", check=True)
    scripts.pictures.main(str(tmp_path / "competition/flowers"))
    dataset = pictures.load(Path("data/pictures/flowers"), image_size=32, skip_unusable=False)
    assert dataset.classes == ("cat", "dog, large")
    assert sorted(dataset.training.labels.tolist()) == [0] * 5 + [1] * 3


def test_two_at_once_are_one_message_and_the_second_changes_nothing(folder):
    before = lines()
    with (
        params_lock(),
        pytest.raises(UserError, match=r"^another `make pictures`, `make networks` or `make studies` runs"),
    ):
        scripts.pictures.main(str(folder))
    assert lines() == before
    assert not TARGET.exists()
    scripts.pictures.main(str(folder))


def test_a_time_limit_that_is_too_short_is_said(folder, capsys):
    scripts.pictures.main(str(folder), "--minutes", "0.1")
    assert "MINUTES=0.1 is too short: this is the smallest image size and one seed" in capsys.readouterr().out
