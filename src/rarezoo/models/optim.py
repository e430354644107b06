"""What is trained, at which rate, and how the rate changes over the steps."""

from __future__ import annotations

import math
from typing import Any

from timm.models import group_parameters
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from rarezoo.cli import UserError


def freeze_all_but_last(backbone: nn.Module, n_blocks: int | None) -> None:
    """Hold all but the last blocks of an encoder: no gradients, no change of running means, no stochastic depth.

    Parameters
    ----------
    backbone : timm encoder; blocks are the finest groups of layers that timm names (`group_matcher`)
    n_blocks : number of blocks at the end that are trained; 0 holds all, None holds none

    Raises
    ------
    UserError
        if the encoder has fewer blocks
    """
    if n_blocks is None:
        return
    encoder: Any = backbone
    block_of: dict[str, int] = group_parameters(backbone, encoder.group_matcher(coarse=False), reverse=True)
    found = sorted(set(block_of.values()))
    if n_blocks > len(found):
        raise UserError(f"retrain.n_blocks={n_blocks}: the encoder has {len(found)} blocks. Give a smaller number.")
    trained = set(found[len(found) - n_blocks :])
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_(block_of[name] in trained)
    for module in backbone.modules():
        own = list(module.parameters())
        if own and not any(parameter.requires_grad for parameter in own):
            module.eval()


def adamw(backbone: nn.Module, rest: nn.Module, lr: float, weight_decay: float, layer_decay: float = 1.0) -> AdamW:
    """AdamW without decay on biases, normalisation layers and what the encoder itself exempts.

    Parameters
    ----------
    backbone : encoder
    rest : bottleneck and head, which learn at the full rate
    layer_decay : factor of the learning rate from each block of the encoder to the one before it, counted from the
        head (Clark et al. 2020, ICLR, Sec. 3.4, as in BEiT); 1 trains all alike
    """
    encoder: Any = backbone
    exempt = encoder.no_weight_decay() if hasattr(backbone, "no_weight_decay") else ()
    groups: list[dict[str, Any]] = param_groups_layer_decay(
        backbone, weight_decay, no_weight_decay_list=exempt, layer_decay=layer_decay
    )
    for group in groups:
        group["lr"] = lr * layer_decay * group.pop("lr_scale")
    trained = param_groups_weight_decay(rest, weight_decay)
    return AdamW([group for group in (*groups, *trained) if group["params"]], lr=lr)


def warmup_cosine(optimizer: Optimizer, n_steps: int, warmup_share: float) -> LambdaLR:
    """Learning rate that rises linearly over the first share of the steps and then falls to zero as a half cosine."""
    n_warmup = max(1, round(n_steps * warmup_share))

    def factor(step: int) -> float:
        if step < n_warmup:
            return (step + 1) / n_warmup
        done = min(1.0, (step - n_warmup) / max(1, n_steps - n_warmup))
        return 0.5 * (1 + math.cos(math.pi * done))

    return LambdaLR(optimizer, factor)
