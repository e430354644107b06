import base64
import hashlib
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from rarezoo.clustering.cohesion import column_cohesion, striking_columns
from rarezoo.report.figures import class_map, to_png
from rarezoo.report.montage import class_montages
from rarezoo.report.page import Report, render, write_report

HOSTILE = [
    "<script>document.title='hacked'</script>",
    "</script><script>document.title='hacked'</script>",
    '"><img src=x onerror="document.title=\'hacked\'">',
    "' onmouseover='document.title=1",
    "<!--<script>",
    "{{ 7 * 7 }} &amp; $x$",
]
VOID = {"meta", "link", "img", "input", "br"}


class Page(HTMLParser):
    """A page as Python's own parser sees it: its tags, the text within them, and its data."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.texts, self._open = [], {}, []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append((tag, len(self.tags) - 1))

    def handle_endtag(self, tag):
        assert self._open.pop()[0] == tag, "tags are closed in order"

    def handle_data(self, text):
        for _, number in self._open:
            self.texts[number] = self.texts.get(number, "") + text

    def all(self, tag, **wanted):
        found = []
        for number, (name, attributes) in enumerate(self.tags):
            if name == tag and all(attributes.get(key.rstrip("_")) == value for key, value in wanted.items()):
                found.append((attributes, " ".join(self.texts.get(number, "").split())))
        return found

    def data(self):
        def refuse(name):
            raise AssertionError(f"{name} is not JSON")

        number = next(n for n, (tag, attributes) in enumerate(self.tags) if attributes.get("id") == "data")
        return json.loads(self.texts[number], parse_constant=refuse)


@pytest.fixture
def report(tmp_path):
    rng = np.random.default_rng(0)
    rows = []
    for number in range(60):
        cluster = number % 3 if number < 24 else -1
        file = tmp_path / f"{number}.png"
        if cluster >= 0:
            Image.new("RGB", (24, 24), (10 * number, 120, 200)).save(file)
        rows.append({"id_str": f"J{number:03d}", "file_loc": str(file), "cluster": cluster, "probability": 0.5})
    galaxies = pd.DataFrame(rows)
    galaxies[["x", "y"]] = rng.normal(size=(60, 2))
    galaxies["ra"], galaxies["dec"] = 10.5, -3.25
    answers = [{"answer": "bar_strong", "mean": 0.71, "others": 0.12, "effect": 3.21}]
    classes = pd.DataFrame(
        {
            "cluster": [0, 1, 2],
            "size": [8, 8, 8],
            "share": [8 / 60] * 3,
            "persistence": [0.125, 0.25, 0.5],
            "cohesion": [0.9, 0.8, 0.7],
            "medoid_id": ["J000", "J001", "J002"],
            "answers": [answers] * 3,
            "parent": [60, 60, 61],
        }
    )
    cuts = pd.DataFrame(
        {
            "cut": ["all", "smooth", "edge_on", "spiral"],
            "answer": ["", "smooth-or-featured_smooth", "disk-edge-on_yes", "has-spiral-arms_yes"],
            "of": ["", "fraction", "joint", "fraction"],
            "at_least": [np.nan, np.nan, 0.05, 0.2],
            "below": [np.nan, 0.5, 0.3, np.nan],
            "removed": [0, 900, 30, 10],
            "left": [1000, 100, 70, 60],
        }
    )
    return Report(
        title="A search",
        n_catalog=1000,
        cuts=cuts,
        classes=classes,
        galaxies=galaxies,
        montages=class_montages(tmp_path / "montages", galaxies, columns=3, rows=2, thumbnail=20),
        map_png=to_png(class_map(galaxies, classes)),
        settings={"tree": {"min_samples": 300}},
        provenance={"git_commit": "0a1b2c", "inputs": {"embeddings.h5": "f00d"}},
    )


def test_every_class_has_a_card_with_its_montage_and_figures(report):
    page = Page(render(report))
    cards = page.all("article")
    assert [attributes["id"] for attributes, _ in cards] == ["class-0", "class-1", "class-2"]
    assert "Class 1" in cards[1][1]
    for expected in (
        "8 galaxies",
        "13.3%",
        "0.250",
        "0.80",
        "6 of 8",
        "bar_strong 0.71 (0.12; +3.2 σ)",
        "J001",
        "same branch: 0",
    ):
        assert expected in cards[1][1], expected
    images = [attributes for attributes, _ in page.all("img") if "data-ids" in attributes]
    written = [np.asarray(Image.open(montage.path), int) for montage in report.montages.values()]
    for cluster, image in enumerate(images):
        embedded = Image.open(io.BytesIO(base64.b64decode(image["src"].removeprefix("data:image/jpeg;base64,"))))
        errors = [np.abs(np.asarray(embedded) - pixels).mean() for pixels in written]
        assert np.argmin(errors) == cluster
        assert errors[cluster] < 8
        assert json.loads(image["data-ids"]) == list(report.montages[cluster].shown)
        assert (image["width"], image["height"]) == ("68", "46")


def test_the_facts_stand_in_one_sentence(report):
    lead = Page(render(report)).all("p", class_="lead")[0][1]
    assert lead == ("Of 1,000 galaxies, 60 were searched for classes after the cuts; 3 classes hold 24 of them (40%).")
    lead = Page(render(replace(report, n_failed=1))).all("p", class_="lead")[0][1]
    assert lead.endswith("1 image could not be read.")


def test_the_page_asks_for_nothing_from_outside(report):
    text = render(report)
    for _, attributes in Page(text).tags:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            assert attributes.get(name, "#").startswith(("#", "data:")), attributes
    assert not re.search(r"fetch\(|XMLHttpRequest|WebSocket|EventSource|sendBeacon|@import|import\(", text)
    assert not re.search(r"""url\((?!["']?(data:|\$\{sheet\}))""", text)


def test_the_policy_of_the_page_allows_its_own_script_alone(report):
    page = Page(render(report))
    policy = next(attributes["content"] for attributes, _ in page.all("meta") if "http-equiv" in attributes)
    scripts = [n for n, (tag, attributes) in enumerate(page.tags) if tag == "script" and "type" not in attributes]
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(page.texts[scripts[0]].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none';")


def squeezed(text):
    """Text without white space, which between tags means nothing."""
    return "".join(text.split())


def with_hostile_names(report):
    galaxies, classes = report.galaxies.copy(), report.classes.copy()
    galaxies.loc[: len(HOSTILE) - 1, "id_str"] = HOSTILE
    galaxies.loc[30 : 29 + len(HOSTILE), "id_str"] = [name + "2" for name in HOSTILE]
    classes["medoid_id"] = HOSTILE[:3]
    classes["answers"] = [[{"answer": name, "mean": 0.5, "others": 0.1}] for name in HOSTILE[:3]]
    classes["name"], classes["note"], classes["grade"] = HOSTILE[:3], HOSTILE[1:4], HOSTILE[2:5]
    montages = {cluster: replace(montage, shown=tuple(HOSTILE)) for cluster, montage in report.montages.items()}
    recovery = pd.DataFrame(
        {
            "class_name": HOSTILE,
            "members": 9,
            "selected": 8,
            "cluster": [0, 1, 2, -1, -1, -1],
            "f1": [0.5, 0.6, np.nan, np.nan, np.nan, np.nan],
            "purity": 0.5,
            "completeness": 0.5,
        }
    )
    return replace(
        report,
        title=HOSTILE[1],
        galaxies=galaxies,
        classes=classes,
        montages=montages,
        recovery=recovery,
        cuts=report.cuts.assign(cut=HOSTILE[2], answer=HOSTILE[1]),
        warnings=HOSTILE,
        quality=dict.fromkeys(HOSTILE, 0.5),
        files={name: name for name in HOSTILE},
        sweep=HOSTILE[2],
        settings={HOSTILE[2]: {HOSTILE[0]: HOSTILE[1]}},
        provenance={HOSTILE[3]: HOSTILE[4]},
    )


def test_names_from_users_are_shown_and_never_run(report):
    plain, hostile = Page(render(report)), Page(render(with_hostile_names(report)))
    assert len(hostile.all("script")) == len(plain.all("script")) == 2
    assert not [name for _, attributes in hostile.tags for name in attributes if name.startswith("on")]
    assert not hostile.all("img", src="x")
    assert hostile.all("h1")[0][1] == HOSTILE[1]
    assert {*HOSTILE} <= {*hostile.data()["ids"]}
    shown = [json.loads(attributes["data-ids"]) for attributes, _ in hostile.all("img") if "data-ids" in attributes]
    assert shown == [HOSTILE] * 3
    cells = {text for _, text in hostile.all("td")}
    assert {" ".join(name.split()) for name in HOSTILE} <= cells


def test_missing_values_are_dashes(report):
    classes = report.classes.assign(
        share=np.nan, persistence=np.nan, cohesion=[np.nan, 0.5, np.inf], medoid_id=None, answers=None, parent=pd.NA
    )
    galaxies = report.galaxies.assign(ra=np.nan, probability=np.nan)
    galaxies.loc[3, "x"] = np.nan
    text = render(replace(report, classes=classes, galaxies=galaxies))
    page = Page(text)
    assert squeezed("6 of 8 shown persistence– cohesion–") in squeezed(page.all("article")[0][1])
    assert page.all("article")[2][0]["data-cohesion"] == ""
    assert "Not on the map for want of a position: 1." in text
    assert not [text for _, text in page.all("td") + page.all("article") if re.search(r"\b(nan|None|NA)\b", text)]
    assert page.data()["members"]["probability"] == [None] * 23


def test_columns_that_a_search_may_lack_are_not_needed(report):
    classes = report.classes[["cluster", "size", "medoid_id"]]
    galaxies = report.galaxies.drop(columns=["ra", "dec"])
    assert len(Page(render(replace(report, classes=classes, galaxies=galaxies, montages={}))).all("article")) == 3


@pytest.mark.parametrize(
    ("without", "said"), [(60, "There are no images of them to show."), (7, "7 of them have no image to show.")]
)
def test_page_says_once_that_images_are_not_there(report, tmp_path, without, said):
    galaxies = report.galaxies.copy()
    galaxies.loc[galaxies.index[:without], "file_loc"] = ""
    montages = class_montages(tmp_path / "fewer", galaxies)
    html = render(replace(report, galaxies=galaxies, montages=montages))
    assert html.count(said) == 1
    assert len(Page(html).all("article")) == 3
    assert "to show." not in render(report)


def test_without_classes_the_page_says_what_to_change(report):
    nothing = replace(report, classes=report.classes.iloc[:0], galaxies=report.galaxies.assign(cluster=-1), montages={})
    page = Page(render(nothing))
    advice = page.all("section", id="nothing")[0][1]
    for expected in ("tree.min_samples (now 300)", "tree.min_cluster_size", "selection.cuts", "layout.n_neighbors"):
        assert expected in advice
    assert not page.all("article")
    assert not Page(render(report)).all("section", id="nothing")


def test_cuts_settings_and_provenance_are_told(report):
    page = Page(render(report))
    cells = [text for _, text in page.all("td")]
    for expected in ("smooth-or-featured_smooth ≥ 0.5", "900", "60", "300", "0a1b2c", "f00d"):
        assert expected in cells
    assert "disk-edge-on_yes (joint) < 0.05 or ≥ 0.3" in cells
    assert "has-spiral-arms_yes < 0.2" in cells
    uncut = Page(render(replace(report, cuts=report.cuts.iloc[:1])))
    assert not uncut.all("section", id="cuts")
    assert "after the cuts" not in uncut.all("p", class_="lead")[0][1]
    headings = [text for _, text in page.all("th", scope="row")]
    assert headings == ["tree.min_samples", "git_commit", "inputs.embeddings.h5"]


def test_the_file_is_whole_or_not_there(report, tmp_path):
    path = tmp_path / "out" / "report.html"
    write_report(path, report)
    assert path.read_text(encoding="utf-8") == render(report, path.parent)
    broken = replace(report, galaxies=report.galaxies.drop(columns="cluster"))
    with pytest.raises(KeyError):
        write_report(tmp_path / "out" / "other.html", broken)
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


TRUST = {
    "mean_probability": [0.95, 0.5, np.nan],
    "mean_outlier_score": [0.1, 0.2, 0.3],
    "cohesion_random": [0.013, np.nan, 0.02],
    "stability_seeds": [0.91, 0.5, np.nan],
    "stability_samples": [0.87, np.nan, np.nan],
    "birth_lambda": [12.5, 3.0, 4.0],
    "validity": [0.62, -0.31, np.nan],
    "control_exceeded": [0.031, 0.5, 1.0],
}


def test_what_else_is_known_of_a_class_stands_on_its_card_with_its_meaning(report):
    classes = report.classes.assign(**TRUST, grade=["A", "D", None], nearest=[[2, 1], [0], None])
    page = Page(render(replace(report, classes=classes)))
    first, _, last = (text for _, text in page.all("article"))
    expected = "cohesion0.90 (0.013) probability0.95 outlier score0.10 stable: seeds0.91 stable: samples0.87 DBCV0.62"
    assert squeezed(expected + " birth λ12.5 by chance3.1%") in squeezed(first)
    assert "nearest: 2, 1" in first
    assert "stable:seeds–" in squeezed(last)
    grades = [text for attributes, text in page.all("span") if attributes.get("class") == "grade"]
    assert grades == ["Grade A", "Grade D", "Grade –"]
    glossary = page.all("details", class_="glossary")[0][1]
    for label in ("persistence", "stable: samples", "by chance", "grade"):
        assert label in glossary
    assert "DBCV" not in Page(render(report)).all("details", class_="glossary")[0][1]


def test_what_stands_out_of_a_class_in_the_catalog_stands_on_its_card(report):
    columns = pd.DataFrame({"redshift": np.where(report.galaxies["cluster"] == 1, 0.2, 0.01), "seeing": 1.5})
    labels = report.galaxies["cluster"].to_numpy()
    striking = striking_columns(column_cohesion(labels, columns), 3)
    first, second, _ = (
        text for _, text in Page(render(replace(report, classes=report.classes.assign(unseen=striking)))).all("article")
    )
    assert "In the catalog: redshift 0.2 (+2.5 σ, spread 0.00 σ)" in second
    assert "In the catalog" not in first
    assert "seeing" not in second


def test_names_and_notes_of_the_astronomer_and_how_many_classes_she_excluded_are_shown(report):
    classes = report.classes.assign(name=[None, "jellyfish", ""], note=["a foreground star", None, None])
    text = render(replace(report, classes=classes, n_excluded=1))
    page = Page(text)
    cards = page.all("article")
    assert cards[1][1].startswith("Class 1 jellyfish")
    assert "a foreground star" in cards[0][1]
    assert [text for attributes, text in page.all("a") if "data-cluster" in attributes] == ["0", "1 jellyfish", "2"]
    assert "1 more is excluded by decision." in text
    assert "excluded by decision" not in render(report)


def test_classes_of_one_group_stand_together_at_the_place_of_the_first(report):
    classes = report.classes.assign(group=[5, 3, 5])
    page = Page(render(replace(report, classes=classes)))
    assert [attributes["id"] for attributes, _ in page.all("article")] == ["class-0", "class-2", "class-1"]
    assert [attributes["data-group"] for attributes, _ in page.all("div", class_="group")] == ["5"]
    assert "Group 5: 2 classes" in page.all("div", class_="group")[0][1]
    alone = render(replace(report, classes=report.classes.assign(group=[0, 1, 2])))
    assert not Page(alone).all("div", class_="group")
    assert 'id="together"' not in alone


def test_warnings_come_before_the_map_and_quality_and_files_after_the_classes(report):
    told = replace(
        report,
        warnings=["min_samples=300 hides groups of fewer than about 300 members."],
        quality={"noise_share": 0.6125, "control_classes": 1234, "validity": None, "recall": np.float32(1.0)},
        files={"Galaxies (FITS)": "tables/galaxies #1.fits"},
        sweep="../sweep.html",
    )
    text = render(told)
    assert text.index("hides groups") < text.index('id="map"') < text.index('id="cards"') < text.index('id="quality"')
    page = Page(text)
    cells = [text for attributes, text in page.all("td", class_="n")][:4]
    assert cells == ["0.613", "1,234", "–", "1"]
    assert [text for _, text in page.all("th", scope="row")][:2] == ["noise share", "control classes"]
    links = {text: attributes["href"] for attributes, text in page.all("a")}
    assert links["Galaxies (FITS)"] == "tables/galaxies%20%231.fits"
    assert links["Compare with other settings"] == "../sweep.html"
    for part in ("warnings", "quality", "files"):
        assert f'id="{part}"' not in render(report)


def test_links_to_montage_files_are_relative_to_the_page(report, tmp_path):
    page = Page(render(report, tmp_path))
    links = [attributes["href"] for attributes, text in page.all("a") if text == "PNG"]
    assert links == [f"montages/class_{number:03d}.png" for number in range(3)]
    assert not [text for _, text in Page(render(report, tmp_path / "elsewhere")).all("a") if text == "PNG"]
