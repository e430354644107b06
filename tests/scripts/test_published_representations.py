"""Representations that others publish, without votes and without images, from their file to the page."""

import shlex
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from small_scripts import CLUSTER, environment, run

pytestmark = pytest.mark.script

N_GROUPS, N_EACH = 4, 40


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A folder with embeddings.h5, and the command that converting them said to run next."""
    folder = tmp_path_factory.mktemp("published")
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(N_GROUPS), N_EACH)
    features = 4 * rng.normal(size=(N_GROUPS, 6))[group] + 0.3 * rng.normal(size=(len(group), 6))
    table = pd.DataFrame({"id_str": [f"{name}_{row}" for row, name in enumerate(group)], "ra": 10.0, "dec": -3.0})
    for index, column in enumerate(features.T):
        table[f"feat_pca_{index}"] = column
    table.to_parquet(folder / "representations.parquet")
    command = [sys.executable, "-m", "rarezoo.embeddings.convert", "representations.parquet", "embeddings.h5"]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder, next(line for line in done.stderr.splitlines() if line.lstrip().startswith("next")).split(None, 1)[1]


def test_published_representations_are_searched_to_the_page(converted):
    folder, following = converted
    script, *options = shlex.split(following)[1:]
    run(folder, script, *options, *CLUSTER, small=False)
    results = folder / "outputs" / "embeddings" / "cluster"
    galaxies = pd.read_parquet(results / "galaxies.parquet")
    assert len(galaxies) == N_GROUPS * N_EACH
    inside = galaxies[galaxies["cluster"] >= 0]
    assert len(inside) > len(galaxies) / 2
    assert (inside.groupby("cluster")["id_str"].apply(lambda ids: ids.str[0].nunique()) == 1).all()
    classes = pd.read_parquet(results / "classes.parquet")
    assert set(classes["distinguishing"]) == {""}
    assert [len(answers) for answers in classes["answers"]] == [0] * len(classes)
    assert (results / "report.html").read_text().count("There are no images of them to show.") == 1
    assert list((results / "montages").iterdir()) == []


def test_selection_by_votes_is_refused_with_both_ways_on(converted):
    done = run(converted[0], "cluster.py", "embeddings=embeddings.h5", "name=cut", small=False, check=False)
    assert done.returncode == 2
    assert "selection=all, or add votes" in done.stderr
