"""Networks to compare: trained ones by their checkpoints, others by their timm names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rarezoo.cli import UserError
from rarezoo.config import ImageSettings
from rarezoo.data.augment import EvalTransform
from rarezoo.models.backbones import create_backbone
from rarezoo.models.checkpoints import load_vote_model
from rarezoo.models.pretrained import LoadedWeights, load_weights
from rarezoo.provenance import sha256_of_file
from rarezoo.similarity.activations import Captured, capture, flattened

_CHECKPOINT_SUFFIX = ".ckpt"
_TRIED_ON = 2


@dataclass(frozen=True, eq=False)
class Network:
    """A network in evaluation mode, and how it is shown images.

    Attributes
    ----------
    label : for people
    model : whose layers are compared
    transform : uint8 images (batch, channels, side, side) to what the model takes
    reading : how images are read from files, as the data module names it
    fingerprint : SHA-256 of its file, or the name that it was made from
    tree : decision tree of the votes that it predicts; None where it predicts none
    """

    label: str
    model: nn.Module
    transform: nn.Module
    reading: Mapping[str, Any]
    fingerprint: str
    tree: dict[str, Any] | None = None

    def to(self, device: torch.device) -> Network:
        """Move model and transform to a device; gives itself."""
        self.model.to(device)
        self.transform.to(device)
        return self

    def capture(
        self, images: Tensor, patterns: Sequence[str], keep: Callable[[Tensor], Tensor] = flattened
    ) -> Captured:
        """What the layers that match the patterns give for uint8 images; see `capture`."""
        with torch.no_grad():
            return capture(self.model, self.transform(images), patterns, keep)

    def try_on(self, patterns: Sequence[str], device: torch.device) -> Captured:
        """What black images give, to learn which layers there are.

        Raises
        ------
        UserError
            if a pattern matches no layer, or the network does not take images of this size
        """
        side, channels = self.reading["size"], self.reading["channels"]
        try:
            return self.capture(
                torch.zeros(_TRIED_ON, channels, side, side, dtype=torch.uint8, device=device), patterns
            )
        except (AssertionError, RuntimeError, ValueError) as error:
            raise UserError(
                f"{self.label} does not take images of {side} x {side} pixels and {channels} channels ({error}). Give "
                "data.image_size and data.channels that it was made for."
            ) from error


def open_network(option: str, source: str, weights: str | None, data: ImageSettings) -> Network:
    """Load or make a network.

    Parameters
    ----------
    option : that names it, for messages
    source : checkpoint of train.py, or timm name
    weights : of a timm name, as in `load_weights`; None for random ones
    data : size, channels and crop of the images for a timm name; a checkpoint has its own

    Raises
    ------
    UserError
        if there is no such file or name, or the weights cannot be had
    """
    if Path(source).is_file() or source.endswith(_CHECKPOINT_SUFFIX):
        with renamed({"checkpoint=": f"{option}="}):
            model = load_vote_model(Path(source))
        width = f"{model.spec.bottleneck_dim} wide" if model.spec.bottleneck_dim else "no bottleneck"
        return Network(
            f"{model.spec.backbone}, {width} ({source})",
            model,
            model.eval_transform,
            model.spec.reading,
            sha256_of_file(Path(source)),
            model.schema.to_tree(),
        )
    with renamed({"backbone.name": option, "backbone.weights": "similarity.weights"}):
        backbone = create_backbone(source, data.channels)
        found = load_weights(backbone, weights, source, data.channels) if weights else None
    reading = {"size": data.image_size, "channels": data.channels, "crop": data.crop}
    label = f"{source}, {f'weights of {weights}' if weights else 'random weights'}"
    return Network(label, backbone.eval(), _transform(found, data.channels), reading, f"{source}, {weights}")


def _transform(weights: LoadedWeights | None, channels: int) -> EvalTransform:
    if weights is None or weights.mean is None:
        return EvalTransform()
    # Weights for another number of channels are adapted, and so is what was subtracted from these.
    mean, std = (
        each if len(each) in (1, channels) else each.mean(keepdims=True)
        for each in (np.atleast_1d(weights.mean), np.atleast_1d(weights.std))
    )
    return EvalTransform(mean=mean.tolist(), std=std.tolist())


@contextmanager
def renamed(options: Mapping[str, str]) -> Iterator[None]:
    """Let errors of a part that other commands use name the options of this one.

    Parameters
    ----------
    options : as the part names them -> as they are named here
    """
    try:
        yield
    except UserError as error:
        message = str(error)
        for theirs, ours in options.items():
            message = message.replace(theirs, ours)
        raise UserError(message) from error
