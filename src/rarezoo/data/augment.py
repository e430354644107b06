"""Random views of galaxies, made for a whole batch at once on the device that trains."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from rarezoo.cli import UserError


def affine_view(images: Tensor, angle: Tensor, flip: Tensor, zoom: Tensor, shift: Tensor) -> Tensor:
    """Rotate, mirror, magnify and shift each image about its centre, with one bilinear interpolation.

    Parameters
    ----------
    images : (B, C, S, S) float
    angle : (B,) radians, counter-clockwise as seen with the first row at the top
    flip : (B, 2), -1 to mirror left-right and top-bottom, else 1; before the rotation
    zoom : (B,) magnification
    shift : (B, 2) right and down, as shares of the side

    Returns
    -------
    (B, C, S, S); black where the view reaches beyond the image
    """
    if not len(images):
        return images  # affine_grid refuses a batch of which no image could be read
    cosine, sine = torch.cos(angle), torch.sin(angle)
    # affine_grid wants the way back, from the view to the image, in units of half a side.
    rotation = torch.stack((torch.stack((cosine, -sine), -1), torch.stack((sine, cosine), -1)), -2)  # (B, 2, 2)
    back = flip.unsqueeze(-1) * rotation / zoom.reshape(-1, 1, 1)
    offset = -back @ (2.0 * shift).unsqueeze(-1)  # (B, 2, 1)
    grid = functional.affine_grid(torch.cat((back, offset), -1), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


class _Normalised(nn.Module):
    """Bytes to floats between 0 and 1, a view of them, then (x - mean) / std.

    The mean and std are no part of the state_dict: they are settings, and a checkpoint keeps those.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: float | Sequence[float], std: float | Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", _per_channel("backbone.mean", mean), persistent=False)
        self.register_buffer("std", _per_channel("backbone.std", std), persistent=False)
        if not bool((self.std > 0).all()):
            raise UserError(f"backbone.std={std}: every value must be > 0.")
        self._normalisation = {"mean": _plain(mean), "std": _plain(std)}

    def _to_unit(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8:
            raise TypeError(f"images are {images.dtype}, and bytes (uint8) from 0 to 255 are expected")
        if max(self.mean.shape[1], self.std.shape[1]) not in (1, images.shape[1]):
            raise UserError(
                f"backbone.mean, backbone.std: {max(self.mean.shape[1], self.std.shape[1])} values for images of "
                f"{images.shape[1]} channels. Give one value, or one per channel (data.channels)."
            )
        return images.to(torch.float32) / 255.0

    def _normalise(self, unit: Tensor) -> Tensor:
        return (unit - self.mean) / self.std


class TrainTransform(_Normalised):
    """Random views for training: each image is drawn its own rotation, mirroring, zoom, shift and brightness.

    Parameters
    ----------
    rotate : by any angle; the corners that this opens are black
    flip : mirror left-right and top-bottom, each with probability 1/2
    zoom : smallest and largest magnification, drawn uniformly
    shift : largest shift along each axis, as a share of the side
    brightness : largest relative change of all values; clipped at white
    mean, std : of the normalisation, one value or one per channel. By default none is done, as in Zoobot.

    Raises
    ------
    UserError
        naming the option whose value cannot be used
    """

    def __init__(
        self,
        rotate: bool = True,
        flip: bool = True,
        zoom: Sequence[float] = (1.0, 1.4),
        shift: float = 0.05,
        brightness: float = 0.0,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
    ) -> None:
        super().__init__(mean, std)
        if len(zoom) != 2 or not 0 < zoom[0] <= zoom[1] < math.inf:
            raise UserError(f"augment.zoom={list(zoom)}: give the smallest and the largest magnification, both > 0.")
        if not 0 <= shift < 1:
            raise UserError(f"augment.shift={shift}: a share of the image's side, from 0 to below 1.")
        if not 0 <= brightness < 1:
            raise UserError(f"augment.brightness={brightness}: a relative change, from 0 to below 1.")
        self.rotate = bool(rotate)
        self.flip = bool(flip)
        self.zoom = (float(zoom[0]), float(zoom[1]))
        self.shift = float(shift)
        self.brightness = float(brightness)

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments that make an equal transform, JSON-like."""
        own = {name: getattr(self, name) for name in ("rotate", "flip", "shift", "brightness")}
        return {**own, "zoom": list(self.zoom), **self._normalisation}

    def for_evaluation(self) -> EvalTransform:
        """The fixed view at the mean magnification that training showed."""
        return EvalTransform(zoom=(self.zoom[0] + self.zoom[1]) / 2, **self._normalisation)

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw one view of each image.

        Parameters
        ----------
        images : (B, C, S, S) uint8
        generator : source of the random draws; torch's global one of the images' device by default

        Returns
        -------
        (B, C, S, S) float32
        """
        # Seven draws each, whatever is switched on: one setting then leaves the draws of the others as they are.
        draws = torch.rand(
            (7, len(images)), generator=generator, device=generator.device if generator else images.device
        )
        draws = draws.to(images.device)
        unit = self._to_unit(images)
        if self._moves:
            unit = affine_view(unit, *self._views(draws[:6]))
        if self.brightness:
            factor = 1.0 + self.brightness * (2.0 * draws[6] - 1.0)
            unit = (unit * factor.reshape(-1, 1, 1, 1)).clamp(max=1.0)
        return self._normalise(unit)

    @property
    def _moves(self) -> bool:
        return self.rotate or self.flip or self.zoom != (1.0, 1.0) or self.shift > 0

    def _views(self, draws: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        angle = draws[0] * (2.0 * math.pi if self.rotate else 0.0)
        mirrored = draws[1:3].transpose(0, 1) < (0.5 if self.flip else 0.0)
        flip = torch.where(mirrored, -1.0, 1.0)
        zoom = self.zoom[0] + (self.zoom[1] - self.zoom[0]) * draws[3]
        shift = self.shift * (2.0 * draws[4:6].transpose(0, 1) - 1.0)
        return angle, flip, zoom, shift


class EvalTransform(_Normalised):
    """The same fixed view of every image: a central zoom, then the normalisation.

    Parameters
    ----------
    zoom : magnification about the centre
    mean, std : of the normalisation, one value or one per channel
    """

    def __init__(
        self, zoom: float = 1.0, mean: float | Sequence[float] = 0.0, std: float | Sequence[float] = 1.0
    ) -> None:
        super().__init__(mean, std)
        if not 0 < zoom < math.inf:
            raise UserError(f"augment.zoom={zoom}: a magnification is > 0.")
        self.zoom = float(zoom)

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments that make an equal transform, JSON-like."""
        return {"zoom": self.zoom, **self._normalisation}

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, S, S) uint8 to (B, C, S, S) float32."""
        unit = self._to_unit(images)
        if self.zoom != 1.0:
            n_images = len(images)
            level = unit.new_zeros(n_images)
            unit = affine_view(unit, level, unit.new_ones(n_images, 2), level + self.zoom, unit.new_zeros(n_images, 2))
        return self._normalise(unit)


def _plain(value: float | Sequence[float]) -> float | list[float]:
    return float(value) if isinstance(value, int | float) else [float(each) for each in value]


def _per_channel(option: str, value: float | Sequence[float]) -> Tensor:
    try:
        values = torch.as_tensor(_plain(value), dtype=torch.float32).reshape(1, -1, 1, 1)
    except (TypeError, ValueError) as error:
        raise UserError(f"{option}={value}: give one number, or one per channel.") from error
    if not bool(torch.isfinite(values).all()) or values.numel() == 0:
        raise UserError(f"{option}={value}: give one finite number, or one per channel.")
    return values
