import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rarezoo.data.batches import EpochBatches, ResumableLoader


class Numbers:
    """A data set whose items are their own numbers."""

    def __init__(self, n_items: int) -> None:
        self._n_items = n_items

    def __len__(self) -> int:
        return self._n_items

    def __getitem__(self, index: int) -> int:
        return index


def loader(n_items=23, batch_size=4, seed=3, n_workers=0) -> ResumableLoader:
    batches = EpochBatches(n_items, batch_size, seed)
    return ResumableLoader(Numbers(n_items), batch_sampler=batches, num_workers=n_workers, collate_fn=list)


def all_ranks(n_items, batch_size, seed, n_ranks) -> list[list[list[int]]]:
    return [list(EpochBatches(n_items, batch_size, seed, rank, n_ranks)) for rank in range(n_ranks)]


@given(st.integers(0, 60), st.integers(1, 9), st.integers(1, 5))
def test_evaluation_reads_every_galaxy_once_in_as_many_batches_on_every_rank(n_items, batch_size, n_ranks):
    ranks = all_ranks(n_items, batch_size, None, n_ranks)
    assert sorted(item for rank in ranks for batch in rank for item in batch) == list(range(n_items))
    assert len({len(rank) for rank in ranks}) == 1
    assert all(len(batch) <= batch_size for rank in ranks for batch in rank)
    assert len(ranks[0]) == len(EpochBatches(n_items, batch_size, None, 0, n_ranks))


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 5), st.integers(0, 5))
def test_training_gives_each_rank_whole_batches_of_different_galaxies(n_items, batch_size, n_ranks, seed):
    ranks = all_ranks(n_items, batch_size, seed, n_ranks)
    read = [item for rank in ranks for batch in rank for item in batch]
    assert len(set(read)) == len(read)
    if n_items >= batch_size * n_ranks:
        assert {len(batch) for rank in ranks for batch in rank} == {batch_size}
        assert n_items - len(read) < batch_size * n_ranks
    else:
        assert sorted(read) == list(range(n_items))


def test_ranks_together_read_the_batches_of_one_process_with_larger_ones():
    one = list(EpochBatches(40, 8, seed=1))
    first, second = all_ranks(40, 4, 1, 2)
    assert [sorted([*a, *b]) for a, b in zip(first, second, strict=True)] == [sorted(batch) for batch in one]


def test_order_of_an_epoch_depends_on_seed_and_epoch_alone():
    first, second = EpochBatches(50, 5, 3), EpochBatches(50, 5, 3)
    list(first), list(first)
    first.set_epoch(4)
    second.set_epoch(4)
    assert list(first) == list(second)
    assert list(first) != list(EpochBatches(50, 5, 4))
    second.set_epoch(5)
    assert list(first) != list(second)


@pytest.mark.parametrize("n_workers", [0, 2])
@pytest.mark.parametrize("n_done", [0, 1, 4])
def test_loader_goes_on_where_the_state_was_taken(n_done, n_workers):
    whole = list(loader())
    broken = loader(n_workers=n_workers)
    reading = iter(broken)
    begun = [next(reading) for _ in range(n_done)]
    state = broken.state_dict()
    fresh = loader(n_workers=n_workers)
    fresh.load_state_dict(state)
    # As Lightning does, which makes the iterator before it names the epoch.
    going_on = iter(fresh)
    fresh.batch_sampler.set_epoch(0)
    assert begun + list(going_on) == whole
    assert len(fresh) == len(whole)
    fresh.batch_sampler.set_epoch(1)
    assert np.size(list(fresh)) == np.size(whole)


def test_state_of_a_whole_epoch_leaves_nothing_out_of_the_next():
    done = loader()
    list(done)
    fresh = loader()
    fresh.load_state_dict(done.state_dict())
    fresh.batch_sampler.set_epoch(1)
    assert len(list(fresh)) == len(fresh)


def test_epoch_that_went_on_can_be_broken_off_again():
    first = loader()
    first.load_state_dict({"n_batches": 2})
    reading = iter(first)
    next(reading)
    assert first.state_dict() == {"n_batches": 3}
