import itertools
import math
import subprocess
import sys
import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rarezoo.similarity import MinibatchCKA, centred_gram, hsic1

# Worked out by hand and by brute force, outside this project.
X = np.array([[1, 0], [2, 1], [0, 3], [4, 1], [1, 1], [3, 0]], dtype=float)
Y = np.array([[1, 2, 0], [0, 1, 1], [2, 2, 1], [3, 0, 1], [1, 1, 4], [0, 5, 2]], dtype=float)
HSIC_XY, HSIC_XX, HSIC_YY, CKA_XY = Fraction(-19, 5), Fraction(359, 90), Fraction(187, 30), -0.76207453742

whole_numbers = st.integers(-5, 5).map(float)


def formula(x, y):
    """Nguyen et al. 2021, eq. 3, as it is printed."""
    n = len(x)
    k, l = (rows.reshape(n, -1) @ rows.reshape(n, -1).T for rows in (x, y))  # noqa: E741
    np.fill_diagonal(k, 0)
    np.fill_diagonal(l, 0)
    one = np.ones(n)
    last = 2 / (n - 2) * (one @ k @ l @ one)
    return (np.trace(k @ l) + (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2)) - last) / (n * (n - 3))


def brute_force(x, y):
    """The definition: a mean over all ordered 4-tuples of different images."""
    k, l = x @ x.T, y @ y.T  # noqa: E741
    terms = [
        k[i, j] * l[i, j] + k[i, j] * l[q, r] - 2 * k[i, j] * l[i, q]
        for i, j, q, r in itertools.permutations(range(len(x)), 4)
    ]
    return np.mean(terms)


def cka_of(batches, dtype=torch.float64):
    """CKA (1, 1) of batches of pairs of arrays."""
    metric = MinibatchCKA(["x"], ["y"])
    for x, y in batches:
        metric.update({"x": torch.as_tensor(x, dtype=dtype)}, {"y": torch.as_tensor(y, dtype=dtype)})
    return metric.compute()[0, 0]


def related(n, seed=0):
    """Two features that share a part."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(n, 8))
    return (np.hstack((common, rng.normal(size=(n, width)))) @ rng.normal(size=(8 + width, 24)) for width in (6, 12))


def tensors(*values):
    return tuple(torch.as_tensor(np.asarray(value), dtype=torch.float64) for value in values)


def test_six_rows_have_the_values_that_were_worked_out_by_hand():
    x, y = tensors(X, Y)
    for found, expected in ((hsic1(x, y), HSIC_XY), (hsic1(x, x), HSIC_XX), (hsic1(y, y), HSIC_YY)):
        assert float(found) == pytest.approx(float(expected), abs=1e-13)
    assert cka_of([(X, Y)]) == pytest.approx(CKA_XY, abs=1e-11)


def test_estimate_is_the_mean_over_all_tuples_of_four():
    assert brute_force(X, Y) == pytest.approx(float(HSIC_XY))
    rng = np.random.default_rng(0)
    for n in (4, 5, 7):
        x, y = rng.normal(size=(n, 3)), rng.normal(size=(n, 2))
        assert float(hsic1(*tensors(x, y))) == pytest.approx(brute_force(x, y), abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(x=arrays(float, (7, 3), elements=whole_numbers), y=arrays(float, (7, 2), elements=whole_numbers))
def test_estimate_is_the_printed_formula(x, y):
    assert float(hsic1(*tensors(x, y))) == pytest.approx(formula(x, y), abs=1e-9)


def test_mean_over_all_subsets_is_the_value_of_the_whole():
    rng = np.random.default_rng(1)
    x, y = tensors(rng.normal(size=(9, 4)), rng.normal(size=(9, 3)))
    parts = [hsic1(x[list(part)], y[list(part)]) for part in itertools.combinations(range(9), 5)]
    assert float(torch.stack(parts).mean()) == pytest.approx(float(hsic1(x, y)), abs=1e-13)


def test_mean_over_all_permutations_of_the_images_is_zero():
    x, y = tensors(X, Y)
    permuted = [hsic1(x, y[list(order)]) for order in itertools.permutations(range(6))]
    assert float(torch.stack(permuted).mean()) == pytest.approx(0, abs=1e-13)


def test_rows_of_a_centred_gram_sum_to_zero_without_their_diagonal():
    gram = centred_gram(torch.as_tensor(Y))
    np.testing.assert_allclose(gram.sum(0), 0, atol=1e-12)
    assert torch.equal(gram, gram.T)
    assert torch.equal(gram.diagonal(), torch.zeros(6, dtype=torch.float64))


def test_features_without_anything_in_common_have_none_where_the_biased_estimate_says_much():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(64, 512)), rng.normal(size=(64, 512))
    centring = np.eye(64) - 1 / 64
    k, l = (centring @ rows @ rows.T @ centring for rows in (x, y))  # noqa: E741
    biased = np.trace(k @ l) / np.sqrt(np.trace(k @ k) * np.trace(l @ l))
    assert biased > 0.8
    assert abs(cka_of([(x, y)])) < 0.05


def test_features_are_wholly_like_themselves():
    x, _ = related(40)
    assert cka_of([(x[:16], x[:16]), (x[16:], x[16:])]) == pytest.approx(1, abs=1e-14)


@pytest.mark.parametrize("change", ["rotation", "scale", "shift"])
def test_value_does_not_change_with(change):
    x, y = related(48)
    rotation = np.linalg.qr(np.random.default_rng(3).normal(size=(24, 24)))[0]
    changed = {"rotation": y @ rotation, "scale": -1e4 * y, "shift": y + np.arange(24)}[change]
    batches = [slice(0, 16), slice(16, 32), slice(32, 48)]
    expected = cka_of([(x[part], y[part]) for part in batches])
    assert 0.1 < expected < 0.9
    assert cka_of([(x[part], changed[part]) for part in batches]) == pytest.approx(expected, rel=1e-10)


def test_value_is_the_ratio_of_means_over_batches_that_weigh_as_their_images_do():
    x, y = related(21)
    x[:8] *= 3
    batches = [slice(0, 8), slice(8, 16), slice(16, 21)]
    weights = [8, 8, 5]
    xy, xx, yy = (
        np.average([formula(a[part], b[part]) for part in batches], weights=weights)
        for a, b in ((x, y), (x, x), (y, y))
    )
    of_ratios = [cka_of([(x[part], y[part])]) for part in batches]
    found = cka_of([(x[part], y[part]) for part in batches])
    assert found == pytest.approx(xy / np.sqrt(xx * yy), rel=1e-12)
    assert abs(found - np.mean(of_ratios)) > 1e-3


@pytest.mark.parametrize("size", [16, 64])
def test_size_and_order_of_the_batches_hardly_matter(size):
    x, y = related(2048)
    whole = cka_of([(x, y)])
    order = np.random.default_rng(4).permutation(2048)
    for rows in (np.arange(2048), order):
        batches = [(x[part], y[part]) for part in np.split(rows, 2048 // size)]
        assert cka_of(batches) == pytest.approx(whole, abs=0.01)
    assert cka_of([(x[order], y[order])]) == pytest.approx(whole, abs=1e-13)


def test_permuted_images_have_nothing_in_common():
    x, y = related(2048)
    order = np.random.default_rng(5).permutation(2048)
    assert abs(cka_of([(x[part], y[order][part]) for part in np.split(np.arange(2048), 32)])) < 0.01


def test_all_pairs_of_layers_come_from_one_pass():
    rng = np.random.default_rng(6)
    a = {name: torch.as_tensor(rng.normal(size=shape)) for name, shape in (("map", (9, 2, 3, 3)), ("row", (9, 5)))}
    b = {name: torch.as_tensor(rng.normal(size=(9, width))) for name, width in (("one", 1), ("two", 2), ("three", 3))}
    metric = MinibatchCKA(list(a), list(b))
    metric.update(a, dict(reversed(b.items())))
    found = metric.compute()
    assert found.dtype == np.float64
    for (row, x), (column, y) in itertools.product(enumerate(a.values()), enumerate(b.values())):
        x, y = x.numpy(), y.numpy()
        expected = formula(x, y) / np.sqrt(formula(x, x) * formula(y, y))
        assert found[row, column] == pytest.approx(expected, rel=1e-10)


def test_network_beside_itself_gives_a_symmetric_matrix_with_ones():
    rng = np.random.default_rng(7)
    layers = {name: torch.as_tensor(rng.normal(size=(12, 4))) for name in "xyz"}
    metric, copied = MinibatchCKA("xyz", "xyz"), MinibatchCKA("xyz", "xyz")
    metric.update(layers, layers)
    copied.update(layers, dict(layers))
    np.testing.assert_allclose(np.diag(metric.compute()), 1, rtol=1e-14)
    np.testing.assert_allclose(metric.compute(), metric.compute().T, rtol=1e-13)
    np.testing.assert_allclose(metric.compute(), copied.compute(), rtol=1e-14)


def test_grams_may_be_made_beforehand():
    x, y = tensors(X, Y)
    metric = MinibatchCKA(["x"], ["y"], from_grams=True)
    metric.update({"x": centred_gram(x)}, {"y": centred_gram(y)})
    assert metric.compute()[0, 0] == pytest.approx(CKA_XY, abs=1e-11)


@pytest.mark.parametrize("constant", [0.0, 0.1, -7e5])
def test_dead_layer_has_no_value_in_its_row_and_column_alone_and_is_named(constant):
    x, y = tensors(*related(12))
    layers = {"x": x, "dead": torch.full_like(x, constant), "y": y}
    metric = MinibatchCKA(["x", "dead", "y"], ["x", "dead", "y"])
    metric.update(layers, layers)
    with pytest.warns(UserWarning, match="constant or not finite: a: dead, b: dead"):
        found = metric.compute()
    expected = np.zeros((3, 3), dtype=bool)
    expected[1], expected[:, 1] = True, True
    assert np.array_equal(np.isnan(found), expected)


def test_layer_that_is_constant_but_for_rounding_is_dead():
    rng = np.random.default_rng(8)
    level = rng.normal(size=(1, 50)).astype(np.float32)
    noise = rng.choice([-1, 0, 1], size=(16, 50)).astype(np.float32) * np.spacing(level) / 2
    features = torch.as_tensor(level + noise)
    assert len(features.unique(dim=0)) > 1
    assert torch.equal(centred_gram(features), torch.zeros(16, 16, dtype=torch.float64))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_layer_that_is_not_finite_harms_no_other(bad):
    x, y = tensors(*related(12))
    broken = x.clone()
    broken[3, 5] = bad
    metric = MinibatchCKA(["x", "broken"], ["y"])
    metric.update({"x": x, "broken": broken}, {"y": y})
    metric.update({"x": x, "broken": x}, {"y": y})
    with pytest.warns(UserWarning, match="a: broken"):
        found = metric.compute()
    assert np.isnan(found[1, 0])
    assert found[0, 0] == pytest.approx(cka_of([(x, y)]))


@pytest.mark.parametrize("n", [0, 1, 3])
def test_batch_of_fewer_than_four_is_refused(n):
    x, y = tensors(X[:n], Y[:n])
    with pytest.raises(ValueError, match=f"a batch of {n} images: unbiased HSIC needs at least 4"):
        hsic1(x, y)
    metric = MinibatchCKA(["x"], ["y"])
    with pytest.raises(ValueError, match="at least 4"):
        metric.update({"x": x}, {"y": y})


def test_faults_of_a_batch_are_named():
    x, y = tensors(X, Y)
    with pytest.raises(ValueError, match="features of 6 and of 5 images"):
        hsic1(x, y[:5])
    metric = MinibatchCKA(["x"], ["y"])
    with pytest.raises(ValueError, match="features of 6 and of 5 images"):
        metric.update({"x": x}, {"y": y[:5]})
    with pytest.raises(ValueError, match="no features of y"):
        metric.update({"x": x}, {"z": y})
    with pytest.raises(ValueError, match=r"features of \[5, 6\] images in one batch"):
        MinibatchCKA(["x", "y"], ["x"]).update({"x": x, "y": y[:5]}, {"x": x})
    for layers in ([], ["x", "x"]):
        with pytest.raises(ValueError, match="named once each"):
            MinibatchCKA(layers, ["y"])


@pytest.mark.parametrize("offset", [100, 10_000])
def test_large_mean_costs_no_digits_in_single_precision(offset):
    x, y = related(256)
    expected = cka_of([(x, y)])
    # What adding the offset rounds away is no fault of the estimate.
    moved = [(rows + offset).astype(np.float32) for rows in (x, y)]
    exact = cka_of([moved])
    found = cka_of([moved], torch.float32)
    assert found == pytest.approx(exact, abs=1e-6)
    assert found == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_loses_only_what_its_features_lost(dtype):
    x, y = tensors(*related(64))
    # Products of these are beyond what float16 holds.
    x, y = (40_000 / x.abs().max() * x).to(dtype), y.to(dtype)
    rounded = cka_of([(x.double(), y.double())])
    assert cka_of([(x, y)], dtype) == pytest.approx(rounded, abs=1e-6)
    assert rounded == pytest.approx(cka_of([related(64)]), abs=1e-2)


def test_autocast_changes_nothing():
    x, y = (value.float() for value in tensors(*related(64)))
    expected = hsic1(x, y)
    with torch.autocast("cpu", torch.bfloat16):
        assert hsic1(x, y) == expected


def test_small_batches_after_large_ones_are_not_lost_in_the_sum():
    x, y = tensors(*related(64))
    metric = MinibatchCKA(["x"], ["y"])
    metric.update({"x": 1e4 * x}, {"y": y})
    before = metric.cross.clone()
    metric.update({"x": 1e-1 * x}, {"y": 1e-1 * y})
    assert metric.cross.dtype == torch.float64
    expected = 64 * float(hsic1(0.1 * x, 0.1 * y))
    assert float(metric.cross - before) == pytest.approx(expected, rel=1e-3)


def test_what_is_kept_does_not_grow_and_has_no_graph():
    x, y = (value.requires_grad_() for value in tensors(X, Y))
    metric = MinibatchCKA(["x"], ["y"])
    for _ in range(3):
        metric.update({"x": x}, {"y": y})
        kept = [getattr(metric, name) for name in metric._defaults]
        assert sum(state.numel() for state in kept) == 3
        assert not any(state.requires_grad for state in kept)
    assert metric.compute()[0, 0] == pytest.approx(CKA_XY, abs=1e-11)


def test_reset_forgets_all_batches():
    x, y = tensors(X, Y)
    metric = MinibatchCKA(["x"], ["y"])
    metric.update({"x": x}, {"y": x})
    metric.reset()
    metric.update({"x": x}, {"y": y})
    assert metric.compute()[0, 0] == pytest.approx(CKA_XY, abs=1e-11)


def test_two_processes_find_together_what_one_finds(tmp_path):
    x, y = related(40)
    np.savez(tmp_path / "features.npz", x=x, y=y)
    script = str(Path(__file__).with_name("cka_ranks.py"))
    subprocess.run([sys.executable, script, str(tmp_path)], check=True, timeout=300)
    expected = cka_of([(x[:16], y[:16]), (x[16:32], y[16:32]), (x[32:], y[32:])])
    for rank in (0, 1):
        assert np.load(tmp_path / f"rank{rank}.npy")[0, 0] == pytest.approx(expected, rel=1e-13)


def test_value_without_any_batch_is_none():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert np.isnan(MinibatchCKA(["x"], ["y"]).compute()).all()
