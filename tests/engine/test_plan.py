import pytest

from detector.engine.plan import plan_training


def test_the_earlier_limit_ends_the_training() -> None:
    assert plan_training(100, max_steps=250, max_epochs=None).max_steps == 250
    assert plan_training(100, max_steps=None, max_epochs=2).max_steps == 200
    assert plan_training(100, max_steps=250, max_epochs=2).max_steps == 200
    assert plan_training(100, max_steps=None, max_epochs=0.5).max_steps == 50


def test_epochs_that_steps_cut_short_are_told() -> None:
    plan = plan_training(100, max_steps=250, max_epochs=5)
    [sentence] = plan.without_effect(5)
    assert "max_epochs=5" in sentence and "max_steps=250" in sentence
    assert plan.without_effect(2.5) == plan.without_effect(None) == []


def test_evaluations_come_every_so_often_and_always_at_the_end() -> None:
    def steps(**kwargs) -> list[int]:
        plan = plan_training(4, max_steps=10, max_epochs=None, **kwargs)
        return [step for step in range(11) if plan.evaluates(step)]

    assert steps() == [10]
    assert steps(evaluate_every=3) == [3, 6, 9, 10]
    assert steps(evaluate_every=5) == [5, 10]
    assert steps(evaluate_every_epochs=1) == [4, 8, 10]


@pytest.mark.parametrize(
    "kwargs",
    [
        {"max_steps": None, "max_epochs": None},
        {"max_steps": 0, "max_epochs": None},
        {"max_steps": None, "max_epochs": "two"},
        {"max_steps": 10, "max_epochs": None, "evaluate_every": -1},
        {"max_steps": 10, "max_epochs": None, "evaluate_every": 2, "evaluate_every_epochs": 1},
    ],
)
def test_impossible_plans_are_refused(kwargs: dict) -> None:
    with pytest.raises(ValueError, match=r"training|evaluation"):
        plan_training(10, **kwargs)
