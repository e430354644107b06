"""Models as they embed a survey: several at once, over several views, with dropout passes, whatever the batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from rarezoo.cli import UserError
from rarezoo.models.dropout import dropout_factors
from rarezoo.models.encoder import Encoder, Precision
from rarezoo.models.vote_model import VoteModel

# More Python threads than these wait for one another; further cores share the work of each.
_MOST_THREADS = 8
# Number of views -> (quarter turns, mirrored) of each. They are groups: the mean is the same whichever one starts from.
_TURNS = [(turns, False) for turns in range(4)]
_VIEWS: Mapping[int, list[tuple[int, bool]]] = {
    1: _TURNS[:1],
    2: _TURNS[::2],
    4: _TURNS,
    8: [*_TURNS, *((turns, True) for turns in range(4))],
}


class EmbeddedBatch(NamedTuple):
    """What one or several models say of a batch of images, in float32 on the device that computed it.

    Attributes
    ----------
    features : (batch, n_features), before the bottleneck
    representation : (batch, representation_dim)
    concentrations : (batch, answers), each > 0: without dropout, the mean over the models
    member_concentrations : (batch, members, answers), of each model and dropout pass; None where there is one
    """

    features: Tensor
    representation: Tensor
    concentrations: Tensor
    member_concentrations: Tensor | None


class Embedder:
    """One or several trained models as they embed a survey.

    What they say of an image does not depend on the others of its batch, nor on the number of processes: a CPU runs
    passes of one shape, one in each thread, and dropout is drawn for the galaxy. A GPU takes whole batches, and may sum
    in another order for another size of batch.

    Parameters
    ----------
    models : that predict the votes of one tree, from images that are read alike; each transforms them by itself. They
        are moved to the device, and put in evaluation mode.
    device : that computes
    precision : of the backbones; bottlenecks and heads are computed in float32
    compiled : compile the backbones: once, for up to a minute each
    rotations : views of each image to average over: 1, turned by 180 (2) or by 90 degrees (4), and mirrored too (8)
    dropout_passes : predictions of each model with features dropped out as in training; none of them runs the backbone
        again
    seed : of dropout, within 64 bits
    ensemble : whose features and representation are given: those of the "first" model, or all side by side
        ("concatenate")

    Attributes
    ----------
    models, schema, reading : as given; tree of the votes; how images are read, as the data module names it
    n_features, representation_dim : widths before and after the bottleneck
    members : "model" and "pass" of each of the member_concentrations

    Raises
    ------
    UserError
        if the models do not fit together, have no dropout, or the device cannot compute in this precision
    """

    def __init__(
        self,
        models: Sequence[VoteModel],
        device: torch.device,
        *,
        precision: Precision = "float32",
        compiled: bool = False,
        rotations: Literal[1, 2, 4, 8] = 1,
        dropout_passes: int = 0,
        seed: int = 0,
        ensemble: Literal["first", "concatenate"] = "first",
    ) -> None:
        _check_fit(models)
        _check_possible(models, device, precision, dropout_passes)
        self.models = list(models)
        self.schema = models[0].schema
        self.reading: dict[str, Any] = models[0].spec.reading
        self._shown = self.models[:1] if ensemble == "first" else self.models
        self.n_features = sum(model.n_features for model in self._shown)
        self.representation_dim = sum(model.representation_dim for model in self._shown)
        members = [{"model": each, "pass": n} for each in range(len(models)) for n in range(max(1, dropout_passes))]
        self.members: list[dict[str, int]] = members if dropout_passes or len(models) > 1 else []
        self._views = _VIEWS[rotations]
        self._dropout_passes = dropout_passes
        self._seed = seed
        self._device = device
        self._encoders = [Encoder(model, device, precision, compiled) for model in models]
        self._cores = torch.get_num_threads()
        self._threads: ThreadPoolExecutor | None = None
        self._per_pass = 1
        if device.type == "cpu":
            n_threads = min(_MOST_THREADS, self._cores)
            self._cores //= n_threads
            self._threads = ThreadPoolExecutor(n_threads, "embed", torch.set_num_threads, (self._cores,))
            self._per_pass = min(encoder.images_per_pass() for encoder in self._encoders)

    def __call__(self, images: Tensor, rows: Tensor) -> EmbeddedBatch:
        """Embed a batch.

        Parameters
        ----------
        images : (batch, channels, side, side) uint8, on any device
        rows : (batch,) int64, rows of the catalog
        """
        images, rows = images.to(self._device, non_blocking=True), rows.to(self._device, non_blocking=True)
        if self._threads is None:
            self._per_pass = max(self._per_pass, len(rows))
        passes = torch.split(images, self._per_pass), torch.split(rows, self._per_pass)
        with _cores_at_once(self._cores):
            for encoder in self._encoders:
                encoder.compile(self._filled(passes[0][0]))
            run = self._threads.map if self._threads else map
            found = list(run(self._embed, *passes))
        features, representation, concentrations, members = zip(*found, strict=True)
        return EmbeddedBatch(
            torch.cat(features),
            torch.cat(representation),
            torch.cat(concentrations),
            torch.cat(members) if self.members else None,
        )

    @torch.inference_mode()
    def _embed(self, images: Tensor, rows: Tensor) -> EmbeddedBatch:
        n_images = len(rows)
        images, rows = self._filled(images), self._filled(rows)
        said = [self._ask(number, images, rows) for number in range(len(self.models))]
        features, representation, concentrations, members = (
            [each[:n_images] for each in parts] for parts in zip(*said, strict=True)
        )
        n_shown = len(self._shown)
        return EmbeddedBatch(
            torch.cat(features[:n_shown], 1),
            torch.cat(representation[:n_shown], 1),
            torch.stack(concentrations).mean(0),
            torch.cat(members, 1) if self.members else None,
        )

    def _ask(self, number: int, images: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Features, representation, concentrations and those of the members of one model, averaged over the views."""
        model = self.models[number]
        views = (_turned(images, turns, mirrored) for turns, mirrored in self._views)
        features = torch.stack([self._encoders[number](view) for view in views])  # (views, batch, n_features)
        representation = model.bottleneck(features)
        concentrations = model.head(representation).mean(0)
        passes = []
        for dropout_pass in range(self._dropout_passes):
            key = (self._seed, number, dropout_pass)
            left = features * dropout_factors(rows, model.n_features, model.spec.head_dropout, *key)
            passes.append(model.head(model.bottleneck(left)).mean(0))
        members = torch.stack(passes or [concentrations], 1)
        return features.mean(0), representation.mean(0), concentrations, members

    def _filled(self, values: Tensor) -> Tensor:
        """Padded with zeros to the shape of every pass: another one is compiled anew, and may sum in another order."""
        missing = self._per_pass - len(values)
        return functional.pad(values, (*(0, 0) * (values.ndim - 1), 0, missing)) if missing else values


def _turned(images: Tensor, quarter_turns: int, mirrored: bool) -> Tensor:
    turned = torch.rot90(images, quarter_turns, (2, 3))
    return turned.flip(3) if mirrored else turned


@contextmanager
def _cores_at_once(n_cores: int) -> Iterator[None]:
    """Let one operation use so many cores; MKL's threads are set for the whole process."""
    before = torch.get_num_threads()
    torch.set_num_threads(n_cores)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check_fit(models: Sequence[VoteModel]) -> None:
    first = models[0]
    for number, model in enumerate(models[1:], start=2):
        named = f"checkpoint: number {number} ({model.spec.backbone})"
        tree, expected = model.schema.to_tree(), first.schema.to_tree()
        if (tree, list(model.schema.label_cols)) != (expected, list(first.schema.label_cols)):
            differing = sorted(q for q in tree.keys() | expected.keys() if tree.get(q) != expected.get(q))
            raise UserError(
                f"{named} predicts the votes of another tree than number 1 ({first.spec.backbone}): "
                f"{', '.join(differing[:3]) or 'the questions are in another order'}. "
                "Give checkpoints that were trained with one schema."
            )
        for option in ("image_size", "channels", "crop"):
            found, wanted = getattr(model.spec, option), getattr(first.spec, option)
            if found != wanted:
                raise UserError(
                    f"{named} was trained with data.{option}={found}, number 1 ({first.spec.backbone}) with {wanted}. "
                    "Give checkpoints that read images alike, or embed with each of them by itself."
                )


def _check_possible(
    models: Sequence[VoteModel], device: torch.device, precision: Precision, dropout_passes: int
) -> None:
    if precision == "float16" and device.type == "cpu":
        raise UserError(
            "embedding.precision=float16: processors have no fast arithmetic for it. Take bfloat16, or a GPU."
        )
    without = [number for number, model in enumerate(models, start=1) if not model.spec.head_dropout]
    if dropout_passes and without:
        raise UserError(
            f"embedding.dropout_passes={dropout_passes}: checkpoint number {without[0]} was trained with "
            "head.dropout=0: its passes would all be alike. Set embedding.dropout_passes=0, or train with dropout."
        )
