"""The six objectives that Bangaru et al. (2022) compare, as losses of a batch of images.

Their Table 2 leaves choices open, and has misprints; what is computed here, and why, stands in each docstring and in
docs/objectives.md. f are the outputs of the network, C the number of classes, y one-hot, S the softmax.

Each function takes `outputs` (B, C) and `target`, int64 (B,), and gives the loss of each image, float32 (B,); the
objective is the mean over images. Everything is computed in float32, whatever the autocast; gradients are finite for
outputs of up to 10,000 either way.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from rarezoo.models.biased_settings import ObjectiveSettings

Loss = Callable[[Tensor, Tensor], Tensor]
Over = Literal["sum", "mean"]
# Below this, log(softplus(x)) is x to within float32.
_LOG_SOFTPLUS_LINEAR = -15.0


def softmax_cross_entropy(outputs: Tensor, target: Tensor) -> Tensor:
    """-sum_c y_c log S(f)_c."""
    return functional.cross_entropy(outputs.float(), target, reduction="none")


def binary_cross_entropy(outputs: Tensor, target: Tensor, over: Over) -> Tensor:
    """-[y_c log sigmoid(f_c) + (1 - y_c) log(1 - sigmoid(f_c))], one class against the rest, over all classes.

    Parameters
    ----------
    over : "mean" is torch's reduction, and Table 2 prints no sum; "sum" is C times as large. Table 2 also lacks the
        minus sign, without which it would be maximised.
    """
    outputs = outputs.float()
    each = functional.binary_cross_entropy_with_logits(outputs, _one_hot(outputs, target), reduction="none")
    return _reduced(each, over)


def negative_log_likelihood(outputs: Tensor, target: Tensor, link: Literal["log_softmax", "softplus"]) -> Tensor:
    """-sum_c y_c log p_c, with probabilities p that are made of the outputs.

    Table 2 prints log f, of the output itself, which is no number for f < 0; torch's nll_loss of raw outputs, -f_y, has
    no lower bound. Neither can be trained with.

    Parameters
    ----------
    link : "log_softmax", p = S(f), is what Sec. 4.1 of the paper describes and nll_loss is made for. It equals
        `softmax_cross_entropy`, so that with one seed the two must end at the same weights: a control.
        "softplus", p proportional to log(1 + exp f), is a likelihood of its own, in which the output enters by itself
        where it is large, as in Table 2
    """
    outputs = outputs.float()
    logs = outputs if link == "log_softmax" else _log_softplus(outputs)
    return functional.nll_loss(functional.log_softmax(logs, dim=1), target, reduction="none")


def absolute_error(outputs: Tensor, target: Tensor, of: Literal["softmax", "outputs"], over: Over) -> Tensor:
    """|y_c - S(f)_c|, over all classes.

    Parameters
    ----------
    of : "softmax", as Sec. 4.2 of the paper says, or the "outputs" themselves
    over : "sum", as in Table 2, or "mean", as torch's L1Loss. Table 2 has a minus sign, with which errors would grow.
    """
    outputs = outputs.float()
    return _reduced((_one_hot(outputs, target) - _activated(outputs, of)).abs(), over)


def squared_error(outputs: Tensor, target: Tensor, of: Literal["softmax", "outputs"], over: Over) -> Tensor:
    """(y_c - S(f)_c)^2, over all classes; the Brier score. Parameters as of `absolute_error`."""
    outputs = outputs.float()
    return _reduced((_one_hot(outputs, target) - _activated(outputs, of)).square(), over)


def rescaled_squares(outputs: Tensor, target: Tensor, alpha: float, beta: float, over: Over) -> Tensor:
    """Squares alpha y_c (f_c - beta)^2 + (1 - y_c) f_c^2, over all classes (Hui & Belkin 2021, ICLR, Sec. 4).

    Table 2 prints the first term without its square, which has no lower bound, and with which alpha = beta = 1 would
    not be the plain sum of squares that Sec. 4.2 says it is.

    Parameters
    ----------
    alpha : weight of the image's own class (k in Hui & Belkin)
    beta : what the output of the image's own class is drawn to (M in Hui & Belkin)
    over : "mean" is the 1/C of Table 2
    """
    outputs = outputs.float()
    own = _one_hot(outputs, target)
    return _reduced(alpha * own * (outputs - beta).square() + (1 - own) * outputs.square(), over)


def make_objective(settings: ObjectiveSettings) -> Loss:
    """The objective of that name, (outputs, target) -> loss of each image."""
    chosen = settings.model_dump(exclude={"name"}, exclude_none=True)
    return partial(_OBJECTIVES[settings.name], **chosen)


_OBJECTIVES: dict[str, Callable[..., Tensor]] = {
    "sce": softmax_cross_entropy,
    "bce": binary_cross_entropy,
    "nll": negative_log_likelihood,
    "l1": absolute_error,
    "l2": squared_error,
    "sos": rescaled_squares,
}


def _one_hot(outputs: Tensor, target: Tensor) -> Tensor:
    return functional.one_hot(target, outputs.shape[1]).to(outputs)


def _activated(outputs: Tensor, of: Literal["softmax", "outputs"]) -> Tensor:
    return functional.softmax(outputs, dim=1) if of == "softmax" else outputs


def _reduced(each: Tensor, over: Over) -> Tensor:
    return each.sum(1) if over == "sum" else each.mean(1)


def _log_softplus(outputs: Tensor) -> Tensor:
    # Both branches have finite gradients everywhere: torch.where multiplies the one that is not taken by zero.
    usual = functional.softplus(outputs.clamp(min=_LOG_SOFTPLUS_LINEAR)).log()
    return torch.where(outputs > _LOG_SOFTPLUS_LINEAR, usual, outputs)
