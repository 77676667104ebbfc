"""Loaders of processes that share the batches, against that of one process."""

from itertools import islice
from pathlib import Path

import pytest
import torch

from detector.data.dataset import DetectionDataset
from detector.data.loader import build_eval_loader, build_train_loader


@pytest.fixture(scope="module")
def dataset(shapes_root: Path) -> DetectionDataset:
    return DetectionDataset("annotations/instances_train.json", "train", root=shapes_root)


def test_parts_of_batches_are_the_batch(dataset: DetectionDataset) -> None:
    """Over the end of an epoch, whose last batch is filled up; seeds belong to the images."""
    one = build_train_loader(dataset, 8, seed=3)
    parts = [build_train_loader(dataset, 8, seed=3, rank=r, num_ranks=4) for r in range(4)]
    for whole, *shared in zip(islice(one, 3), *parts, strict=False):
        assert torch.cat([part.image_ids for part in shared]).equal(whole.image_ids)
        assert torch.cat([part.targets.seeds for part in shared]).equal(whole.targets.seeds)
        assert len(whole.targets.seeds.unique()) > 4
    assert one.state_dict() == parts[1].state_dict()


def test_another_number_of_processes_goes_on_where_the_former_stopped(
    dataset: DetectionDataset,
) -> None:
    first = build_train_loader(dataset, 4, rank=1, num_ranks=2)
    next(iter(first))
    one = build_train_loader(dataset, 4)
    expected = list(islice(one, 2))[1].image_ids
    parts = []
    for rank in range(4):
        loader = build_train_loader(dataset, 4, rank=rank, num_ranks=4)
        loader.load_state_dict(first.state_dict())
        parts.append(next(iter(loader)).image_ids)
    assert torch.cat(parts).equal(expected)


def test_batches_at_a_position_of_every_rank(dataset: DetectionDataset) -> None:
    loader = build_train_loader(dataset, 4, rank=1, num_ranks=2)
    own = [batch.image_ids.tolist() for batch in loader.batches_at((0, 1), 2)]
    every = [b.image_ids.tolist() for b in loader.batches_at((0, 1), 2, every_rank=True)]
    assert len(every) == 4 and every[1::2] == own


def test_a_batch_that_cannot_be_divided_is_refused(dataset: DetectionDataset) -> None:
    with pytest.raises(ValueError, match=r"data\.batch_size=6.* among 4.*multiple of 4"):
        build_train_loader(dataset, 6, rank=0, num_ranks=4)


@pytest.mark.parametrize(("size", "ranks"), [(5, 2), (1, 5), (12, 3)])
def test_each_image_is_evaluated_on_one_rank(dataset, size: int, ranks: int) -> None:
    one = [tuple(batch.image_ids.tolist()) for batch in build_eval_loader(dataset, size)]
    loaders = [build_eval_loader(dataset, size, rank=r, num_ranks=ranks) for r in range(ranks)]
    shards = [[tuple(batch.image_ids.tolist()) for batch in loader] for loader in loaders]
    assert sorted(batch for shard in shards for batch in shard) == sorted(one)
    assert len(shards[0]) == max(map(len, shards)) <= min(map(len, shards)) + 1
