import dataclasses
import json
import shutil

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rarezoo.cli import UserError
from rarezoo.models.vote_model import ModelSpec, ScaledSigmoid, ShiftedSoftplus, VoteModel

TREE = {
    "shape": {"answers": ["smooth", "featured", "artifact"], "asked_after": []},
    "bar": {"answers": ["yes", "no"], "asked_after": ["shape_featured"]},
}
N_ANSWERS = 5
SIZE = 32


def make_model(**changes) -> VoteModel:
    torch.manual_seed(0)
    defaults = {"tree": TREE, "backbone": "test_efficientnet", "bottleneck_dim": 16, "image_size": SIZE}
    return VoteModel(ModelSpec(**{**defaults, **changes})).eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (6, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(("dim", "width"), [(16, 16), (1, 1), (None, 256)])
def test_representation_is_as_wide_as_the_bottleneck_or_else_the_backbone(dim, width, images):
    model = make_model(bottleneck_dim=dim)
    features, representation, concentrations = model.embed(images)
    assert features.shape == (len(images), 256)
    assert representation.shape == (len(images), width)
    assert concentrations.shape == (len(images), N_ANSWERS)
    assert (model.n_features, model.representation_dim) == (256, width)


def test_representation_without_a_bottleneck_is_what_the_backbone_gives(images):
    model = make_model(bottleneck_dim=None)
    with torch.inference_mode():
        features = model.backbone(images.float() / 255)
    assert torch.equal(model.embed(images).representation, features)


@pytest.mark.parametrize("dim", [16, None])
def test_features_are_what_the_backbone_gives_before_the_bottleneck(dim, images):
    model = make_model(bottleneck_dim=dim, bottleneck_activation="gelu")
    inputs = model.eval_transform(images)
    with torch.inference_mode():
        features = model.backbone(inputs)
        assert torch.equal(model.features(inputs), features)
        assert torch.equal(model.represent(inputs), model.bottleneck(features))
    assert torch.equal(model.embed(images).features, features)


@pytest.mark.parametrize(
    ("activation", "function"),
    [("none", lambda x: x), ("relu", torch.relu), ("gelu", torch.nn.functional.gelu)],
)
def test_bottleneck_is_a_linear_layer_and_its_activation(activation, function, images):
    model = make_model(bottleneck_activation=activation)
    linear = model.bottleneck[0]
    with torch.inference_mode():
        features = model.backbone(images.float() / 255)
        expected = function(features @ linear.weight.T + linear.bias)
    torch.testing.assert_close(model.embed(images).representation, expected)


@pytest.mark.parametrize("activation", ["none", "gelu"])
def test_layer_norm_of_the_bottleneck_gives_every_galaxy_mean_0_and_spread_1(activation, images):
    model = make_model(bottleneck_norm="layer", bottleneck_activation=activation)
    _, representation, _ = model.embed(images)
    with torch.inference_mode():
        linear = model.bottleneck[0](model.embed(images).features)
    spread = (linear.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    expected = (linear - linear.mean(1, keepdim=True)) / spread
    expected = torch.nn.functional.gelu(expected) if activation == "gelu" else expected
    torch.testing.assert_close(representation, expected, rtol=1e-4, atol=1e-4)


def test_head_is_a_linear_layer_and_a_sigmoid_between_1_and_101(images):
    model = make_model()
    _, representation, concentrations = model.embed(images)
    linear = model.head[0]
    with torch.inference_mode():
        logits = (representation @ linear.weight.T + linear.bias).double()
    torch.testing.assert_close(concentrations, (1 + 100 / (1 + torch.exp(-logits))).float())
    assert ((concentrations > 1) & (concentrations < 101)).all()


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=8))
@settings(deadline=None, max_examples=50)
def test_concentrations_stay_in_their_range_whatever_the_logits(logits):
    values = torch.tensor(logits, requires_grad=True)
    concentrations = ScaledSigmoid()(values)
    concentrations.sum().backward()
    assert ((concentrations >= 1) & (concentrations <= 101)).all()
    assert torch.isfinite(values.grad).all()


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=8))
@settings(deadline=None, max_examples=50)
def test_softplus_concentrations_are_finite_and_at_least_1_whatever_the_logits(logits):
    values = torch.tensor(logits, requires_grad=True)
    concentrations = ShiftedSoftplus()(values)
    concentrations.sum().backward()
    assert ((concentrations >= 1) & torch.isfinite(concentrations)).all()
    assert ((values.grad >= 0) & (values.grad <= 1)).all()
    exact = 1 + np.logaddexp(0, np.array(logits, np.float64))
    np.testing.assert_allclose(concentrations.detach().numpy(), exact, rtol=1e-5)


def test_softplus_still_learns_where_the_sigmoid_has_reached_its_ceiling():
    gradients = []
    for head in (ScaledSigmoid(), ShiftedSoftplus()):
        logits = torch.tensor([30.0], requires_grad=True)
        head(logits).backward()
        gradients.append(float(logits.grad))
    assert gradients == [pytest.approx(0, abs=1e-6), pytest.approx(1)]


def test_head_of_the_spec_is_the_one_that_is_built(images):
    concentrations = {name: make_model(head_activation=name).embed(images) for name in ("sigmoid", "softplus")}
    logits = (concentrations["sigmoid"].concentrations - 1) / 100
    expected = 1 + torch.nn.functional.softplus(torch.logit(logits))
    torch.testing.assert_close(concentrations["softplus"].concentrations, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("head_activation", ["sigmoid", "softplus"])
def test_concentrations_are_float32_under_autocast(head_activation, images):
    model = make_model(head_activation=head_activation)
    inputs = model.eval_transform(images)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        representation, concentrations = model.represent(inputs), model(inputs)
    assert representation.dtype == torch.bfloat16
    assert concentrations.dtype == torch.float32
    # Of 8 bits, as bfloat16 has them, there would be at most 256 values between 1 and 101.
    assert not torch.equal(concentrations, concentrations.bfloat16().float())
    torch.testing.assert_close(concentrations, model.embed(images).concentrations, rtol=0.1, atol=1.0)


def test_embedding_is_the_same_every_time_though_training_is_random(images):
    model = make_model(head_dropout=0.5, drop_path_rate=0.3)
    first, second = model.embed(images), model.embed(images)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    model.train()
    inputs = model.eval_transform(images)
    assert not torch.equal(model(inputs), model(inputs))


def test_embedding_does_not_depend_on_the_other_images_of_the_batch(images):
    model = make_model()
    together = model.embed(images).representation
    alone = torch.cat([model.embed(image[None]).representation for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_embedding_in_training_mode_is_refused(images):
    with pytest.raises(RuntimeError, match="training mode"):
        make_model().train().embed(images)


def test_embedding_leaves_the_model_as_it_was(images):
    model = make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.embed(images)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_embedding_is_of_the_transformed_image(images):
    model = make_model(zoom=1.25, mean=0.25, std=0.5)
    with torch.inference_mode():
        expected = model.represent(model.eval_transform(images))
    assert torch.equal(model.embed(images).representation, expected)
    assert model.eval_transform.settings == {"zoom": 1.25, "mean": 0.25, "std": 0.5}
    assert not torch.allclose(expected, make_model().embed(images).representation, atol=1e-3)


@pytest.mark.parametrize("backbone", ["test_efficientnet", "test_resnet"])
def test_memory_layout_changes_nothing_but_the_speed(backbone, images):
    plain, last = (make_model(backbone=backbone, channels_last=value) for value in (False, True))
    last.load_state_dict(plain.state_dict())
    for one, other in zip(plain.embed(images), last.embed(images), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_every_weight_gets_a_gradient(images):
    model = make_model(backbone="test_resnet").train()
    model(model.eval_transform(images)).sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_building_a_model_does_not_touch_its_running_statistics():
    model = make_model(backbone="test_resnet")
    means = [value for name, value in model.state_dict().items() if name.endswith("running_mean")]
    assert means
    assert all((value == 0).all() for value in means)


@pytest.mark.parametrize(
    ("name", "size", "sides"),
    [
        ("test_maxvit", 64, "160, 320, 480"),
        ("maxvit_tiny_rw_224", 424, "224, 448, 672"),
        ("test_coatnet", 33, "160"),
        ("vit_tiny_patch16_224", 96, "224"),
    ],
)
def test_backbone_that_does_not_take_the_image_size_is_refused_with_sizes_that_it_takes(name, size, sides):
    refused = rf"backbone\.name={name} does not take images of {size} x {size} .*data\.image_size: {sides}\.$"
    with pytest.raises(UserError, match=refused):
        make_model(backbone=name, image_size=size)
    assert make_model(backbone=name, image_size=int(sides.split(",")[0])).representation_dim == 16


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_model_takes_any_number_of_channels(channels):
    mean = [0.1 * band for band in range(channels)]
    images = torch.randint(0, 256, (2, channels, SIZE, SIZE), dtype=torch.uint8)
    model = make_model(channels=channels, mean=mean)
    one, other = model.embed(images), model.embed(images.roll(1, dims=1))
    assert torch.isfinite(one.representation).all()
    assert channels == 1 or not torch.allclose(one.representation, other.representation)


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(7)
    timm.models.save_for_hf(
        timm.create_model("test_convnext", num_classes=0, head_norm_first=True), tmp_path / "encoder"
    )
    return tmp_path / "encoder"


def test_model_of_a_folder_is_built_again_without_it(folder, images, capfd):
    model = make_model(backbone=str(folder))
    assert "note: backbone.weights=null: random weights. backbone.weights=timm takes those of" in capfd.readouterr().err
    assert (model.spec.backbone, model.spec.architecture) == (str(folder), "test_convnext")
    shutil.rmtree(folder)
    again = VoteModel(ModelSpec(**json.loads(json.dumps(model.spec.to_dict())))).eval()
    again.load_state_dict(model.state_dict())
    assert all(torch.equal(*pair) for pair in zip(model.embed(images), again.embed(images), strict=True))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("mean", "std", "noted"),
    [(0.0, 1.0, True), (0.5, 0.5, False), ([0.5, 0.5, 0.5], 0.5, False), ([0.5, 0.5, 0.4], 0.5, True)],
)
def test_weights_are_reported_and_another_normalisation_than_theirs_is_noted(mean, std, noted, folder, capfd):
    torch.manual_seed(0)
    spec = ModelSpec(TREE, str(folder), 16, image_size=SIZE, mean=mean, std=std)
    model = VoteModel(spec, "timm")
    said = capfd.readouterr().err
    assert said.startswith(model.loaded_weights.describe())
    assert ("note: these weights were made on images with mean=[0.5, 0.5, 0.5]" in said) == noted


def test_model_of_random_weights_has_no_report_of_them(capfd):
    assert make_model().loaded_weights is None
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("option", "value", "near"),
    [("bottleneck_norm", "layers", "layer"), ("head_activation", "soft_plus", "softplus")],
)
def test_unknown_choice_is_refused_with_the_near_match(option, value, near):
    with pytest.raises(
        UserError, match=rf"{option.replace('_', '.')}='{value}' does not exist\. Did you mean '{near}'"
    ):
        make_model(**{option: value})


def test_unknown_activation_is_refused_with_the_near_match():
    with pytest.raises(UserError, match=r"bottleneck\.activation='rel' does not exist\. Did you mean 'relu'\?"):
        make_model(bottleneck_activation="rel")


def test_broken_decision_tree_is_refused():
    with pytest.raises(UserError, match="asked after 'shape_feature'"):
        make_model(tree={**TREE, "bar": {"answers": ["yes", "no"], "asked_after": ["shape_feature"]}})


def test_spec_is_plain_values_and_builds_an_equal_one():
    spec = make_model(mean=[0.1, 0.2, 0.3], channels_last=True).spec
    assert ModelSpec(**json.loads(json.dumps(spec.to_dict()))) == spec
    assert set(spec.to_dict()) == {field.name for field in dataclasses.fields(ModelSpec)}


def test_spec_says_how_images_are_read_and_transformed():
    spec = ModelSpec(TREE, "resnet18", image_size=64, channels=1, crop=0.5, zoom=1.2, mean=0.1, std=0.2)
    assert spec.reading == {"size": 64, "channels": 1, "crop": 0.5}
    assert spec.transform == {"image_size": 64, "channels": 1, "crop": 0.5, "zoom": 1.2, "mean": 0.1, "std": 0.2}
