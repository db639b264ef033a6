"""The page as a file: complete, safe, the same each time, small, and sound in its structure."""

from __future__ import annotations

import base64
import gzip
import json
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from fedprune.errors import UserError
from fedprune.studies.report import write_report
from fedprune.studies.report.page import page

from .curved_outcomes import PERPLEXITY, outcome, study

EVIL = """</script><script>alert(1)</script>'"&<img src=x onerror=alert(2)>%{x}"""
MOST_BYTES = 5_000_000


class Structure(HTMLParser):
    """What a page is made of: its elements, its headings, and all text outside of scripts and style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[int] = []
        self.scripts: dict[str | None, str] = {}
        self.text = ""
        self._inside: str | None = None
        self._script: str | None = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.elements.append((tag, attributes))
        if tag in ("h1", "h2", "h3"):
            self.headings.append(int(tag[1]))
        if tag in ("script", "style"):
            self._inside, self._script = tag, attributes.get("id")

    def handle_endtag(self, tag):
        if tag == self._inside:
            self._inside = None

    def handle_data(self, data):
        if self._inside is None:
            self.text += data
        elif self._inside == "script":
            self.scripts[self._script] = self.scripts.get(self._script, "") + data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def data(self):
        return json.loads(gzip.decompress(base64.b64decode(self.scripts["report-data"])))


@pytest.fixture(scope="module")
def shown():
    return Structure(page(study(), title="A study", reference="FedAvg", target=0.5))


def test_sections_come_in_order(shown):
    titles = [title for title in shown.text.split("\n") if title.strip()]
    order = [
        "Results",
        "Shown in the plots",
        "Over the rounds",
        "Accuracy against costs",
        "Density of the layers",
        "Costs by class of device",
        "Spread over clients",
        "Settings",
        "Warnings",
        "Reproduce it",
    ]
    places = [titles.index(title, 15) for title in order]
    assert places == sorted(places)


def test_headings_leave_out_no_level(shown):
    assert shown.headings[0] == 1
    assert shown.headings.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(shown.headings, shown.headings[1:], strict=False))


def test_tables_have_captions_and_heads_with_a_scope(shown):
    assert len(shown.all("caption")) == len(shown.all("table")) > 10
    assert {attributes.get("scope") for attributes in shown.all("th")} <= {"col", "row", "rowgroup"}


def test_controls_have_labels_and_ids_are_unique(shown):
    ids = [attributes["id"] for _, attributes in shown.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    labelled = {attributes["for"] for attributes in shown.all("label") if "for" in attributes}
    assert labelled == {attributes["id"] for attributes in shown.all("select")}
    for link in shown.all("a"):
        assert not link["href"].startswith("#") or link["href"][1:] in ids


def test_every_plot_has_a_text_and_a_table(shown):
    plots = [attributes for attributes in shown.all("div") if attributes.get("class") == "plot"]
    assert len(plots) == 1 + 7 + 1 + 1
    assert all(plot["role"] == "img" and len(plot["aria-label"]) > 20 for plot in plots)
    assert len(shown.all("details")) >= 9


def test_the_claim_is_that_of_the_study_table(shown):
    from fedprune.studies.table import claim_table

    for part in claim_table(study(), reference="FedAvg", target=0.5).parts:
        for row in part.rows:
            assert all(cell in shown.text for cell in row)


def test_the_page_names_nothing_to_load(shown):
    """What a page may load stands in these attributes; a link that a reader may follow is none of that."""
    for tag, attributes in shown.elements:
        for key in ("src", "srcset", "data", "poster", "background"):
            assert key not in attributes, (tag, attributes)
    assert [attributes["href"] for attributes in shown.all("link")] == ["data:,"]


def test_names_are_text_wherever_they_stand():
    runs = study(variants=(EVIL,))
    runs = [
        replace(
            run,
            point={EVIL: run.point["strategy.density"]} if run.point else {},
            document=run.document | {EVIL: EVIL},
            summary=run.summary | {"clients_failed": 1, "failures": {EVIL: 1}},
        )
        for run in runs
    ]
    calm = Structure(page(study(variants=("A",)), title="A", progress="A", command="A"))
    made = Structure(page(runs, title=EVIL, reference=EVIL, progress=EVIL, command=EVIL))
    assert EVIL in made.text
    assert not made.all("img")
    assert len(made.all("script")) == len(calm.all("script"))
    assert EVIL in {group["variant"] for group in made.data["groups"]}
    assert "alert(1)" not in "".join(text for name, text in made.scripts.items() if name != "report-data")


def test_the_same_runs_give_the_same_bytes(tmp_path):
    written = [
        write_report(study(), tmp_path / name / "page.html", title="A study", reference="FedAvg")
        for name in "ab"
    ]
    first, second = (path.read_bytes() for path in written)
    assert first == second


@pytest.mark.parametrize(
    "runs",
    [
        pytest.param(
            lambda: [outcome(f"variant {n}", 0.1 + n / 200, 0, rounds=50, layers=20) for n in range(100)],
            id="100 groups",
        ),
        pytest.param(
            lambda: study(tuple("ABCD"), (0.1, 0.2, 0.3, 0.4, 0.5, 0.6), 4, rounds=50, layers=20),
            id="4 seeds",
        ),
    ],
)
def test_a_hundred_runs_take_at_most_five_megabytes(runs):
    made = runs()
    assert len(made) == 100
    assert len(page(made, title="Many runs").encode()) <= MOST_BYTES


def test_a_page_reloads_where_it_is_asked_to_and_else_stays():
    reloading = page(study(), title="A", refresh=7, progress="18 of 24 runs, about 4 min left")
    assert '<noscript><meta http-equiv="refresh" content="7"></noscript>' in reloading
    assert 'data-seconds="7"' in reloading
    assert "18 of 24 runs, about 4 min left" in Structure(reloading).text
    still = page(study(), title="A")
    assert "http-equiv" not in still
    assert 'id="follow"' not in still


def test_a_metric_of_which_less_is_better():
    made = Structure(page(study(metric=PERPLEXITY), title="A", reference="FedAvg", target=60.0))
    assert "Perplexity over the rounds" in made.text
    assert "Lower is better." in made.text
    assert "Higher is better." not in made.text
    assert "Costs until perplexity 60" in made.text
    assert made.data["plots"]["curves"]["layout"]["yaxis"]["title"]["text"] == "perplexity"


def test_runs_that_have_not_begun_or_ended_are_shown_as_such():
    waiting = replace(outcome("Later", 0.1, 1), summary=None, rounds=())
    broken = outcome("Broken", 0.1, 0, status="interrupted", final_accuracy=None)
    made = Structure(page([waiting, broken], title="A"))
    assert "2 runs, 0 of 2 complete" in made.text
    assert "Not begun: Later" in made.text
    assert "Broken, density 0.1, seed 0, was interrupted" in made.text
    assert "No run is complete." in made.text


def test_one_run_needs_no_filter():
    made = Structure(page([outcome()], title="A"))
    assert "Shown in the plots" not in made.text
    assert not made.all("fieldset")


def test_settings_are_differences_to_the_base():
    base = outcome("Base", 0.3).document | {"rounds": 9}
    made = Structure(page([outcome("A", 0.1)], title="A", base=base))
    assert "Differences to the base" in made.text
    assert "strategy.density" in made.text
    alone = Structure(page([outcome("A", 0.1)], title="A"))
    assert "no difference" in alone.text


def test_a_difference_that_all_groups_have_stands_once():
    base = outcome("Base", 0.3).document | {"rounds": 9}
    text = page(study(), title="A", base=base)
    assert text.count('<td class="key"><code>rounds</code></td>') == 1
    assert text.count('<td class="key"><code>strategy.name</code></td>') == 5
    assert "all groups" in Structure(text).text


def test_versions_are_those_of_the_run_folders(tmp_path):
    runs = []
    for seed, version in enumerate(("1.2.3", "1.2.4")):
        folder = tmp_path / str(seed)
        folder.mkdir()
        (folder / "scenario.yaml").write_text(
            f"# A run\n# versions:\n#   fedprune: {version}\n#   torch: 2.13.0\nname: A\n# not: a version\n"
        )
        runs.append(replace(outcome("A", 0.1, seed), directory=folder))
    made = Structure(page(runs, title="A"))
    assert "1.2.3" in made.text
    assert "made by different versions of fedprune." in made.text
    same = Structure(page(runs[:1], title="A"))
    assert "different versions" not in same.text
    assert "not: a version" not in same.text


def test_a_page_that_cannot_be_made_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no run"):
        write_report([], tmp_path / "page.html", title="A")
    with pytest.raises(UserError, match="different headline metrics"):
        write_report([outcome(), outcome("B", metric=PERPLEXITY)], tmp_path / "page.html", title="A")
    with pytest.raises(UserError, match="no run is called 'Fedavg'; did you mean 'FedAvg'"):
        write_report(study(), tmp_path / "page.html", title="A", reference="Fedavg")
    with pytest.raises(UserError, match="is a folder"):
        write_report(study(), tmp_path, title="A")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_report(study(), tmp_path / "file" / "page.html", title="A")
