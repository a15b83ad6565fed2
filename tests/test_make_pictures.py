"""`make pictures`: what it copies, what it calls the study, and what it writes to params.yaml."""

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
from scripts import yaml_text

from .conftest import ROOT
from .test_pictures import draw, picture, save

TARGET = Path("data/pictures/pets")


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder of pictures; the selected study folder is like the repository's, with its params.yaml."""
    (tmp_path / "repository/.git").mkdir(parents=True)
    (tmp_path / "repository/data/pictures").mkdir(parents=True)
    shutil.copyfile(ROOT / "params.yaml", tmp_path / "repository/params.yaml")
    monkeypatch.chdir(tmp_path / "repository")
    draw(tmp_path / "pets", range(12), "cat", "dog")
    return tmp_path / "pets"


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def lines(path: str = "params.yaml") -> list[str]:
    return Path(path).read_bytes().decode().splitlines(keepends=True)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("end", ["", "\n", "\n# the end\n"])
def test_one_line_changes_and_a_section_is_added(folder, newline, end):
    text = Path("params.yaml").read_text(encoding="utf-8").rstrip("\n") + end
    text = text.replace("study: quick\n", "# ours\nstudy:   'quick'  # the one to run\n\n", 1)
    text = text.replace("image_size: 224", "image_size: 0xE0   # pixels").replace("\n", newline)
    Path("params.yaml").write_bytes(text.encode())
    before = lines()
    scripts.pictures.main(str(folder))
    after = lines()
    at = next(number for number, line in enumerate(after) if line.startswith("  pets:"))
    added = after[at : at + 1 + next(n for n, line in enumerate(after[at + 1 :]) if not line.startswith("    "))]
    rest = after[:at] + after[at + len(added) :]
    assert [(one, other) for one, other in zip(before, rest, strict=True) if one != other] == [
        (f"study:   'quick'  # the one to run{newline}", f"study:   pets  # the one to run{newline}"),
    ]
    assert all(line.endswith(newline) for line in added)
    study = params.read().selected_study
    assert (study.dataset, study.model_name, study.seeds) == ("pets", "tf_efficientnet_lite0", (0, 1, 2))


def test_a_study_at_the_end_of_a_file_without_a_last_newline(folder):
    document = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    studies = document.pop("studies")
    Path("params.yaml").write_text(yaml.safe_dump(document | {"studies": studies}, sort_keys=False).rstrip())
    before = Path("params.yaml").read_text()
    scripts.pictures.main(str(folder))
    assert Path("params.yaml").read_text().startswith(before.replace("study: quick", "study: pets") + "\n  pets:\n")
    assert params.read().study == "pets"


def test_a_second_time_only_what_differs_is_changed(folder):
    scripts.pictures.main(str(folder))
    before = lines()
    scripts.pictures.main(str(folder))
    assert lines() == before
    draw(folder, range(100, 200), "cat", "dog")
    scripts.pictures.main(str(folder))
    changed = yaml.safe_load("".join(lines()))
    settings = changed["studies"].pop("pets")
    assert settings["training_images"] + settings["validation_images"] == 90
    assert settings["probe_budgets"]
    expected = yaml.safe_load("".join(before))
    del expected["studies"]["pets"]
    assert changed == expected
    start = next(number for number, line in enumerate(before) if line.startswith("  pets:"))
    assert lines()[:start] == before[:start]
    assert lines()[-20:] == before[-20:]


def test_sections_in_flow_style_are_written_anew(folder):
    document = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    Path("params.yaml").write_text(yaml.safe_dump(document, default_flow_style=True, sort_keys=False))
    scripts.pictures.main(str(folder))
    settings = params.read()
    assert (settings.study, settings.selected_study.dataset, len(settings.studies)) == ("pets", "pets", 6)


@pytest.mark.parametrize("name", ["1e3", "0x10", "012", "1_000", "2024", "2024-05-01", "1-2", "0o17", "true", "null",
                                  "False", "y", "n", "e5", "102-flowers"])  # fmt: skip
def test_names_that_yaml_reads_as_something_else_are_quoted(folder, name):
    """Both read by this project and by DVC, and after DVC has written the file anew, as `dvc exp run -S` does."""
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
def test_names_that_cannot_be_a_study_s(folder, name, problem):
    before = lines()
    with pytest.raises(UserError, match=f"a study cannot be called {name.lower()}, because {problem}: give it another"):
        scripts.pictures.main(str(folder.rename(folder.with_name(name))))
    with pytest.raises(UserError, match=f"a study cannot be called {name}, because {problem}: give it another name"):
        scripts.pictures.main(str(folder.with_name(name)), f"--name={name}")
    assert lines() == before
    assert not any(Path("data/pictures").iterdir())


@pytest.mark.parametrize("name", ["x" * 101, "a b", "-x", "$x", "a*", "a'b", "../x", "a\nb", "ä", "a:b", "a.b", "猫"])
def test_names_that_are_no_names(folder, name):
    with pytest.raises(UserError, match=r"^a study cannot (be called|have a name of 101 letters)"):
        scripts.pictures.main(str(folder), f"--name={name}")
    assert not any(Path("data/pictures").iterdir())


ODD = ["-x.png", " a .png", "a\nb.png", "a\\b.png", "a'b\"c.png", "$HOME.png", "*.png", "con.png", "x" * 250 + ".png"]


def test_files_and_classes_of_any_name_are_copied(folder):
    for number, name in enumerate(ODD):
        save(picture(20 + number), folder / name.removesuffix(".png") / name)
        save(picture(40 + number), folder / name.removesuffix(".png") / "1.png")
    draw(folder, range(60, 68), "no", "null", "1e3", "~")
    scripts.pictures.main(str(folder))
    assert names(TARGET) == names(folder)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_names_that_dvc_cannot_store_are_refused(folder):
    save(picture(50), Path(os.fsdecode(os.fsencode(folder / "cat") + b"/\xe4.png")))
    with pytest.raises(UserError, match="has names that are no UTF-8, which DVC cannot store: rename these") as error:
        scripts.pictures.main(str(folder))
    assert error.value.details == ["cat/�.png"]
    assert not TARGET.exists()


def test_what_links_lead_to_is_copied(folder, tmp_path):
    (folder / "cat").rename(tmp_path / "cats")
    (folder / "cat").symlink_to("../cats")
    (tmp_path / "linked").symlink_to(folder)
    scripts.pictures.main(str(tmp_path / "linked"))
    copied = Path("data/pictures/linked")
    assert len(names(copied)) == 12
    assert not any(path.is_symlink() for path in (copied, *copied.rglob("*")))
    assert params.read().study == "linked"


def test_what_is_no_picture_is_neither_copied_nor_taken_away(folder, capsys):
    for name in ("cat/0.json", "cat/2.json", "dog/@eaDir/1.png/SYNOPHOTO_THUMB_M.jpg", "labels.csv"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    scripts.pictures.main(str(folder))
    assert names(TARGET) == [name for name in names(folder) if name.endswith("png")]
    assert "2 files that are no images are ignored (.json)" in capsys.readouterr().out
    (TARGET / "my notes.txt").write_text("mine")  # put there by its owner
    (TARGET / "cat/0.png").chmod(0o444)  # as DVC's cache has it
    inode = (TARGET / "cat/0.png").stat().st_ino
    save(picture(99), folder / "cat/new/99.png")
    scripts.pictures.main(str(folder))
    assert (TARGET / "my notes.txt").read_text() == "mine"
    assert (TARGET / "cat/0.png").stat().st_ino == inode
    assert (TARGET / "cat/new/99.png").read_bytes() == (folder / "cat/new/99.png").read_bytes()
    assert [path.name for path in Path("data/pictures").iterdir()] == ["pets"]


@pytest.mark.parametrize("kind", ["hardlink", "symlink"])
def test_pictures_that_are_links_into_dvc_s_cache(folder, tmp_path, kind):
    """As `dvc add` leaves them: what is added later stands beside them, and the cache stays as it is."""
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
    assert names(TARGET) == names(folder)
    dataset = pictures.load(TARGET, image_size=32, skip_unusable=False)
    assert len(dataset.training.labels) == 16


def test_notes_are_shown(folder, capsys):
    (folder / "cat").rename(folder / "test")
    scripts.pictures.main(str(folder))
    assert "test is a class here, because it has no folders of classes\n" in capsys.readouterr().out


def test_without_git(folder, capsys):
    Path(".git").rmdir()
    scripts.pictures.main(str(folder))
    assert "run `git init` first, or `python -m stages` instead" in capsys.readouterr().out.splitlines()[0]


def test_prepare_s_way_of_reading_needs_no_pytorch():
    modules = ", ".join(module.__name__ for module in (registry, decoding, pictures, scanning))
    program = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_make_passes_any_name_on(tmp_path):
    """Spaces, quotes, dollars and stars are the folder's name, and nothing of the shell's or of make's."""
    name = "-a $HOME 'b' \"c\" `d` *;#"
    shown = subprocess.run(["make", "-n", "pictures", f"FOLDER={name}", f"NAME={name}"], cwd=ROOT, check=True,
                           capture_output=True, text=True)  # fmt: skip
    [line] = [line for line in shown.stdout.splitlines() if "scripts.pictures" in line]
    printed = subprocess.run(["sh", "-c", line.replace("python -m scripts.pictures", "printf '%s\\n'", 1)], check=True,
                             capture_output=True, text=True)  # fmt: skip
    assert printed.stdout.splitlines() == [f"--name={name}", "--", name]


def test_values_by_hand():
    document = "a:  # first\n  b: [1, 2]   # flow\n  c:\n  - 1\n  # inner\n  - 2\n\n  # of d\n  d: ~\n# of e\ne: x\n"
    new = yaml_text.changed(document, [(("a", "b"), [3]), (("a", "c"), []), (("a", "d"), 5), (("e",), "1e3")])
    assert new == "a:  # first\n  b:\n  - 3   # flow\n  c: []\n\n  # of d\n  d: 5\n# of e\ne: '1e3'\n"
    section = {"x": True, "y": None}
    expected = document.replace("d: ~\n", "d: ~\n  n:\n    x: true\n    y: null\n")
    assert yaml_text.changed(document, [(("a", "n"), section)]) == expected


def test_the_readme_s_script_for_labels_in_a_table(folder, tmp_path):
    """What is recommended where a folder has images and a table is done to the letter."""
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
