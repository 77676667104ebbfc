import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from detector.engine.optimizer import (
    build_optimizer,
    check_gradient_clip,
    describe_optimizer,
    parameter_groups,
    restore_optimizer,
    set_learning_rate,
)
from detector.engine.schedule import MultiStep


def network() -> nn.Sequential:
    layers = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.Conv2d(4, 2, 1)
    )
    layers[3].weight.requires_grad_(False)
    return layers


def test_groups_hold_every_trainable_parameter_once_with_its_own_decay_and_rate() -> None:
    model = network()
    model.add_module("again", model[0])  # a shared layer
    groups = {
        group["name"]: group
        for group in parameter_groups(
            model, lr=0.1, weight_decay=0.01, bias_weight_decay=0.005, bias_lr_factor=2.0
        )
    }
    sizes = {name: [p.shape for p in group["params"]] for name, group in groups.items()}
    assert sizes["weights"] == [model[0].weight.shape]
    assert len(sizes["norms"]) == 4 and len(sizes["biases"]) == 2
    assert [groups[name]["weight_decay"] for name in ("weights", "norms", "biases")] == [
        0.01,
        0,
        0.005,
    ]
    assert [groups[name]["lr"] for name in ("weights", "norms", "biases")] == [0.1, 0.1, 0.2]


def test_null_means_the_common_decay() -> None:
    groups = parameter_groups(network(), 0.1, 0.01, norm_weight_decay=None, bias_weight_decay=None)
    assert {group["weight_decay"] for group in groups} == {0.01}


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(ValueError, match="no trainable parameter"):
        parameter_groups(network().requires_grad_(False), 0.1, 0.0)


def test_an_sgd_step_is_the_papers_formula() -> None:
    model = nn.Linear(2, 1)
    before = model.weight.detach().clone()
    optimizer = build_optimizer(model, torch.optim.SGD, lr=0.1, weight_decay=0.01, momentum=0.9)
    set_learning_rate(optimizer, MultiStep([1], gamma=0.5), step=1)
    velocity = torch.zeros_like(before)
    expected = before.clone()
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.tensor([[1.0, 2.0]])).sum().backward()
        optimizer.step()
        velocity = 0.9 * velocity + torch.tensor([[1.0, 2.0]]) + 0.01 * expected
        expected = expected - 0.05 * velocity
    torch.testing.assert_close(model.weight.detach(), expected)


def test_an_unknown_option_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="momentun"):
        build_optimizer(network(), torch.optim.SGD, lr=0.1, weight_decay=0.0, momentun=0.9)
    with pytest.raises(ValueError, match=r"optimizer: SGD .* learning rate: -1"):
        build_optimizer(network(), torch.optim.SGD, lr=-1, weight_decay=0.0)


def test_restored_momenta_continue_under_the_rates_configured_now() -> None:
    model = nn.Linear(2, 1)

    def make(lr: float) -> torch.optim.Optimizer:
        return build_optimizer(model, torch.optim.SGD, lr=lr, weight_decay=0.0, momentum=0.9)

    former = make(0.1)
    model(torch.ones(1, 2)).sum().backward()
    former.step()
    now = make(0.3)
    restore_optimizer(now, former.state_dict(), Path("last.pt"))
    assert torch.equal(now.state[model.weight]["momentum_buffer"], torch.ones(1, 2))
    assert now.param_groups[0]["lr"] == now.param_groups[0]["base_lr"] == 0.3


def test_the_state_of_another_algorithm_or_model_is_refused() -> None:
    model = nn.Linear(2, 1)
    sgd = build_optimizer(model, torch.optim.SGD, lr=0.1, weight_decay=0.0, momentum=0.9)
    adam = build_optimizer(model, torch.optim.AdamW, lr=0.1, weight_decay=0.0)
    other = build_optimizer(network(), torch.optim.SGD, lr=0.1, weight_decay=0.0, momentum=0.9)
    for optimizer in (adam, other):
        with pytest.raises(ValueError, match=r"last\.pt.*optimi[sz]er"):
            restore_optimizer(optimizer, sgd.state_dict(), Path("last.pt"))


@pytest.mark.parametrize("limit", [0, -1.0, "abc"])
def test_a_gradient_cannot_be_clipped_to_nothing_or_turned_round(limit) -> None:
    with pytest.raises(ValueError, match=f"gradient_clip={limit}"):
        check_gradient_clip(limit)
    check_gradient_clip(None)
    check_gradient_clip(0.1)


def test_fused_momenta_begin_at_zero_which_changes_no_step() -> None:
    """A first step that is skipped then leaves no memory as it was found."""
    options = {"algorithm": torch.optim.SGD, "lr": 0.1, "weight_decay": 0.01, "momentum": 0.9}
    models = [network(), network()]
    models[1].load_state_dict(models[0].state_dict())
    ours = build_optimizer(models[0], fused=True, **options)
    groups = parameter_groups(models[1], 0.1, 0.01)
    theirs = torch.optim.SGD(groups, lr=0.1, weight_decay=0.01, momentum=0.9, fused=True)
    trained = [p for group in ours.param_groups for p in group["params"]]
    assert all(not ours.state[p]["momentum_buffer"].any() for p in trained)
    for step in range(3):
        for model, optimizer in zip(models, (ours, theirs), strict=True):
            torch.manual_seed(step)
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.grad = torch.randn_like(parameter)
            optimizer.step()
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(a, b)
    plain = build_optimizer(network(), fused=False, **options)
    assert not plain.state
    assert describe_optimizer(ours) == "SGD fused" and "not fused" in describe_optimizer(plain)


@pytest.mark.parametrize("algorithm", [torch.optim.SGD, torch.optim.AdamW])
def test_momenta_follow_their_parameters_into_another_layout(algorithm, tmp_path: Path) -> None:
    """Trained in NCHW, resumed in NHWC: as if it had been NHWC from the beginning."""
    options = {"lr": 0.1, "weight_decay": 0.01, "fused": True}
    options |= {"momentum": 0.9} if algorithm is torch.optim.SGD else {}

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
        torch.manual_seed(seed)
        inputs = torch.randn(2, 3, 8, 8)
        optimizer.zero_grad()
        model(inputs).square().sum().backward()
        optimizer.step()

    torch.manual_seed(0)
    first = nn.Conv2d(3, 4, 3)
    expected = copy.deepcopy(first).to(memory_format=torch.channels_last)
    reference = build_optimizer(expected, algorithm, **options)
    optimizer = build_optimizer(first, algorithm, **options)
    step(expected, reference, 1)
    step(first, optimizer, 1)
    resumed = copy.deepcopy(first).to(memory_format=torch.channels_last)
    again = build_optimizer(resumed, algorithm, **options)
    restore_optimizer(again, optimizer.state_dict(), tmp_path)
    step(expected, reference, 2)
    step(resumed, again, 2)
    torch.testing.assert_close(resumed.weight, expected.weight, rtol=1e-5, atol=1e-6)
