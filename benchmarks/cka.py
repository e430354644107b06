"""CKA of all pairs of layers of two ResNet18: time, peak memory, and the error against the value on all images.

Beside rarezoo, other packages run where they are installed; they are no dependencies of it:

    python -m pip install torch_cka pytorch-cka cka-pytorch seaborn
    python benchmarks/cka.py

torch_cka 0.21 is the oldest and best known, pytorch-cka 1.1 says that it is the fastest, and cka-pytorch 1.1 computes
the Gram matrix of a layer before the next one can overwrite it, as rarezoo does. Each runs in a process of its own,
whose peak memory (Linux) is counted from where it stood before. All get the same images in the same batches.

The value on all images is computed from the Gram matrices of all pairs of blocks of images, in float64, with the
formula of Nguyen et al. 2021 as printed. The last two columns are the largest error over all pairs of layers, and over
those pairs of which neither layer is overwritten by a ReLU in place.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import resnet18

from rarezoo.similarity import MinibatchCKA, capture, centred_gram

# Rows of a block of the value on all images.
_BLOCK = 500


@dataclass(frozen=True)
class Task:
    """What is compared."""

    n_images: int
    size: int
    batch_size: int
    threads: int

    def models(self) -> list[nn.Module]:
        """Two networks with random weights."""
        found = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            found.append(resnet18().eval())
        return found

    def layers(self) -> list[str]:
        """All modules that run once, in the order of execution: the packages do not number the calls of the others."""
        found = capture(self.models()[0], torch.zeros(2, 3, self.size, self.size)).layers
        return [name for name in found if "#" not in name and name != "relu"]

    def loader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Images and labels of 0, in batches of one size."""
        images = make_images(self)
        return DataLoader(TensorDataset(images, torch.zeros(len(images))), self.batch_size, drop_last=True)


@cache
def make_images(task: Task) -> Tensor:
    """Smooth random images (n_images, 3, size, size)."""
    coarse = torch.rand(task.n_images, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    return torch.nn.functional.interpolate(coarse, size=(task.size, task.size), mode="bilinear")


def with_rarezoo(task: Task) -> NDArray[np.float64]:
    """Ours."""
    (model_a, model_b), layers = task.models(), task.layers()
    metric = MinibatchCKA(layers, layers, from_grams=True)
    for images, _ in task.loader():
        metric.update(*(capture(model, images, layers, centred_gram).layers for model in (model_a, model_b)))
    return metric.compute()


def with_torch_cka(task: Task) -> NDArray[np.float64]:
    """torch_cka 0.21; its rows follow the execution, whatever the order of the names that it exports."""
    from torch_cka import CKA

    comparison = CKA(*task.models(), "one", "other", task.layers(), task.layers())
    with torch.no_grad():
        comparison.compare(task.loader())
    return comparison.export()["CKA"].double().numpy()


def with_pytorch_cka(task: Task) -> NDArray[np.float64]:
    """pytorch-cka 1.1."""
    # Its module has the name of this file, whose folder comes first.
    sys.path[:] = [folder for folder in sys.path if Path(folder).resolve() != Path(__file__).resolve().parent]
    from cka import compute_cka

    found = compute_cka(*task.models(), task.loader(), layers=task.layers(), device="cpu", progress=False)
    return found[0].double().numpy()


def with_cka_pytorch(task: Task) -> NDArray[np.float64]:
    """cka-pytorch 1.1; its rows are in an order of its own, and it leaves out containers (layer1 to 4, downsample).

    Its default epsilon of 1e-4, added to the product of two HSIC, would outweigh those of layers with small numbers.
    """
    from cka_pytorch import CKACalculator

    layers = task.layers()
    comparison = CKACalculator(*task.models(), layers, layers, verbose=False)
    names = comparison.hook_manager1.module_names
    found = np.full((len(layers), len(layers)), np.nan)
    rows = [layers.index(name) for name in names]
    found[np.ix_(rows, rows)] = comparison.calculate_cka_matrix(task.loader(), 1, epsilon=0.0).double().numpy()
    return found


METHODS: dict[str, Callable[[Task], NDArray[np.float64]]] = {
    "rarezoo": with_rarezoo,
    "torch_cka": with_torch_cka,
    "pytorch-cka": with_pytorch_cka,
    "cka-pytorch": with_cka_pytorch,
}


def on_all_images(task: Task) -> NDArray[np.float64]:
    """CKA with HSIC of all images at once, from sums over pairs of blocks."""
    models, layers = task.models(), task.layers()
    blocks = torch.split(make_images(task)[: task.n_images // task.batch_size * task.batch_size], _BLOCK)
    n = sum(map(len, blocks))
    n_layers = 2 * len(layers)
    products = np.zeros((n_layers, n_layers))
    row_sums = np.zeros((n_layers, n))

    def features(block: Tensor, offsets: list[Tensor] | None) -> list[Tensor]:
        found = [value for model in models for value in capture(model, block, layers).layers.values()]
        return found if offsets is None else [value - offset for value, offset in zip(found, offsets, strict=True)]

    # A common offset changes nothing but the digits that are lost.
    offsets = [value.mean(0) for value in features(blocks[0], None)]
    for first, block in enumerate(blocks):
        own = features(block, offsets)
        for second in range(first, len(blocks)):
            others = own if second == first else features(blocks[second], offsets)
            grams = torch.stack([(x @ y.T).double() for x, y in zip(own, others, strict=True)])
            if second == first:
                grams.diagonal(dim1=1, dim2=2).zero_()
            else:
                row_sums[:, second * _BLOCK :][:, : len(blocks[second])] += grams.sum(1).numpy()
            row_sums[:, first * _BLOCK :][:, : len(block)] += grams.sum(2).numpy()
            flat = grams.flatten(1).numpy()
            products += (1 + (second > first)) * flat @ flat.T
    totals = row_sums.sum(1)
    hsic = products + np.outer(totals, totals) / ((n - 1) * (n - 2)) - 2 / (n - 2) * row_sums @ row_sums.T
    scale = np.sqrt(np.diag(hsic))
    half = len(layers)
    return (hsic / np.outer(scale, scale))[:half, half:]


def measured(name: str, task: Task) -> tuple[float, float, NDArray[np.float64]] | str:
    """Seconds, MB of memory beyond those before, and the matrix; or why there is none."""
    torch.set_num_threads(task.threads)
    task.models(), make_images(task)
    before, start = _peak(), time.perf_counter()
    try:
        found = METHODS[name](task)
    except ImportError as error:
        return f"not installed ({error})"
    return time.perf_counter() - start, _peak() - before, found


def _peak() -> float:
    """MB; Linux's ru_maxrss is at least that of the parent process, so not this process's own."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


def not_overwritten(task: Task) -> NDArray[np.bool_]:
    """Layers whose output no later layer changes in place."""
    model, layers = task.models()[0], task.layers()
    kept: dict[str, Tensor] = {}
    modules = dict(model.named_modules())
    hooks = [
        modules[name].register_forward_hook(lambda module, given, output, name=name: kept.update({name: output}))
        for name in layers
    ]
    images = make_images(task)[:4]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    found = capture(model, images, layers).layers
    return np.array([torch.equal(kept[name].flatten(1), found[name]) for name in layers])


def rows(task: Task, names: list[str]) -> Iterator[str]:
    """Lines of the table, as they are measured."""
    torch.set_num_threads(task.threads)
    expected = on_all_images(task)
    safe = not_overwritten(task)
    yield f"{len(expected)} layers, {len(safe) - safe.sum()} of them overwritten in place"
    yield "| package | layers | seconds | peak memory, MB | largest error | of layers not overwritten |"
    yield "|---|---|---|---|---|---|"
    for name in names:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            found = process.submit(measured, name, task).result()
        if isinstance(found, str):
            yield f"| {name} | {found} | | | | |"
            continue
        seconds, memory, matrix = found
        error = np.abs(matrix - expected)
        worst, worst_safe = np.nanmax(error), np.nanmax(error[np.ix_(safe, safe)])
        n_layers = np.isfinite(matrix).any(1).sum()
        yield f"| {name} | {n_layers} | {seconds:.1f} | {memory:.0f} | {worst:.4f} | {worst_safe:.4f} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=64, help="side of the images in pixels")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--packages", nargs="*", default=list(METHODS), choices=list(METHODS))
    settings = parser.parse_args()
    task = Task(settings.images, settings.size, settings.batch_size, settings.threads)
    print(f"torch {torch.__version__}, load average {os.getloadavg()[0]:.2f}, {task}")
    for line in rows(task, settings.packages):
        print(line, flush=True)


if __name__ == "__main__":
    main()
