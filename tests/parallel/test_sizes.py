"""The arithmetic of an iteration, by hand."""

import pytest

from ddpo.parallel.sizes import Sizes

SIZES = Sizes(prompts_per_iteration=6, samples_per_prompt=4, minibatches=3, epochs=2, micro_batch=5)


def test_counts() -> None:
    assert SIZES.images == 24 and SIZES.updates == 6 and SIZES.groups_per_update == 2


def test_samples_are_numbered_group_after_group() -> None:
    assert SIZES.samples([2, 0]) == [8, 9, 10, 11, 0, 1, 2, 3]
    assert [SIZES.group(sample) for sample in SIZES.samples(range(6))] == [
        i // 4 for i in range(24)
    ]


@pytest.mark.parametrize("processes", [1, 2, 4, 5])
def test_processes_share_whole_groups(processes: int) -> None:
    shares = [SIZES.share(process, processes) for process in range(processes)]
    assert [group for share in shares for group in share] == list(range(6))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(
    ("minibatches", "better"), [(1, []), (3, []), (4, [3, 6]), (5, [3, 6]), (7, [6]), (100, [6])]
)
def test_the_next_numbers_of_minibatches_that_divide(minibatches: int, better: list[int]) -> None:
    assert Sizes(6, 4, minibatches=minibatches).better_minibatches() == better
