"""Mini-batch CKA of every pair of layers of two networks, from unbiased estimates of HSIC.

Song et al. 2012 (JMLR 13, 1393) give the estimate; Nguyen, Raghu & Kornblith 2021 (ICLR, arXiv:2010.15327, eqs. 2 to 4)
the mean over batches. It is computed here as the scalar product of U-centred Gram matrices (Szekely & Rizzo 2014, Ann.
Stat. 42, 2382, Sec. 3), which is the same number: so all pairs of layers are one matrix product.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

# The estimate divides by n (n - 3).
LEAST_BATCH = 4
_MOST_NAMED = 5


def centred_gram(features: Tensor) -> Tensor:
    """U-centred Gram matrix of a batch, all that HSIC needs to know of it.

    Columns are centred first, which changes nothing but the rounding: in float32, features with a large mean would
    otherwise lose all digits. Half precision is computed in float32, whatever the autocast.

    Parameters
    ----------
    features : (n, ...) floating, n >= 4

    Returns
    -------
    (n, n) float64, symmetric, with a diagonal and rows that sum to 0; all 0 where the features are the same for every
    image, up to the rounding of their dtype, and not finite where they are not

    Raises
    ------
    ValueError
        for fewer than 4 rows
    """
    n = len(features)
    if n < LEAST_BATCH:
        raise ValueError(f"a batch of {n} images: unbiased HSIC needs at least {LEAST_BATCH}")
    rows = features.detach().reshape(n, -1)
    with torch.autocast(rows.device.type, enabled=False):
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        mean = rows.mean(0)
        rows = rows - mean
        gram = (rows @ rows.T).double()
    scatter = gram.trace()
    rounding = torch.finfo(features.dtype).eps ** 2 * (scatter + n * mean.double().square().sum())
    gram.fill_diagonal_(0)
    sums = gram.sum(0)
    gram -= (sums[:, None] + sums) / (n - 2)
    gram += sums.sum() / ((n - 1) * (n - 2))
    gram.fill_diagonal_(0)
    return gram * (scatter > rounding)


def hsic1(features_a: Tensor, features_b: Tensor) -> Tensor:
    """Unbiased estimate of HSIC with linear kernels (Song et al. 2012, eq. 5); it may be negative.

    Parameters
    ----------
    features_a, features_b : (n, ...) floating, of the same n >= 4 images

    Returns
    -------
    () float64

    Raises
    ------
    ValueError
        for fewer than 4 rows, or different numbers of them
    """
    n = len(features_a)
    if len(features_b) != n:
        raise ValueError(f"features of {n} and of {len(features_b)} images")
    return (centred_gram(features_a) * centred_gram(features_b)).sum() / (n * (n - 3))


class MinibatchCKA(Metric):
    """CKA of each layer of one network with each layer of another, gathered batch by batch.

    It is the ratio of means over batches, not the mean of ratios; a batch weighs as the images in it do. Sums are kept
    in float64, and processes add theirs up. What is kept does not grow with the number of images.

    Parameters
    ----------
    layers_a, layers_b : names of the layers, in the order of the rows and columns of the result
    from_grams : `update` takes matrices of `centred_gram` rather than features. They can be made as soon as a layer is
        computed, so that the features of no two layers are in memory at once.
    """

    full_state_update = False
    cross: Tensor
    self_a: Tensor
    self_b: Tensor

    def __init__(self, layers_a: Sequence[str], layers_b: Sequence[str], from_grams: bool = False) -> None:
        super().__init__()
        for layers in (layers_a, layers_b):
            if not layers or len(set(layers)) < len(layers):
                raise ValueError(f"layers are named once each, and there is at least one: {list(layers)}")
        self.layers_a, self.layers_b = tuple(layers_a), tuple(layers_b)
        self._from_grams = from_grams
        shape = len(self.layers_a), len(self.layers_b)
        for name, size in (("cross", shape), ("self_a", shape[:1]), ("self_b", shape[1:])):
            self.add_state(name, default=torch.zeros(size, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, features_a: Mapping[str, Tensor], features_b: Mapping[str, Tensor]) -> None:
        """Add a batch of at least 4 images.

        Parameters
        ----------
        features_a, features_b : layer -> (n, ...) of the same images in the same order; one mapping given twice
            compares a network with itself

        Raises
        ------
        ValueError
            for fewer than 4 images, different numbers of them, or a layer that is missing
        """
        grams_a = self._stack(features_a, self.layers_a)
        same = features_b is features_a and self.layers_b == self.layers_a
        grams_b = grams_a if same else self._stack(features_b, self.layers_b)
        n = len(grams_a[0])
        if len(grams_b[0]) != n:
            raise ValueError(f"features of {n} and of {len(grams_b[0])} images: give both networks the same batch")
        flat_a, flat_b = grams_a.flatten(1), grams_b.flatten(1)
        # The n of the weight and that of n (n - 3) leave n - 3.
        for state, sums in (
            (self.cross, flat_a @ flat_b.T),
            (self.self_a, flat_a.square().sum(1)),
            (self.self_b, flat_b.square().sum(1)),
        ):
            state += sums.to(state.device) / (n - 3)

    def compute(self) -> NDArray[np.float64]:
        """CKA (layers of a, layers of b), over all processes.

        It may be slightly negative. Rows and columns of layers that are constant or not finite are NaN, and a warning
        names them.
        """
        # As an array, since torchmetrics makes a number of a tensor of one element.
        cross, self_a, self_b = (sums.cpu().numpy() for sums in (self.cross, self.self_a, self.self_b))
        scale_a, scale_b = (np.sqrt(np.where(sums > 0, sums, np.nan)) for sums in (self_a, self_b))
        unlike = [f"a: {name}" for name, scale in zip(self.layers_a, scale_a, strict=True) if not np.isfinite(scale)]
        unlike += [f"b: {name}" for name, scale in zip(self.layers_b, scale_b, strict=True) if not np.isfinite(scale)]
        if unlike:
            named = ", ".join(unlike[:_MOST_NAMED])
            more = f" and {len(unlike) - _MOST_NAMED} more" if len(unlike) > _MOST_NAMED else ""
            warnings.warn(f"CKA is not defined for layers that are constant or not finite: {named}{more}", stacklevel=2)
        found: NDArray[np.float64] = cross / scale_a[:, None] / scale_b
        return found

    def _stack(self, features: Mapping[str, Tensor], layers: Sequence[str]) -> Tensor:
        if missing := [name for name in layers if name not in features]:
            raise ValueError(f"this batch has no features of {', '.join(missing[:_MOST_NAMED])}")
        chosen = [features[name] for name in layers]
        sizes = {len(each) for each in chosen}
        if len(sizes) > 1:
            raise ValueError(f"features of {sorted(sizes)} images in one batch")
        return torch.stack(chosen if self._from_grams else [centred_gram(each) for each in chosen])
