"""The section of the report on issues in the data, and the page of a study that is still running."""

import dataclasses

import numpy as np

from headstart.results import comparison, issues
from headstart.results.audit import ConfusablePair, Issues, LabelError, Outlier, Pair
from headstart.results.content import PartialData, Score
from headstart.results.issues import IssueReport
from headstart.results.page import render_figures, render_html, render_partial_html

from .studies import study

CLASSES = ("cat", "dog")
NAMES = {
    "training": [f"cat/{n}.jpg" for n in range(4)],
    "validation": ["dog/4.jpg"],
    "test": ["cat/a.jpg", "dog/<b>.jpg", "dog/c.jpg"],
}
FOUND = Issues(
    near_duplicates=[Pair(0, 5, 0.97), Pair(1, 2, 0.95), Pair(4, 5, 0.9)],
    label_errors=[LabelError(7, 0, -0.8)],
    outliers=[Outlier(3, 0.9)],
    confusable=[ConfusablePair(0, 1, 0.61)],
    shift_auc=0.72,
)


def report(found: Issues = FOUND) -> IssueReport:
    generator = np.random.default_rng(0)
    return issues.build(
        found,
        images=[generator.integers(0, 256, (len(names), 3, 40, 40), dtype=np.uint8) for names in NAMES.values()],
        labels=[np.array([0, 0, 0, 0]), np.array([1]), np.array([0, 1, 1])],
        file_names=NAMES,
        classes=CLASSES,
        correct={"first": np.array([[True, False, True]]), "second": np.array([[False, True, True]])},
    )


def test_leaks_are_pairs_of_a_test_image_and_another_image():
    built = report()
    assert built.leaked == [0]
    assert [(leak.image.file_name, leak.similar.file_name) for leak in built.leaks] == [
        ("cat/a.jpg", "cat/0.jpg"), ("cat/a.jpg", "dog/4.jpg"),
    ]  # fmt: skip
    assert [(pair.image.file_name, pair.similar.file_name) for pair in built.near_duplicates] == [
        ("cat/1.jpg", "cat/2.jpg")
    ]
    assert built.counts == {"near_duplicates": 3, "leaks": 2, "label_errors": 1, "outliers": 1}


def test_a_pair_of_test_images_is_no_leak():
    built = report(FOUND._replace(near_duplicates=[Pair(5, 6, 0.9)]))
    assert (built.leaked, built.leaks) == ([], [])
    assert [pair.similar.file_name for pair in built.near_duplicates] == ["dog/<b>.jpg"]


def test_the_accuracy_without_leaks_is_that_of_the_other_test_images():
    accuracy = report().accuracy_without_leaks
    assert accuracy["first"] == comparison.accuracy(np.array([[False, True]]))
    assert accuracy["second"].value == 1
    assert report(FOUND._replace(near_duplicates=[Pair(0, 1, 0.9)])).accuracy_without_leaks == {}
    assert report(FOUND._replace(near_duplicates=[Pair(0, n, 0.9) for n in (5, 6, 7)])).accuracy_without_leaks == {}


def test_the_page_shows_every_issue_and_escapes_file_names():
    content = study()
    built = dataclasses.replace(report(), accuracy_without_leaks={row.name: row.accuracy for row in content.rows})
    html = render_html(dataclasses.replace(content, issues=built), render_figures(content))
    section = html.partition('id="data-issues"')[2].partition("</section>")[0]
    assert "<strong>1 test image has a near-duplicate</strong>" in section
    assert section.count('<th scope="row">') == len(content.rows)
    assert section.count("<img ") == 2 * 3 + 2
    assert "dog/c.jpg" in section
    assert "dog → cat?" in section
    assert "cat and dog (0.61)" in section
    assert "0.72" in section
    assert "No issues were found" not in section
    assert 'href="#data-issues"' in html
    assert "dog/&lt;b&gt;.jpg" in render_issues(FOUND._replace(outliers=[Outlier(6, 0.9)]))


def test_a_page_without_issues_says_so():
    assert "No issues were found." in render_issues(Issues([], [], [], [], None))
    assert 'id="data-issues"' not in render_html(study(), render_figures(study()))


def render_issues(found: Issues) -> str:
    content = study()
    html = render_html(dataclasses.replace(content, issues=report(found)), render_figures(content))
    return html.partition('id="data-issues"')[2].partition("</section>")[0]


def test_long_lists_are_abbreviated():
    listed = Issues([], [LabelError(index % 8, 0, -0.5) for index in range(20)], [], [], None)
    section = render_issues(listed)
    assert section.count("<img ") == issues.MAX_SHOWN
    assert "The first 12 of 20 are shown." in section


def test_the_page_of_a_running_study_says_what_is_missing():
    content = study()
    partial = PartialData(
        study_name="quick",
        study=content.study,
        dataset="pets",
        classes=CLASSES,
        test_images=3,
        ranked=[Score("probe of pretrained features", comparison.accuracy(np.array([[True, True, False]])))],
        missing=["first", "second"],
        majority=("cat", 1 / 3),
        issues=report(),
    )
    html = render_partial_html(partial)
    assert "<strong>Not finished yet:</strong> first, second." in html
    assert "66.67" in html
    assert 'http-equiv="refresh"' in html
    assert 'id="data-issues"' in html
    assert 'id="data-issues"' not in render_partial_html(dataclasses.replace(partial, issues=None, missing=[]))
    assert "Not finished yet" not in render_partial_html(dataclasses.replace(partial, missing=[]))
