"""The random choice of candidates: counts, eligibility, uniformity."""

import pytest
import torch

from detector.ops.sampling import hashed_keys, sample_labels


def labels_with(positives: int, negatives: int, ignored: int) -> torch.Tensor:
    labels = torch.tensor([1] * positives + [0] * negatives + [-1] * ignored)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return labels[order][None]


@pytest.mark.parametrize(
    ("positives", "negatives", "expected_positives", "expected_negatives"),
    [
        (50, 200, 16, 48),  # both abundant: the fraction caps positives
        (5, 200, 5, 59),  # negatives fill what positives leave
        (50, 7, 16, 7),  # too few negatives: empty slots, never more positives
        (0, 200, 0, 64),
        (50, 0, 16, 0),
        (0, 0, 0, 0),
        (3, 4, 3, 4),  # fewer candidates than slots
    ],
)
def test_counts(positives, negatives, expected_positives, expected_negatives):
    labels = labels_with(positives, negatives, 30)
    index, positive, valid = sample_labels(labels, 64, 0.25)
    assert index.shape == positive.shape == valid.shape == (1, 64)
    assert positive.sum() == expected_positives
    assert valid.sum() == expected_positives + expected_negatives
    # Positives first, then negatives, then empty slots of index 0; without replacement.
    drawn = index[valid]
    assert len(drawn.unique()) == len(drawn)
    assert positive[0, :expected_positives].all()
    assert valid[0, : expected_positives + expected_negatives].all()
    assert (labels[0, drawn] == positive[valid].long()).all()
    assert index[~valid].eq(0).all()


def test_each_image_has_its_own_counts():
    labels = torch.cat((labels_with(20, 30, 10), labels_with(0, 5, 55)))
    _, positive, valid = sample_labels(labels, 16, 0.5)
    assert positive.sum(1).tolist() == [8, 0]
    assert valid.sum(1).tolist() == [16, 5]


def test_every_candidate_is_as_likely_as_the_others():
    labels = torch.tensor([1] * 10 + [0] * 20).expand(4000, -1)
    torch.manual_seed(0)
    index, _, valid = sample_labels(labels, 8, 0.5)
    assert valid.all()
    share = torch.bincount(index.flatten(), minlength=30) / 4000
    # 4 of 10 positives and 4 of 20 negatives; five standard deviations of a proportion in 4000.
    torch.testing.assert_close(share[:10], torch.full((10,), 0.4), atol=0.04, rtol=0)
    torch.testing.assert_close(share[10:], torch.full((20,), 0.2), atol=0.032, rtol=0)


def test_seed_decides():
    labels = labels_with(30, 100, 5)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(sample_labels(labels, 32, 0.25)[0])
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_no_positives_wanted():
    _, positive, valid = sample_labels(labels_with(5, 5, 0), 4, 0.0)
    assert not positive.any()
    assert valid.all()


def test_with_seeds_an_image_draws_the_same_in_any_batch() -> None:
    labels = torch.randint(-1, 2, (4, 300))
    seeds = torch.tensor([5, 2**32 - 1, 0, 77])
    whole = sample_labels(labels, 32, 0.25, seeds)
    for image in range(4):
        alone = sample_labels(labels[image, None], 32, 0.25, seeds[image, None])
        for a, b in zip(whole, alone, strict=True):
            assert torch.equal(a[image], b[0])
    assert not torch.equal(whole[0], sample_labels(labels, 32, 0.25, seeds + 1)[0])
    assert not torch.equal(whole[0], sample_labels(labels, 32, 0.25, seeds, stream=1)[0])
    padded = torch.nn.functional.pad(labels, (0, 50), value=-1)
    assert torch.equal(whole[0], sample_labels(padded, 32, 0.25, seeds)[0])


def test_hashed_keys_are_uniform_and_those_of_the_formula() -> None:
    def mix(x: int) -> int:
        x = ((x ^ (x >> 16)) * 0x21F0AAAD) % 2**32
        x = ((x ^ (x >> 15)) * 0x735A2D97) % 2**32
        return x ^ (x >> 15)

    keys = hashed_keys(torch.tensor([3, 2**32 - 2]), 20_000, stream=2)
    for row, seed in enumerate((3, 2**32 - 2)):
        for place in (0, 1, 19_999):
            assert keys[row, place] == (mix(mix(place + 2 * 2**28) ^ seed) >> 8) / 2**24
    # 40 000 draws in 100 cells: chi-squared with 99 degrees of freedom exceeds 149 once in 1000.
    cells = torch.histc(keys, 100, 0, 1)
    assert ((cells - 400) ** 2 / 400).sum() < 149
    # Neighbours, in places and in seeds, are uncorrelated: 5 standard deviations.
    seeds = hashed_keys(torch.arange(200), 200)
    for a, b in ((seeds[1:], seeds[:-1]), (seeds[:, 1:], seeds[:, :-1])):
        pairs = torch.stack((a.flatten(), b.flatten()))
        assert abs(torch.corrcoef(pairs)[0, 1]) < 5 / pairs.shape[1] ** 0.5
