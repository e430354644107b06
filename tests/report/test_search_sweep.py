import base64
import hashlib
import itertools
import re
import shutil
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
from offline_runs import read_offline_run

from rarezoo.cli import UserError
from rarezoo.provenance import RunFolder
from rarezoo.report.search_sweep import (
    note_in_search_sweep,
    numbers_shown,
    options_shown,
    quality_plot,
    quality_plots,
    text_of,
    write_search_sweep,
)
from rarezoo.report.sweep import read_sweep
from rarezoo.report.wandb import tracked_run


def settings_of(min_samples=10, method="leaf", seed=0, **others):
    return {"layout": {"seed": seed}, "tree": {"min_samples": min_samples, "method": method}, "seed": seed, **others}


def summary_of(n_classes, share=0.25, **others):
    recovery = {"found_f1_50": 10, "median_purity": 0.9}
    stages = {"layout": {"seconds": 3.5, "reused": 1, "computed": 0}}
    numbers = {"n_selected": 4830, "seconds_computed": 12.5, "stages_reused": 2, "stages": stages}
    return {"n_classes": n_classes, "share_in_classes": share, "recovery": recovery, **numbers, **others}


def a_search(sweep, name, settings, summary, page=True, embeddings="e" * 64):
    with RunFolder(sweep / name, "cluster", settings, {"embeddings": embeddings}) as run:
        if page:
            (sweep / name / "report.html").write_text("a page")
        if summary is not None:
            run.finish(summary)
    return sweep / name


@pytest.fixture
def sweep(tmp_path):
    folder = tmp_path / "mine" / "cluster-sweep"
    for min_samples, method in itertools.product((5, 10, 100), ("leaf", "eom")):
        summary = summary_of(400 // min_samples, 0.1 if method == "eom" else 0.3, dbcv=min_samples / 1000)
        a_search(
            folder, f"tree.method={method},tree.min_samples={min_samples}", settings_of(min_samples, method), summary
        )
    (folder / "multirun.yaml").touch()
    return folder


class Page(HTMLParser):
    """Tables as text, links, and the elements that a browser would see."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.links, self.rows, self.circles = [], [], [], []
        self._cell = None
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.append((tag, given))
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self._cell = ""
        if tag == "circle":
            self.circles.append((float(given["cx"]), float(given["cy"])))

    def handle_data(self, data):
        if self._cell is not None:
            self._cell += data

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.rows[-1].append(self._cell.strip())
            self._cell = None

    def column(self, name):
        heading, *rows = self.rows
        return [row[heading.index(name)] for row in rows]


def test_only_a_search_of_a_sweep_is_noted(sweep):
    job = sweep / "tree.method=eom,tree.min_samples=5"
    assert set(note_in_search_sweep(job)) == {"sweep", "sweep.csv", "sweep.html"}
    (sweep / "multirun.yaml").unlink()
    assert note_in_search_sweep(job) == {}


def test_sweep_without_a_complete_search_writes_nothing(tmp_path):
    a_search(tmp_path, "running", settings_of(), None)
    assert write_search_sweep(tmp_path) == {}
    assert not list(tmp_path.glob("sweep.*"))


def test_table_has_a_row_a_search_with_options_and_all_figures_flat(sweep):
    table = pd.read_parquet(write_search_sweep(sweep)["sweep"])
    assert len(table) == 6
    row = table.set_index("job").loc["tree.method=leaf,tree.min_samples=10"]
    assert (row["tree.min_samples"], row["tree.method"], row["n_classes"]) == (10, "leaf", 40)
    assert (row["recovery.found_f1_50"], row["stages.layout.seconds"], row["stages_reused"]) == (10, 3.5, 2)
    pd.testing.assert_frame_equal(pd.read_csv(sweep / "sweep.csv"), table, check_dtype=False)


def test_page_shows_options_then_quality_then_costs_and_not_each_stage(sweep):
    page = Page(write_search_sweep(sweep)["sweep.html"])
    heading = page.rows[0]
    assert heading[:3] == ["#", "tree.min_samples", "tree.method"]
    order = [heading.index(name) for name in ("n_classes", "share_in_classes", "dbcv", "recovery.median_purity")]
    assert order == sorted(order)
    assert max(order) < heading.index("seconds_computed") < heading.index("stages_reused")
    assert not [name for name in heading if name.startswith("stages.")]
    assert sorted(page.column("n_classes"), key=int) == ["4", "4", "40", "40", "80", "80"]
    assert set(page.column("n_selected")) == {"4,830"}


def test_each_search_is_linked_to_its_report_where_it_has_one(tmp_path):
    names = ("a b,c=d", "50%#1?x=1", "javascript:alert(1)", 'q"<i>')
    for number, name in enumerate(names):
        a_search(tmp_path, name, settings_of(number + 5), summary_of(number))
    a_search(tmp_path, "without", settings_of(50), summary_of(9), page=False)
    page = Page(write_search_sweep(tmp_path)["sweep.html"])
    reports = [link for link in page.links if link.endswith("/report.html")]
    assert all(link.startswith("./") for link in reports)
    assert {unquote(link) for link in reports} == {f"./{name}/report.html" for name in names}
    assert all((tmp_path / unquote(link)).is_file() for link in reports)
    assert sorted(page.column("folder")) == sorted([*names, "without"])


def test_text_of_users_is_escaped_and_only_the_pages_own_script_may_run(tmp_path):
    hostile = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    for number in (0, 1):
        settings = settings_of(number + 5, note=f"{hostile}{number}")
        a_search(tmp_path, f"{number}", settings, summary_of(number, **{hostile: number}))
    a_search(tmp_path, "<b>unfinished", settings_of(), None)
    path = write_search_sweep(tmp_path)["sweep.html"]
    page, text = Page(path), path.read_text()
    assert not [given for tag, given in page.tags if tag == "img" or "onerror" in given]
    assert "<b>unfinished" not in text
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    (policy,) = (given["content"] for tag, given in page.tags if "http-equiv" in given)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}';" in policy
    assert hostile not in text


def test_page_asks_for_nothing_from_elsewhere(sweep):
    page = Page(write_search_sweep(sweep)["sweep.html"])
    addresses = [given[name] for _, given in page.tags for name in ("src", "href") if name in given]
    assert all(address.startswith(("#", "./", "data:")) for address in addresses)


def test_unfinished_searches_are_named_on_the_page(sweep):
    a_search(sweep, "still-running", settings_of(7), None)
    assert "still-running" in write_search_sweep(sweep)["sweep.html"].read_text()


def test_one_search_alone_is_a_page_without_figures(tmp_path):
    a_search(tmp_path, "only", settings_of(), summary_of(7))
    page = Page(write_search_sweep(tmp_path)["sweep.html"])
    assert page.column("n_classes") == ["7"]
    assert page.circles == []


def test_missing_figures_are_dashes_and_options_that_are_null_say_none(tmp_path):
    a_search(tmp_path, "a", settings_of(seed=0, groups={"tree": None}), summary_of(7, dbcv=float("nan")))
    a_search(tmp_path, "b", settings_of(seed=1, groups={"tree": 0.2}), summary_of(8, stability=0.5))
    page = Page(write_search_sweep(tmp_path)["sweep.html"])
    assert page.column("groups.tree") == ["none", "0.2"]
    assert page.column("stability") == ["–", "0.5"]
    assert page.column("dbcv") == ["–", "–"]
    assert page.column("seed") == ["0", "1"]


def test_searches_of_other_embeddings_are_told_apart(tmp_path):
    for name, digest in (("a", "1" * 64), ("b", "2" * 64)):
        a_search(tmp_path, name, settings_of(), summary_of(7), embeddings=digest)
    page = Page(write_search_sweep(tmp_path)["sweep.html"])
    assert page.column("inputs.embeddings") == ["1" * 12, "2" * 12]


def test_figures_show_each_number_that_differs_against_each_option(sweep):
    found = read_sweep(sweep)
    plots = quality_plots(found.table, options_shown(found), numbers_shown(found))
    assert {(plot.number, plot.option) for plot in plots} == set(
        itertools.product(("n_classes", "share_in_classes", "dbcv"), ("tree.min_samples", "tree.method"))
    )
    page = Page(write_search_sweep(sweep)["sweep.html"])
    assert len(page.circles) == 6 * len(plots)
    assert all(0 <= x <= 260 and 0 <= y <= 144 for x, y in page.circles)
    targets = {given["id"] for tag, given in page.tags if tag == "tr" and "id" in given}
    assert {link[1:] for link in page.links if link.startswith("#job-")} == targets


def test_points_lie_as_high_as_their_number_and_the_line_joins_the_means():
    table = pd.DataFrame({"size": [20, 5, 5, 100], "n": [30.0, 10.0, 20.0, np.nan]})
    plot = quality_plot(table, "size", "n")
    assert [text for _, text in plot.ticks] == ["5", "20"]
    (x20, top, _, _), (x5, bottom, *_), (also_x5, middle, *_) = plot.points
    assert x5 == also_x5 < x20
    assert top < bottom
    assert middle == pytest.approx((top + bottom) / 2, abs=0.1)
    means = [[float(part) for part in point.split(",")] for point in plot.means.split()]
    np.testing.assert_allclose(means, [(x5, (middle + bottom) / 2), (x20, top)], atol=0.11)
    assert [job for _, _, job, _ in plot.points] == [1, 2, 3]
    assert (plot.lowest, plot.highest) == ("10", "30")


def test_numbers_are_whole_or_have_four_digits():
    assert [text_of(value) for value in (4830, 0.123456, 12.0, np.int64(3), None, pd.NA, 1e20)] == [
        *("4,830", "0.1235", "12", "3"),
        *("", "", "1e+20"),
    ]


def test_searches_that_end_together_leave_the_table_of_all(tmp_path):
    (tmp_path / "multirun.yaml").touch()

    def end(size):
        note_in_search_sweep(a_search(tmp_path, f"size={size}", settings_of(size), summary_of(size)))

    threads = [threading.Thread(target=end, args=(size,)) for size in range(2, 10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(pd.read_parquet(tmp_path / "sweep.parquet")["n_classes"]) == list(range(2, 10))
    assert len(Page(tmp_path / "sweep.html").rows) == 9
    assert not list(tmp_path.glob(".*.part*"))


def test_a_page_that_cannot_be_written_leaves_the_one_before(sweep, monkeypatch):
    before = write_search_sweep(sweep)["sweep.html"].read_text()
    write_text = Path.write_text

    def full(path, *arguments, **options):
        if path.name.startswith(".sweep.html"):
            raise OSError(28, "No space left on device")
        return write_text(path, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match=r"sweep\.html: cannot be written"):
        write_search_sweep(sweep)
    assert (sweep / "sweep.html").read_text() == before


def test_tracked_run_of_the_last_search_has_the_table_of_all(sweep):
    paths = note_in_search_sweep(sweep / "tree.method=eom,tree.min_samples=5")
    (sweep / "multirun.yaml").write_text("hydra: {overrides: {task: []}}")
    with tracked_run("offline", "rarezoo", folder=sweep / "tree.method=eom,tree.min_samples=5", group="mine") as run:
        run.log_table("sweep", pd.read_parquet(paths["sweep"]))
    sys.modules["wandb"].teardown()
    (record,) = sweep.glob("*/wandb/offline-run-*/run-*.wandb")
    tracked = read_offline_run(record)
    assert tracked.group == "mine/cluster-sweep"
    kept = tracked.table("sweep")
    assert [row["job"] for row in kept] == pd.read_parquet(paths["sweep"])["job"].tolist()
    assert {row["n_classes"] for row in kept} == {4, 40, 80}


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    for option in ("--headless", "--no-sandbox", "--disable-gpu", "--window-size=1400,1000"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


def test_click_on_a_heading_sorts_and_a_second_one_turns_the_order(sweep, browser):
    a_search(sweep, "without-dbcv", settings_of(7), summary_of(9))
    browser.get(write_search_sweep(sweep)["sweep.html"].as_uri())

    def click_and_read(heading):
        browser.find_element("xpath", f"//th[button='{heading}']/button").click()
        position = [each.text for each in browser.find_elements("css selector", "thead th")].index(heading) + 1
        return [each.text for each in browser.find_elements("css selector", f"tbody td:nth-child({position})")]

    assert click_and_read("n_classes") == ["4", "4", "9", "40", "40", "80", "80"]
    assert click_and_read("n_classes") == ["80", "80", "40", "40", "9", "4", "4"]
    assert click_and_read("tree.method") == ["eom"] * 3 + ["leaf"] * 4
    assert click_and_read("dbcv")[-1] == click_and_read("dbcv")[-1] == "–"
    point = browser.find_elements("css selector", "circle")[-1]  # no other lies over the last one
    browser.execute_script("arguments[0].scrollIntoView({behavior: 'instant', block: 'center'})", point)
    point.click()
    assert "#job-" in browser.current_url
    assert browser.get_log("browser") == []


def test_click_on_a_report_opens_it(sweep, browser):
    browser.get(write_search_sweep(sweep)["sweep.html"].as_uri())
    browser.find_element("link text", "2 report").click()
    assert browser.find_element("tag name", "body").text == "a page"


def test_hostile_text_does_not_run(tmp_path, browser):
    for number in (0, 1):
        settings = settings_of(number + 5, note=f"</script><img src=x onerror=document.title='run'>{number}")
        a_search(tmp_path, f"<img src=x onerror=document.title='run'>{number}", settings, summary_of(number))
    browser.get(write_search_sweep(tmp_path)["sweep.html"].as_uri())
    assert browser.title.endswith("2 searches compared")
