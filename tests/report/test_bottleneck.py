import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import stats

from rarezoo.report.bottleneck import compare_bottlenecks, write_bottlenecks

NONE = [27.0, 27.6, 26.6, 27.1]


def a_study(changes, noise=0.0, seeds=range(3), base=NONE):
    """Losses by width: those without a bottleneck, times one plus the change in per cent, plus noise."""
    rng = np.random.default_rng(0)
    rows = [
        (dim, seed, base[seed] * (1 + (change + noise * rng.normal()) / 100))
        for dim, change in changes.items()
        for seed in seeds
    ]
    return pd.DataFrame(rows, columns=["bottleneck.dim", "seed", "test/loss"]).convert_dtypes()


def test_differences_are_paired_so_that_what_seeds_have_in_common_drops_out():
    compared, _ = compare_bottlenecks(a_study({None: 0, 512: 0.1, 128: 0.2, 8: 7}))
    assert compared["dim"].tolist() == ["none", "512", "128", "8"]
    assert compared["n_pairs"].tolist() == [0, 3, 3, 3]
    np.testing.assert_allclose(compared["difference"], [np.nan, 0.1, 0.2, 7])
    np.testing.assert_allclose(compared["difference_sem"].iloc[1:], 0, atol=1e-9)
    np.testing.assert_allclose(compared["mean"].iloc[0], np.mean(NONE[:3]))
    np.testing.assert_allclose(compared["sem"].iloc[0], np.std(NONE[:3], ddof=1) / np.sqrt(3))


def test_interval_is_that_of_scipys_paired_t_test():
    table = a_study({None: 0, 128: 0.3}, noise=0.2, seeds=range(4))
    row = compare_bottlenecks(table)[0].set_index("dim").loc["128"]
    losses = table.pivot_table(index="seed", columns=table["bottleneck.dim"].fillna(-1), values="test/loss")
    relative = 100 * (losses[128] / losses[-1]).astype(float)
    interval = stats.ttest_1samp(relative, 100).confidence_interval(0.9)
    assert (row["low"] + 100, row["high"] + 100) == pytest.approx((interval.low, interval.high))


@pytest.mark.parametrize(
    ("change", "noise", "verdict"),
    [
        (0.1, 0.05, "is within 0.5% of none"),
        (-0.1, 0.05, "is within 0.5% of none"),
        (3.0, 0.1, "is worse than none by more than 0.5%"),
        (-3.0, 0.1, "is better than none by more than 0.5%"),
        (0.1, 2.0, "may or may not be within 0.5% of none"),
        (0.6, 0.2, "may or may not be within 0.5% of none"),
    ],
)
def test_verdict_follows_the_interval_and_not_the_mean_alone(change, noise, verdict):
    found = compare_bottlenecks(a_study({None: 0, 128: change}, noise))[1]
    assert found.startswith(f"D = 128 {verdict}")
    assert "90% interval" in found


def test_one_seed_decides_nothing():
    compared, verdict = compare_bottlenecks(a_study({None: 0, 128: 0.0}, seeds=[1]))
    assert "more seeds are needed" in verdict
    assert compared["low"].isna().all()


@pytest.mark.parametrize("changes", [{None: 0, 8: 5}, {128: 0, 8: 5}])
def test_width_that_has_not_been_run_yet_cannot_be_compared(changes):
    assert "cannot be compared" in compare_bottlenecks(a_study(changes))[1]


def test_only_seeds_that_both_have_make_pairs():
    table = pd.concat([a_study({None: 0}, seeds=[0, 1, 2]), a_study({128: 1.0}, seeds=[1, 2, 3])])
    row = compare_bottlenecks(table)[0].set_index("dim").loc["128"]
    assert (row["n_seeds"], row["n_pairs"]) == (3, 2)
    assert row["difference"] == pytest.approx(1.0)


def test_runs_of_one_seed_that_differ_in_something_else_too_are_not_pairs():
    small = a_study({None: 0, 128: 1.0}).assign(backbone="tiny")
    large = a_study({None: 0, 128: 3.0}, base=[9.0] * 3).assign(backbone="resnet18")
    row = compare_bottlenecks(pd.concat([small, large]), paired_by=["seed", "backbone"])[0].set_index("dim").loc["128"]
    assert row["n_pairs"] == 6
    assert row["difference"] == pytest.approx(2.0)


def test_runs_without_a_seed_that_differs_are_compared_too():
    table = a_study({None: 0, 128: 1.0}, seeds=[0]).drop(columns="seed")
    assert compare_bottlenecks(table, paired_by=[])[0]["difference"].iloc[1] == pytest.approx(1.0)


def test_files_and_terminal_say_the_same(tmp_path, capsys):
    table = a_study({None: 0, 512: 0.0, 128: 0.2, 8: 60}, noise=0.1)
    paths = write_bottlenecks(tmp_path, table)
    compared, verdict = compare_bottlenecks(table)
    pd.testing.assert_frame_equal(pd.read_csv(paths["bottleneck.csv"]), compared, check_dtype=False)
    assert Image.open(paths["bottleneck.png"]).format == "PNG"
    said = capsys.readouterr().err
    assert verdict in said
    assert "difference_sem" in said
