"""What a sample outside the map is worth, ties, and bounded memory: below the public ops."""

import pytest
import torch

from detector.ops.reference import sampled_pooling as reference
from detector.ops.sampled_pooling import pool_samples

ROW = [3.0, 1, 4, 1, 5]


def pool_row(values, start, step, samples, cells, border, mode):
    """Pool a map of one row; gives values, argmax and the gradient of the sum of all cells."""
    features = torch.tensor(values).view(1, 1, 1, -1).requires_grad_()
    grid = torch.tensor([[start, 0.0, step, 0.0]])
    counts = torch.tensor([[samples, 1]], dtype=torch.int32)
    pooled, argmax = pool_samples(
        features, torch.tensor([0]), grid, counts, 1, cells, 0, border, mode
    )
    (gradient,) = torch.autograd.grad(pooled.sum(), features)
    return pooled.flatten().tolist(), argmax.flatten().tolist(), gradient.flatten().tolist()


def test_samples_are_numbered_along_the_axis():
    """Samples at 0, 1, 2, 3 in two cells of two: means of 3, 1 and of 4, 1."""
    pooled, argmax, gradient = pool_row(ROW, 0.0, 1.0, 2, 2, "zero", "avg")
    assert (pooled, argmax, gradient) == ([2, 2.5], [], [0.5, 0.5, 0.5, 0.5, 0])
    pooled, argmax, gradient = pool_row(ROW, 0.0, 1.0, 2, 2, "zero", "max")
    assert (pooled, argmax, gradient) == ([3, 4], [0, 0], [1, 0, 1, 0, 0])
    # Backwards, at 3, 2, 1, 0.
    pooled, argmax, gradient = pool_row(ROW, 3.0, -1.0, 2, 2, "zero", "max")
    assert (pooled, argmax, gradient) == ([4, 3], [1, 1], [1, 0, 1, 0, 0])


def test_a_sample_between_cells_shares_its_gradient():
    pooled, argmax, gradient = pool_row(ROW, 1.75, 0.5, 1, 1, "zero", "max")
    assert (pooled, argmax, gradient) == ([3.25], [0], [0, 0.25, 0.75, 0, 0])


@pytest.mark.parametrize(
    ("border", "position", "value"),
    [
        ("clamp", -1.0, 3.0),
        ("clamp", -1.001, 0.0),
        ("clamp", 5.0, 5.0),
        ("clamp", 5.001, 0.0),
        ("zero", 0.0, 3.0),
        ("zero", -0.001, 0.0),
        ("zero", 4.0, 5.0),
        ("zero", 4.001, 0.0),
    ],
)
@pytest.mark.parametrize("mode", ["max", "avg"])
def test_where_the_map_ends(mode, border, position, value):
    pooled, _, gradient = pool_row(ROW, position, 1.0, 1, 1, border, mode)
    assert pooled == [value]
    assert sum(gradient) == (1 if value else 0)


def test_samples_outside_count_in_the_mean():
    """Positions -2, -1, 0, 1, 2, 3 in cells of three."""
    pooled, _, gradient = pool_row(ROW, -2.0, 1.0, 3, 2, "zero", "avg")
    assert pooled == [1, 2]
    third = torch.tensor(1 / 3).item()
    assert gradient == [third] * 4 + [0]


def test_the_largest_may_be_outside_and_then_nothing_gets_the_gradient():
    """A 0 outside is larger than a negative cell and smaller than a positive one."""
    pooled, argmax, gradient = pool_row([-3.0, -1], -1.0, 1.0, 2, 1, "zero", "max")
    assert (pooled, argmax, gradient) == ([0], [-1], [0, 0])
    pooled, argmax, gradient = pool_row([3.0, 1], -1.0, 1.0, 2, 1, "zero", "max")
    assert (pooled, argmax, gradient) == ([3], [1], [1, 0])
    pooled, argmax, gradient = pool_row([-3.0, -1], 0.0, 1.0, 2, 1, "zero", "max")
    assert (pooled, argmax, gradient) == ([-1], [1], [0, 1])


def test_of_equal_samples_the_first_on_the_map_gets_the_gradient():
    pooled, argmax, gradient = pool_row([2.0, 2, 2], 0.0, 1.0, 3, 1, "zero", "max")
    assert (pooled, argmax, gradient) == ([2], [0], [1, 0, 0])
    # A 0 on the map, such as ReLU leaves, comes before a 0 outside.
    pooled, argmax, gradient = pool_row([0.0, -1], -1.0, 1.0, 3, 1, "zero", "max")
    assert (pooled, argmax, gradient) == ([0], [1], [1, 0])


def test_a_nan_on_the_map_is_not_hidden():
    pooled, _, _ = pool_row([1.0, torch.nan, 3], 0.0, 1.0, 3, 1, "zero", "max")
    assert torch.tensor(pooled).isnan().all()


@pytest.mark.parametrize("mode", ["max", "avg"])
@pytest.mark.parametrize("samples", [0, -3])
def test_no_samples_pool_nothing(samples, mode):
    pooled, argmax, gradient = pool_row(ROW, 0.0, 1.0, samples, 2, "clamp", mode)
    assert (pooled, gradient) == ([0, 0], [0] * 5)
    assert argmax == ([-1, -1] if mode == "max" else [])


@pytest.mark.parametrize("mode", ["max", "avg"])
def test_images_that_are_not_there_give_zeros(mode):
    features = torch.ones(2, 1, 3, 3, requires_grad=True)
    grid = torch.tensor([[1.0, 1, 1, 1]]).expand(4, 4)
    counts = torch.ones(4, 2, dtype=torch.int32)
    index = torch.tensor([-1, 1, 2, 2**40])
    pooled, _ = pool_samples(features, index, grid, counts, 1, 1, 1, "clamp", mode)
    assert pooled.flatten().tolist() == [0, 1, 0, 0]
    pooled.sum().backward()
    assert features.grad.sum((1, 2, 3)).tolist() == [0, 1]


@pytest.mark.parametrize("mode", ["max", "avg"])
@pytest.mark.parametrize("border", ["clamp", "zero"])
def test_parts_that_fit_in_memory_make_the_whole(mode, border, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 3, 7, 9, generator=generator, dtype=torch.float64)
    grid = torch.rand(11, 4, generator=generator, dtype=torch.float64) * torch.tensor([5, 4, 1, 1])
    counts = torch.randint(1, 4, (11, 2), generator=generator, dtype=torch.int32)
    where = (torch.arange(11) % 2, grid, counts)
    options = (0, border, mode)
    whole, argmax = reference.pool_samples(features, *where, 2, 3, *options)
    grad = torch.randn(whole.shape, generator=generator, dtype=torch.float64)
    rest = (*features.shape, *options)
    whole_grad = reference.pool_samples_backward(grad, argmax, *where, *rest)

    monkeypatch.setattr(reference, "_CHUNK_BYTES", 2 * 8 * 3 * 2 * 3)  # two RoIs
    parts, argmax_of_parts = reference.pool_samples(features, *where, 2, 3, *options)
    assert torch.equal(parts, whole)
    assert torch.equal(argmax_of_parts, argmax)
    parts_grad = reference.pool_samples_backward(grad, argmax, *where, *rest)
    torch.testing.assert_close(parts_grad, whole_grad)


@pytest.mark.parametrize("mode", ["max", "avg"])
@pytest.mark.parametrize("border", ["clamp", "zero"])
def test_gradient_of_the_op_is_that_of_the_references_graph(mode, border):
    """The reference's forward pass is differentiated by autograd, independently of its backward."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 3, 7, 9, generator=generator, dtype=torch.float64)
    grid = torch.rand(9, 4, generator=generator, dtype=torch.float64) * torch.tensor([8, 6, 3, 3])
    grid = grid - 1.5  # also backwards, also outside
    counts = torch.full((9, 2), 2, dtype=torch.int32)
    where = (torch.arange(9) % 2, grid, counts)
    ours, theirs = features.clone().requires_grad_(), features.clone().requires_grad_()
    pooled, _ = pool_samples(ours, *where, 2, 3, 2, border, mode)
    expected, _ = reference.pool_samples(theirs, *where, 2, 3, 2, border, mode)
    weight = torch.randn(pooled.shape, generator=generator, dtype=torch.float64)
    (pooled * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(pooled, expected)
    torch.testing.assert_close(ours.grad, theirs.grad)
