"""Backbone, bottleneck and head: from an image to the concentrations of its votes."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from rarezoo.cli import UserError, console, did_you_mean
from rarezoo.data.augment import EvalTransform
from rarezoo.models.backbones import create_backbone
from rarezoo.models.hub import resolve_architecture
from rarezoo.models.pretrained import LoadedWeights, load_weights
from rarezoo.votes import Schema

_ACTIVATIONS: Mapping[str, type[nn.Module]] = {"none": nn.Identity, "relu": nn.ReLU, "gelu": nn.GELU}
_NORMS = ("none", "layer")
# Sides to try where a backbone refuses the one given: all known windows and patches divide one of these.
_SIDES = range(32, 1025, 32)
_N_SIDES_SHOWN = 3


@dataclass(frozen=True)
class ModelSpec:
    """All that is needed to build a model again and to give it the images that it was trained on.

    Attributes
    ----------
    tree : decision tree, question -> answers and asked_after
    backbone : name of the encoder, as the user gave it
    bottleneck_dim : width of the representation; None for the backbone's own
    bottleneck_activation : none, relu or gelu, after the bottleneck
    image_size : pixels of the square images
    channels : of the images
    crop : share of the image's side that is kept
    zoom : central magnification of an image that is not augmented
    mean, std : subtracted from and divided into pixel values in 0..1
    head_dropout, drop_path_rate : used in training only
    channels_last : memory layout of images and kernels; decides the speed alone
    bottleneck_norm : none, or layer for layer normalisation between the bottleneck and its activation
    head_activation : sigmoid or softplus, which make concentrations of logits
    architecture, backbone_options : timm name and options that `backbone` stands for, so that a model is built again
        without the hub or folder that it came from; found by VoteModel
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
    bottleneck_norm: str = "none"
    head_activation: str = "sigmoid"
    architecture: str | None = None
    backbone_options: dict[str, Any] = field(default_factory=dict)

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


class ShiftedSoftplus(nn.Module):
    """Concentrations from logits: 1 + softplus(x), above 1 as Zoobot's, so that each posterior has one mode.

    Without Zoobot's ceiling of 101, which its sigmoid nears ever more slowly: the gradient stays 1 where volunteers
    agree. Linear in x, it also stays far from the range where lgamma in float32 loses the votes (above about 1e5).
    """

    def forward(self, logits: Tensor) -> Tensor:
        """Compute in float32 whatever the autocast."""
        with torch.autocast(logits.device.type, enabled=False):
            return 1 + functional.softplus(logits.float())


_HEADS: Mapping[str, type[nn.Module]] = {"sigmoid": ScaledSigmoid, "softplus": ShiftedSoftplus}


class Embedded(NamedTuple):
    """What a model says of a batch of images.

    Attributes
    ----------
    features : (batch, n_features), pooled, before the bottleneck
    representation : (batch, representation_dim)
    concentrations : (batch, answers), each > 0
    """

    features: Tensor
    representation: Tensor
    concentrations: Tensor


class VoteModel(nn.Module):
    """Encoder with a bottleneck whose output is the representation, and a head that predicts votes from it.

    The bottleneck is one linear layer, 128 wide in Walmsley & Scaife 2023, Sec. 3. Dropout is that of the backbone's
    features, where Zoobot has it: of the bottleneck's few numbers it would drop what no other of them holds.

    Parameters
    ----------
    spec : of the model
    weights : of the encoder to start from, as in `load_weights`; None for random ones

    Attributes
    ----------
    spec : as given, with the architecture that the backbone's name stands for
    n_features, representation_dim : widths before and after the bottleneck
    loaded_weights : what became of the pretrained weights; None for random ones

    Raises
    ------
    UserError
        for an unknown name or option, weights that do not fit, or a backbone that does not take images of this size
    """

    def __init__(self, spec: ModelSpec, weights: str | None = None) -> None:
        super().__init__()
        _check_choice("bottleneck.activation", spec.bottleneck_activation, _ACTIVATIONS)
        _check_choice("bottleneck.norm", spec.bottleneck_norm, _NORMS)
        _check_choice("head.activation", spec.head_activation, _HEADS)
        if spec.architecture is None:
            architecture, options = resolve_architecture(spec.backbone)
            if weights is None and architecture != spec.backbone:
                _note(f"backbone.weights=null: random weights. backbone.weights=timm takes those of {spec.backbone}")
            spec = replace(spec, architecture=architecture, backbone_options=options)
        self.spec = spec
        self.schema = Schema.from_tree(spec.tree)
        self.backbone = create_backbone(
            str(spec.architecture), spec.channels, spec.drop_path_rate, options=spec.backbone_options
        )
        self._layout = torch.channels_last if spec.channels_last else torch.contiguous_format
        self.backbone.to(memory_format=self._layout)
        self.n_features = self._feature_width()
        self.loaded_weights = load_weights(self.backbone, weights, spec.backbone, spec.channels) if weights else None
        if self.loaded_weights is not None:
            _report(self.loaded_weights, spec)
        self.representation_dim = spec.bottleneck_dim or self.n_features
        self.dropout = nn.Dropout(spec.head_dropout)
        self.bottleneck = self._make_bottleneck()
        self.head = nn.Sequential(
            nn.Linear(self.representation_dim, len(self.schema.label_cols)),
            _HEADS[spec.head_activation](),
        )
        self.eval_transform = EvalTransform(spec.zoom, mean=spec.mean, std=spec.std)

    def features(self, images: Tensor) -> Tensor:
        """Pooled features (batch, n_features) of transformed images (batch, channels, height, width)."""
        features: Tensor = self.backbone(images.contiguous(memory_format=self._layout))
        return features

    def represent(self, images: Tensor) -> Tensor:
        """Representation (batch, representation_dim) of transformed images."""
        representation: Tensor = self.bottleneck(self.dropout(self.features(images)))
        return representation

    def forward(self, images: Tensor) -> Tensor:
        """Concentrations (batch, answers), each > 0, of transformed images."""
        concentrations: Tensor = self.head(self.represent(images))
        return concentrations

    @torch.inference_mode()
    def embed(self, images: Tensor) -> Embedded:
        """All that the model says of uint8 images (batch, channels, height, width), without dropout."""
        if self.training:
            raise RuntimeError("the model is in training mode: call eval() first")
        features = self.features(self.eval_transform(images))
        representation = self.bottleneck(features)
        return Embedded(features, representation, self.head(representation))

    def _make_bottleneck(self) -> nn.Sequential:
        layers = nn.Sequential()
        dim = self.spec.bottleneck_dim
        if dim is not None:
            layers.append(nn.Linear(self.n_features, dim))
            if self.spec.bottleneck_norm == "layer":
                layers.append(nn.LayerNorm(dim))
            layers.append(_ACTIVATIONS[self.spec.bottleneck_activation]())
        return layers

    def _feature_width(self) -> int:
        size = self.spec.image_size
        was_training = self.backbone.training
        self.backbone.eval()
        try:
            with torch.inference_mode():
                features = self.backbone(torch.zeros(1, self.spec.channels, size, size))
        except (AssertionError, RuntimeError, ValueError) as error:
            fitting = _fitting_sides(self.backbone, self.spec.channels, size)
            raise UserError(
                f"backbone.name={self.spec.backbone} does not take images of {size} x {size} pixels ({error}). "
                f"data.image_size: {', '.join(map(str, fitting)) or 'the size that it was made for, often 224'}."
            ) from error
        self.backbone.train(was_training)
        return int(features.shape[-1])


def _check_choice(option: str, value: str, allowed: Iterable[str]) -> None:
    if value not in allowed:
        raise UserError(f"{option}='{value}' does not exist. {did_you_mean(value, allowed)}")


def _fitting_sides(backbone: nn.Module, channels: int, size: int) -> list[int]:
    """The nearest sides of square images, in pixels, that a backbone takes; of shapes alone, without arithmetic."""
    shapes = copy.deepcopy(backbone).to("meta")
    fitting: list[int] = []
    for side in sorted(_SIDES, key=lambda side: abs(side - size)):
        try:
            shapes(torch.zeros(1, channels, side, side, device="meta"))
        except (AssertionError, RuntimeError, ValueError):
            continue
        fitting.append(side)
        if len(fitting) == _N_SIDES_SHOWN:
            break
    return sorted(fitting)


def _report(weights: LoadedWeights, spec: ModelSpec) -> None:
    console.print(weights.describe(), markup=False)
    made_with, here = (weights.mean, weights.std), (spec.mean, spec.std)
    if None in made_with or [_each(value, spec) for value in made_with] == [_each(value, spec) for value in here]:
        return
    _note(
        f"these weights were made on images with mean={weights.mean}, std={weights.std}; "
        f"here backbone.mean={spec.mean}, backbone.std={spec.std}"
    )


def _note(text: str) -> None:
    console.print(f"note: {text}", style="yellow", markup=False)


def _each(value: float | Sequence[float], spec: ModelSpec) -> list[float]:
    return [float(value)] * spec.channels if isinstance(value, int | float) else [float(each) for each in value]
