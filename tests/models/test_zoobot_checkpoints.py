"""Files as Zoobot's ages published them: layouts of keys, and what Lightning keeps beside the weights."""

import functools
import os
import pathlib
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.fabric.utilities.data import AttributeDict
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from omegaconf import OmegaConf

from rarezoo.cli import UserError
from rarezoo.models.backbones import create_backbone
from rarezoo.models.checkpoints import checkpoint_header
from rarezoo.models.plain import read_plain
from rarezoo.models.pretrained import load_weights
from rarezoo.models.vote_model import ModelSpec, VoteModel
from rarezoo.models.zoobot import encoder_weights

NAME = "test_efficientnet"
N_ANSWERS = 34
PAIRS = {"smooth-or-featured-dr5": ["_smooth", "_featured-or-disk", "_artifact"]}
METRICS = {"train_loss_metric.mean_value": torch.zeros(()), "val_loss_metric.weight": torch.ones(())}


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


class Sneaky(Bomb):
    """The same, by way of a package that Lightning's checkpoints name."""

    def __reduce__(self):
        return functools.partial(os.mkdir, str(self.target)), ()


@pytest.fixture(scope="module")
def source() -> torch.nn.Module:
    torch.manual_seed(3)
    encoder = timm.create_model(NAME, num_classes=0).train()
    encoder(torch.rand(8, 3, 32, 32))  # moves the running statistics away from where a new model has them
    return encoder.eval()


def prefixed(source: torch.nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in source.state_dict().items()}


def linear(prefix: str, width: int, n_outputs: int = N_ANSWERS) -> dict[str, torch.Tensor]:
    return {f"{prefix}.weight": torch.rand(n_outputs, width), f"{prefix}.bias": torch.rand(n_outputs)}


def lightning(state: dict, **hyper_parameters) -> dict:
    """What Lightning 2 writes with save_weights_only=False."""
    return {
        "epoch": 12,
        "global_step": 4096,
        "pytorch-lightning_version": "2.0.0",
        "state_dict": OrderedDict(state),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 13, "completed": 12}}}},
        "callbacks": {"EarlyStopping{'monitor': 'val_loss'}": {"wait_count": 2, "best_score": torch.tensor(19.4)}},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-3}]}],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": hyper_parameters,
    }


SETTINGS = {"architecture_name": NAME, "channels": 3, "timm_kwargs": {"drop_path_rate": 0.2}}
LAYOUTS = {
    "v1 tree": lambda s: lightning(
        prefixed(s, "encoder.") | linear("head.1.0", 256) | METRICS,
        output_dim=N_ANSWERS,
        question_index_groups=[(0, 2), (3, 4)],
        betas=(0.9, 0.999),
        scheduler_params={},
        **SETTINGS,
    ),
    "v2 tree": lambda s: lightning(
        prefixed(s, "encoder.") | linear("head.1.0", 256) | METRICS,
        question_answer_pairs=PAIRS,
        dependencies=OrderedDict({"smooth-or-featured-dr5": None}),
        **SETTINGS,
    ),
    "compiled": lambda s: lightning(prefixed(s, "encoder._orig_mod.") | linear("head.1.0", 256), **SETTINGS),
    "compiled as a whole": lambda s: lightning(prefixed(s, "_orig_mod.encoder."), **SETTINGS),
    "several devices": lambda s: lightning(prefixed(s, "module.encoder."), **SETTINGS),
    "finetuned classifier": lambda s: lightning(
        prefixed(s, "encoder.") | linear("head.linear", 256, 2) | METRICS,
        name=f"hf_hub:mwalmsley/zoobot-encoder-{NAME}",
        num_classes=2,
        class_weights=None,
    ),
    "finetuned tree": lambda s: lightning(prefixed(s, "encoder.") | linear("head.1.0", 256), zoobot_checkpoint_loc="x"),
    "gz-evo baseline": lambda s: lightning(prefixed(s, "encoder.") | linear("regression_head.0", 256, 7), cfg=None),
    "weights only": lambda s: {"state_dict": prefixed(s, "encoder.") | linear("head.1.0", 256)},
    "without a trainer": lambda s: prefixed(s, "encoder.") | linear("head.1.0", 256),
    "timm": lambda s: s.state_dict(),
    "timm, trained by its script": lambda s: {"state_dict": s.state_dict() | linear("classifier", 256), "epoch": 3},
}


def write(tmp_path: Path, content, legacy: bool = False) -> Path:
    path = tmp_path / "zoobot.ckpt"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def assert_same_features(backbone: torch.nn.Module, source: torch.nn.Module) -> None:
    images = torch.rand(3, 3, 48, 48)
    with torch.inference_mode():
        assert torch.equal(backbone.eval()(images), source(images))


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_encoder_of_every_layout_gives_the_features_that_it_gave(layout, legacy, source, tmp_path):
    path = write(tmp_path, LAYOUTS[layout](source), legacy)
    backbone = create_backbone(NAME)
    loaded = load_weights(backbone, str(path), NAME)
    assert_same_features(backbone, source)
    assert loaded.n_matched == sum(not key.endswith("num_batches_tracked") for key in source.state_dict())


def test_what_was_matched_and_what_was_not_used_is_reported(source, tmp_path):
    path = write(tmp_path, LAYOUTS["v2 tree"](source))
    loaded = load_weights(create_backbone(NAME), str(path), NAME)
    assert loaded.unused == ("head.1.0.bias", "head.1.0.weight", *sorted(METRICS))
    assert loaded.describe() == (
        f"backbone.weights={path}: {loaded.n_matched} tensors of a Zoobot checkpoint; 4 not used, such as head.1.0.bias"
    )
    assert (loaded.mean, loaded.std) == (0.0, 1.0)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_objects_that_published_files_hold_do_not_keep_them_from_loading(legacy, source, tmp_path):
    content = lightning(
        prefixed(source, "encoder."),
        cfg=OmegaConf.create({"learner": {"architecture": NAME, "betas": [0.9, 0.999]}, "seed": 1, "on": True}),
        settings=AttributeDict(lr=1e-3, nested=AttributeDict(a=1)),
        data_dir=pathlib.PosixPath("/share/galaxies"),
        lr=np.float64(0.1),
        weights=np.arange(3.0),
        label_cols=list(PAIRS),
    )
    # Lightning before 1.5 named callbacks by their class, and the kind of the settings too.
    content["callbacks"] = {EarlyStopping: {"wait_count": 1}, ModelCheckpoint: {"best_model_path": "x"}}
    content["hparams_type"] = type(content["hyper_parameters"]["cfg"])
    path = write(tmp_path, content, legacy)
    with pytest.raises(ValueError, match="it holds code or an unknown object: "):
        read_plain(path)
    backbone = create_backbone(NAME, weights=str(path))
    assert_same_features(backbone, source)


def test_stand_ins_are_gone_when_the_file_is_read(source, tmp_path):
    path = write(tmp_path, lightning(prefixed(source, "encoder."), cfg=OmegaConf.create({"a": 1})))
    before = set(torch.serialization.get_safe_globals())
    read_plain(path, foreign=True)
    with pytest.raises(ValueError, match=r"unknown object: omegaconf\.dictconfig\.DictConfig"):
        read_plain(path)
    assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.parametrize("kind", [Bomb, Sneaky])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("place", ["hyper_parameters", "callbacks", "state_dict"])
def test_code_in_a_checkpoint_is_not_executed(place, legacy, kind, source, tmp_path):
    target = tmp_path / "executed"
    path = write(tmp_path, LAYOUTS["v2 tree"](source) | {place: kind(target)}, legacy)
    with pytest.raises(UserError, match=r"zoobot\.ckpt: is not a file of plain weights \(.*posix"):
        create_backbone(NAME, weights=str(path))
    assert not target.exists()
    torch.load(path, weights_only=False)
    assert target.exists()


def test_checkpoint_before_v1_is_refused_with_the_reason(source, tmp_path):
    state = prefixed(source, "model.0.features.") | linear("model.2.0", 256)
    with pytest.raises(UserError, match=r"zoobot\.ckpt: is a checkpoint of Zoobot before v1\.0, .*take a later one"):
        create_backbone(NAME, weights=str(write(tmp_path, lightning(state))))


@pytest.mark.parametrize(
    ("hyper_parameters", "named"),
    [
        ({"architecture_name": "test_efficientnet"}, "test_efficientnet"),
        ({"architecture_name": "efficientnet"}, "efficientnet_b0"),
        ({"name": "hf_hub:mwalmsley/zoobot-encoder-convnext_nano"}, "convnext_nano"),
        ({"architecture": "resnet50"}, "resnet50"),
    ],
)
def test_architecture_that_the_file_names_stands_in_the_error(hyper_parameters, named, source, tmp_path):
    path = write(tmp_path, lightning(prefixed(source, "encoder."), **hyper_parameters))
    with pytest.raises(UserError, match=rf"backbone\.name=test_resnet.*It is of {named}, as it says: give .*={named}"):
        create_backbone("test_resnet", weights=str(path))


@pytest.mark.parametrize("hyper_parameters", [{}, {"architecture_name": 3}, {"name": None}])
def test_architecture_that_the_file_does_not_name_is_not_made_up(hyper_parameters, source, tmp_path):
    path = write(tmp_path, lightning(prefixed(source, "encoder."), **hyper_parameters))
    with pytest.raises(UserError, match=r"\d+ are missing \(first: .*Choose the one it was made with\."):
        create_backbone("test_resnet", weights=str(path))


def test_another_width_is_refused_by_shape(tmp_path):
    state = prefixed(timm.create_model("convnext_atto", num_classes=0), "encoder.")
    with pytest.raises(UserError, match=r"of \d+ weights \d+ have another shape \(first: .*\)\."):
        create_backbone("convnext_femto", weights=str(write(tmp_path, lightning(state))))


def test_checkpoint_of_one_channel_is_adapted_and_says_so(tmp_path):
    grey = timm.create_model(NAME, num_classes=0, in_chans=1)
    path = write(tmp_path, lightning(prefixed(grey, "encoder."), architecture_name=NAME, channels=1))
    loaded = load_weights(create_backbone(NAME, 3), str(path), NAME, 3)
    assert "input layer adapted from 1 to 3 channels" in loaded.describe()


def test_checkpoint_with_a_part_of_the_encoder_is_refused_by_name(source, tmp_path):
    state = prefixed(source, "encoder.")
    del state["encoder.conv_head.weight"]
    with pytest.raises(UserError, match=r"1 are missing \(first: conv_head\.weight\)"):
        create_backbone(NAME, weights=str(write(tmp_path, lightning(state))))


def test_table_of_positions_that_older_timm_kept_is_no_other_layer(source, tmp_path):
    state = prefixed(source, "encoder.") | {"encoder.blocks.0.rel_pos.relative_position_index": torch.arange(4)}
    assert_same_features(create_backbone(NAME, weights=str(write(tmp_path, lightning(state)))), source)


def test_own_checkpoint_gives_its_encoder_and_its_normalisation(tmp_path):
    tree = {"shape": {"answers": ["smooth", "featured"], "asked_after": []}}
    model = VoteModel(ModelSpec(tree, NAME, 8, image_size=32, mean=0.4, std=0.2)).eval()
    state = {f"model.{key}": value for key, value in model.state_dict().items()}
    path = write(tmp_path, {"rarezoo": checkpoint_header(model.spec), "state_dict": state})
    backbone = create_backbone(NAME)
    loaded = load_weights(backbone, str(path), NAME)
    assert_same_features(backbone, model.backbone)
    assert loaded.origin == "rarezoo checkpoint"
    assert (loaded.mean, loaded.std) == (0.4, 0.2)
    with pytest.raises(UserError, match=f"It is of {NAME}, as it says"):
        create_backbone("test_resnet", weights=str(path))


PREFIXES = ["encoder.", "model.encoder.", "model.backbone.", "backbone."]
KEYS = st.sets(st.from_regex(r"(stem|blocks|norm)\.[a-z0-9]{1,4}\.weight", fullmatch=True), min_size=1)


@settings(deadline=None, max_examples=50)
@given(KEYS, st.sets(st.from_regex(r"(head|train_loss)\.[a-z0-9]{1,4}", fullmatch=True)), st.sampled_from(PREFIXES))
def test_checkpoint_is_parted_into_encoder_and_rest(encoder, rest, prefix):
    found = encoder_weights(
        {"state_dict": {key: torch.zeros(1) for key in [prefix + key for key in encoder] + [*rest]}}
    )
    assert found.state.keys() == encoder
    assert set(found.unused) == rest


@settings(deadline=None, max_examples=50)
@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["state_dict", "a"]), inner),
    )
)
def test_content_without_tensors_is_refused(content):
    with pytest.raises(ValueError, match="holds no state dict"):
        encoder_weights(content)
