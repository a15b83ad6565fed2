import tempfile
from pathlib import Path
from typing import Annotated, Literal

import pytest
from dvc.utils.hydra import apply_overrides
from dvc.utils.serialize import load_yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from cluster import settings as cluster_settings
from headstart import params
from headstart.params import ParamsError

from .conftest import ROOT

TEXT = (ROOT / "params.yaml").read_text(encoding="utf-8")
LINES = TEXT.splitlines()


def test_full_is_the_published_study():
    content = params.read(ROOT / "params.yaml")
    full = content.studies["full"]
    assert (full.model_name, full.batch_size, full.n_epochs) == ("ResNet50", 64, 10)
    assert (full.image_size, full.training_images, full.finetune_from) == (224, 60_000, "layer4")
    combinations = {(row.pretrained, row.finetuning, row.optimizer) for row in content.configurations.values()}
    assert len(combinations) == len(content.configurations) == 8
    for name, configuration in content.configurations.items():
        initialization = "pretrained" if configuration.pretrained else "random"
        backbone = "finetuned" if configuration.finetuning else "frozen"
        assert name == f"{initialization}-{backbone}-{configuration.optimizer.lower()}"
        assert configuration.lr == 0.001
        expected = (0.9, 0.1) if configuration.optimizer == "SGD" else (None, None)
        assert (configuration.momentum, configuration.weight_decay) == expected


def changed(old: str, new: str) -> str:
    assert old in TEXT
    return TEXT.replace(old, new, 1)


FIRST = "  pretrained-finetuned-adam:\n    pretrained: true\n    finetuning: true\n    optimizer: Adam\n    lr: 0.001\n"
CASES = [
    (("n_epochs: 2", "n_epoch: 2"), "unknown key: studies.quick.n_epoch. Did you mean n_epochs?"),
    (("study: quick", "studdy: quick"), "unknown key: studdy. Did you mean study?"),
    (("    n_epochs: 2\n", ""), "studies.quick.n_epochs: Field required"),
    (("n_epochs: 2", "n_epochs: 2.5"), "studies.quick.n_epochs: Input should be a valid integer (got 2.5)"),
    (("n_epochs: 2", "n_epochs: true"), "studies.quick.n_epochs: Input should be a valid integer (got True)"),
    (("n_epochs: 2", "n_epochs: 0"), "studies.quick.n_epochs: Input should be greater than or equal to 1 (got 0)"),
    (("n_epochs: 2", "n_epochs: 2\n    n_epochs: 4"),
     'is not valid YAML: while constructing a mapping, found duplicate key "n_epochs" with value "4" (original '
     f'value: "2") (line {LINES.index("    n_epochs: 2") + 2})'),
    (("batch_size: 128", "batch_size: -1"),
     "studies.quick.batch_size: Input should be greater than or equal to 1 (got -1)"),
    (("split_seed: 0", "split_seed: -1"),
     "studies.quick.split_seed: Input should be greater than or equal to 0 (got -1)"),
    (("seeds:\n    - 0", "seeds: 0"), "studies.quick.seeds: Input should be a valid tuple (got 0)"),
    (("seeds:\n    - 0", "seeds: []"),
     "studies.quick.seeds: Tuple should have at least 1 item after validation, not 0 (got [])"),
    (("seeds:\n    - 0", "seeds: [0, 1, 0]"),
     "studies.quick.seeds: Input should not contain duplicates (got [0, 1, 0])"),
    (("seeds:\n    - 0", "seeds: [0, -1]"),
     "studies.quick.seeds.1: Input should be greater than or equal to 0 (got -1)"),
    (("seeds:\n    - 0", "seeds: [0.5]"), "studies.quick.seeds.0: Input should be a valid integer (got 0.5)"),
    (("image_size: 64", "image_size: 16"),
     "studies.quick.image_size: Input should be greater than or equal to 32 (got 16)"),
    (("image_size: 64", "image_size: big"), "studies.quick.image_size: Input should be a valid integer (got 'big')"),
    (("training_images: 8000", "training_images: 0"),
     "studies.quick.training_images: Input should be greater than or equal to 1 (got 0)"),
    (
        ("training_images: 8000", "training_images: 8065"),
        "studies.quick.batch_size: Batches of 128 leave a last batch of one image, on which batch norm cannot train "
        "(8,065 training images). Change batch_size or training_images.",
    ),
    (("study: quick", "study: huge"),
     "study: Choose one of quick, resnet50, full, quick-seeds, labels, labels-doubled, trashnet (got 'huge')"),
    (("lr: 0.001", "lr: '1e-4'"),
     "configurations.pretrained-finetuned-adam.lr: Input should be a valid number (got '1e-4')"),
    (("lr: 0.001", "lr: 1e"),
     "configurations.pretrained-finetuned-adam.lr: Input should be a valid number (got '1e')"),
    (("lr: 0.001", "lr: -1e-4"),
     "configurations.pretrained-finetuned-adam.lr: Input should be greater than 0 (got -0.0001)"),
    (("lr: 0.001", "lr: 0"), "configurations.pretrained-finetuned-adam.lr: Input should be greater than 0 (got 0)"),
    (("lr: 0.001", "lr: .nan"),
     "configurations.pretrained-finetuned-adam.lr: Input should be a finite number (got nan)"),
    (("lr: 0.001", "lr: .inf"),
     "configurations.pretrained-finetuned-adam.lr: Input should be a finite number (got inf)"),
    (("skip_unusable_images: false", "skip_unusable_images: no"),
     "studies.quick.skip_unusable_images: Input should be a valid boolean (got 'no')"),
    (("pretrained: true", "pretrained: maybe"),
     "configurations.pretrained-finetuned-adam.pretrained: Input should be a valid boolean (got 'maybe')"),
    (("optimizer: Adam", "optimizer: Adamm"),
     "configurations.pretrained-finetuned-adam.optimizer: torch.optim has no such optimizer. Did you mean Adam? "
     "(got 'Adamm')"),
    (("lr: 0.001", "lr: 0.001\n    momentum: 0.9"),
     "configurations.pretrained-finetuned-adam.momentum: Not an option of Adam. Remove it (got 0.9)"),
    (("    momentum: 0.9\n", ""),
     "configurations.pretrained-finetuned-sgd.momentum: SGD requires it. Add it to the configuration."),
    (("momentum: 0.9", "momentum: 1.5"),
     "configurations.pretrained-finetuned-sgd.momentum: Input should be less than 1 (got 1.5)"),
    (("weight_decay: 0.1", "weight_decay: -0.1"),
     "configurations.pretrained-finetuned-sgd.weight_decay: Input should be greater than or equal to 0 (got -0.1)"),
    ((FIRST, FIRST + FIRST.replace("adam:", "again:")),
     "configurations.pretrained-finetuned-again: Has the same values as pretrained-finetuned-adam. Remove one of "
     "them."),
    (("\n  quick:", "\n  ../x:"),
     "studies: Not a valid name; use letters, digits, - and _, and start with a letter or a digit (got '../x')"),
    (("  pretrained-finetuned-adam:", "  x; touch f:"),
     "configurations: Not a valid name; use letters, digits, - and _, and start with a letter or a digit (got 'x; "
     "touch f')"),
    (("  pretrained-finetuned-adam:", "  lr-0.01:"),
     "configurations: Not a valid name; use letters, digits, - and _, and start with a letter or a digit (got "
     "'lr-0.01')"),
    (("  pretrained-finetuned-adam:", "  -x:"),
     "configurations: Not a valid name; use letters, digits, - and _, and start with a letter or a digit (got '-x')"),
    (("  pretrained-finetuned-adam:", "  1:"),
     "configurations: Key should be a valid string (got 1)"),
    (("patience: null", "patience: 0"), "studies.quick.patience: Input should be greater than or equal to 1 (got 0)"),
    (("patience: null", "patience: soon"), "studies.quick.patience: Input should be a valid integer (got 'soon')"),
    (("label_budgets: []", "label_budgets: 5"), "studies.quick.label_budgets: Input should be a valid tuple (got 5)"),
    (("label_budgets: []", "label_budgets: [200, 100]"),
     "studies.quick.label_budgets: Input should be strictly increasing (got [200, 100])"),
    (("label_budgets: []", "label_budgets: [200, 200]"),
     "studies.quick.label_budgets: Input should be strictly increasing (got [200, 200])"),
    (("label_budgets: []", "label_budgets: [200, 9000]"),
     "studies.quick.label_budgets: Each budget should be less than 9,000 (training_images + validation_images), "
     "which is always included (got [200, 9000])"),
    (("label_budgets: []", "label_budgets: [0]"),
     "studies.quick.label_budgets.0: Input should be greater than or equal to 1 (got 0)"),
    (("label_budgets: []", "label_budgets: [4]"),
     "studies.quick.label_budgets: A budget of 4 leaves no validation image. Increase it."),
    (("label_budgets: []", "label_budgets: [145]"),
     "studies.quick.batch_size: Batches of 128 leave a last batch of one image, on which batch norm cannot train "
     "(129 training images). Change batch_size or label budget 145."),
    (("probe_budgets:\n    - 100", "probe_budgets:\n    - 300"),
     "studies.quick.probe_budgets: Input should be strictly increasing (got [300, 200, 500, 1000, 2000, 5000])"),
    (("validation_images: 1000", "validation_images: 0"),
     "studies.quick.probe_budgets: Probes need validation images. Increase validation_images, or set probe_budgets "
     "to []."),
    (("n_epochs: 10\n    patience: null", "n_epochs: 10\n    patience: 3"),
     "studies.resnet50.patience: Early stopping needs validation images. Increase validation_images, or set patience"
     " to null."),
    (("finetuning: false\n    optimizer: Adam", "finetuning: false\n    finetune_from: conv_stem\n    optimizer: Adam"),
     "configurations.pretrained-frozen-adam.finetune_from: Not used if finetuning is false. Remove it (got "
     "'conv_stem')"),
    (("pool_images: null", "pool_images: 8999"),
     "studies.quick.pool_images: Input should be at least 9,000 (training_images + validation_images), or null (got "
     "8999)"),
    (("    pool_images: null  # ", "    # "), "studies.quick.pool_images: Missing key. Add `pool_images: null`."),
    (("dataset_dir: /usr/share/datasets", "dataset_dir: 1"), "dataset_dir: Input should be a valid string (got 1)"),
    (("dataset: fashion-mnist", "dataset: ../x"),
     "studies.quick.dataset: Not a valid name; use letters, digits, - and _, and start with a letter or a digit (got"
     " '../x')"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), CASES, ids=[message[:50] for _, message in CASES])
def test_each_invalid_value_has_its_message(tmp_path, change, message):
    assert error_message(tmp_path / "params.yaml", changed(*change).encode()) == message


def error_message(path: Path, content: bytes) -> str:
    """Return the message for ``content`` as params.yaml without the path in front; check that it is one line."""
    path.write_bytes(content)
    with pytest.raises(ParamsError) as error:
        params.read(path)
    [line] = str(error.value).splitlines()
    return line.removeprefix(str(path)).lstrip(": ")


@pytest.mark.parametrize(
    ("section", "old", "new"),
    [
        ("", "experiments", "configurations"),
        ("", "data_folder", "dataset_dir"),
        ("studies.quick.", "seed", "split_seed"),
        ("studies.quick.", "label_counts", "label_budgets"),
        ("studies.quick.", "probe_counts", "probe_budgets"),
        ("studies.quick.", "store_activations", "cache_activations"),
    ],
)
def test_a_renamed_key_of_params_yaml_is_named(tmp_path, section, old, new):
    content = changed(f"{new}:", f"{old}:").encode()
    assert error_message(tmp_path / "params.yaml", content) == f"{section}{old} was renamed to {new}"


@pytest.mark.parametrize(
    ("section", "old", "new"),
    [
        ("", "at_once", "max_jobs"),
        ("", "attempts", "max_attempts"),
        ("slurm.", "minutes", "time_limit_minutes"),
    ],
)
def test_a_renamed_key_of_cluster_yaml_is_named(tmp_path, monkeypatch, section, old, new):
    text = (ROOT / "cluster.yaml").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    Path("cluster.yaml").write_text(text.replace(f"{new}: ", f"{old}: ", 1), encoding="utf-8")
    with pytest.raises(ParamsError) as error:
        cluster_settings.read()
    assert str(error.value) == f"cluster.yaml: {section}{old} was renamed to {new}"


def test_a_renamed_key_is_named_only_if_its_section_has_the_new_key(tmp_path):
    content = changed("study: quick", "study: quick\nminutes: 5").encode()
    expected = (
        "unknown key: minutes. Choose one of study, dataset_dir, studies, configurations, networks, "
        "finetuned_networks, finetuning_recipe."
    )
    assert error_message(tmp_path / "params.yaml", content) == expected


@pytest.mark.parametrize(
    ("schema", "value", "message"),
    [
        (Annotated[int, Field(multiple_of=32)], 33, "Input should be a multiple of 32 (got 33)"),
        (Literal["a", 1], "b", "Not a known value. Choose one of a, 1. (got 'b')"),
        (list[int], ["x" * 1_000], f"0: Input should be a valid integer, unable to parse string as an integer "
                                   f"(got '{'x' * 12}...{'x' * 13}')"),
    ],
)  # fmt: skip
def test_any_constraint_has_a_message(schema, value, message):
    with pytest.raises(ParamsError) as error:
        params.validate(value, schema, {}, "x.yaml")
    assert str(error.value).removeprefix("x.yaml: ").removeprefix("the file: ") == message


@given(
    lr=st.floats(min_value=1e-12, max_value=1e6, allow_subnormal=False),
    weight_decay=st.floats(min_value=0, max_value=1, exclude_max=True),
    seed=st.integers(min_value=0, max_value=2**40),
    finetuning=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_settings_survive_dvc_exp_run_set_param(lr, weight_decay, seed, finetuning):
    """`dvc exp run -S` rewrites params.yaml with this function of DVC's."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "params.yaml")
        path.write_text(TEXT, encoding="utf-8")
        name = "random-frozen-sgd"
        apply_overrides(path, [
            f"configurations.{name}.lr={lr!r}",
            f"configurations.{name}.weight_decay={weight_decay!r}",
            f"configurations.{name}.finetuning={str(finetuning).lower()}",
            f"configurations.{name}.momentum=0.5",
            f"studies.quick.split_seed={seed}",
            f"studies.quick.seeds=[0,{seed + 1}]",
        ])  # fmt: skip
        content = params.read(path)
    configuration = content.configuration(name)
    assert (configuration.lr, configuration.weight_decay, configuration.finetuning) == (lr, weight_decay, finetuning)
    assert (content.selected_study.split_seed, content.selected_study.seeds) == (seed, (0, seed + 1))
    before = params.read(ROOT / "params.yaml")
    assert content.configurations["random-frozen-adam"] == before.configurations["random-frozen-adam"]
    assert content.studies["full"] == before.studies["full"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: !!python/object/apply:os.system ['touch trace']\n",
         "is not valid YAML: could not determine a constructor for the tag "
         "'tag:yaml.org,2002:python/object/apply:os.system' (line 1)"),
        (b"study: [&a [1, 1], &b [*a, *a, *a], &c [*b, *b, *b], [*c, *c, *c]]\n"
         b"dataset_dir: x\nstudies: {}\nconfigurations: {}\n",
         "study: Input should be a valid string (got [[1, 1], [[...], [...], [...]], [[...], [...], [...]], "
         "[[...], [...], [...]]])"),
        (b"[" * 100_000, "is not valid YAML: sections are nested too deeply"),
        (b"a" * 1_000_001, "is too large: it has more than 1,000,000 bytes. Check the path."),
        (b"study: 2026-99-99\n", "is not valid YAML: month must be in 1..12"),
        (b"\xff\xfe\xff", "is not valid YAML: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
        (b"\x00", "is not valid YAML: unacceptable character #x0000: special characters are not allowed in "
                  "\"<unicode string>\", position 0"),
        (b"", "the file: Input should be a dictionary or an instance of Params (got None)"),
        (b"- 1\n", "the file: Input should be a dictionary or an instance of Params (got [1])"),
        (b"study: {", "is not valid YAML: while parsing a flow node, expected the node content, but found "
                      "'<stream end>' (line 1)"),
        (b"study: !!bool x", "is not valid YAML: 'x'"),
        (b"!!float", "is not valid YAML: string index out of range"),
        (b"? - :", "is not valid YAML: unhashable type: 'dict'"),
    ],
    ids=["a tag", "references", "nested", "large", "no date", "not text", "a character", "empty", "a list", "cut short",
         "not a boolean", "not a number", "a dictionary as key"],
)  # fmt: skip
def test_a_file_with_other_content_is_rejected(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    assert error_message(Path("params.yaml"), content) == message
    assert not Path("trace").exists()


@pytest.mark.parametrize(
    "value", ["1e-05", "1E-05", "1e5", "no", "on", "yes", "012", "0x1f", "12:30:45", "1_000", ".5"]
)
def test_scalars_have_the_values_that_dvc_reads(tmp_path, value):
    path = tmp_path / "params.yaml"
    path.write_text(f"a: {value}\n", encoding="utf-8")
    read, expected = params.read_yaml(path)["a"], load_yaml(path)["a"]
    assert (read, type(read)) == (expected, type(expected))


@given(st.binary(max_size=200) | st.text(alphabet="abc:-&*!{}[]<? \n'\"0.e", max_size=60).map(str.encode))
@settings(max_examples=300, deadline=None)
def test_any_other_bytes_raise_a_params_error(content):
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "params.yaml").write_bytes(content)
        with pytest.raises(ParamsError):
            params.read(Path(folder, "params.yaml"))


def test_configurations_must_not_be_empty(tmp_path):
    start, end = TEXT.index("configurations:"), TEXT.index("# Pretrained networks")
    content = (TEXT[:start] + "configurations: {}\n" + TEXT[end:]).encode()
    expected = "configurations: Add at least one configuration (got {})"
    assert error_message(tmp_path / "params.yaml", content) == expected


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(ParamsError) as error:
        params.read(tmp_path / "params.yaml")
    assert str(error.value) == (
        f"{tmp_path}/params.yaml does not exist. Run this command in the root of the repository."
    )


def test_an_unknown_configuration_names_the_closest():
    content = params.read(ROOT / "params.yaml")
    with pytest.raises(params.UserError) as error:
        content.configuration("pretrained-finetuned-adan")
    assert str(error.value) == (
        "params.yaml: unknown configuration: 'pretrained-finetuned-adan'. Did you mean pretrained-finetuned-adam?"
    )


def test_for_study_selects_another_study(tmp_path):
    content = params.read(ROOT / "params.yaml")
    labels = params.for_study(content, "labels")
    assert (labels.study, labels.selected_study) == ("labels", content.studies["labels"])
    assert (labels.studies, labels.configurations) == (content.studies, content.configurations)
    assert content.study == "quick"
    path = tmp_path / "params.yaml"
    path.write_text(changed("training_images: 60000", "training_images: 59969"), encoding="utf-8")
    for study, message in (
        ("resnet50", "studies.resnet50.batch_size: Batches of 64 leave a last batch of one image, on which batch norm "
                     "cannot train (59,969 training images). Change batch_size or training_images."),
        ("huge", "study: Choose one of quick, resnet50, full, quick-seeds, labels, labels-doubled, trashnet "
                 "(got 'huge')"),
    ):  # fmt: skip
        with pytest.raises(ParamsError) as error:
            params.for_study(params.read(path), study)
        assert str(error.value) == f"params.yaml: {message}"
