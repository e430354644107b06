import pytest
from speed_tables import _growth, print_stages

SIZES = [50_000, 100_000, 200_000]


def costs(exponent, sizes=SIZES):
    """What a stage takes whose time grows with this power of the rows."""
    return [{"seconds": n / 1e4, "cpu_seconds": 3e-5 * n**exponent, "peak_memory_bytes": 2_500_000_000} for n in sizes]


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 1.3, 2.0])
def test_growth_is_the_exponent_of_the_rows(exponent):
    assert _growth(SIZES, costs(exponent)) == f"{exponent:.2f}"


def test_growth_is_of_the_sizes_that_the_stage_was_measured_at():
    slow, _, last = costs(1.5)
    assert _growth(SIZES, [slow, None, last]) == "1.50"
    assert _growth(SIZES, [slow, {**last, "cpu_seconds": 0.0}, last]) == "1.50"
    assert _growth(SIZES, [slow, {**last, "cpu_seconds": None}, last]) == "1.50"


@pytest.mark.parametrize("rows", [[None, None], [costs(1.0)[0], None]])
def test_one_size_has_no_growth(rows):
    assert _growth(SIZES[:2], rows) == ""


def measured(n, stages):
    return {
        "stages": stages,
        "recipe": {"seconds": 123.4, "cpu": 234.5, "memory": 6.75},
        "recall": 0.9913,
        "labels": 2.5,
        "searches": [{"tree": (300, 10, "leaf"), "seconds": n / 1e4, "classes": 12, "recovery": 0.4567}],
    }


def test_table_has_each_stage_at_each_size_and_its_growth(capsys):
    neighbours, layout = costs(2.0), costs(1.0)
    found = {
        n: measured(n, {"neighbours": quick, "layout": slow})
        for n, quick, slow in zip(SIZES, neighbours, layout, strict=True)
    }
    del found[200_000]["stages"]["layout"]
    print_stages(found, scored=True)
    said = capsys.readouterr().out.splitlines()
    assert said[:4] == [
        "| stage | 50,000: s (CPU s, GB) | 100,000: s (CPU s, GB) | 200,000: s (CPU s, GB) | exponent |",
        "|---|---|---|---|---|",
        "| neighbours | 5.0 (75000.0, 2.5) | 10.0 (300000.0, 2.5) | 20.0 (1200000.0, 2.5) | 2.00 |",
        "| layout | 5.0 (1.5, 2.5) | 10.0 (3.0, 2.5) |  | 1.00 |",
    ]
    assert said[4:9] == [
        "",
        "50,000 rows, the recipe: 123 s, 234 CPU s, 6.8 GB, recall 0.9913",
        "",
        "| min_samples, min_cluster_size, method | s | classes | mean F1 |",
        "|---|---|---|---|",
    ]
    assert [line for line in said if line.startswith("| 300")] == [
        f"| 300, 10, leaf | {n / 1e4:.1f} | 12 | 0.457 |" for n in SIZES
    ]
    assert said.count("twelve label settings, read off again: 2.5 s") == 3


def test_without_known_classes_there_is_no_score(capsys):
    print_stages({50_000: measured(50_000, {"layout": costs(1.0)[0]})}, scored=False)
    said = capsys.readouterr().out.splitlines()
    assert not [line for line in said if "F1" in line]
    assert "| 300, 10, leaf | 5.0 | 12 |" in said
