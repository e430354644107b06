"""What the layers of a network give for a batch of images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from rarezoo.cli import UserError, did_you_mean

# In evaluation mode, these give what they are given.
_PASS_ON = (nn.Identity, _DropoutNd, DropPath)
_MAP_AXES = 4


def flattened(activation: Tensor) -> Tensor:
    """All numbers of each image (n, p), in memory of their own: the next layer may overwrite this one's in place."""
    return activation.flatten(1).clone()


def averaged(activation: Tensor) -> Tensor:
    """Mean over the positions of maps (n, channels, height, width) and sequences (n, tokens, channels): (n, channels).

    What has neither shape is flattened. Of networks that keep channels last inside, the mean is over the wrong axes:
    flatten theirs.
    """
    if activation.ndim == _MAP_AXES:
        return activation.mean((2, 3))
    return activation.mean(1) if activation.ndim == _MAP_AXES - 1 else flattened(activation)


@dataclass(frozen=True)
class Captured:
    """What the layers gave for one batch.

    Attributes
    ----------
    layers : name -> what was kept of its output, in the order of execution. A layer that was called more than once has
        an entry for each call: relu#1, relu#2
    left_out : names of layers whose output is no tensor, or has not one row per image, as inside windows
    """

    layers: dict[str, Tensor]
    left_out: tuple[str, ...]


def find_layers(model: nn.Module, patterns: Sequence[str]) -> dict[str, nn.Module]:
    """Modules whose names match a pattern, without those that pass on their input (identity, dropout, drop path).

    Parameters
    ----------
    patterns : as the shell has them: * for any characters, dots among them, ? for one, [0-9] for one of those

    Raises
    ------
    UserError
        naming a pattern that matches no layer
    """
    modules = {name: module for name, module in model.named_modules() if name and not isinstance(module, _PASS_ON)}
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in modules):
            raise UserError(
                f"layers: {type(model).__name__} has no layer '{pattern}' (of dropout and identity, there is none to "
                f"compare). {did_you_mean(pattern, modules)}"
            )
    return {name: module for name, module in modules.items() if any(fnmatchcase(name, each) for each in patterns)}


@torch.no_grad()
def capture(
    model: nn.Module,
    images: Tensor,
    patterns: Sequence[str] = ("*",),
    keep: Callable[[Tensor], Tensor] = flattened,
) -> Captured:
    """Run a network on a batch, and keep something of what each layer gives.

    Whatever happens, no hook is left in the network.

    Parameters
    ----------
    model : in evaluation mode
    images : (n, ...), as the model takes them
    patterns : of `find_layers`
    keep : is given the output of a layer (n, ...) before the next one can overwrite it, and gives what is kept, in
        memory of its own; without a graph

    Raises
    ------
    RuntimeError
        if a part of the model is in training mode
    UserError
        if a pattern matches nothing, or no layer gives a row per image
    """
    training = [name for name, module in model.named_modules() if module.training]
    if training:
        raise RuntimeError(f"{training[0] or 'the model'} is in training mode: call eval() first")
    calls: list[tuple[str, Tensor]] = []
    left_out: dict[str, None] = {}

    def hook_of(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            first = output[0] if isinstance(output, tuple | list) and output else output
            if isinstance(first, Tensor) and first.ndim > 1 and len(first) == len(images) and first.is_floating_point():
                calls.append((name, keep(first.detach())))
            else:
                left_out[name] = None

        return hook

    with ExitStack() as hooks:
        for name, module in find_layers(model, patterns).items():
            hooks.enter_context(module.register_forward_hook(hook_of(name)))
        model(images)
    if not calls:
        raise UserError(
            f"layers={list(patterns)}: of {type(model).__name__}, none of these gives one row per image. Choose others."
        )
    return Captured(_numbered(calls), tuple(left_out))


def _numbered(calls: Sequence[tuple[str, Tensor]]) -> dict[str, Tensor]:
    times = Counter(name for name, _ in calls)
    so_far: Counter[str] = Counter()
    layers: dict[str, Tensor] = {}
    for name, kept in calls:
        so_far[name] += 1
        layers[name if times[name] == 1 else f"{name}#{so_far[name]}"] = kept
    return layers
