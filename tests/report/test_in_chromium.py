import io
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from selenium.webdriver import ActionChains, Chrome, ChromeOptions, Keys
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

from rarezoo.report.figures import class_map, to_png
from rarezoo.report.montage import class_montages
from rarezoo.report.page import Report, write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="no Chromium and chromedriver to show the page in"
)

SIZES = [12, 30, 7, 18]
NAMES = [None, "polar rings", "<b onmouseover=alert(1)>ajar</b>", None]
GRADES = ["C", "A", "–", "B"]
HOSTILE = "</script><img src=x onerror=\"document.title='hacked'\"><script>document.title='hacked'</script>"
NO_CUTS = pd.DataFrame(
    {"cut": ["all"], "answer": [""], "of": [""], "at_least": np.nan, "below": np.nan, "removed": [0], "left": [300]}
)


def colour_of(number):
    """A colour for each galaxy that JPEG leaves recognisable."""
    return tuple(int(40 + 200 * share) for share in (number % 7 / 6, number % 5 / 4, number % 3 / 2))


def a_report(folder, galaxies, columns=4, rows=2, **more):
    sizes = galaxies.loc[galaxies["cluster"] >= 0, "cluster"].value_counts().sort_index()
    rng = np.random.default_rng(0)
    classes = pd.DataFrame(
        {
            "cluster": sizes.index,
            "size": sizes.to_numpy(),
            "persistence": np.sort(rng.uniform(0.1, 0.9, len(sizes)))[::-1],
            "cohesion": rng.uniform(0, 1, len(sizes)),
            "medoid_id": galaxies[galaxies["cluster"] >= 0].groupby("cluster")["id_str"].first().to_numpy(),
            "answers": [[{"answer": "bar_strong", "mean": 0.7, "others": 0.1, "effect": 2.5}]] * len(sizes),
        }
    )
    return Report(
        title="A search",
        n_catalog=len(galaxies),
        cuts=NO_CUTS,
        classes=classes.assign(**more),
        galaxies=galaxies,
        montages=class_montages(folder / "montages", galaxies, columns=columns, rows=rows, thumbnail=32),
        map_png=to_png(class_map(galaxies, classes)),
        warnings=["min_samples hides small groups."],
        quality={"noise_share": 0.7},
        files={"Galaxies": "galaxies.parquet"},
    )


@pytest.fixture(scope="module")
def galaxies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(1)
    cluster = np.concatenate([np.repeat(np.arange(len(SIZES)), SIZES), np.full(233, -1)])
    table = pd.DataFrame({"id_str": [f"J{row:03d}" for row in range(300)], "cluster": cluster, "probability": 0.5})
    files = [folder / f"{row}.png" for row in range(300)]
    for row, file in enumerate(files):
        Image.new("RGB", (32, 32), colour_of(row)).save(file)
    table["file_loc"] = [str(file) for file in files]
    # Every galaxy at a place of its own, so that what is pointed at is not in doubt.
    places = rng.permutation([(x, y) for x in range(20) for y in range(15)])
    table[["x", "y"]] = places.astype(float)
    return table


@pytest.fixture(scope="module")
def page(galaxies, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    galaxies = galaxies.replace({"id_str": {"J000": HOSTILE}})
    report = a_report(folder, galaxies, name=NAMES, grade=GRADES, group=[0, 1, 0, 2])
    write_report(folder / "report.html", report)
    return folder / "report.html"


@pytest.fixture(scope="module")
def chromium():
    options = ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1200,1000",
        "--force-prefers-reduced-motion", "--disable-background-networking", "--disable-component-update",
    ):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options=options, service=Service(DRIVER))
    driver.set_page_load_timeout(120)
    yield driver
    driver.quit()


@pytest.fixture
def browser(chromium, page):
    """The page, freshly loaded; no test may leave an error on its console."""
    chromium.get_log("browser")
    show(chromium, page)
    yield chromium
    assert chromium.get_log("browser") == []


def show(driver, path: Path):
    driver.get("about:blank")
    driver.get_log("performance")
    driver.get(path.as_uri())


def one(driver, selector):
    return driver.find_element(By.CSS_SELECTOR, selector)


def soon(driver, condition):
    return WebDriverWait(driver, 30, 0.05).until(lambda _: condition())


def shown_cards(driver):
    cards = driver.find_elements(By.CSS_SELECTOR, ".card")
    return [int(card.get_attribute("data-cluster")) for card in cards if card.is_displayed()]


def point_at(driver, index):
    """Move the pointer to a galaxy of the page's data."""
    x, y = driver.execute_script("return toScreen(xs[arguments[0]], ys[arguments[0]])", index)
    canvas = one(driver, "#canvas")
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    width, height = canvas.size["width"], canvas.size["height"]
    ActionChains(driver, 0).move_to_element_with_offset(canvas, round(x - width / 2), round(y - height / 2)).perform()


def colour_seen(element):
    pixels = np.asarray(Image.open(io.BytesIO(element.screenshot_as_png)).convert("RGB"), float)
    middle = pixels[pixels.shape[0] // 2 - 5 : pixels.shape[0] // 2 + 5, pixels.shape[1] // 2 - 5 :][:, :10]
    return middle.mean(axis=(0, 1))


def requests_of(driver):
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    return [each["params"]["request"]["url"] for each in events if each["method"] == "Network.requestWillBeSent"]


def test_page_loads_without_an_error_and_asks_for_nothing_but_itself(browser, page):
    soon(browser, lambda: int(one(browser, "#canvas").get_attribute("width")) > 300)
    asked = requests_of(browser)
    assert page.as_uri() in asked
    assert not [url for url in asked if url != page.as_uri() and not url.startswith("data:")]
    assert browser.title == "A search"
    pixels = np.asarray(Image.open(io.BytesIO(one(browser, "#canvas").screenshot_as_png)).convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20, "the map is drawn"


@pytest.mark.parametrize("by", ['#legend a[data-cluster="1"]', "#class-1 .locate"])
def test_click_on_a_class_shows_its_members(browser, galaxies, by):
    assert not one(browser, "#members").is_displayed()
    one(browser, by).click()
    assert one(browser, "#members-title").text == "Class 1, polar rings"
    tiles = browser.find_elements(By.CSS_SELECTOR, "#members-tiles button")
    members = galaxies[galaxies["cluster"] == 1]
    assert {tile.get_attribute("title") for tile in tiles} == {*members["id_str"]}
    for tile in tiles[::7]:
        row = int(tile.get_attribute("title")[1:])
        assert np.abs(colour_seen(tile) - colour_of(row)).max() < 12
    ActionChains(browser, 0).move_to_element(tiles[3]).perform()
    assert tiles[3].get_attribute("title") in one(browser, "#tip").text
    one(browser, "#members-close").click()
    assert not one(browser, "#members").is_displayed()


def test_click_on_a_galaxy_of_the_map_shows_its_class_and_on_the_sky_lets_go(browser):
    index = browser.execute_script("return data.n_bulk + data.members.cluster.indexOf(3)")
    point_at(browser, index)
    ActionChains(browser, 0).click().perform()
    assert one(browser, "#members-title").text == "Class 3"
    assert one(browser, "#legend [aria-current]").text == "3"
    ActionChains(browser, 0).move_to_element_with_offset(one(browser, "#sky"), 0, 0).perform()
    corner = one(browser, "#canvas").size
    ActionChains(browser, 0).move_to_element_with_offset(
        one(browser, "#canvas"), 4 - corner["width"] // 2, 4 - corner["height"] // 2
    ).click().perform()
    assert not one(browser, "#members").is_displayed()


@pytest.mark.parametrize("index", [0, 120, 233, 260, 299])
def test_pointing_at_a_galaxy_shows_its_own_thumbnail(browser, galaxies, index):
    point_at(browser, index)
    tip = one(browser, "#tip")
    assert tip.is_displayed()
    identifier = browser.execute_script("return data.ids[arguments[0]]", index)
    galaxy = galaxies.loc[0 if identifier == HOSTILE else int(identifier[1:])]
    lines = tip.text.splitlines()
    assert lines[0] == identifier
    assert lines[1].startswith("in no class" if galaxy["cluster"] < 0 else f"class {galaxy['cluster']}")
    assert np.abs(colour_seen(one(browser, "#tip-image")) - colour_of(galaxy.name)).max() < 12


@pytest.mark.parametrize(
    ("key", "order"),
    [
        ("size", [1, 3, 0, 2]),
        ("grade", [1, 3, 0, 2]),
        ("persistence", [0, 1, 2, 3]),
        ("name", [2, 1, 0, 3]),
        ("cluster", [0, 1, 2, 3]),
    ],
)
def test_cards_are_sorted(browser, key, order):
    one(browser, "#together").click()
    Select(one(browser, "#sort")).select_by_value(key)
    assert shown_cards(browser) == order
    assert not browser.find_elements(By.CSS_SELECTOR, "#cards .group")


def test_classes_of_a_group_stay_together_whatever_the_order(browser):
    assert shown_cards(browser) == [0, 2, 1, 3]
    Select(one(browser, "#sort")).select_by_value("size")
    assert shown_cards(browser) == [1, 3, 0, 2]
    box = one(browser, "#cards .group")
    assert [card.get_attribute("id") for card in box.find_elements(By.CSS_SELECTOR, ".card")] == ["class-0", "class-2"]


@pytest.mark.parametrize(
    ("text", "left"), [("POLAR", [1]), ("grade b", [3]), ("J041", [1]), ("bar_str", [0, 2, 1, 3]), ("no such", [])]
)
def test_filter_leaves_the_classes_that_have_the_text(browser, text, left):
    one(browser, "#filter").send_keys(text)
    assert shown_cards(browser) == left
    assert one(browser, "#counted").text == f"{len(left)} of 4 classes"
    legend = [item.text[0] for item in browser.find_elements(By.CSS_SELECTOR, "#legend a") if item.is_displayed()]
    assert sorted(legend) == sorted(map(str, left))
    one(browser, "#filter").send_keys(*[Keys.BACKSPACE] * len(text))
    assert shown_cards(browser) == [0, 2, 1, 3]


def test_galaxy_is_found_by_its_id(browser):
    one(browser, "#query").send_keys("J041", Keys.ENTER)
    assert one(browser, "#found").text == "J041: class 1, polar rings"
    assert "J041" in one(browser, "#tip").text
    assert one(browser, "#members-title").text == "Class 1, polar rings"


def test_keys_go_from_class_to_class_and_to_its_card(browser):
    canvas = one(browser, "#canvas")
    canvas.send_keys(Keys.ARROW_RIGHT)
    assert one(browser, "#members-title").text == "Class 0"
    canvas.send_keys(Keys.ARROW_RIGHT)
    assert one(browser, "#members-title").text.startswith("Class 2, <b onmouseover")
    canvas.send_keys(Keys.ENTER)
    assert browser.switch_to.active_element.get_attribute("id") == "class-2"
    canvas.send_keys(Keys.ESCAPE)
    assert not one(browser, "#members").is_displayed()


def test_montage_is_enlarged_with_its_ids(browser):
    one(browser, "#class-1 .enlarge").click()
    dialog = one(browser, "#zoomed")
    assert one(browser, "#zoomed-title").text == "Class 1, polar rings: 30 galaxies"
    big = one(browser, "#zoomed-image")
    assert big.size["width"] > 2 * 138
    x, y = (round(big.size[side] * share) for side, share in (("width", -0.375), ("height", -0.25)))
    ActionChains(browser, 0).move_to_element_with_offset(big, x, y).perform()
    assert one(browser, "#pointed-id").text == "J012"
    ActionChains(browser, 0).send_keys(Keys.ARROW_RIGHT).perform()
    assert one(browser, "#zoomed-title").text == "Class 3: 18 galaxies"
    ActionChains(browser, 0).send_keys(Keys.ESCAPE).perform()
    soon(browser, lambda: not dialog.is_displayed())


def test_names_and_ids_from_users_run_nothing(browser):
    ActionChains(browser, 0).move_to_element(one(browser, "#class-2 .given")).perform()
    one(browser, '#legend a[data-cluster="2"]').click()
    one(browser, "#query").send_keys("onerror", Keys.ENTER)
    assert HOSTILE in one(browser, "#found").text
    assert browser.title == "A search"
    assert not browser.find_elements(By.CSS_SELECTOR, "img[src=x], b[onmouseover]")
    assert one(browser, "#class-2 .given").text == NAMES[2]
    one(browser, "#class-0 .enlarge").click()
    assert one(browser, "#zoomed-ids").get_attribute("textContent").startswith(HOSTILE)


def test_without_script_montages_and_a_map_are_there(chromium, page):
    chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        show(chromium, page)
        images = chromium.find_elements(By.CSS_SELECTOR, ".card .enlarge img")
        assert len(images) == len(SIZES)
        for image, first in zip(images, [0, 42, 12, 49], strict=True):
            pixels = Image.open(io.BytesIO(image.screenshot_as_png)).convert("RGB")
            seen = np.array(pixels.getpixel((round(pixels.width * 0.125), round(pixels.height * 0.25))))
            assert np.abs(seen - colour_of(first)).max() < 15
        assert one(chromium, ".static-map").is_displayed()
        for script_only in ("#sky", "#filter", "#search", ".locate"):
            assert not one(chromium, script_only).is_displayed()
        one(chromium, '#legend a[data-cluster="3"]').click()
        assert chromium.current_url.endswith("#class-3")
    finally:
        chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


@pytest.mark.parametrize("width", [360, 820])
def test_nothing_is_wider_than_a_phone(browser, width):
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        one(browser, '#legend a[data-cluster="1"]').click()
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        canvas, members = one(browser, "#canvas").rect, one(browser, "#members").rect
        assert canvas["width"] > 0.85 * width
        assert members["y"] >= canvas["y"] + canvas["height"]
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def a_survey(folder, n_classes=3000, n_galaxies=632_000):
    """As many galaxies as the paper searched; their images, a few for all, are noise, which JPEG cannot make small."""
    rng = np.random.default_rng(2)
    files = [str(folder / f"noise{number}.png") for number in range(8)]
    for file in files:
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(file)
    sizes = rng.integers(10, 150, n_classes)
    cluster = np.full(n_galaxies, -1)
    cluster[: sizes.sum()] = np.repeat(np.arange(n_classes), sizes)
    centres = rng.uniform(-10, 10, (n_classes + 30, 2))
    place = centres[np.where(cluster >= 0, cluster, n_classes + np.arange(n_galaxies) % 30)]
    spread = np.where(cluster >= 0, 0.1, 2.0)[:, None]
    places = place + spread * rng.normal(size=(n_galaxies, 2))
    return pd.DataFrame(
        {
            "id_str": [f"J{row:06d}+123456.7" for row in range(n_galaxies)],
            "file_loc": np.array(files)[np.arange(n_galaxies) % len(files)],
            "cluster": cluster,
            "probability": rng.uniform(size=n_galaxies),
            "x": places[:, 0],
            "y": places[:, 1],
        }
    )


def cards_in_full(n_classes):
    """Columns of a search that was repeated, so that every card is as long as it can be."""
    figures = ("mean_probability", "mean_outlier_score", "stability_seeds", "stability_samples", "validity")
    answers = [{"answer": "has-spiral-arms-dr5_yes", "mean": 0.71, "others": 0.12, "effect": 3.21}] * 3
    return {
        **dict.fromkeys((*figures, "cohesion_random", "birth_lambda", "control_exceeded", "share"), 0.123),
        "grade": "A",
        "unseen": "redshift 0.2 (+2.5 σ, spread 0.10 σ)",
        "answers": [answers] * n_classes,
        "nearest": [[1234, 2345, 345]] * n_classes,
        "parent": np.arange(n_classes) // 2,
    }


def test_page_of_632000_galaxies_in_3000_classes_is_below_30_mb_and_shows_members_of_each(chromium, tmp_path):
    path = tmp_path / "report.html"
    # As many pixels of noise in a montage as the page has bytes for.
    report = a_report(tmp_path, a_survey(tmp_path), columns=2, rows=1, **cards_in_full(3000))
    write_report(path, report)
    assert path.stat().st_size < 30_000_000
    chromium.get_log("browser")
    show(chromium, path)
    soon(chromium, lambda: chromium.execute_script("return density.complete && drawing === 0"))
    painted = chromium.execute_script(
        "const pixels = bulk.getContext('2d').getImageData(0, 0, bulk.width, bulk.height).data;"
        "return pixels.filter((value, i) => i % 4 === 3 && value > 20).length / (pixels.length / 4)"
    )
    assert painted > 0.05, "the density is drawn"
    for cluster in (17, 2999):
        one(chromium, f'#legend a[data-cluster="{cluster}"]').click()
        assert one(chromium, "#members-title").text == f"Class {cluster}"
        (tile,) = chromium.find_elements(By.CSS_SELECTOR, "#members-tiles button")
        seen = np.asarray(Image.open(io.BytesIO(tile.screenshot_as_png)).convert("RGB"), float)
        assert seen.std() > 30, "an image of noise, not an empty tile"
    one(chromium, "#closer").click()
    one(chromium, "#filter").send_keys("class 2999")
    # One by one, thousands of cards would take a minute to ask.
    shown = "return [...document.querySelectorAll('.card')].filter((card) => card.offsetParent).map((card) => card.id)"
    assert chromium.execute_script(shown) == ["class-2999"]
    assert chromium.get_log("browser") == []
