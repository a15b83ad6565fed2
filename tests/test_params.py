import re
import tempfile
from pathlib import Path

import pytest
from dvc.utils.hydra import apply_overrides
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart import params
from headstart.params import ParamsError

from .conftest import ROOT

TEXT = (ROOT / "params.yaml").read_text(encoding="utf-8")


def test_full_is_the_published_study():
    study = params.read(ROOT / "params.yaml")
    full = study.studies["full"]
    assert (full.model_name, full.batch_size, full.n_epochs) == ("ResNet50", 64, 10)
    assert (full.image_size, full.training_images, full.finetune_from) == (224, 60_000, "layer4")
    combinations = {(e.pretrained, e.finetuning, e.optimizer) for e in study.configurations.values()}
    assert len(combinations) == len(study.configurations) == 8
    for name, configuration in study.configurations.items():
        start = "pretrained" if configuration.pretrained else "random"
        trained = "finetuned" if configuration.finetuning else "frozen"
        assert name == f"{start}-{trained}-{configuration.optimizer.lower()}"
        assert configuration.lr == 0.001
        expected = (0.9, 0.1) if configuration.optimizer == "SGD" else (None, None)
        assert (configuration.momentum, configuration.weight_decay) == expected


def changed(old: str, new: str) -> str:
    assert old in TEXT
    return TEXT.replace(old, new, 1)


FIRST = "  pretrained-finetuned-adam:\n    pretrained: true\n    finetuning: true\n    optimizer: Adam\n    lr: 0.001\n"
CASES = [
    (("n_epochs: 2", "n_epoch: 2"), "unknown key studies.quick.n_epoch: did you mean n_epochs?"),
    (("study: quick", "studdy: quick"), "unknown key studdy: did you mean study?"),
    (("    n_epochs: 2\n", ""), "studies.quick.n_epochs is missing"),
    (("n_epochs: 2", "n_epochs: 2.5"), "studies.quick.n_epochs must be a whole number, not 2.5"),
    (("n_epochs: 2", "n_epochs: true"), "studies.quick.n_epochs must be a whole number, not True"),
    (("n_epochs: 2", "n_epochs: 0"), "studies.quick.n_epochs must be at least 1 (it is 0)"),
    (("n_epochs: 2", "n_epochs: 2\n    n_epochs: 4"), "the key 'n_epochs' stands twice in one section, line 5"),
    (("batch_size: 128", "batch_size: -1"), "studies.quick.batch_size must be at least 1 (it is -1)"),
    (("split_seed: 0", "split_seed: -1"), "studies.quick.split_seed must not be negative (it is -1)"),
    (("seeds:\n    - 0", "seeds: 0"), "studies.quick.seeds must be a list such as [0, 1], not 0"),
    (("seeds:\n    - 0", "seeds: []"), "studies.quick.seeds is empty: name at least one, such as [0]"),
    (("seeds:\n    - 0", "seeds: [0, 1, 0]"), "studies.quick.seeds must differ from each other (it is [0, 1, 0])"),
    (("seeds:\n    - 0", "seeds: [0, -1]"), "studies.quick.seeds must not be negative (it is -1)"),
    (("seeds:\n    - 0", "seeds: [0.5]"), "studies.quick.seeds must be a whole number, not 0.5"),
    (("image_size: 64", "image_size: 16"), "studies.quick.image_size must be at least 32 (it is 16)"),
    (("image_size: 64", "image_size: big"), "studies.quick.image_size must be a whole number, not 'big'"),
    (("training_images: 8000", "training_images: 0"), "studies.quick.training_images must be at least 1 (it is 0)"),
    (
        ("training_images: 8000", "training_images: 8065"),
        "studies.quick.batch_size leaves a last batch of one image, on which batch norm cannot train: change it or "
        "training_images",
    ),
    (("study: quick", "study: huge"), "study must be one of quick, resnet50, full, quick-seeds, labels (it is huge)"),
    (("lr: 0.001", "lr: '1e-4'"),
     "configurations.pretrained-finetuned-adam.lr must be a number, not '1e-4': remove the quotes"),
    (("lr: 0.001", "lr: 1e"), "configurations.pretrained-finetuned-adam.lr must be a number, not '1e'"),
    (("lr: 0.001", "lr: -1e-4"), "configurations.pretrained-finetuned-adam.lr must be greater than 0 (it is -0.0001)"),
    (("lr: 0.001", "lr: 0"), "configurations.pretrained-finetuned-adam.lr must be greater than 0 (it is 0.0)"),
    (("lr: 0.001", "lr: .nan"), "configurations.pretrained-finetuned-adam.lr must be a finite number, not nan"),
    (("lr: 0.001", "lr: .inf"), "configurations.pretrained-finetuned-adam.lr must be a finite number, not inf"),
    (("pretrained: true", "pretrained: maybe"),
     "configurations.pretrained-finetuned-adam.pretrained must be true or false, not 'maybe'"),
    (("optimizer: Adam", "optimizer: Adamm"),
     "configurations.pretrained-finetuned-adam.optimizer must be one of Adam, SGD (it is Adamm)"),
    (("lr: 0.001", "lr: 0.001\n    momentum: 0.9"),
     "configurations.pretrained-finetuned-adam.momentum is not used by Adam here: remove it (it is 0.9)"),
    (("    momentum: 0.9\n", ""),
     "configurations.pretrained-finetuned-sgd.momentum is missing: SGD needs it"),
    (("momentum: 0.9", "momentum: 1.5"),
     "configurations.pretrained-finetuned-sgd.momentum must be less than 1 (it is 1.5)"),
    (("weight_decay: 0.1", "weight_decay: -0.1"),
     "configurations.pretrained-finetuned-sgd.weight_decay must not be negative (it is -0.1)"),
    ((FIRST, FIRST + FIRST.replace("adam:", "again:")),
     "configurations.pretrained-finetuned-again is the same as pretrained-finetuned-adam: remove one"),
    (("\n  quick:", "\n  ../x:"),
     "studies cannot have the name '../x': use letters, digits, - and _, the first a letter or a digit"),
    (("  pretrained-finetuned-adam:", "  x; touch f:"),
     "configurations cannot have the name 'x; touch f': use letters, digits, - and _, the first a letter or a digit"),
    (("  pretrained-finetuned-adam:", "  lr-0.01:"),
     "configurations cannot have the name 'lr-0.01': use letters, digits, - and _, the first a letter or a digit"),
    (("  pretrained-finetuned-adam:", "  -x:"),
     "configurations cannot have the name '-x': use letters, digits, - and _, the first a letter or a digit"),
    (("  pretrained-finetuned-adam:", "  1:"),
     "configurations cannot have the name 1: put it in quotes"),
    (("patience: null", "patience: 0"), "studies.quick.patience must be at least 1 (it is 0)"),
    (("patience: null", "patience: soon"), "studies.quick.patience must be a whole number, not 'soon'"),
    (("label_budgets: []", "label_budgets: 5"), "studies.quick.label_budgets must be a list such as [0, 1], not 5"),
    (("label_budgets: []", "label_budgets: [200, 100]"),
     "studies.quick.label_budgets must increase from one to the next (it is [200, 100])"),
    (("label_budgets: []", "label_budgets: [200, 200]"),
     "studies.quick.label_budgets must increase from one to the next (it is [200, 200])"),
    (("label_budgets: []", "label_budgets: [200, 9000]"),
     "studies.quick.label_budgets must be less than training_images and validation_images together, 9,000, with which "
     "all is trained anyway (it is [200, 9000])"),
    (("label_budgets: []", "label_budgets: [0]"), "studies.quick.label_budgets must be at least 1 (it is 0)"),
    (("label_budgets: []", "label_budgets: [4]"),
     "studies.quick.label_budgets leaves none of 4 images to validate with: raise it"),
    (("label_budgets: []", "label_budgets: [145]"),
     "studies.quick.batch_size leaves a last batch of one image, on which batch norm cannot train: change it or the "
     "145 in label_budgets, of which 129 are trained with"),
    (("probe_budgets:\n    - 100", "probe_budgets:\n    - 300"),
     "studies.quick.probe_budgets must increase from one to the next (it is [300, 200, 500, 1000, 2000, 5000])"),
    (("validation_images: 1000", "validation_images: 0"),
     "studies.quick.probe_budgets needs images to validate with: raise validation_images, or set it to []"),
    (("validation_images: 0\n    batch_size: 64\n    n_epochs: 10\n    patience: null",
      "validation_images: 0\n    batch_size: 64\n    n_epochs: 10\n    patience: 3"),
     "studies.resnet50.patience needs images to validate with: raise validation_images, or set it to null"),
    (("finetuning: false\n    optimizer: Adam", "finetuning: false\n    finetune_from: conv_stem\n    optimizer: Adam"),
     "configurations.pretrained-frozen-adam.finetune_from is not used without finetuning: remove it (it is conv_stem)"),
    (("dataset_dir: /usr/share/datasets", "dataset_dir: 1"), "dataset_dir must be text, not 1"),
    (("dataset: fashion-mnist", "dataset: ../x"),
     "studies.quick.dataset cannot be '../x': use letters, digits, - and _, the first a letter or a digit"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), CASES, ids=[message[:50] for _, message in CASES])
def test_each_mistake_gets_its_line(tmp_path, change, message):
    path = tmp_path / "params.yaml"
    path.write_text(changed(*change), encoding="utf-8")
    with pytest.raises(ParamsError) as error:
        params.read(path)
    # YAML's own complaint comes with a reason in front.
    assert re.sub(r"^is not YAML: ", "", str(error.value).removeprefix(f"{path}").lstrip(": ")) == message


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
        changed = params.read(path)
    configuration = changed.configuration(name)
    assert (configuration.lr, configuration.weight_decay, configuration.finetuning) == (lr, weight_decay, finetuning)
    assert (changed.selected_study.split_seed, changed.selected_study.seeds) == (seed, (0, seed + 1))
    before = params.read(ROOT / "params.yaml")
    assert changed.configurations["random-frozen-adam"] == before.configurations["random-frozen-adam"]
    assert changed.studies["full"] == before.studies["full"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: !!python/object/apply:os.system ['touch trace']\n",
         "is not YAML: could not determine a constructor for the tag "
         "'tag:yaml.org,2002:python/object/apply:os.system'"),
        (b"study: [&a [1, 1], &b [*a, *a, *a], &c [*b, *b, *b], [*c, *c, *c]]\n"
         b"dataset_dir: x\nstudies: {}\nconfigurations: {}\n",
         "study must be text, not [[1, 1], [[...], [...], [...]], [[...], [...], [...]], [[...], [...], [...]]]"),
        (b"[" * 100_000, "is not YAML that can be read: sections are nested too deeply"),
        (b"a" * 1_000_001, "has more than 1,000,000 bytes: it must be another file than you mean"),
        (b"study: 2026-99-99\n", "is not YAML: month must be in 1..12"),
        (b"\xff\xfe\xff", "is not YAML: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
        (b"", "the file must be a section with keys, not None"),
        (b"- 1\n", "the file must be a section with keys, not [1]"),
        (b"study: {", "is not YAML: while parsing a flow node"),
    ],
    ids=["a tag", "references", "nested", "large", "no date", "not text", "empty", "a list", "cut short"],
)  # fmt: skip
def test_a_file_that_is_something_else(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_bytes(content)
    with pytest.raises(ParamsError) as error:
        params.read()
    assert str(error.value).splitlines()[0].removeprefix("params.yaml").lstrip(": ") == message
    assert not Path("trace").exists()


@given(st.binary(max_size=200) | st.text(alphabet="abc:-&*!{}[]<? \n'\"0.e", max_size=60).map(str.encode))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_settings_or_a_complaint(content):
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "params.yaml").write_bytes(content)
        with pytest.raises(ParamsError):
            params.read(Path(folder, "params.yaml"))


def test_an_empty_list_of_experiments(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(TEXT[: TEXT.index("configurations:")] + "configurations: {}\n", encoding="utf-8")
    with pytest.raises(ParamsError) as error:
        params.read(path)
    assert str(error.value) == f"{path}: configurations is empty: name at least one configuration"


def test_no_file(tmp_path):
    with pytest.raises(ParamsError, match=r"there is no .* here: run this in the root of the repository"):
        params.read(Path(tmp_path, "params.yaml"))


def test_an_unknown_configuration_names_the_closest():
    with pytest.raises(params.UserError) as error:
        params.read(ROOT / "params.yaml").configuration("pretrained-finetuned-adan")
    assert str(error.value) == (
        "there is no configuration 'pretrained-finetuned-adan' in params.yaml: did you mean pretrained-finetuned-adam?"
    )


def test_the_settings_for_another_study(tmp_path):
    settings = params.read(ROOT / "params.yaml")
    other = params.for_study(settings, "labels")
    assert (other.study, other.selected_study) == ("labels", settings.studies["labels"])
    assert (other.studies, other.configurations) == (settings.studies, settings.configurations)
    assert settings.study == "quick"
    path = tmp_path / "params.yaml"
    path.write_text(changed("training_images: 60000", "training_images: 59969"), encoding="utf-8")
    for study, message in (
        ("resnet50", "studies.resnet50.batch_size leaves a last batch of one image, on which batch norm cannot train: "
                     "change it or training_images"),
        ("huge", "study must be one of quick, resnet50, full, quick-seeds, labels (it is huge)"),
    ):  # fmt: skip
        with pytest.raises(ParamsError) as error:
            params.for_study(params.read(path), study)
        assert str(error.value) == f"params.yaml: {message}"
