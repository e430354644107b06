"""Image encoders by name, hub name or folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
from torch import nn

from rarezoo.cli import UserError
from rarezoo.models.hub import resolve_architecture
from rarezoo.models.pretrained import load_weights


def create_backbone(
    name: str,
    channels: int = 3,
    drop_path_rate: float = 0.0,
    weights: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Make a timm encoder without its classifier.

    Parameters
    ----------
    name : as in `resolve_architecture`
    channels : of the images
    drop_path_rate : stochastic depth, for the architectures that have it
    weights : None for random ones, else as in `load_weights`
    options : of the architecture, where they are known already

    Returns
    -------
    module : images (batch, channels, height, width) to features (batch, module.num_features)

    Raises
    ------
    UserError
        for an unknown name, or weights that cannot be had or do not fit
    """
    architecture, found = resolve_architecture(name) if options is None else (name, dict(options))
    if drop_path_rate:
        found["drop_path_rate"] = drop_path_rate
    try:
        backbone: nn.Module = timm.create_model(architecture, num_classes=0, in_chans=channels, **found)
    except TypeError as error:
        raise UserError(f"backbone.drop_path_rate: {name} does not have it ({error}). Set it to 0.") from error
    if weights is not None:
        load_weights(backbone, weights, name, channels)
    return backbone
