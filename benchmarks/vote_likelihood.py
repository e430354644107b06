"""Time of the vote likelihood, forward and backward, beside the loss of the zoobot package.

zoobot is no dependency of rarezoo. One file of it is needed, which imports torch alone:

    python -m pip install --no-deps --target zoobot_only zoobot==2.9.0
    PYTHONPATH=zoobot_only python benchmarks/vote_likelihood.py

Without it, rarezoo's own times are printed. Both are measured in turns, in one process; a time is the median.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from rarezoo.votes import Schema, expected_vote_fractions, load_schema, vote_nll

try:
    from zoobot.pytorch.training import losses as zoobot
except ImportError:
    zoobot = None

SCHEMAS = ("decals_all_campaigns", "gz_evo_v2")
BATCHES = (64, 128, 256, 512, 1024)
VOLUNTEERS = 40


def realistic_counts(schema: Schema, batch: int, generator: torch.Generator) -> Tensor:
    """Votes of 40 volunteers who walk down the tree of one campaign, another one for each galaxy.

    Returns
    -------
    (batch, answers) float32, whole numbers
    """
    weights = torch.rand(batch, len(schema.label_cols), generator=generator) ** 3 + 1e-3
    fractions = expected_vote_fractions(weights, schema)
    asked = schema.p_asked(fractions)
    campaign = torch.randint(0, len(schema.campaigns), (batch,), generator=generator)
    for index, questions in enumerate(schema.campaigns.values()):
        asked[:, list(questions)] *= (campaign == index)[:, None]
    expected = VOLUNTEERS * fractions * asked[:, schema.question_of()]
    return torch.floor(expected + torch.rand(expected.shape, generator=generator))


def dense_counts(schema: Schema, batch: int, generator: torch.Generator) -> Tensor:
    """Votes on every answer of every campaign, which no catalog has: the worst case.

    Returns
    -------
    (batch, answers) float32, whole numbers of 1 to 15
    """
    return torch.randint(1, 16, (batch, len(schema.label_cols)), generator=generator).float()


def rarezoo_step(schema: Schema, concentrations: Tensor, counts: Tensor) -> Callable[[], None]:
    """One forward and backward pass of ours."""
    return lambda: vote_nll(concentrations.clone().requires_grad_(), counts, schema).sum(1).mean().backward()


def zoobot_step(schema: Schema, concentrations: Tensor, counts: Tensor) -> Callable[[], None]:
    """One forward and backward pass of zoobot's, with its own layout of labels made beforehand."""
    pairs = {question.name: [f"_{answer}" for answer in question.answers] for question in schema.questions}
    loss = zoobot.CustomMultiQuestionLoss(pairs, zoobot.get_dirichlet_neg_log_prob, sum_over_questions=True)
    labels = {column: counts[:, index].clone() for index, column in enumerate(schema.label_cols)}
    return lambda: loss(concentrations.clone().requires_grad_(), labels).mean().backward()


def seconds(step: Callable[[], None], device: str) -> float:
    """Wall time of one step, with the device waited for."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def medians(steps: list[Callable[[], None]], device: str, repeats: int) -> list[float]:
    """Median time of each step in milliseconds; the steps take turns, so that a busy moment hits all of them."""
    for step in steps * 3:
        step()
    times = [[seconds(step, device) for step in steps] for _ in range(repeats)]
    return [1e3 * statistics.median(column) for column in zip(*times, strict=True)]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=31)
    settings = parser.parse_args()
    torch.set_num_threads(settings.threads)
    print(
        f"torch {torch.__version__}, {settings.threads} threads, median of {settings.repeats}, "
        f"load average {os.getloadavg()[0]:.2f}, zoobot {'beside it' if zoobot else 'not installed'}"
    )
    print("| device | schema | counts | batch | rarezoo, ms | zoobot, ms | ratio |\n|---|---|---|---|---|---|---|")
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        for name in SCHEMAS:
            for make in (realistic_counts, dense_counts):
                for batch in BATCHES:
                    print(_row(device, name, make, batch, settings.repeats), flush=True)


def _row(
    device: str, name: str, make: Callable[[Schema, int, torch.Generator], Tensor], batch: int, repeats: int
) -> str:
    generator = torch.Generator().manual_seed(batch)
    schema = load_schema(name)
    concentrations = (1 + 100 * torch.rand(batch, len(schema.label_cols), generator=generator)).to(device)
    counts = make(schema, batch, generator).to(device)
    makers = [rarezoo_step, zoobot_step] if zoobot else [rarezoo_step]
    times = medians([step(schema, concentrations, counts) for step in makers], device, repeats)
    theirs = f"{times[1]:.2f} | {times[1] / times[0]:.1f}" if zoobot else "- | -"
    return f"| {device} | {name} | {make.__name__.partition('_')[0]} | {batch} | {times[0]:.2f} | {theirs} |"


if __name__ == "__main__":
    main()
