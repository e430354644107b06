"""Networks and files as similarity.py compares them, against the formula on all images at once."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from test_cka import formula
from torch.utils.data import DataLoader

from rarezoo.cli import UserError
from rarezoo.config import SimilaritySettings
from rarezoo.data.images import GalaxyImages, read_image
from rarezoo.models.checkpoints import checkpoint_header, load_vote_model
from rarezoo.models.vote_model import ModelSpec, VoteModel
from rarezoo.similarity.compare import Similarity, compare
from rarezoo.similarity.network_pair import NetworkComparison, paired
from rarezoo.similarity.networks import open_network

TREE = {"shape": {"answers": ["smooth", "featured"], "asked_after": []}}
N_IMAGES, BROKEN = 22, 5
LAYERS = ["backbone.blocks.?", "bottleneck", "head"]


def save_model(path, seed, size=32, dim=6):
    torch.manual_seed(seed)
    model = VoteModel(ModelSpec(TREE, "test_efficientnet", dim, image_size=size, zoom=1.1)).eval()
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    torch.save({"rarezoo": checkpoint_header(model.spec), "state_dict": state}, path)
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """catalog.csv, whose sixth image is damaged; small.ckpt and other.ckpt, and large.ckpt for 48 pixels."""
    folder = tmp_path_factory.mktemp("pair")
    rng = np.random.default_rng(0)
    for row in range(N_IMAGES):
        pixels = np.kron(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8), np.ones((6, 6, 1), np.uint8))
        Image.fromarray(pixels).save(folder / f"{row}.png")
    (folder / f"{BROKEN}.png").write_bytes(b"")
    rows = range(N_IMAGES)
    pd.DataFrame({"id_str": [f"g{row}" for row in rows], "file_loc": [f"{row}.png" for row in rows]}).to_csv(
        folder / "catalog.csv", index=False
    )
    for name, seed, size in (("small", 1, 32), ("other", 2, 32), ("large", 3, 48)):
        save_model(folder / f"{name}.ckpt", seed, size)
    return folder


def make_settings(folder, a, b, /, max_failed_share=0.5, **changes):
    options = {
        "a": str(folder / f"{a}.ckpt") if (folder / f"{a}.ckpt").exists() else a,
        "b": str(folder / f"{b}.ckpt") if (folder / f"{b}.ckpt").exists() else b,
        "weights": None,
        "layers_a": LAYERS,
        "layers_b": LAYERS,
        "features": "flatten",
        "split": "all",
        "n_images": None,
        "batch_size": 100,
        "orders": 2,
        "device": "cpu",
    } | changes
    data = {
        "kind": "catalog",
        "catalog": folder / "catalog.csv",
        "image_root": None,
        "truth": None,
        "image_size": 32,
        "channels": 3,
        "crop": 1.0,
        "batch_size": 8,
        "workers": 0,
        "validation_share": 0.3,
        "test_share": 0.3,
        "max_failed_share": max_failed_share,
        "on_bad_votes": "error",
        "fractional_votes": False,
    }
    logger = {"mode": "disabled", "project": "p", "csv": False, "log_model": False}
    run = {"name": "n", "seed": 0, "overwrite": False, "logger": logger, "data": data, "schema": TREE}
    return SimilaritySettings.model_validate({**run, "similarity": options})


def compared(folder, a, b, /, **changes) -> Similarity:
    settings = make_settings(folder, a, b, **changes)
    return compare(settings, NetworkComparison(settings))


def representation(folder, name):
    model = load_vote_model(folder / f"{name}.ckpt")
    size = model.spec.image_size
    images = [read_image(folder / f"{row}.png", size) for row in range(N_IMAGES) if row != BROKEN]
    return model.embed(torch.from_numpy(np.stack(images))).representation.double().numpy()


def cka(x, y):
    return formula(x, y) / np.sqrt(formula(x, x) * formula(y, y))


@pytest.mark.parametrize("other", ["other", "large"])
def test_value_of_two_layers_is_the_formula_on_all_images_that_could_be_read(place, other):
    found = compared(place, "small", other)
    assert found.n_images == N_IMAGES - 1
    assert found.layers_a == (*(f"backbone.blocks.{n}" for n in range(5)), "bottleneck", "head")
    place_of = found.layers_a.index("bottleneck")
    expected = cka(representation(place, "small"), representation(place, other))
    np.testing.assert_allclose(found.cka[:, place_of, place_of], expected, rtol=1e-4)


def test_one_batch_of_all_images_does_not_know_their_order(place):
    found = compared(place, "small", "other", orders=3)
    np.testing.assert_allclose(found.cka[1:], found.cka[:1].repeat(2, 0), rtol=1e-3, atol=1e-4)


def test_batches_of_another_order_hold_other_images(place):
    found = compared(place, "small", "other", batch_size=5, orders=2)
    assert np.abs(np.diff(found.cka, axis=0)).max() > 1e-3
    again = compared(place, "small", "other", batch_size=5, orders=2)
    assert np.array_equal(found.cka, again.cka)
    assert np.array_equal(found.permuted, again.permuted)


def test_network_is_wholly_like_itself_and_not_like_its_permuted_images(place):
    found = compared(place, "small", "small", batch_size=8, orders=8)
    np.testing.assert_allclose(np.diagonal(found.mean), 1, rtol=1e-12)
    assert np.abs(found.permuted.mean(0)).max() < 0.4
    assert not np.array_equal(found.permuted, found.cka)


def test_copy_of_a_network_is_wholly_like_it(place, tmp_path):
    (tmp_path / "copy.ckpt").write_bytes((place / "small.ckpt").read_bytes())
    found = compared(place, "small", str(tmp_path / "copy.ckpt"))
    np.testing.assert_allclose(np.diagonal(found.mean), 1, rtol=1e-9)


def test_last_batch_of_fewer_than_four_images_does_not_count(place):
    # 22 images, of which one is damaged, in batches of 5: the last has 2 or 1.
    found = compared(place, "small", "other", batch_size=5, orders=1)
    assert found.n_images in (19, 20)


def test_average_over_positions_gives_other_values_than_all_numbers(place):
    flat, mean = (compared(place, "small", "other", features=features).mean for features in ("flatten", "average"))
    assert np.abs(flat - mean)[0, 0] > 1e-3
    np.testing.assert_allclose(flat[-2:, -2:], mean[-2:, -2:], rtol=1e-9)


def test_split_and_number_of_images_are_as_asked_for(place):
    assert NetworkComparison(make_settings(place, "small", "other", n_images=9)).n_images == 9
    sizes = [
        NetworkComparison(make_settings(place, "small", "other", split=split)).n_images
        for split in ("train", "validation", "test")
    ]
    assert sum(sizes) == N_IMAGES


def test_timm_names_have_the_weights_of_the_seed(place):
    layers = {"layers_a": ["layer?"], "layers_b": ["blocks.?"], "orders": 1}
    found = compared(place, "test_resnet", "test_efficientnet", **layers)
    assert found.layers_a == ("layer1", "layer2", "layer3", "layer4")
    assert found.labels[0] == "test_resnet, random weights"
    again = compared(place, "test_resnet", "test_efficientnet", **layers)
    np.testing.assert_array_equal(found.cka, again.cka)


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"a": "nowhere.ckpt"}, "similarity.a=nowhere.ckpt: there is no such file"),
        ({"b": "resnet81"}, "similarity.b: timm has no 'resnet81'"),
        ({"layers_b": ["botleneck"]}, "similarity.layers_b: VoteModel has no layer 'botleneck'"),
        ({"device": "nowhere"}, "similarity.device=nowhere: cannot be used here"),
        (
            {"b": "test_resnet", "weights": "none.pth", "layers_b": ["*"]},
            "similarity.weights=none.pth: there is no such",
        ),
        ({"b": "maxvit_tiny_rw_224", "layers_b": ["*"]}, "does not take images of 32 x 32 pixels"),
    ],
)
def test_fault_of_the_user_is_named_before_any_image_is_read(place, changes, shown):
    with pytest.raises(UserError) as caught:
        NetworkComparison(make_settings(place, "small", "other", **changes))
    assert shown in str(caught.value)


def test_too_many_images_that_cannot_be_read_end_the_run(place):
    with pytest.raises(UserError, match="1 of 22 images could not be read"):
        compared(place, "small", "other", max_failed_share=0.01)


def test_too_few_images_are_refused(place):
    folder = place / "few"
    folder.mkdir(exist_ok=True)
    table = pd.read_csv(place / "catalog.csv").head(3)
    table["file_loc"] = "../" + table["file_loc"]
    table.to_csv(folder / "catalog.csv", index=False)
    settings = make_settings(folder, str(place / "small.ckpt"), str(place / "other.ckpt"))
    with pytest.raises(UserError, match="3; at least 4 are compared"):
        NetworkComparison(settings)


def test_labels_and_weights_of_a_network_say_what_it_is(place):
    network = open_network("similarity.a", str(place / "small.ckpt"), None, make_settings(place, "small", "other").data)
    assert network.label == f"test_efficientnet, 6 wide ({place / 'small.ckpt'})"
    assert not any(module.training for module in network.model.modules())


@pytest.fixture
def images(place):
    return GalaxyImages([str(place / f"{row}.png") for row in range(N_IMAGES)], 32)


def test_loaders_that_shuffle_by_themselves_are_refused(images):
    for n_in_batch in (8, N_IMAGES):
        loaders = [
            DataLoader(images, n_in_batch, shuffle=True, collate_fn=images.collate, generator=torch.Generator())
            for _ in "ab"
        ]
        loaders[1].generator.manual_seed(1)
        with pytest.raises(ValueError, match="batch 0 has other galaxies for a than for b, or in another order"):
            list(paired(*loaders))


def test_loaders_of_one_order_give_the_images_that_both_could_read(images, place):
    order = np.random.default_rng(3).permutation(N_IMAGES)
    small = GalaxyImages(images._files, 32, rows=order)
    large = GalaxyImages(images._files, 48, rows=order)
    pairs = list(paired(*(DataLoader(each, 8, collate_fn=each.collate) for each in (small, large))))
    assert sum(len(a) for a, _ in pairs) == N_IMAGES - 1
    readable = order[order != BROKEN]
    expected = torch.from_numpy(read_image(place / f"{readable[0]}.png", 48))
    assert torch.equal(pairs[0][1][0], expected)
    assert all(a.shape[2] == 32 and b.shape[2] == 48 for a, b in pairs)
