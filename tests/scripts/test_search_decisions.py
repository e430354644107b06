"""classes.yaml: what the astronomer decides is applied by the next run, without another search."""

import re

import pandas as pd
import pytest
import yaml
from astropy.table import Table
from small_searches import again_elsewhere, record_of, tables_of

pytestmark = pytest.mark.script


@pytest.fixture
def found(searched, process, tmp_path):
    """Folder of a finished search's results, its file of decisions, and a function that runs the same search again."""

    def search(expected=0, *options):
        status, said = process.run(tmp_path, "cluster.py", *again_elsewhere(searched[0], "name=mine", *options))
        assert status == expected, said
        return said

    search()
    return tmp_path / "outputs/mine/cluster", tmp_path / "outputs/mine/classes.yaml", search


def decide(results, path):
    """Name, merge, exclude and note the first classes of a search, beginning with the file that it left."""
    content = yaml.safe_load((results / "classes.example.yaml").read_text())
    first, second, third, fourth, *_ = content["classes"]
    first |= {"name": "one-armed <spirals>", "note": "as in Arp's atlas"}
    second.pop("name")
    second["merge_into"] = "one-armed <spirals>"
    third["exclude"] = True
    fourth["note"] = "dull"
    path.write_text(yaml.safe_dump(content))


def test_decisions_are_applied_by_the_next_run_without_computing_a_stage(found):
    results, path, search = found
    before, galaxies_before = tables_of(results)
    decide(results, path)
    assert "complete before" not in search()
    summary = record_of(results)["summary"]
    assert summary["stages_computed"] == 0
    classes, galaxies = tables_of(results)
    assert len(classes) == len(before) - 2 == summary["n_classes"]
    first, second = classes.iloc[0], classes.iloc[1]
    assert (first["name"], first["note"], list(first["found_clusters"])) == (
        "one-armed <spirals>", "as in Arp's atlas", [0, 1],
    )  # fmt: skip
    assert first["size"] == before["size"][:2].sum()
    assert (second["note"], list(second["found_clusters"])) == ("dull", [3])
    assert galaxies["found_cluster"].tolist() == galaxies_before["cluster"].tolist()
    assert (galaxies["cluster"][galaxies["found_cluster"].isin([0, 1])] == 0).all()
    assert (galaxies["cluster"][galaxies["found_cluster"] == 2] == -1).all()


def test_page_montages_and_tables_of_all_formats_show_what_was_decided(found):
    results, path, search = found
    decide(results, path)
    search()
    classes, galaxies = tables_of(results)
    page = (results / "report.html").read_text()
    assert re.findall(r'<article [^>]*id="class-(\d+)"', page) == [str(cluster) for cluster in classes["cluster"]]
    assert "one-armed &lt;spirals&gt;" in page
    assert "as in Arp&#39;s atlas" in page
    assert len(list((results / "montages").iterdir())) == len(classes)
    written = {
        kind: [Table.read(results / f"{name}.{kind}") for name in ("classes", "galaxies")] for kind in ("fits", "vot")
    }
    written["csv"] = [pd.read_csv(results / f"{name}.csv", keep_default_na=False) for name in ("classes", "galaxies")]
    for of_classes, of_galaxies in written.values():
        # In FITS an empty text is a missing one.
        assert [str(name).replace("--", "") for name in of_classes["name"]] == classes["name"].tolist()
        assert list(of_galaxies["cluster"]) == galaxies["cluster"].tolist()


def test_without_the_decisions_the_first_result_comes_back(found):
    results, path, search = found
    before = tables_of(results)
    decide(results, path)
    search()
    path.unlink()
    search()
    for table, expected in zip(tables_of(results), before, strict=True):
        pd.testing.assert_frame_equal(table, expected)
    assert "one-armed" not in (results / "report.html").read_text()
    assert "complete before" in search()


def test_broken_decisions_are_refused_before_any_work_and_cost_nothing(found):
    results, path, search = found
    before = {path: path.stat().st_mtime_ns for path in results.rglob("*") if path.suffix in (".parquet", ".html")}
    path.write_text("classes:\n- medoid: bulk-0\n  nam: rings\n")
    said = search(expected=2)
    assert "classes.yaml: entry 1 has 'nam'. Did you mean 'name'?" in said
    assert "selection" not in said.partition("Error executing")[0]
    assert "Traceback" not in said
    path.unlink()
    assert "complete before" in search()
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_decisions_that_fit_no_class_are_told_of(found):
    results, path, search = found
    path.write_text("classes:\n- medoid: nobody\n  name: rings\n")
    search()
    assert "none of its galaxies is in a class of this search" in (results / "report.html").read_text()


def test_decisions_that_were_half_written_are_not_taken_for_those_before(found):
    results, path, search = found
    before = tables_of(results)
    decide(results, path)
    picture = results / "figures/map.png"
    picture.unlink()
    picture.mkdir()
    said = search(expected=2)
    assert "map.png: cannot be written" in said
    path.unlink()
    picture.rmdir()
    assert "complete before" not in search()
    for table, expected in zip(tables_of(results), before, strict=True):
        pd.testing.assert_frame_equal(table, expected)


@pytest.mark.parametrize("name", ["report.html", "recovery.parquet", "montages"])
def test_outputs_that_were_removed_are_written_again(found, searched, tmp_path, name):
    results, _, search = found
    truth = (f"truth={searched[0]}/truth.csv", "overwrite=true")
    search(0, *truth)
    (results / name).rename(tmp_path / name)
    assert "complete before" not in search(0, truth[0])
    assert (results / name).exists()
    assert "complete before" in search(0, truth[0])


def test_a_truth_that_changed_is_compared_with_anew(found, searched, tmp_path):
    results, _, search = found
    truth = pd.read_csv(searched[0] / "truth.csv")
    truth.to_csv(tmp_path / "truth.csv", index=False)
    options = (f"truth={tmp_path}/truth.csv", "overwrite=true")
    search(0, *options)
    truth["rare_class"] = truth["rare_class"].replace("group0", "jellyfish")
    truth.to_csv(tmp_path / "truth.csv", index=False)
    assert "jellyfish" in search(0, options[0])
    assert "jellyfish" in pd.read_parquet(results / "recovery.parquet")["class"].tolist()
