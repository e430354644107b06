import errno
import json

import h5py
import numpy as np
import pytest
from test_cka import formula
from test_network_pair import make_settings

from rarezoo.cli import UserError
from rarezoo.similarity.compare import Similarity, compare
from rarezoo.similarity.embedding_pair import EmbeddingComparison


def write(path, ids, representation, features=None):
    """A file as embed.py writes it, of what the comparison needs."""
    with h5py.File(path, "w") as file:
        file.attrs.update({"format": 1, "complete": True, "schema": "{}", "label_cols": json.loads("[]")})
        file.attrs["image_root"] = "/"
        text = h5py.string_dtype("utf-8")
        file.create_dataset("id", data=list(ids), dtype=text)
        file.create_dataset("file_loc", data=["x.jpg"] * len(ids), dtype=text)
        file.create_dataset("representation", data=representation)
        file.create_dataset("concentrations", data=np.zeros((len(ids), 0), np.float32))
        if features is not None:
            file.create_dataset("features", data=features.astype(np.float16))
    return path


@pytest.fixture
def files(tmp_path):
    """a.h5 and b.h5, which have 50 galaxies in common, in other orders; values of the galaxies by their number."""
    rng = np.random.default_rng(0)
    common = rng.normal(size=(70, 4))
    a = np.hstack((common, rng.normal(size=(70, 2)))).astype(np.float32)
    b = (np.hstack((common, rng.normal(size=(70, 6)))) @ rng.normal(size=(10, 12))).astype(np.float32)
    rows_a, rows_b = rng.permutation(60), rng.permutation(np.arange(10, 70))
    write(tmp_path / "a.h5", [f"g{row}" for row in rows_a], a[rows_a])
    write(tmp_path / "b.h5", [f"g{row}" for row in rows_b], b[rows_b].astype(np.float16), features=b[rows_b] + 3)
    return tmp_path, a, b


def settings_for(folder, **changes):
    names = {"a": str(folder / "a.h5"), "b": str(folder / "b.h5")}
    return make_settings(folder, "", "", **{**names, **changes})


def test_representations_are_matched_by_id(files):
    folder, a, b = files
    settings = settings_for(folder, orders=20)
    found = compare(settings, EmbeddingComparison(settings))
    x, y = a[10:60].astype(float), b[10:60].astype(np.float16).astype(float)
    expected = formula(x, y) / np.sqrt(formula(x, x) * formula(y, y))
    assert found.n_images == 50
    assert (found.layers_a, found.layers_b) == (("representation",), ("features", "representation"))
    np.testing.assert_allclose(found.cka[:, 0, 1], expected, rtol=1e-5)
    np.testing.assert_allclose(found.cka[:, 0, 0], expected, atol=2e-3)
    assert np.abs(found.permuted.mean(0)).max() < 0.1 < expected


def test_batches_give_nearly_the_value_of_the_whole(files):
    folder, _, _ = files
    settings = settings_for(folder, batch_size=16, orders=20)
    found = compare(settings, EmbeddingComparison(settings))
    # Batches of 16, 16, 16 and 2, of which the last does not count.
    assert found.n_images == 48
    whole = compare(settings_for(folder), EmbeddingComparison(settings_for(folder)))
    np.testing.assert_allclose(found.mean, whole.mean, atol=0.03)


def test_sample_of_the_galaxies_is_drawn_by_the_seed(files):
    folder, _, _ = files
    found = [
        compare(settings, EmbeddingComparison(settings)).cka
        for settings in [settings_for(folder, n_images=20, orders=1)] * 2
    ]
    np.testing.assert_array_equal(*found)
    assert EmbeddingComparison(settings_for(folder, n_images=20)).n_images == 20


def test_files_with_nothing_in_common_are_refused(files):
    folder, a, _ = files
    write(folder / "other.h5", [f"other{row}" for row in range(70)], a)
    with pytest.raises(UserError, match=r"galaxies that both .*a\.h5 and .*other\.h5 have: 0; at least 4"):
        EmbeddingComparison(settings_for(folder, b=str(folder / "other.h5")))


def test_missing_file_is_named_with_its_option(files):
    folder, _, _ = files
    with pytest.raises(UserError, match=r"similarity\.b=.*none\.h5: there is no such file"):
        EmbeddingComparison(settings_for(folder, b=str(folder / "none.h5")))


def test_file_is_not_compared_with_a_network(files):
    folder, _, _ = files
    with pytest.raises(ValueError, match="a file of embeddings is compared with another one"):
        settings_for(folder, b="resnet18")


def small_result() -> Similarity:
    cka = np.array([[[0.5, np.nan]], [[0.7, np.nan]]])
    return Similarity(("one", "two"), ("x",), ("y", "z"), cka, cka / 100, 40)


def test_file_of_the_result_reads_without_pickle(tmp_path):
    found = small_result()
    found.write(tmp_path / "cka.npz")
    with np.load(tmp_path / "cka.npz", allow_pickle=False) as file:
        assert file["layers_b"].tolist() == ["y", "z"]
        assert file["labels"].tolist() == ["one", "two"]
        assert int(file["n_images"]) == 40
        np.testing.assert_array_equal(file["cka"], found.cka)
        np.testing.assert_array_equal(file["permuted"], found.permuted)


def test_full_disk_leaves_no_file_and_is_named(tmp_path, monkeypatch):
    def write_some(path, **values):
        path.write_bytes(b"PK")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", write_some)
    with pytest.raises(UserError, match=r"cka\.npz: cannot be written"):
        small_result().write(tmp_path / "cka.npz")
    assert list(tmp_path.iterdir()) == []


def test_figures_of_the_record_leave_out_layers_without_a_value():
    found = small_result().describe()
    assert found["mean_cka"] == pytest.approx(0.6)
    assert found["largest_spread_over_orders"] == pytest.approx(0.2)
    assert found["largest_permuted"] == pytest.approx(0.007)
    assert found["n_undefined"] == 1
    assert small_result().undefined == ("b: z",)
