import dataclasses
import hashlib
import json
import os
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rarezoo.cli import UserError
from rarezoo.models.checkpoints import FORMAT, checkpoint_header, load_vote_model
from rarezoo.models.vote_model import ModelSpec, VoteModel

TREE = {"shape": {"answers": ["smooth", "featured"], "asked_after": []}}
SIZE = 32

pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.fixture(scope="module")
def model() -> VoteModel:
    torch.manual_seed(0)
    spec = ModelSpec(TREE, "test_efficientnet", 8, "gelu", SIZE, zoom=1.1, mean=[0.2, 0.3, 0.4], std=0.5)
    model = VoteModel(spec).train()
    model(torch.rand(8, 3, SIZE, SIZE))  # moves the running statistics away from where a new model has them
    return model.eval()


def contents(model: VoteModel) -> dict:
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    return {"rarezoo": checkpoint_header(model.spec), "state_dict": state, "epoch": 3, "global_step": 12}


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("checkpoints") / "best.ckpt"
    torch.save(contents(model), path)
    return path


def save(tmp_path: Path, content) -> Path:
    path = tmp_path / "other.ckpt"
    torch.save(content, path)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_vote_model(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_loaded_model_gives_the_same_outputs(model, checkpoint):
    images = torch.randint(0, 256, (5, 3, SIZE, SIZE), dtype=torch.uint8)
    loaded = load_vote_model(checkpoint)
    assert loaded.spec == model.spec
    assert loaded.schema.to_tree() == model.schema.to_tree()
    assert not loaded.training
    for one, other in zip(model.embed(images), loaded.embed(images), strict=True):
        assert torch.equal(one, other)


def test_checkpoint_says_what_it_was_made_with(checkpoint):
    header = torch.load(checkpoint, weights_only=True)["rarezoo"]
    assert header["format"] == FORMAT == 2
    assert torch.__version__.startswith(header["versions"]["torch"])
    assert {"created", "git_commit", "spec"} <= header.keys()


def test_checkpoint_has_the_hash_of_its_evaluation_transform(model, checkpoint):
    header = torch.load(checkpoint, weights_only=True)["rarezoo"]
    transform = {"image_size": SIZE, "channels": 3, "crop": 1.0, "zoom": 1.1, "mean": [0.2, 0.3, 0.4], "std": 0.5}
    text = json.dumps(transform, sort_keys=True, separators=(",", ":"))
    assert header["transform_sha256"] == hashlib.sha256(text.encode()).hexdigest()
    other = checkpoint_header(dataclasses.replace(model.spec, zoom=1.2))
    assert other["transform_sha256"] != header["transform_sha256"]
    same = checkpoint_header(dataclasses.replace(model.spec, head_dropout=0.4))
    assert same["transform_sha256"] == header["transform_sha256"]


@pytest.mark.parametrize("head", ["sigmoid", "softplus"])
@pytest.mark.parametrize("norm", ["none", "layer"])
def test_bottleneck_and_head_travel_with_the_checkpoint(norm, head, tmp_path):
    spec = ModelSpec(TREE, "test_efficientnet", 8, image_size=SIZE, bottleneck_norm=norm, head_activation=head)
    model = VoteModel(spec).eval()
    images = torch.randint(0, 256, (2, 3, SIZE, SIZE), dtype=torch.uint8)
    loaded = load_vote_model(save(tmp_path, contents(model)))
    assert all(torch.equal(*pair) for pair in zip(model.embed(images), loaded.embed(images), strict=True))


def test_checkpoint_from_before_head_and_norm_could_be_chosen_loads_as_it_was(model, tmp_path):
    content = contents(model)
    for later in ("bottleneck_norm", "head_activation", "architecture", "backbone_options"):
        del content["rarezoo"]["spec"][later]
    del content["rarezoo"]["transform_sha256"]
    images = torch.randint(0, 256, (2, 3, SIZE, SIZE), dtype=torch.uint8)
    loaded = load_vote_model(save(tmp_path, content))
    assert all(torch.equal(*pair) for pair in zip(model.embed(images), loaded.embed(images), strict=True))


def test_option_of_a_later_version_does_not_keep_a_checkpoint_from_loading(model, tmp_path):
    content = contents(model)
    content["rarezoo"]["spec"]["option_of_tomorrow"] = 1
    assert load_vote_model(save(tmp_path, content)).spec == model.spec


def test_checkpoint_that_is_not_there_is_refused_with_the_command_to_run(tmp_path):
    found = refusal(tmp_path / "best.ckpt")
    assert "there is no such file. Run train.py first" in found


def test_folder_is_refused(tmp_path):
    assert "there is no such file" in refusal(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x80\x02K\x01.", b"\x89HDF\r\n\x1a\n" + bytes(99)])
def test_file_of_another_kind_is_refused(content, tmp_path):
    path = tmp_path / "best.ckpt"
    path.write_bytes(content)
    refusal(path)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True))
def test_truncated_checkpoint_is_refused(share, checkpoint, tmp_path):
    content = checkpoint.read_bytes()
    path = tmp_path / "truncated.ckpt"
    path.write_bytes(content[: int(share * len(content))])
    assert "cannot be read as a checkpoint" in refusal(path)


def bytes_of_weights(path: Path) -> list[int]:
    """Where the numbers stand; names and padding between them have no checksum, and change no weight."""
    content = path.read_bytes()
    places: list[int] = []
    for entry in zipfile.ZipFile(path).infolist():
        if "/data/" in entry.filename:
            names = content[entry.header_offset + 26 : entry.header_offset + 30]
            start = entry.header_offset + 30 + sum(struct.unpack("<HH", names))
            places.extend(range(start, start + entry.file_size))
    return places


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_flipped_bit_in_the_weights_is_found(share, bit, checkpoint, tmp_path):
    places = bytes_of_weights(checkpoint)
    content = bytearray(checkpoint.read_bytes())
    content[places[int(share * len(places))]] ^= 1 << bit
    path = tmp_path / "flipped.ckpt"
    path.write_bytes(content)
    assert "cannot be read as a checkpoint" in refusal(path)


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200))
def test_any_bytes_are_refused_as_a_users_fault(content, tmp_path):
    path = tmp_path / "any.ckpt"
    path.write_bytes(content)
    refusal(path)


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": {"a": torch.ones(2)}},
        {"rarezoo": "1", "state_dict": {}},
        {"rarezoo": {"format": 1, "spec": {}}, "state_dict": {}},
        {"rarezoo": {"format": FORMAT, "spec": {}}},
        {},
        [1, 2],
        torch.ones(3),
    ],
)
def test_checkpoint_of_another_format_is_refused(content, tmp_path):
    assert f"is not a checkpoint of train.py (format {FORMAT})" in refusal(save(tmp_path, content))


def without(tree: dict, *keys: str) -> dict:
    return {key: value for key, value in tree.items() if key not in keys}


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["rarezoo"].update(spec=None),
        lambda c: c["rarezoo"].pop("spec"),
        lambda c: c["rarezoo"].update(spec=without(c["rarezoo"]["spec"], "backbone")),
        lambda c: c["rarezoo"]["spec"].update(tree={"shape": {"answers": []}}),
        lambda c: c["rarezoo"]["spec"].update(architecture="test_resnet"),
        lambda c: c["rarezoo"]["spec"].update(architecture="resnet_of_tomorrow"),
        lambda c: c["rarezoo"]["spec"].update(backbone_options={"option_of_tomorrow": 1}),
        lambda c: c["rarezoo"]["spec"].update(head_activation="exp"),
        lambda c: c["rarezoo"]["spec"].update(bottleneck_dim=9),
        lambda c: c.update(state_dict=without(c["state_dict"], "model.bottleneck.0.weight")),
        lambda c: c["state_dict"].update({"model.extra": torch.ones(2)}),
        lambda c: c.update(state_dict=None),
        lambda c: c.update(state_dict={}),
    ],
)
def test_checkpoint_whose_weights_and_description_do_not_agree_is_refused(change, model, tmp_path):
    content = contents(model)
    change(content)
    found = refusal(save(tmp_path, content))
    assert "its model cannot be built again" in found
    assert len(found) < 600


@pytest.mark.parametrize("place", ["rarezoo", "state_dict", "callbacks"])
def test_code_in_a_checkpoint_is_not_executed(place, model, tmp_path):
    target = tmp_path / "executed"
    path = save(tmp_path, contents(model) | {place: Bomb(target)})
    assert "cannot be read as a checkpoint" in refusal(path)
    assert not target.exists()
    torch.load(path, weights_only=False)
    assert target.exists()
