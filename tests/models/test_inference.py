import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.utils import counters
from torch.nn import functional

from rarezoo.cli import UserError
from rarezoo.models.inference import EmbeddedBatch, Embedder
from rarezoo.models.vote_model import ModelSpec, VoteModel

TREE = {
    "shape": {"answers": ["smooth", "featured", "artifact"], "asked_after": []},
    "bar": {"answers": ["yes", "no"], "asked_after": ["shape_featured"]},
}
N_ANSWERS = 5
SIZE = 32
N_IMAGES = 37
CPU = torch.device("cpu")
ROWS = torch.arange(100, 100 + N_IMAGES)
# Sums in another order; nothing else may differ.
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}


def make_model(seed=0, **changes) -> VoteModel:
    torch.manual_seed(seed)
    defaults = {"tree": TREE, "backbone": "test_efficientnet", "bottleneck_dim": 16, "image_size": SIZE}
    model = VoteModel(ModelSpec(**{**defaults, **changes}))
    # As after some training, so that folding the normalisation into the convolutions has something to get wrong.
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return model.eval()


def embedder(*models: VoteModel, **options) -> Embedder:
    return Embedder(models or [make_model()], CPU, **options)


def in_batches(made: Embedder, images: torch.Tensor, size: int) -> EmbeddedBatch:
    found = [made(*part) for part in zip(images.split(size), ROWS.split(size), strict=True)]
    return EmbeddedBatch(*(None if parts[0] is None else torch.cat(parts) for parts in zip(*found, strict=True)))


def assert_close(found, expected, **tolerance):
    for name in ("features", "representation", "concentrations"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), **(tolerance or ROUNDING))


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Smooth blobs rather than noise, of which a turned or mirrored one is another picture."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand((N_IMAGES, 3, 5, 5), generator=generator)
    return (255 * functional.interpolate(coarse, (SIZE, SIZE), mode="bilinear")).to(torch.uint8)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"backbone": "test_resnet", "zoom": 1.3, "mean": 0.2, "std": [0.5, 0.6, 0.7]},
        {"backbone": "test_convnext", "bottleneck_norm": "layer", "bottleneck_activation": "gelu"},
        {"backbone": "test_vit", "image_size": 160, "bottleneck_dim": None, "head_activation": "softplus"},
    ],
    ids=lambda changes: changes.get("backbone", "test_efficientnet"),
)
def test_one_model_gives_what_it_gives_by_itself(changes, images):
    model = make_model(**changes)
    images = functional.interpolate(images[:5], model.spec.image_size)
    expected = model.embed(images)
    found = embedder(model)(images, ROWS[:5])
    assert_close(found, expected)
    assert found.member_concentrations is None
    assert {part.dtype for part in found[:3]} == {torch.float32}


@pytest.mark.parametrize("size", [1, 5, 16, 36])
def test_result_is_the_same_to_the_last_bit_in_batches_of_any_size(size, images):
    made = embedder(make_model(0), make_model(1), dropout_passes=2, rotations=2, ensemble="concatenate")
    together, apart = made(images, ROWS), in_batches(made, images, size)
    for name, whole in together._asdict().items():
        assert torch.equal(getattr(apart, name), whole), name


def test_result_is_the_same_on_any_number_of_cores(images):
    before = torch.get_num_threads()
    found = []
    try:
        for n_cores in (1, 3, 20):
            torch.set_num_threads(n_cores)
            found.append(embedder()(images, ROWS))
            assert torch.get_num_threads() == n_cores
    finally:
        torch.set_num_threads(before)
    assert_close(found[1], found[0])
    assert_close(found[2], found[0])


def test_batch_without_an_image_gives_none():
    found = embedder(dropout_passes=3)(
        torch.empty((0, 3, SIZE, SIZE), dtype=torch.uint8), torch.empty(0, dtype=torch.int64)
    )
    assert [tuple(part.shape) for part in found] == [(0, 256), (0, 16), (0, N_ANSWERS), (0, 3, N_ANSWERS)]


def test_model_in_training_mode_embeds_as_in_evaluation(images):
    model = make_model(head_dropout=0.5, drop_path_rate=0.3)
    expected = model.embed(images)
    assert_close(embedder(model.train())(images, ROWS), expected)


def test_passes_hold_as_many_images_as_the_largest_activation_allows():
    small, large = make_model(), make_model(backbone="efficientnet_b0", image_size=224)
    assert embedder(small)._per_pass == 16
    # 96 channels of 112 x 112 float32 are 4.8 MB; glibc keeps blocks of up to 32 MiB.
    assert embedder(large)._per_pass == 4
    assert embedder(large, precision="bfloat16")._per_pass == 8


# --- views


@pytest.mark.parametrize("rotations", [1, 2, 4, 8])
def test_representation_is_the_mean_over_the_turned_and_mirrored_images(rotations, images):
    model = make_model(zoom=1.2)
    pixels = images.numpy()
    every_view = [np.rot90(flipped, turns, (2, 3)) for flipped in (pixels, pixels[..., ::-1]) for turns in range(4)]
    kept = {1: [0], 2: [0, 2], 4: [0, 1, 2, 3], 8: list(range(8))}[rotations]
    views = [model.embed(torch.from_numpy(every_view[each].copy())) for each in kept]
    expected = EmbeddedBatch(*(torch.stack(parts).mean(0) for parts in zip(*views, strict=True)), None)
    assert_close(embedder(model, rotations=rotations)(images, ROWS), expected)


@pytest.mark.parametrize(("rotations", "turns", "mirrored"), [(2, 2, False), (4, 1, False), (8, 3, True)])
def test_average_over_the_views_does_not_depend_on_how_the_galaxy_lies(rotations, turns, mirrored, images):
    made = embedder(rotations=rotations)
    other = torch.rot90(images, turns, (2, 3))
    other = other.flip(2) if mirrored else other
    assert_close(made(other, ROWS), made(images, ROWS))
    alone = embedder()
    assert not torch.allclose(alone(other, ROWS).representation, alone(images, ROWS).representation, **ROUNDING)


# --- ensembles


def test_ensemble_averages_concentrations_and_shows_the_first_model(images):
    models = [make_model(0), make_model(1, zoom=1.3, bottleneck_dim=8)]
    found, expected = embedder(*models)(images, ROWS), [model.embed(images) for model in models]
    assert_close(
        found, expected[0]._replace(concentrations=(expected[0].concentrations + expected[1].concentrations) / 2)
    )
    members = torch.stack([each.concentrations for each in expected], 1)
    torch.testing.assert_close(found.member_concentrations, members, **ROUNDING)


def test_concatenated_models_stand_side_by_side(images):
    models = [make_model(0), make_model(1, backbone="test_resnet", bottleneck_dim=8)]
    made = embedder(*models, ensemble="concatenate")
    found, expected = made(images, ROWS), [model.embed(images) for model in models]
    assert (made.n_features, made.representation_dim) == (256 + models[1].n_features, 24)
    torch.testing.assert_close(found.features, torch.cat([each.features for each in expected], 1), **ROUNDING)
    torch.testing.assert_close(
        found.representation, torch.cat([each.representation for each in expected], 1), **ROUNDING
    )


@pytest.mark.parametrize(
    ("n_models", "passes", "members"),
    [(1, 0, []), (2, 0, [(0, 0), (1, 0)]), (1, 2, [(0, 0), (0, 1)]), (2, 2, [(0, 0), (0, 1), (1, 0), (1, 1)])],
)
def test_members_are_named_in_the_order_of_their_concentrations(n_models, passes, members, images):
    models = [make_model(seed, head_dropout=0.02) for seed in range(n_models)]
    made = embedder(*models, dropout_passes=passes)
    assert [(each["model"], each["pass"]) for each in made.members] == members
    found = made(images[:3], ROWS[:3]).member_concentrations
    if not members:
        assert found is None
        return
    assert found.shape == (3, len(members), N_ANSWERS)
    by_themselves = torch.stack([model.embed(images[:3]).concentrations for model in models])
    for at, (model, _) in enumerate(members):
        distances = (found[:, at] - by_themselves).abs().mean((1, 2))
        assert int(distances.argmin()) == model


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"image_size": 64},
            r"number 2 \(test_efficientnet\) was trained with data\.image_size=64, number 1 .* with 32",
        ),
        ({"channels": 1}, r"data\.channels=1, number 1 .* with 3"),
        ({"crop": 0.5}, r"data\.crop=0\.5, number 1 .* with 1\.0"),
        (
            {"tree": {**TREE, "bar": {"answers": ["yes", "weak"], "asked_after": ["shape_featured"]}}},
            r"number 2 .* votes of another tree than number 1 \(test_efficientnet\): bar\. .* one schema",
        ),
        ({"tree": dict(reversed(TREE.items()))}, "the questions are in another order"),
    ],
    ids=["size", "channels", "crop", "tree", "order"],
)
def test_models_that_do_not_fit_together_are_refused_by_name(changes, said):
    with pytest.raises(UserError, match=said):
        embedder(make_model(), make_model(**changes))


# --- dropout


def test_dropout_passes_leave_the_other_results_alone(images):
    model = make_model()
    assert_close(embedder(model, dropout_passes=4)(images, ROWS), embedder(model)(images, ROWS), rtol=0, atol=0)


@given(st.permutations(range(N_IMAGES)), st.integers(1, 12))
@settings(deadline=None, max_examples=10)
def test_dropout_belongs_to_the_galaxy_and_not_to_its_place(images, order, size):
    made = _shared_passes()
    expected = made(images, ROWS).member_concentrations[list(order)]
    parts = zip(images[list(order)].split(size), ROWS[list(order)].split(size), strict=True)
    found = torch.cat([made(*part).member_concentrations for part in parts])
    torch.testing.assert_close(found, expected, **ROUNDING)


def _shared_passes(made: list[Embedder] = []) -> Embedder:  # noqa: B006  # one for all examples
    if not made:
        made.append(embedder(make_model(head_dropout=0.5), dropout_passes=3))
    return made[0]


def test_passes_models_seeds_and_galaxies_draw_apart(images):
    twice = torch.cat([images[:1], images[:1]])
    model = make_model(head_dropout=0.5)
    found = [
        embedder(model, model, dropout_passes=2, seed=seed)(twice, ROWS[:2]).member_concentrations.reshape(
            -1, N_ANSWERS
        )
        for seed in (0, 1)
    ]
    every = torch.cat(found)
    assert len(torch.unique(every, dim=0)) == len(every) == 2 * 2 * 4
    again = embedder(model, model, dropout_passes=2)(twice, ROWS[:2]).member_concentrations
    assert torch.equal(again.reshape(-1, N_ANSWERS), found[0])


def test_mean_of_many_passes_is_the_prediction_without_dropout(images):
    """A linear head, so that the mean over dropped-out features goes through it; tested to 5 standard errors."""
    n_passes = 1000
    model = make_model(head_dropout=0.2)
    model.head[1] = torch.nn.Identity()
    found = embedder(model, dropout_passes=n_passes)(images[:4], ROWS[:4])
    spread = found.member_concentrations.std(1)
    assert (spread > 1e-4).all()
    off = (found.member_concentrations.mean(1) - found.concentrations).abs() / (spread / n_passes**0.5)
    assert (off < 5).all()
    features = found.features.double()
    weights = model.head[0].weight.double() @ model.bottleneck[0].weight.double()
    expected = (0.2 / 0.8 * features**2 @ (weights**2).T).sqrt()
    torch.testing.assert_close(spread.double(), expected, rtol=0.15, atol=0)


def test_passes_of_a_model_without_dropout_are_refused():
    with pytest.raises(
        UserError, match=r"embedding\.dropout_passes=5: checkpoint number 2 .* head\.dropout=0: .* alike"
    ):
        embedder(make_model(), make_model(head_dropout=0.0), dropout_passes=5)


# --- precision and compilation


def test_bfloat16_is_of_the_backbone_alone(images):
    model = make_model()
    exact, found = embedder(model)(images, ROWS), embedder(model, precision="bfloat16")(images, ROWS)
    assert {part.dtype for part in found[:3]} == {torch.float32}
    error = (found.representation - exact.representation).norm(dim=1) / exact.representation.norm(dim=1)
    assert 1e-4 < float(error.max()) < 0.05
    with torch.inference_mode():
        assert_close(found, found._replace(representation=model.bottleneck(found.features)))
        assert_close(found, found._replace(concentrations=model.head(found.representation)))


def test_float16_on_a_processor_is_refused():
    with pytest.raises(UserError, match=r"embedding\.precision=float16: .* Take bfloat16, or a GPU"):
        embedder(precision="float16")


@pytest.fixture
def fresh_compiler(tmp_path, monkeypatch):
    """torch.compile neither finds what it compiled before nor leaves anything behind."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    torch.compiler.reset()
    counters.clear()
    yield monkeypatch
    torch.compiler.reset()


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_model_gives_the_same_and_is_compiled_once_for_all_sizes_of_batch(images, fresh_compiler, capfd):
    model = make_model(backbone="test_resnet")
    expected = model.embed(images)
    made = embedder(model, compiled=True)
    assert_close(in_batches(made, images, 7), expected)
    assert_close(made(images, ROWS), expected)
    assert counters["stats"]["unique_graphs"] == 1
    assert "cannot be compiled" not in capfd.readouterr().err


def test_model_runs_uncompiled_where_there_is_no_compiler_and_says_so_once(images, fresh_compiler, capfd):
    fresh_compiler.setattr("torch._inductor.config.cpp.cxx", (None, "no-such-compiler"))
    model = make_model()
    expected = embedder(model)(images, ROWS)
    made = embedder(model, compiled=True)
    assert_close(made(images, ROWS), expected, rtol=0, atol=0)
    made(images, ROWS)
    said = capfd.readouterr().err
    assert said.count("note: embedding.compile=true: test_efficientnet cannot be compiled here") == 1
    assert "needs a C++ compiler" in said
