import dataclasses

import pytest

from headstart import comparison, files, params, report

from .conftest import ROOT

EXPERIMENTS = params.read(ROOT / "params.yaml").experiments

# The published test accuracies, typed in again.
PUBLISHED = {
    "pretrained-finetuned-adam": 0.8462,
    "pretrained-frozen-adam": 0.8437,
    "pretrained-finetuned-sgd": 0.7338,
    "pretrained-frozen-sgd": 0.7325,
    "scratch-finetuned-sgd": 0.5402,
    "scratch-frozen-sgd": 0.5397,
    "scratch-frozen-adam": 0.4386,
    "scratch-finetuned-adam": 0.4345,
}


def test_the_pairs_of_a_factor_differ_in_nothing_else():
    assert comparison.pairs(EXPERIMENTS, "optimizer") == [
        ("pretrained-finetuned-adam", "pretrained-finetuned-sgd"),
        ("pretrained-frozen-adam", "pretrained-frozen-sgd"),
        ("scratch-finetuned-adam", "scratch-finetuned-sgd"),
        ("scratch-frozen-adam", "scratch-frozen-sgd"),
    ]
    assert [len(comparison.pairs(EXPERIMENTS, factor)) for factor in comparison.FACTORS] == [4, 4, 4]


def test_effects_by_hand():
    effects = comparison.effects(EXPERIMENTS, PUBLISHED)
    assert effects == pytest.approx({
        "pretrained": ((0.8462 - 0.4345) + (0.8437 - 0.4386) + (0.7338 - 0.5402) + (0.7325 - 0.5397)) / 4,
        "finetuning": ((0.8462 - 0.8437) + (0.7338 - 0.7325) + (0.5402 - 0.5397) + (0.4345 - 0.4386)) / 4,
        "optimizer": ((0.8462 - 0.7338) + (0.8437 - 0.7325) + (0.4345 - 0.5402) + (0.4386 - 0.5397)) / 4,
    })  # fmt: skip
    assert comparison.study_metrics(EXPERIMENTS, PUBLISHED) == {
        "best_accuracy": 0.8462,
        "effect_pretrained": 0.3008,
        "effect_finetuning": 0.0,  # 0.00005
        "effect_optimizer": 0.0042,
    }


def test_a_configuration_with_another_lr_is_no_twin():
    changed = dataclasses.replace(EXPERIMENTS["scratch-frozen-adam"], lr=0.01)
    experiments = EXPERIMENTS | {"scratch-frozen-adam": changed}
    assert len(comparison.pairs(experiments, "pretrained")) == 3


def test_without_pairs_there_is_no_effect():
    name = "pretrained-frozen-adam"
    assert comparison.study_metrics({name: EXPERIMENTS[name]}, {name: 0.5}) == {"best_accuracy": 0.5}


@pytest.fixture
def rows() -> list[report.Row]:
    """Every configuration with what was published for it, as if it had been measured so."""
    published = report.published_results(files.read_csv(ROOT / "docs/published.csv"))
    run = {"seconds": 2.0, "device": "2 CPU cores", "precision": "float32", "torch": "2", "python": "3",
           "weights": "some <weights>", "weights_sha256": "abc"}  # fmt: skip
    rows = []
    for name, e in EXPERIMENTS.items():
        metrics = published[e.pretrained, e.finetuning, e.optimizer]
        rows.append(report.Row(name=name, experiment=e, metrics=metrics, run=run, published=metrics))
    return rows


def test_the_published_table_is_in_the_repository(rows):
    assert {row.name: row.metrics["test_accuracy"] for row in rows} == PUBLISHED


def test_the_markdown_table_is_sorted(rows):
    lines = report.markdown_table(rows).splitlines()
    assert lines[2] == "| true | true | Adam | 0.4892 | 0.8401 | 84.62 | 84.62 |"
    assert [line.split("|")[6].strip() for line in lines[2:]] == [
        f"{100 * accuracy:.2f}" for accuracy in sorted(PUBLISHED.values(), reverse=True)
    ]


def test_the_page_says_what_was_found(rows):
    study = comparison.study_metrics(EXPERIMENTS, PUBLISHED)
    setting = dataclasses.asdict(params.read(ROOT / "params.yaml").current)
    page = report.page(rows, scale="quick", setting=setting, study=study)
    assert "<strong>+30.1\npercentage points</strong>" in page
    assert page.count("<tr") == 9
    assert page.index("84.62 %") < page.index("43.45 %")
    assert "took 16.0 seconds together" in page
    assert "some &lt;weights&gt; (SHA-256 abc)" in page
    assert "http" not in page  # nothing is loaded from anywhere
