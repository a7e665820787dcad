"""Named random streams."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mkdt import seeding

IDENTITIES = st.lists(st.one_of(st.integers(0, 5), st.sampled_from(["a", "b", "1", "a, b"])), max_size=3)
STREAM = st.tuples(st.integers(0, 3), st.sampled_from(["expert", "label draw"]), IDENTITIES)


@given(STREAM, STREAM)
def test_streams_are_equal_exactly_if_all_their_arguments_are(
    first: tuple[int, str, list[int | str]], second: tuple[int, str, list[int | str]]
) -> None:
    """Identities are neither dropped nor joined, so no two experts draw the same numbers."""
    seeds = [seeding.derive(seed, purpose, *who) for seed, purpose, who in (first, second)]
    assert (seeds[0] == seeds[1]) == (first == second)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_derived_seeds_are_the_same_in_every_process() -> None:
    """The expected value is the first 8 bytes of sha256sum, halved; Python's hash() would be salted."""
    assert seeding.derive(0, "expert weights", 1) == 0xBAC5E1EE5B056EC1 >> 1


def test_a_generator_neither_reads_nor_advances_the_global_one() -> None:
    """A draw does not depend on what ran before it in the same job."""
    torch.manual_seed(1)
    first = torch.rand(3, generator=seeding.generator(0, "x"))
    before = torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(first, torch.rand(3, generator=seeding.generator(0, "x")))
    torch.manual_seed(1)
    assert torch.equal(before, torch.get_rng_state())


def test_generators_of_one_name_do_not_advance_each_other() -> None:
    """Each call returns a new generator at the start of the stream."""
    used = seeding.generator(0, "x")
    torch.rand(10, generator=used)
    assert torch.equal(
        torch.rand(3, generator=seeding.generator(0, "x")), torch.rand(3, generator=seeding.generator(0, "x"))
    )


def test_global_stream_determines_the_global_numbers_inside_and_restores_them_outside() -> None:
    """Initial weights of students are drawn this way."""
    torch.manual_seed(1)
    expected = torch.rand(4)
    drawn = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        with seeding.global_stream(0, "weights", 3):
            drawn.append(torch.rand(4))
        assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], expected)


def test_global_stream_restores_after_an_error() -> None:
    """The global generators are restored if the code inside fails."""

    @seeding.global_stream(0, "weights")
    def fail() -> None:
        torch.rand(4)
        raise KeyError("stopped")

    before = torch.get_rng_state()
    with pytest.raises(KeyError, match="stopped"):
        fail()
    assert torch.equal(before, torch.get_rng_state())


@given(size=st.integers(1, 40), batch=st.integers(1, 50), seed=st.integers(0, 10))
def test_batches_use_every_row_once(size: int, batch: int, seed: int) -> None:
    """No row is lost or repeated."""
    parts = list(seeding.batches(size, batch, seeding.generator(seed, "order")))
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(size))
    assert [len(part) for part in parts[:-1]] == [batch] * (len(parts) - 1)
    assert 1 <= len(parts[-1]) <= batch
    assert all(part.dtype == torch.int64 for part in parts)


def test_batches_are_shuffled_by_their_stream() -> None:
    """Different streams give different orders."""
    orders = [torch.cat(list(seeding.batches(50, 7, seeding.generator(0, "order", epoch)))) for epoch in (0, 1)]
    assert not torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], torch.arange(50))
