import pytest
import torch
from torch import nn

from detector.engine.weight_average import WeightAverage


def test_the_average_is_the_recursion_and_leaves_the_trained_model_alone() -> None:
    model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.BatchNorm1d(1))
    average = WeightAverage(model, decay=0.5)
    expected = model[0].weight.detach().clone()
    for step in range(1, 9):
        with torch.no_grad():
            model[0].weight.fill_(float(step))
            model[1].running_mean.fill_(float(step))
            model[1].num_batches_tracked.fill_(step)
        average.update(model, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    torch.testing.assert_close(average.model[0].weight.detach(), expected)
    assert average.model[1].num_batches_tracked.item() == 8
    assert 0 < average.model[1].running_mean.item() < 8
    assert model[0].weight[0, 0].item() == 8.0
    assert not average.model.training and not average.model[0].weight.requires_grad


@pytest.mark.parametrize("decay", [0.0, 1.0, -1.0])
def test_impossible_decays_are_refused(decay: float) -> None:
    with pytest.raises(ValueError, match="ema_decay"):
        WeightAverage(nn.Linear(1, 1), decay)
