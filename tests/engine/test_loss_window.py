import pytest
import torch

from detector.engine.loss_window import LossWindow, NonFiniteLoss


def test_reading_gives_means_and_begins_anew() -> None:
    window = LossWindow()
    for step, value in ((1, 1.0), (2, 3.0)):
        loss = torch.tensor(value, requires_grad=True)
        window.add(step, torch.tensor([step]), {"loss": loss, "loss_box": loss * 2})
    assert window.check() == {"loss": 2.0, "loss_box": 4.0}
    assert window.read() == {"loss": 2.0, "loss_box": 4.0}
    assert window.read() == {}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_first_bad_step_is_named_with_losses_and_images(value: float) -> None:
    window = LossWindow()
    window.add(7, torch.tensor([1, 2]), {"loss": torch.tensor(1.0)})
    window.add(8, torch.tensor([30, 40]), {"loss": torch.tensor(value)})
    window.add(9, torch.tensor([5, 6]), {"loss": torch.tensor(float("nan"))})
    with pytest.raises(NonFiniteLoss, match=rf"step 8: loss {value}; image ids \[30, 40\]"):
        window.check()
