import base64
import os
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import recovery as command
from known_truth import page, scoring, tables
from known_truth.contest import Found
from known_truth.contestants import Contestant
from small_contest import GROUPS, points, survey_of

from rarezoo.cli import UserError
from rarezoo.clustering.scores import recovery

METHODS = ("paper-scaled", "one-cluster", "ranking")


def perfect(task):
    """Knows the groups by where they are."""
    labels = np.full(len(task.x), -1, dtype=np.int32)
    far = task.x[:, : len(GROUPS)].max(axis=1) > 6
    labels[far] = task.x[far, : len(GROUPS)].argmax(axis=1)
    return Found([np.flatnonzero(labels == label)[:12] for label in (2, 0, 1)], labels, {"recall": 0.5})


def one_cluster(task):
    return Found([np.arange(12)], np.zeros(len(task.x), dtype=np.int32))


def ranking(task):
    return Found([rows.copy() for rows in np.arange(240).reshape(-1, 12)])


def contestants(**others):
    finds = dict(zip(METHODS, (perfect, one_cluster, ranking), strict=True)) | others
    return [Contestant(name, find, kinds=find is not ranking) for name, find in finds.items()]


def scored(folder, surveys):
    for survey in surveys:
        for contestant in contestants():
            scoring.method_scores(survey, contestant, folder / "results", folder / "stages")
        scoring.representation_scores(survey, "bottleneck", folder / "results")
    return scoring.gather(folder / "results")


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    surveys = [survey_of(seed, control=True, kinds=True) for seed in (0, 1, 2)]
    surveys.append(survey_of(0, "<b>few</b>", "injected"))
    return scored(tmp_path_factory.mktemp("scored"), surveys)


def rows_of(scores, row, method="paper-scaled", survey="few", seed=0):
    chosen = (scores["row"] == row) & (scores["method"] == method) & (scores["survey"] == survey)
    return scores[chosen & (scores["seed"] == seed)]


def test_members_that_the_cuts_removed_count_as_missed(scores):
    _, group = points()
    for row in rows_of(scores, "class").itertuples():
        of_class = group == row[scores.columns.get_loc("class") + 1]
        kept = np.count_nonzero(of_class[np.arange(len(group)) % 10 > 0])
        assert (row.members, row.selected) == (of_class.sum(), kept)
        assert row.completeness == pytest.approx(kept / of_class.sum())
        assert row.abundance == of_class.sum() / len(group)


def test_classes_are_discovered_at_the_montage_that_shows_them(scores):
    found_at = rows_of(scores, "class").set_index("class")["discovered_at"]
    assert found_at.to_dict() == {"rings": 2, "tails": 3, "arms": 1}
    assert rows_of(scores, "run")["discovered_10"].item() == 3


def test_method_that_ranks_has_discoveries_and_no_clusters(scores):
    run = rows_of(scores, "run", "ranking").iloc[0]
    assert run["montages"] == 20
    assert run[["clusters", "mean_f1", "found_f1_50"]].isna().all()
    assert rows_of(scores, "class", "ranking")["f1"].isna().all()


def test_control_is_scored_and_counts_nowhere(scores):
    assert rows_of(scores, "control")["class"].tolist() == ["few-at-random"]
    run = rows_of(scores, "run").iloc[0]
    assert (run["planted"], run["found_f1_50"], run["clusters_of_no_class"]) == (3, 3, 0)
    assert "few-at-random" not in set(scores.loc[scores["row"] == "representation", "class"])


def test_chance_finds_less_than_a_search_that_knows(scores):
    classes = rows_of(scores, "class")
    assert (classes["f1"] > classes["chance_f1_highest"]).all()
    everything = rows_of(scores, "class", "one-cluster")
    np.testing.assert_allclose(everything["f1"], everything["chance_f1"])


def test_clusters_that_are_the_kinds_agree_with_them_and_permuted_ones_do_not(scores):
    run = rows_of(scores, "run").iloc[0]
    assert run["kinds_ami"] == pytest.approx(1)
    assert abs(run["kinds_chance_ami"]) < 0.02
    assert run["kinds_n"] == sum(GROUPS.values())
    assert np.isnan(rows_of(scores, "run", survey="<b>few</b>")["kinds_ami"].item())


def test_notes_of_a_method_are_kept(scores):
    assert rows_of(scores, "run")["note_recall"].item() == 0.5


def test_score_that_is_kept_is_not_computed_again(tmp_path):
    calls = []

    def counted(task):
        calls.append(task.seed)
        return perfect(task)

    def score(survey, setup="as it was"):
        contestant = Contestant("counted", counted, setup=setup)
        return scoring.method_scores(survey, contestant, tmp_path / "results", tmp_path / "stages")

    first = score(survey_of())
    pd.testing.assert_frame_equal(score(survey_of()), first)
    assert len(calls) == 1
    score(survey_of(), setup="changed")
    score(survey_of(control=True), setup="changed")
    score(survey_of(1), setup="changed")
    assert len(calls) == 4
    (kept,) = tmp_path.glob("results/few-seed1-*.parquet")
    os.truncate(kept, kept.stat().st_size // 2)
    score(survey_of(1), setup="changed")
    assert len(calls) == 5


def test_broken_off_score_leaves_no_file(tmp_path):
    def broken_off(task):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scoring.method_scores(survey_of(), Contestant("mine", broken_off), tmp_path / "results", tmp_path)
    assert not list(tmp_path.rglob("*.parquet"))


def test_method_that_cannot_run_is_left_out_with_its_reason_and_the_others_run(tmp_path):
    def refuses(task):
        raise UserError("tree.min_samples=300, but 450 galaxies were selected")

    left_out = command.run_survey(survey_of(), contestants(refuses=refuses), tmp_path)
    assert left_out == ["few, seed 0: refuses: tree.min_samples=300, but 450 galaxies were selected"]
    paths = command.write_outputs(tmp_path, left_out, 1.0)
    assert "tree.min_samples=300" in paths["page"].read_text()
    found = pd.read_parquet(paths["table"])
    assert set(found.loc[found["row"] == "run", "method"]) == set(METHODS)
    assert "identity" not in found


def test_methods_are_ranked_by_mean_f1_and_those_without_come_last(scores):
    runs = scores[(scores["row"] == "run") & (scores["survey"] == "few")]
    assert tables.ranked_methods(runs) == list(METHODS)


def test_mean_over_seeds_has_its_interval_and_one_seed_has_none(scores):
    runs = scores[scores["row"] == "run"].copy()
    runs["seconds"] = [{0: 1.0, 1: 2.0, 2: 6.0}[seed] for seed in runs["seed"]]
    several = tables.method_table(runs[runs["survey"] == "few"], ["paper-scaled"])
    one = tables.method_table(runs[runs["survey"] == "<b>few</b>"], ["paper-scaled"])
    column = several.columns.index("seconds")
    assert several.rows[0][column] == "3 (1–6)"
    assert one.rows[0][column] == "1"


def test_share_found_by_abundance_counts_the_classes_of_all_seeds(scores):
    classes = scores[(scores["row"] == "class") & (scores["survey"] == "few")].copy()
    # Of three classes a seed, two are rare, and one of these is not found.
    classes["members"] = classes["class"].map({"rings": 100, "tails": 1, "arms": 1})
    classes["galaxies"] = 1500
    classes.loc[(classes["class"] == "tails") & (classes["method"] == "paper-scaled"), "f1"] = 0.49
    for percent, rare in (("50", "0.50"), ("80", "0")):
        # The other of the two is found, and not well.
        classes.loc[(classes["class"] == "arms") & (classes["method"] == "paper-scaled"), "f1"] = 0.79
        table = tables.abundance_table(classes, ["paper-scaled", "ranking"], percent)
        assert table.columns == ["method", "0.05% to 0.10%", "from 1.00%"]
        assert table.rows == [["paper-scaled", rare, "1"]]


def test_false_per_true_is_of_all_seeds_and_a_discovery_says_of_how_many(scores):
    runs = scores[(scores["row"] == "run") & (scores["survey"] == "few") & (scores["method"] == "paper-scaled")]
    runs = runs.assign(clusters_of_no_class=[10, 20, 30], found_f1_50=[2, 0, 1], false_per_true=[5, np.nan, 30])
    table = tables.method_table(runs, ["paper-scaled"])
    assert table.rows[0][table.columns.index("false per true")].startswith("20 (")
    classes = scores[(scores["row"] == "class") & (scores["survey"] == "few")].copy()
    one = (classes["class"] == "arms") & (classes["seed"] == 0) & (classes["method"] == "paper-scaled")
    classes.loc[one, "discovered_at"] = np.nan
    shown = {row[0]: row[-1] for row in tables.class_table(classes, "paper-scaled").rows}
    assert shown["arms"].endswith(" in 2 of 3 seeds")
    assert "seeds" not in shown["rings"]


def test_class_table_has_the_figures_of_the_method(scores):
    classes = scores[(scores["row"] == "class") & (scores["survey"] == "<b>few</b>")]
    table = tables.class_table(classes, "paper-scaled")
    x, group = points()
    inside = np.arange(len(x)) % 10 > 0
    labels = np.where(x[inside, :3].max(axis=1) > 6, x[inside, :3].argmax(axis=1), -1)
    oracle = recovery(labels, group[inside], pd.Series(group[group != ""]).value_counts().to_dict()).set_index("class")
    column = table.columns.index("F1")
    assert {row[0]: row[column] for row in table.rows} == {name: f"{f1:.2f}" for name, f1 in oracle["f1"].items()}
    assert {row[0]: row[table.columns.index("selected")] for row in table.rows} == oracle["selected"].map(str).to_dict()


def test_tables_without_rows_are_not_shown(scores):
    few, other = (
        [table.title for table in tables.survey_tables(part, list(METHODS))]
        for _, part in scores.groupby("survey", sort=False)
    )
    if "Control" in other:
        few, other = other, few
    assert {"Control", "Kinds of artifact"} <= set(few)
    assert not {"Control", "Kinds of artifact"} & set(other)


class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.addresses, self.ids, self.tags = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        found = dict(attrs)
        self.addresses += [found[name] for name in ("href", "src") if name in found]
        self.ids += [found["id"]] if "id" in found else []


@pytest.fixture(scope="module")
def written(scores, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    return page.write_page(scores, {"machine": "<i>mine</i>"}, ["a < b"], folder)


def test_page_needs_nothing_from_outside(written):
    reader = Reader()
    reader.feed(written["page"].read_text(encoding="utf-8"))
    assert all(address.startswith(("#", "data:")) for address in reader.addresses)
    assert len(reader.ids) == len(set(reader.ids))
    assert {address[1:] for address in reader.addresses if address.startswith("#")} <= set(reader.ids)
    assert "script" not in reader.tags


def test_page_shows_what_users_wrote_as_text(written):
    text = written["page"].read_text(encoding="utf-8")
    assert not re.search("<b>few|<i>mine|a < b", text)
    assert "&lt;b&gt;few&lt;/b&gt;" in text


def test_page_shows_every_survey_and_method_with_two_figures(written, scores):
    text = written["page"].read_text(encoding="utf-8")
    assert text.count("data:image/png;base64,iVBOR") == 2 * scores["survey"].nunique()
    assert all(f'<th scope="row">{method}</th>' in text for method in METHODS)
    figures = sorted(written["figures"].rglob("*.png"))
    assert len(figures) == 2 * scores["survey"].nunique()
    assert all(base64.b64encode(figure.read_bytes()).decode() in text for figure in figures)


def test_markdown_has_as_many_cells_in_every_row_of_a_table(written):
    blocks = re.findall(r"(?:^\|.*\n)+", written["markdown"].read_text(encoding="utf-8"), re.M)
    assert len(blocks) >= 8
    for block in blocks:
        assert len({line.count("|") for line in block.splitlines()}) == 1


def test_discoveries_are_drawn_as_the_mean_over_seeds(scores):
    classes = scores[(scores["row"] == "class") & (scores["survey"] == "few")]
    (line,) = page.discovery_figure(classes, ["paper-scaled"]).axes[0].get_lines()
    assert line.get_ydata()[:5].tolist() == [0, 1, 2, 3, 3]


def test_abundances_are_drawn_where_the_classes_are_and_rankings_are_left_out(scores):
    classes = scores[(scores["row"] == "class") & (scores["survey"] == "few")]
    axes = page.abundance_figure(classes, ["paper-scaled", "ranking"]).axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["paper-scaled"]


def test_ten_methods_are_drawn_and_can_be_told_apart(scores):
    classes = scores[(scores["row"] == "class") & (scores["survey"] == "few") & (scores["method"] == "paper-scaled")]
    names = [f"method {number}" for number in range(10)]
    several = pd.concat([classes.assign(method=name) for name in names])
    for draw in (page.abundance_figure, page.discovery_figure):
        handles, labels = draw(several, names).axes[0].get_legend_handles_labels()
        assert labels == names
        lines = [getattr(handle, "lines", [handle])[0] for handle in handles]
        assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 10


def test_command_goes_on_with_what_is_missing_and_compares_new_methods_with_old(tmp_path, monkeypatch, capsys):
    def suite(name, out, data, seeds):
        assert (name, data, seeds) == ("small", None, [0, 1])
        yield from map(survey_of, seeds)

    extra = tmp_path / "mine.py"
    extra.write_text(
        "import numpy as np\nfrom known_truth.contest import Found\n"
        "def find(task):\n    print('looked')\n"
        "    return Found([np.arange(12)], np.zeros(len(task.x), dtype=np.int32))\n"
        "METHODS = {'mine': find}\n"
    )
    monkeypatch.setattr(command, "suite", suite)
    common = ["recovery.py", "--out", str(tmp_path / "out"), "--seeds", "0,1", "--extra", str(extra)]
    for methods in ("random-order", "mine", "mine"):
        monkeypatch.setattr(sys, "argv", [*common, "--methods", methods])
        command.main()
    assert capsys.readouterr().out.count("looked") == 2
    scores = pd.read_parquet(tmp_path / "out" / "recovery.parquet")
    runs = scores[scores["row"] == "run"]
    assert sorted(zip(runs["method"], runs["seed"], strict=True)) == [
        (method, seed) for method in ("mine", "random-order") for seed in (0, 1)
    ]
    assert "random-order" in (tmp_path / "out" / "recovery.md").read_text()


def test_command_refuses_a_method_that_there_is_not(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["recovery.py", "--methods", "papr"])
    with pytest.raises(SystemExit) as exit_:
        command.main()
    assert exit_.value.code == 2
    assert "Did you mean 'paper'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("labels", "montages", "message"),
    [
        (np.zeros(3, np.int32), [], r"labels: \(3,\), but 450 galaxies were searched"),
        (None, [np.array([4, 4, 5])], r"montage 1: shows \[4, 4, 5\]. Show at most 12 galaxies, each once"),
        (None, [np.arange(12), np.arange(13)], "montage 2: shows"),
        (None, [np.array([-1, 2, 3])], "montage 1: shows"),
    ],
)
def test_what_a_method_gives_back_is_refused_where_it_would_be_scored_as_something_else(
    labels, montages, message, tmp_path
):
    odd = Contestant("odd", lambda task: Found(montages, labels))
    with pytest.raises(UserError, match=message):
        scoring.method_scores(survey_of(), odd, tmp_path / "results", tmp_path / "stages")
