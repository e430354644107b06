import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as torchvision_functional

from rarezoo.cli import UserError
from rarezoo.data.augment import EvalTransform, TrainTransform, affine_view

OFF = {"rotate": False, "flip": False, "zoom": (1.0, 1.0), "shift": 0.0}


def batch(n_images: int = 4, side: int = 16, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n_images, channels, side, side), dtype=torch.uint8, generator=generator)


def view(images: torch.Tensor, angle=0.0, flip=(1.0, 1.0), zoom=1.0, shift=(0.0, 0.0)) -> torch.Tensor:
    n_images = len(images)
    return affine_view(
        images,
        torch.full((n_images,), angle),
        torch.tensor([flip]).repeat(n_images, 1),
        torch.full((n_images,), zoom),
        torch.tensor([shift]).repeat(n_images, 1),
    )


@pytest.mark.parametrize("side", [15, 16])
@pytest.mark.parametrize("quarters", [0, 1, 2, 3, 4])
def test_quarter_turns_are_those_of_rot90(quarters, side):
    images = batch(side=side).float()
    turned = view(images, angle=quarters * math.pi / 2)
    torch.testing.assert_close(turned, torch.rot90(images, quarters, (-2, -1)), atol=1e-2, rtol=0)


def test_rotation_by_any_angle_is_that_of_scipy():
    smooth = ndimage.gaussian_filter(np.random.default_rng(0).random((1, 1, 41, 41)) * 255, (0, 0, 3, 3))
    turned = view(torch.from_numpy(smooth).float(), angle=math.radians(33.0))[0, 0].numpy()
    expected = ndimage.rotate(smooth[0, 0], 33.0, reshape=False, order=1)
    inside = np.hypot(*(np.mgrid[0:41, 0:41] - 20)) < 18
    np.testing.assert_allclose(turned[inside], expected[inside], atol=0.05)


def by_torchvision(images: torch.Tensor, angle=0.0, flip=(1.0, 1.0), zoom=1.0, shift=(0.0, 0.0)) -> torch.Tensor:
    """The same view by torchvision: mirrored first, then one affine warp, whose angle is clockwise and in degrees."""
    for sign, mirror in zip(
        flip, (torchvision_functional.horizontal_flip, torchvision_functional.vertical_flip), strict=True
    ):
        images = mirror(images) if sign < 0 else images
    return torchvision_functional.affine(
        images,
        angle=-math.degrees(angle),
        translate=[share * images.shape[-1] for share in shift],
        scale=zoom,
        shear=[0.0, 0.0],
        interpolation=InterpolationMode.BILINEAR,
    )


def smooth(side: int, channels: int = 3) -> torch.Tensor:
    """Images without edges, on which rounding of the sampled places tells little."""
    noise = np.random.default_rng(side).random((2, channels, side, side)) * 255
    return torch.from_numpy(ndimage.gaussian_filter(noise, (0, 0, 2, 2))).float()


SINGLE_VIEWS = [
    *({"angle": math.radians(degrees)} for degrees in (-170.0, -45.0, 10.0, 90.0, 123.0)),
    *({"zoom": zoom} for zoom in (0.7, 1.2, 2.0)),
    *({"shift": shift} for shift in ((0.1, 0.0), (0.0, -0.2), (0.13, 0.07))),
    *({"flip": flip} for flip in ((-1.0, 1.0), (1.0, -1.0), (-1.0, -1.0))),
]


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("one", SINGLE_VIEWS)
def test_each_move_is_that_of_torchvision(one, channels):
    # To the last pixel, with the borders that come into view.
    images = smooth(24, channels)
    torch.testing.assert_close(view(images, **one), by_torchvision(images, **one), atol=0.02, rtol=0)


@settings(deadline=None, max_examples=60)
@given(
    angle=st.floats(-math.pi, math.pi),
    flip=st.tuples(st.sampled_from([-1.0, 1.0]), st.sampled_from([-1.0, 1.0])),
    zoom=st.floats(0.6, 1.8),
    shift=st.tuples(st.floats(-0.3, 0.3), st.floats(-0.3, 0.3)),
    side=st.sampled_from([15, 24]),
    channels=st.sampled_from([1, 4]),
)
def test_all_moves_in_one_warp_are_those_of_torchvision(angle, flip, zoom, shift, side, channels):
    images = smooth(side, channels)
    given_view = {"angle": angle, "flip": flip, "zoom": zoom, "shift": shift}
    torch.testing.assert_close(view(images, **given_view), by_torchvision(images, **given_view), atol=0.05, rtol=0)


def test_views_of_a_batch_are_each_that_of_its_own_numbers():
    images = smooth(24)
    angle, zoom = torch.tensor([0.3, -2.0]), torch.tensor([1.4, 0.8])
    flip, shift = torch.tensor([[-1.0, 1.0], [1.0, -1.0]]), torch.tensor([[0.1, -0.05], [0.0, 0.2]])
    together = affine_view(images, angle, flip, zoom, shift)
    for row in range(2):
        alone = by_torchvision(
            images[row : row + 1], float(angle[row]), flip[row].tolist(), float(zoom[row]), shift[row].tolist()
        )
        torch.testing.assert_close(together[row : row + 1], alone, atol=0.02, rtol=0)


def test_channels_of_one_galaxy_are_moved_alike():
    images = smooth(24, 1).repeat(1, 7, 1, 1).to(torch.uint8)
    views = TrainTransform(brightness=0.2)(images, torch.Generator().manual_seed(0))
    assert torch.equal(views, views[:, :1].expand_as(views))


def test_rotation_takes_the_whole_circle_evenly():
    # A bright spot at the right is found again at an angle that tells the rotation.
    images = torch.zeros(4000, 1, 33, 33, dtype=torch.uint8)
    images[..., 15:18, 27:30] = 255
    views = TrainTransform(**OFF | {"rotate": True})(images, torch.Generator().manual_seed(0))[:, 0]
    rows, columns = torch.meshgrid(torch.arange(33.0) - 16, torch.arange(33.0) - 16, indexing="ij")
    weight = views.sum((1, 2))
    found = torch.atan2(-(views * rows).sum((1, 2)) / weight, (views * columns).sum((1, 2)) / weight)
    share = torch.histc(found, 8, -math.pi, math.pi) / len(found)
    assert (share - 1 / 8).abs().max() < 5 * math.sqrt(1 / 8 * 7 / 8 / len(found))


def test_evaluation_draws_nothing_at_random():
    transform, images = EvalTransform(zoom=1.2), batch(channels=5)
    state = torch.get_rng_state()
    first = transform.train()(images)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(99)
    assert torch.equal(first, transform.eval()(images))
    assert torch.equal(first[1:2], transform(images[1:2]))


def test_mirroring_is_that_of_torch():
    images = batch().float()
    torch.testing.assert_close(view(images, flip=(-1.0, 1.0)), images.flip(-1), atol=1e-2, rtol=0)
    torch.testing.assert_close(view(images, flip=(1.0, -1.0)), images.flip(-2), atol=1e-2, rtol=0)


def test_mirroring_comes_before_the_rotation():
    images = batch().float()
    expected = torch.rot90(images.flip(-1), 1, (-2, -1))
    torch.testing.assert_close(view(images, angle=math.pi / 2, flip=(-1.0, 1.0)), expected, atol=1e-2, rtol=0)


def test_shift_moves_right_and_down_by_a_share_of_the_side_and_opens_black():
    images = batch(side=16).float()
    moved = view(images, shift=(0.25, 0.125), angle=0.0)
    torch.testing.assert_close(moved[..., 2:, 4:], images[..., :-2, :-4], atol=1e-2, rtol=0)
    assert moved[..., :2, :].abs().max() < 1e-2
    assert moved[..., :4].abs().max() < 1e-2


def test_shift_is_the_same_whatever_the_rotation():
    images = batch(side=16).float()
    moved = view(images, angle=math.pi / 2, shift=(0.25, 0.0))
    torch.testing.assert_close(moved[..., 4:], torch.rot90(images, 1, (-2, -1))[..., :-4], atol=1e-2, rtol=0)


def test_zoom_magnifies_the_centre():
    images = torch.zeros(1, 1, 16, 16)
    images[..., 4:12, 4:12] = 1.0
    torch.testing.assert_close(view(images, zoom=2.0)[..., 1:-1, 1:-1], torch.ones(1, 1, 14, 14))


def test_each_image_is_drawn_its_own_view():
    same = batch(1).repeat(8, 1, 1, 1)
    views = TrainTransform()(same, torch.Generator().manual_seed(0))
    assert len(torch.unique(views.flatten(1), dim=0)) == 8


def test_views_follow_the_generator_and_the_global_seed():
    transform, images = TrainTransform(brightness=0.2), batch()
    first, second = (transform(images, torch.Generator().manual_seed(3)) for _ in range(2))
    torch.testing.assert_close(first, second, atol=0, rtol=0)
    torch.manual_seed(5)
    first = transform(images)
    torch.manual_seed(5)
    torch.testing.assert_close(first, transform(images), atol=0, rtol=0)
    assert not torch.equal(first, transform(images))


@settings(deadline=None, max_examples=30)
@given(
    rotate=st.booleans(),
    flip=st.booleans(),
    zoom=st.tuples(st.floats(0.5, 1.0), st.floats(1.0, 2.0)),
    shift=st.floats(0, 0.3),
    brightness=st.floats(0, 0.9),
    channels=st.sampled_from([1, 3, 6]),
)
def test_views_keep_shape_and_range(rotate, flip, zoom, shift, brightness, channels):
    views = TrainTransform(rotate, flip, zoom, shift, brightness)(batch(channels=channels))
    assert views.shape == (4, channels, 16, 16)
    assert views.dtype == torch.float32
    assert views.min() >= 0
    assert views.max() <= 1


@pytest.mark.parametrize("transform", [TrainTransform(**OFF), EvalTransform()])
def test_transform_with_everything_off_only_scales_to_one(transform):
    torch.testing.assert_close(transform(batch()), batch() / 255, atol=0, rtol=0)


def test_flips_alone_give_the_four_mirror_images_equally_often():
    images = batch(1, side=4).repeat(4000, 1, 1, 1)
    views = TrainTransform(**OFF | {"flip": True})(images, torch.Generator().manual_seed(0))
    original = images[0] / 255
    for axes in ([], [-1], [-2], [-1, -2]):
        share = (views - original.flip(axes)).abs().amax((1, 2, 3)).lt(1e-3).float().mean()
        assert abs(share - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 4000)


def test_brightness_scales_whole_images_and_stops_at_white():
    images = torch.full((500, 3, 2, 2), 128, dtype=torch.uint8)
    views = TrainTransform(**OFF, brightness=0.25)(images, torch.Generator().manual_seed(0)) / (128 / 255)
    assert views.flatten(1).std(1).max() < 1e-6
    assert 0.75 <= views.min() < 0.77
    assert 1.23 < views.max() <= 1.25
    white = TrainTransform(**OFF, brightness=0.9)(torch.full((50, 1, 2, 2), 255, dtype=torch.uint8))
    assert white.max() == 1


@pytest.mark.parametrize("make", [lambda **o: TrainTransform(**OFF, **o), EvalTransform])
def test_normalisation_is_by_channel(make):
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    expected = (batch() / 255 - torch.tensor(mean).reshape(3, 1, 1)) / torch.tensor(std).reshape(3, 1, 1)
    torch.testing.assert_close(make(mean=mean, std=std)(batch()), expected)


def test_normalisation_travels_in_the_settings_and_not_in_the_weights():
    transform = EvalTransform(mean=[0.1, 0.2, 0.3], std=0.5)
    assert not transform.state_dict()
    torch.testing.assert_close(EvalTransform(**transform.settings)(batch()), transform(batch()), atol=0, rtol=0)


def test_settings_make_an_equal_train_transform():
    transform = TrainTransform(rotate=False, zoom=(0.9, 1.1), shift=0.1, brightness=0.3, mean=0.1, std=0.2)
    again = TrainTransform(**transform.settings)
    first, second = (each(batch(), torch.Generator().manual_seed(0)) for each in (transform, again))
    torch.testing.assert_close(first, second, atol=0, rtol=0)


def test_evaluation_sees_galaxies_at_the_mean_magnification_of_training():
    evaluation = TrainTransform(zoom=(1.0, 1.4), mean=0.5).for_evaluation()
    assert evaluation.zoom == pytest.approx(1.2)
    assert evaluation.settings["mean"] == 0.5


def test_evaluation_zoom_is_that_of_the_view():
    torch.testing.assert_close(EvalTransform(zoom=1.5)(batch()), view(batch() / 255, zoom=1.5))


@pytest.mark.parametrize("transform", [TrainTransform(), EvalTransform(zoom=1.2)])
def test_empty_batch_stays_empty(transform):
    assert transform(torch.empty((0, 3, 8, 8), dtype=torch.uint8)).shape == (0, 3, 8, 8)


@pytest.mark.parametrize(
    ("option", "settings_of_it"),
    [
        ("zoom", {"zoom": (0.0, 1.0)}),
        ("zoom", {"zoom": (1.5, 1.0)}),
        ("zoom", {"zoom": (1.0,)}),
        ("zoom", {"zoom": (1.0, math.inf)}),
        ("zoom", {"zoom": (math.nan, 1.0)}),
        ("shift", {"shift": -0.1}),
        ("shift", {"shift": 1.0}),
        ("brightness", {"brightness": 1.0}),
        ("brightness", {"brightness": -0.1}),
        ("mean", {"mean": [0.1, math.nan]}),
        ("mean", {"mean": []}),
        ("mean", {"mean": "grey"}),
        ("std", {"std": 0.0}),
        ("std", {"std": [0.1, -0.2, 0.3]}),
    ],
)
def test_setting_that_cannot_be_used_is_named(option, settings_of_it):
    with pytest.raises(UserError, match=rf"{'backbone' if option in ('mean', 'std') else 'augment'}\.{option}="):
        TrainTransform(**settings_of_it)


def test_zoom_of_evaluation_is_checked():
    with pytest.raises(UserError, match=r"augment\.zoom=0"):
        EvalTransform(zoom=0)


def test_normalisation_for_another_number_of_channels_is_refused():
    with pytest.raises(UserError, match="3 values for images of 1 channels"):
        EvalTransform(mean=[0.1, 0.2, 0.3])(batch(channels=1))


@pytest.mark.parametrize("transform", [TrainTransform(), EvalTransform()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int16])
def test_images_that_are_no_bytes_are_refused(transform, dtype):
    with pytest.raises(TypeError, match=f"images are {dtype}, and bytes"):
        transform(torch.zeros(2, 3, 8, 8, dtype=dtype))
