"""Backbone, bottleneck and head: from an image to the concentrations of its votes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rarezoo.cli import UserError, did_you_mean
from rarezoo.data.augment import EvalTransform
from rarezoo.models.backbones import create_backbone
from rarezoo.votes import Schema

_ACTIVATIONS: Mapping[str, type[nn.Module]] = {"none": nn.Identity, "relu": nn.ReLU, "gelu": nn.GELU}


@dataclass(frozen=True)
class ModelSpec:
    """All that is needed to build a model again and to give it the images that it was trained on.

    Attributes
    ----------
    tree : decision tree, question -> answers and asked_after
    backbone : timm name
    bottleneck_dim : width of the representation; None for the backbone's own
    bottleneck_activation : none, relu or gelu, after the bottleneck
    image_size : pixels of the square images
    channels : of the images
    crop : share of the image's side that is kept
    zoom : central magnification of an image that is not augmented
    mean, std : subtracted from and divided into pixel values in 0..1
    head_dropout, drop_path_rate : used in training only
    channels_last : memory layout of images and kernels; decides the speed alone
    """

    tree: dict[str, Any]
    backbone: str
    bottleneck_dim: int | None = 128
    bottleneck_activation: str = "none"
    image_size: int = 224
    channels: int = 3
    crop: float = 1.0
    zoom: float = 1.0
    mean: float | list[float] = 0.0
    std: float | list[float] = 1.0
    head_dropout: float = 0.2
    drop_path_rate: float = 0.0
    channels_last: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as checkpoints and embedding files keep them."""
        return asdict(self)

    @property
    def reading(self) -> dict[str, Any]:
        """How images are read from files, as the data module names it."""
        return {"size": self.image_size, "channels": self.channels, "crop": self.crop}

    @property
    def transform(self) -> dict[str, Any]:
        """The part that turns a file into the model's input."""
        return {name: getattr(self, name) for name in ("image_size", "channels", "crop", "zoom", "mean", "std")}


class ScaledSigmoid(nn.Module):
    """Concentrations from logits: 1 + 100 sigmoid(x), as Zoobot has it (Walmsley et al. 2023, JOSS 8, 5312)."""

    def forward(self, logits: Tensor) -> Tensor:
        """Compute in float32 whatever the autocast: half precision here costs the likelihood several nats."""
        with torch.autocast(logits.device.type, enabled=False):
            return 1 + 100 * torch.sigmoid(logits.float())


class VoteModel(nn.Module):
    """Encoder with a bottleneck whose output is the representation, and a head that predicts votes from it.

    The bottleneck is one linear layer, 128 wide in Walmsley & Scaife 2023, Sec. 3.

    Raises
    ------
    UserError
        for an unknown activation, or a backbone that does not take images of this size
    """

    def __init__(self, spec: ModelSpec, weights: str | None = None) -> None:
        super().__init__()
        if spec.bottleneck_activation not in _ACTIVATIONS:
            hint = did_you_mean(spec.bottleneck_activation, _ACTIVATIONS)
            raise UserError(f"bottleneck.activation='{spec.bottleneck_activation}' does not exist. {hint}")
        self.spec = spec
        self.schema = Schema.from_tree(spec.tree)
        self.backbone = create_backbone(spec.backbone, spec.channels, spec.drop_path_rate, weights)
        self._layout = torch.channels_last if spec.channels_last else torch.contiguous_format
        self.backbone.to(memory_format=self._layout)
        n_features = self._feature_width()
        self.bottleneck = nn.Sequential()
        if spec.bottleneck_dim is not None:
            self.bottleneck.append(nn.Linear(n_features, spec.bottleneck_dim))
            self.bottleneck.append(_ACTIVATIONS[spec.bottleneck_activation]())
        self.representation_dim = spec.bottleneck_dim or n_features
        self.head = nn.Sequential(
            nn.Dropout(spec.head_dropout),
            nn.Linear(self.representation_dim, len(self.schema.label_cols)),
            ScaledSigmoid(),
        )
        self.eval_transform = EvalTransform(spec.zoom, mean=spec.mean, std=spec.std)

    def represent(self, images: Tensor) -> Tensor:
        """Representation (batch, representation_dim) of transformed images (batch, channels, height, width)."""
        representation: Tensor = self.bottleneck(self.backbone(images.contiguous(memory_format=self._layout)))
        return representation

    def forward(self, images: Tensor) -> Tensor:
        """Concentrations (batch, answers), in (1, 101), of transformed images."""
        concentrations: Tensor = self.head(self.represent(images))
        return concentrations

    @torch.inference_mode()
    def embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Representation (batch, dim) and concentrations (batch, answers) of uint8 images, without dropout."""
        if self.training:
            raise RuntimeError("the model is in training mode: call eval() first")
        representation = self.represent(self.eval_transform(images))
        return representation, self.head(representation)

    def _feature_width(self) -> int:
        size = self.spec.image_size
        was_training = self.backbone.training
        self.backbone.eval()
        try:
            with torch.inference_mode():
                features = self.backbone(torch.zeros(1, self.spec.channels, size, size))
        except (AssertionError, RuntimeError, ValueError) as error:
            raise UserError(
                f"backbone.name={self.spec.backbone} does not take images of {size} x {size} pixels ({error}). "
                "Set data.image_size to the size that it was made for, often 224."
            ) from error
        self.backbone.train(was_training)
        return int(features.shape[-1])
