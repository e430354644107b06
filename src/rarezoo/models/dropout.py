"""Dropout whose draws belong to a galaxy, so that its predictions are the same in any batch, process or device."""

from __future__ import annotations

import torch
from torch import Tensor

# SplitMix64 (Steele, Lea & Flood 2014, OOPSLA, Fig. 16): its increment and the multipliers of its finaliser, as int64.
_INCREMENT = 0x9E3779B97F4A7C15 - (1 << 64)
_MULTIPLIERS = ((30, 0xBF58476D1CE4E5B9 - (1 << 64)), (27, 0x94D049BB133111EB - (1 << 64)))
_LAST_SHIFT = 31
_UNIFORM_BITS = 24


def dropout_factors(rows: Tensor, n_features: int, share: float, *key: int) -> Tensor:
    """Factors that drop a share of each galaxy's features and scale up the others, by integer arithmetic alone.

    Parameters
    ----------
    rows : (batch,) int64, rows of the catalog
    share : probability that a feature is dropped, in [0, 1), kept to 24 bits
    key : whatever else decides the draws, such as seed, model and pass

    Returns
    -------
    (batch, n_features) float32 on the device of the rows: 0 or 1 / (1 - share)
    """
    state = torch.zeros(1, dtype=torch.int64, device=rows.device)
    for number in key:
        state = _mixed(state + _INCREMENT) ^ number
    streams = _mixed(_mixed(state + _INCREMENT) ^ rows)
    steps = torch.arange(1, n_features + 1, device=rows.device) * _INCREMENT
    uniform = _shifted(_mixed(streams[:, None] + steps), 64 - _UNIFORM_BITS)  # whole numbers below 2^24
    kept: Tensor = uniform >= round(share * 2**_UNIFORM_BITS)
    return kept.to(torch.float32) / (1 - share)


def _mixed(state: Tensor) -> Tensor:
    for shift, multiplier in _MULTIPLIERS:
        state = (state ^ _shifted(state, shift)) * multiplier
    return state ^ _shifted(state, _LAST_SHIFT)


def _shifted(state: Tensor, n_bits: int) -> Tensor:
    """Shift right as unsigned numbers, of which torch has too little arithmetic."""
    return (state >> n_bits) & ((1 << (64 - n_bits)) - 1)
