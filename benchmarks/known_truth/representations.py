"""What each galaxy of a survey is represented by: networks trained in several ways, votes, and plain pixels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from sklearn.decomposition import PCA

from known_truth.runs import Source, option
from rarezoo.cli import UserError, progress
from rarezoo.clustering.whitening import whitening_of
from rarezoo.data.images import read_image
from rarezoo.embeddings import open_embeddings
from rarezoo.embeddings.store import Embeddings
from rarezoo.models.backbones import create_backbone
from rarezoo.provenance import written_beside

BACKBONE = "backbone=efficientnet_lite0"
_ENCODER = "tf_efficientnet_lite0"
PIXEL_SIZE, PIXEL_COMPONENTS = 32, 64
WHITENING = 0.75

Representation = NDArray[np.float32]
Reader = Callable[[Embeddings, NDArray[np.int64]], Representation]


def _numbers(embeddings: Embeddings, rows: NDArray[np.int64]) -> Representation:
    return embeddings.representation[rows].astype(np.float32, copy=False)


def _whitened(embeddings: Embeddings, rows: NDArray[np.int64]) -> Representation:
    x = _numbers(embeddings, rows)
    return whitening_of(x, WHITENING)(x)


def _features(embeddings: Embeddings, rows: NDArray[np.int64]) -> Representation:
    if embeddings.features is None:
        raise UserError(
            f"{embeddings.path}: holds no features from before the bottleneck. Remove its folder, so that it is "
            "embedded again."
        )
    return embeddings.features[rows].astype(np.float32)


def _votes(embeddings: Embeddings, rows: NDArray[np.int64]) -> Representation:
    return embeddings.vote_fractions(rows)


def _pixels(embeddings: Embeddings, rows: NDArray[np.int64]) -> Representation:
    return pixel_components(embeddings.files[rows])


class Recipe(NamedTuple):
    """The network that a representation is of, and what is read of its embedding."""

    network: str
    read: Reader


RECIPES: Mapping[str, Recipe] = {
    "bottleneck": Recipe("bottleneck", _numbers),
    "whitened": Recipe("bottleneck", _whitened),
    "features": Recipe("bottleneck", _features),
    "votes": Recipe("bottleneck", _votes),
    "pixels": Recipe("bottleneck", _pixels),
    "layernorm": Recipe("layernorm", _numbers),
    "unbottlenecked": Recipe("unbottlenecked", _numbers),
    "imagenet": Recipe("imagenet", _features),
    "random": Recipe("random", _features),
}
"""Name -> what it is.

bottleneck: the paper's 128 numbers; whitened: the same with their principal components made more alike in spread
(`rarezoo.clustering.whitening`, power 0.75); features: the 1,280 before them, of the same network; votes: the fractions
of all answers that it expects; pixels: principal components of the images; layernorm: 128 numbers with layer
normalisation; unbottlenecked: the 1,280 features of a network trained without a bottleneck; imagenet, random: features
of an encoder with these weights, of which the votes train the bottleneck and the head alone.
"""


def networks_of(names: Sequence[str], epochs: int, seed: int, out: Path) -> dict[str, tuple[str, ...]]:
    """Networks that representations need -> their own overrides of train.py.

    Parameters
    ----------
    names : of `RECIPES`
    epochs : of those whose encoder learns; one is enough for a head
    seed : of random weights
    out : absolute folder, for the file of random weights
    """
    learns, held = f"trainer.max_epochs={epochs}", ("trainer.max_epochs=1", "retrain=head")
    made: Mapping[str, Callable[[], tuple[str, ...]]] = {
        "bottleneck": lambda: (learns,),
        "layernorm": lambda: (learns, "bottleneck=d128_layernorm"),
        "unbottlenecked": lambda: (learns, "bottleneck=none"),
        "imagenet": lambda: held,
        "random": lambda: (*held, option("backbone.weights", random_encoder(out, seed))),
    }
    return {network: made[network]() for network in sorted({RECIPES[name].network for name in names})}


def networks_with_features(names: Sequence[str]) -> frozenset[str]:
    """Networks whose features some of the representations read."""
    return frozenset(RECIPES[name].network for name in names if RECIPES[name].read is _features)


def representations_of(
    source: Source, names: Sequence[str], ids: NDArray[np.object_]
) -> dict[str, Callable[[], Representation]]:
    """Name -> what reads it, (N, D), in the order of the ids; its network is trained when it is first read."""
    return {name: partial(_read, source, RECIPES[name], ids) for name in names}


def _read(source: Source, recipe: Recipe, ids: NDArray[np.object_]) -> Representation:
    with open_embeddings(source.embeddings(recipe.network)) as embeddings:
        return recipe.read(embeddings, embeddings.rows_of(ids))


def random_encoder(out: Path, seed: int) -> Path:
    """File of an encoder's weights as they are before any training.

    Training holds an encoder only where it is given weights, so that nobody embeds with random ones by mistake.
    """
    path = out / f"random-encoder-seed{seed}.safetensors"
    if not path.is_file():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            weights = create_backbone(_ENCODER).state_dict()
        with written_beside(path) as temporary:
            save_file(weights, temporary)
    return path


def pixel_components(files: Sequence[str] | NDArray[np.object_]) -> Representation:
    """Principal components of images, resized to 32 px; (N, 64), or as many as the images allow.

    Exact, from the covariance of the pixels, and so without a seed.

    Parameters
    ----------
    files : (N,) paths
    """
    pixels = np.empty((len(files), 3 * PIXEL_SIZE**2), np.float32)
    for row, file in enumerate(progress(files, "Reading pixels", unit="images")):
        pixels[row] = read_image(file, PIXEL_SIZE).ravel() / np.float32(255)
    components = PCA(min(PIXEL_COMPONENTS, *pixels.shape), svd_solver="covariance_eigh")
    found: Representation = components.fit_transform(pixels).astype(np.float32, copy=False)
    return found
