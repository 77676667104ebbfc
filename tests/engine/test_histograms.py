"""Counted on the device, beside NumPy's histograms."""

import numpy as np
import pytest
import torch

from detector.engine.histograms import count_values


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_counts_are_numpys(dtype):
    torch.manual_seed(0)
    tensors = [torch.randn(7, 40).to(dtype), torch.rand(3, 2, 50).to(dtype)]
    for tensor, found in zip(tensors, count_values(tensors, num_bins=10), strict=True):
        values = tensor.double().numpy().ravel()
        counts, edges = np.histogram(values, bins=10)
        # A value on an edge, of which half precision has some, may be rounded to either side.
        assert np.abs(found.counts - counts).max() <= (0 if dtype == torch.float32 else 4)
        np.testing.assert_allclose(found.limits, edges[1:], rtol=1e-12, atol=1e-12)
        assert (found.count, found.low, found.high) == (values.size, values.min(), values.max())
        assert found.sum == pytest.approx(values.sum(), rel=1e-12, abs=1e-12)
        assert found.sum_squares == pytest.approx((values**2).sum(), rel=1e-12)


def test_what_is_not_finite_is_left_out():
    spoilt = torch.tensor([1.0, float("nan"), 3.0, float("inf"), float("-inf"), 2.0])
    plain, none, empty = count_values([spoilt, spoilt[1:2], spoilt[:0]], num_bins=2)
    assert (plain.count, plain.low, plain.high, plain.sum) == (3, 1.0, 3.0, 6.0)
    assert plain.counts.tolist() == [1, 2]
    assert none is None and empty is None
    assert count_values([]) == []


@pytest.mark.parametrize("value", [0.0, -2.5])
def test_equal_values_lie_in_a_bin_that_has_a_width(value):
    [found] = count_values([torch.full((5,), value)])
    assert found.counts[0] == found.count == 5
    assert (np.diff(found.limits) > 0).all() and found.limits[0] > value
