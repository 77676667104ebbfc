import pytest
import torch
from torch import nn
from torch.amp import GradScaler

from detector.engine.loss_window import LossWindow, NonFiniteLoss
from detector.engine.step_guard import StepGuard, check_on_nonfinite


def make(tolerated: int = 0, scaler: GradScaler | None = None):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    return model, optimizer, StepGuard(model, optimizer, tolerated, scaler)


def step(
    model, optimizer, guard: StepGuard, factor: float = 1.0, inputs: float = 1.0
) -> torch.Tensor:
    torch.manual_seed(1)
    guard.begin()
    loss = (model(torch.randn(5, 3) * inputs) * factor).pow(2).sum()
    optimizer.zero_grad()
    guard.scale(loss).backward()
    guard.unscale()
    norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
    return guard.step(loss, norm)


def copied(model: nn.Module) -> list[torch.Tensor]:
    return [value.clone() for value in model.state_dict().values()]


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(("factor", "inputs"), [(float("nan"), 1.0), (1.0, float("inf"))])
def test_a_bad_step_changes_neither_weights_nor_batch_statistics(factor, inputs) -> None:
    model, optimizer, guard = make(tolerated=2)
    step(model, optimizer, guard)
    assert not guard.knows_bad
    before = copied(model)
    step(model, optimizer, guard, factor, inputs)
    assert guard.knows_bad and equal(copied(model), before)
    # The next good step is the one it would have been, momenta included.
    step(model, optimizer, guard)
    reference, other, plain = make()
    for _ in range(2):
        step(reference, other, plain)
    assert equal(copied(model), copied(reference)) and not guard.knows_bad


def test_after_too_many_in_a_row_nothing_changes_any_more() -> None:
    model, optimizer, guard = make(tolerated=1)
    before = copied(model)
    for factor in (float("nan"), float("nan"), 1.0):
        step(model, optimizer, guard, factor)
    assert equal(copied(model), before)


def test_with_a_loss_scale_an_overflow_is_skipped_and_halves_it() -> None:
    scaler = GradScaler("cpu", init_scale=1e38)
    model, optimizer, guard = make(scaler=scaler)
    before = copied(model)[0]
    norm = step(model, optimizer, guard)
    assert norm == 0 and scaler.get_scale() == pytest.approx(5e37) and not guard.knows_bad
    assert torch.equal(copied(model)[0], before)
    step(model, optimizer, guard, float("nan"))  # a loss, which no scale can mend
    assert guard.knows_bad
    scaler.update(16.0)
    step(model, optimizer, guard)
    assert torch.equal(copied(model)[0], before), "it is frozen"


def test_the_scale_does_not_change_the_step() -> None:
    plain, scaled = make(), make(scaler=GradScaler("cpu", init_scale=1024.0))
    for model, optimizer, guard in (plain, scaled):
        assert step(model, optimizer, guard) > 0
    assert equal(copied(plain[0]), copied(scaled[0]))  # a power of two: exactly


def test_the_window_counts_what_may_be_skipped_over_its_readings() -> None:
    window = LossWindow(tolerated=2)
    values = [1.0, float("nan"), float("nan"), 3.0, float("inf"), float("nan")]
    for number, value in enumerate(values[:3]):
        window.add(number, torch.tensor([number]), {"loss": torch.tensor(value)})
    assert window.read() == {"loss": 1.0, "skipped_steps": 2.0}
    for number, value in enumerate(values[3:], start=3):
        window.add(number, torch.tensor([number]), {"loss": torch.tensor(value)}, (7, number))
    assert window.read() == {"loss": 3.0, "skipped_steps": 2.0}
    window.add(6, torch.tensor([60]), {"loss": torch.tensor(float("nan"))}, (8, 0))
    with pytest.raises(NonFiniteLoss, match=r"step 6 after 2 others in a row.*\[60\]") as error:
        window.check()
    assert (error.value.step, error.value.position) == (6, (8, 0))


def test_unknown_policies_are_refused() -> None:
    assert check_on_nonfinite("stop", 10) == 0 and check_on_nonfinite("skip", 10) == 10
    with pytest.raises(ValueError, match=r"on_nonfinite=ignore; choose stop or skip"):
        check_on_nonfinite("ignore", 10)
    with pytest.raises(ValueError, match=r"max_skipped=0"):
        check_on_nonfinite("skip", 0)


@pytest.mark.parametrize("algorithm", [torch.optim.SGD, torch.optim.AdamW])
def test_fused_optimisers_look_at_the_flag_themselves(algorithm) -> None:
    """As on a GPU, where the host does not know: a CPU's fused kernels read the same flag."""
    results = []
    for factors in ((1.0, float("nan"), 1.0), (1.0, 1.0)):
        model, _, _ = make()
        optimizer = algorithm(model.parameters(), 0.1, fused=True)
        guard = StepGuard(model, optimizer, tolerated=1)
        guard._fused = True
        for factor in factors:
            step(model, optimizer, guard, factor)
        results.append((copied(model), optimizer.state_dict()["state"]))
    (weights, state), (expected, expected_state) = results
    assert equal(weights, expected)
    for number, values in expected_state.items():
        for name, value in values.items():
            assert value is None or torch.equal(state[number][name], value), name
