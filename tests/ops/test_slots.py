"""Dropping and restoring empty slots."""

import torch

from detector.ops.slots import keep_empty_slots, put_slots, slots_to_compute, take_slots

VALID = torch.tensor([[True, False, True], [False, False, True]])


def test_cpu_computes_only_filled_slots_unless_told_otherwise():
    assert slots_to_compute(VALID).tolist() == [0, 2, 5]
    with keep_empty_slots():
        assert slots_to_compute(VALID).tolist() == [0, 1, 2, 3, 4, 5]
        with keep_empty_slots():
            pass
        assert len(slots_to_compute(VALID)) == 6, "nesting must not switch it off"
    assert slots_to_compute(VALID).tolist() == [0, 2, 5]


def test_the_switch_is_restored_after_an_error():
    try:
        with keep_empty_slots():
            raise KeyError
    except KeyError:
        pass
    assert len(slots_to_compute(VALID)) == 3


def test_put_inverts_take_and_zeros_the_rest():
    values = torch.arange(12.0).view(2, 3, 2) + 1
    rows = slots_to_compute(VALID)
    taken = take_slots(values, rows)
    assert taken.tolist() == [[1, 2], [5, 6], [11, 12]]
    torch.testing.assert_close(put_slots(taken, rows, like=VALID), values * VALID[..., None])
    with keep_empty_slots():
        rows = slots_to_compute(VALID)
    torch.testing.assert_close(put_slots(take_slots(values, rows), rows, like=VALID), values)


def test_gradients_reach_the_slots_that_were_computed():
    values = torch.ones(2, 3, 2, requires_grad=True)
    rows = slots_to_compute(VALID)
    put_slots(take_slots(values, rows) * 3, rows, like=VALID).sum().backward()
    torch.testing.assert_close(values.grad, 3.0 * VALID[..., None].expand(-1, -1, 2))
