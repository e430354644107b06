import dataclasses
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rarezoo.cli import UserError
from rarezoo.models.vote_model import ModelSpec, ScaledSigmoid, VoteModel

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
    representation, concentrations = model.embed(images)
    assert representation.shape == (len(images), width)
    assert concentrations.shape == (len(images), N_ANSWERS)
    assert model.representation_dim == width


def test_representation_without_a_bottleneck_is_what_the_backbone_gives(images):
    model = make_model(bottleneck_dim=None)
    with torch.inference_mode():
        features = model.backbone(images.float() / 255)
    assert torch.equal(model.embed(images)[0], features)


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
    torch.testing.assert_close(model.embed(images)[0], expected)


def test_head_is_a_linear_layer_and_a_sigmoid_between_1_and_101(images):
    model = make_model()
    representation, concentrations = model.embed(images)
    linear = model.head[1]
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


def test_concentrations_are_float32_under_autocast(images):
    model = make_model()
    inputs = model.eval_transform(images)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        representation, concentrations = model.represent(inputs), model(inputs)
    assert representation.dtype == torch.bfloat16
    assert concentrations.dtype == torch.float32
    # Of 8 bits, as bfloat16 has them, there would be at most 256 values between 1 and 101.
    assert not torch.equal(concentrations, concentrations.bfloat16().float())
    torch.testing.assert_close(concentrations, model.embed(images)[1], rtol=0.1, atol=1.0)


def test_embedding_is_the_same_every_time_though_training_is_random(images):
    model = make_model(head_dropout=0.5, drop_path_rate=0.3)
    first, second = model.embed(images), model.embed(images)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    model.train()
    inputs = model.eval_transform(images)
    assert not torch.equal(model(inputs), model(inputs))


def test_embedding_does_not_depend_on_the_other_images_of_the_batch(images):
    model = make_model()
    together = model.embed(images)[0]
    alone = torch.cat([model.embed(image[None])[0] for image in images])
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
    assert torch.equal(model.embed(images)[0], expected)
    assert model.eval_transform.settings == {"zoom": 1.25, "mean": 0.25, "std": 0.5}
    assert not torch.allclose(expected, make_model().embed(images)[0], atol=1e-3)


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
    ("name", "size"),
    [("test_maxvit", 64), ("maxvit_tiny_rw_224", 96), ("test_coatnet", 33), ("vit_tiny_patch16_224", 96)],
)
def test_backbone_that_does_not_take_the_image_size_is_refused_by_name(name, size):
    with pytest.raises(UserError, match=rf"backbone\.name={name} does not take images of {size} x {size} .*image_size"):
        make_model(backbone=name, image_size=size)


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
