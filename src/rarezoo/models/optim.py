"""Optimiser and learning-rate schedule."""

from __future__ import annotations

import math

from timm.optim import param_groups_weight_decay
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR


def adamw(model: nn.Module, lr: float, weight_decay: float) -> AdamW:
    """AdamW without decay on biases and normalisation layers."""
    return AdamW(param_groups_weight_decay(model, weight_decay), lr=lr)


def warmup_cosine(optimizer: Optimizer, n_steps: int, warmup_share: float) -> LambdaLR:
    """Learning rate that rises linearly over the first share of the steps and then falls to zero as a half cosine."""
    n_warmup = max(1, round(n_steps * warmup_share))

    def factor(step: int) -> float:
        if step < n_warmup:
            return (step + 1) / n_warmup
        done = min(1.0, (step - n_warmup) / max(1, n_steps - n_warmup))
        return 0.5 * (1 + math.cos(math.pi * done))

    return LambdaLR(optimizer, factor)
