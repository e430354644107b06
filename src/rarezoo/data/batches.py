"""Which galaxies each process reads, in which order, and where an epoch goes on that was broken off."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Sampler

from rarezoo.data.images import GalaxyBatch


class EpochBatches(Sampler[list[int]]):
    """Batches of one epoch, as one process of several reads them.

    The galaxies are cut into batches of all processes together, and each takes every n-th of each batch. So every
    galaxy is read exactly once whatever the number of processes, all of them read the same number of batches, and in
    the last batch of an evaluation some may find fewer galaxies than others, or none.

    Parameters
    ----------
    n_items : galaxies
    batch_size : galaxies per batch and process
    seed : shuffle by seed and epoch alone, so that a resumed run goes on as it would have, and leave out a last,
        smaller batch unless it is the only one; None keeps the order, and all galaxies
    rank, n_ranks : number of this process and of all
    """

    def __init__(self, n_items: int, batch_size: int, seed: int | None = None, rank: int = 0, n_ranks: int = 1) -> None:
        self._n_items = n_items
        self._together = batch_size * n_ranks
        self._seed = seed
        self._rank = rank
        self._n_ranks = n_ranks
        self._epoch = 0
        self._done = 0

    @property
    def sampler(self) -> EpochBatches:
        """Where Lightning looks for `set_epoch`."""
        return self

    def __len__(self) -> int:
        if self._seed is not None and self._n_items >= self._together:
            return self._n_items // self._together
        return -(-self._n_items // self._together)

    def __iter__(self) -> Iterator[list[int]]:
        first, self._done = self._done, 0
        order = np.arange(self._n_items)
        if self._seed is not None:
            order = np.random.default_rng((self._seed, self._epoch)).permutation(self._n_items)
        for index in range(first, len(self)):
            batch = order[index * self._together : (index + 1) * self._together]
            yield batch[self._rank :: self._n_ranks].tolist()

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of that epoch."""
        self._epoch = epoch

    def go_on_after(self, n_batches: int) -> None:
        """Leave out the first batches of the next epoch that is read; a whole epoch's worth leaves out none."""
        self._done = n_batches % max(1, len(self))


class BlockBatches(Sampler[list[int]]):
    """Batches of blocks of rows, in their order; none reaches from one block into the next.

    Parameters
    ----------
    blocks : ranges of rows
    batch_size : galaxies per batch; the last of a block may have fewer
    """

    def __init__(self, blocks: Sequence[range], batch_size: int) -> None:
        self._blocks = blocks
        self._batch_size = batch_size

    def __len__(self) -> int:
        return sum(self.n_batches(block) for block in self._blocks)

    def __iter__(self) -> Iterator[list[int]]:
        for block in self._blocks:
            for first in range(block.start, block.stop, self._batch_size):
                yield list(range(first, min(first + self._batch_size, block.stop)))

    def n_batches(self, block: range) -> int:
        """Batches that a block is read in."""
        return -(-len(block) // self._batch_size)


class ResumableLoader(DataLoader[GalaxyBatch]):
    """Loader that knows how much of an epoch it has given, which Lightning keeps in its checkpoints."""

    batch_sampler: EpochBatches
    _n_given = 0

    def __iter__(self) -> Iterator[GalaxyBatch]:  # type: ignore[override]  # torch names its own iterator class
        first = self.batch_sampler._done
        for index, batch in enumerate(super().__iter__()):
            self._n_given = first + index + 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Number of batches given in this epoch."""
        return {"n_batches": self._n_given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the batches that an interrupted run had."""
        self._n_given = int(state["n_batches"])
        self.batch_sampler.go_on_after(self._n_given)
