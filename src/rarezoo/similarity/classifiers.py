"""CKA of the layers of classifiers that were trained on one biased data set."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from rarezoo.cli import UserError, progress
from rarezoo.models.classifier import Classifier
from rarezoo.similarity.activations import capture, find_layers
from rarezoo.similarity.cka import LEAST_BATCH, MinibatchCKA, centred_gram

# Cut into equal parts of at most this, four images or more never leave a batch of fewer than four.
LEAST_BATCH_SIZE = 2 * LEAST_BATCH
_ORDER_SEED = 0


def layers_of(model: Classifier) -> list[str]:
    """Names of all layers below `network`: convolutions, normalisations, activations, pooling and the linear one.

    Left out are dropout and what else passes on its input, and stages and blocks, whose output is their last layer's.
    """
    found = find_layers(model.network, ["*"]).items()
    return [name for name, layer in found if not any(layer.children()) and not isinstance(layer, nn.Flatten)]


def compare_classifiers(
    models: Mapping[str, Classifier],
    pairs: Sequence[tuple[str, str]],
    images: NDArray[np.uint8],
    batch_size: int,
    device: torch.device,
) -> tuple[list[str], NDArray[np.float64]]:
    """Mini-batch CKA of all pairs of layers, for several pairs of networks in one pass over the images.

    The order of the images is drawn once and for all: in the files they may be sorted by class, and batches of one
    class would say nothing of how a layer separates them. The batches differ by one image at most.

    Parameters
    ----------
    models : name -> classifier of the same layers, in evaluation mode
    pairs : names of two of them, or twice the same: rows and columns of its matrix
    images : (N, 3, S, S)
    batch_size : most images in a batch, at least LEAST_BATCH_SIZE

    Returns
    -------
    layers : names (L,), in the order of execution
    cka : (pairs, L, L); NaN in rows and columns of layers that are constant or not finite

    Raises
    ------
    UserError
        for fewer than 4 images
    """
    if len(images) < LEAST_BATCH:
        raise UserError(f"{len(images)} test images: CKA needs at least {LEAST_BATCH}. Give a data set with more.")
    order = np.random.default_rng(_ORDER_SEED).permutation(len(images))
    batches = np.array_split(order, math.ceil(len(order) / batch_size))
    metrics: list[MinibatchCKA] = []
    layers: list[str] = []
    patterns = {name: [f"network.{layer}" for layer in layers_of(model.to(device))] for name, model in models.items()}
    for rows in progress(batches, "comparing", total=len(batches), unit="batch"):
        batch = torch.from_numpy(images[np.sort(rows)]).to(device)
        grams = {name: capture(model, batch, patterns[name], centred_gram).layers for name, model in models.items()}
        if not metrics:
            layers = list(next(iter(grams.values())))
            metrics = [MinibatchCKA(layers, layers, from_grams=True) for _ in pairs]
        for metric, (a, b) in zip(metrics, pairs, strict=True):
            metric.update(grams[a], grams[b])
    with warnings.catch_warnings():
        # The figure shows which layers these are.
        warnings.filterwarnings("ignore", message="CKA is not defined")
        found = np.stack([metric.compute() for metric in metrics])
    return [layer.removeprefix("network.") for layer in layers], found
