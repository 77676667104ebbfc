import pytest

from detector.engine.schedule import Cosine, MultiStep


def test_the_1x_recipe_has_the_published_rates() -> None:
    schedule = MultiStep([60000, 80000], gamma=0.1, warmup_steps=1000, warmup_factor=0.001)
    rates = [0.02 * schedule(step) for step in (0, 500, 999, 1000, 59999, 60000, 79999, 80000)]
    # Detectron2's WarmupMultiStepLR: factor * (1 - alpha) + alpha with alpha = step / 1000.
    expected = [2e-5, 0.01001, 0.01998002, 0.02, 0.02, 0.002, 0.002, 0.0002]
    assert rates == pytest.approx(expected, rel=1e-9)


def test_cosine_begins_at_one_halves_in_the_middle_and_stays_at_its_end() -> None:
    schedule = Cosine(100, final_factor=0.1)
    values = [schedule(step) for step in (0, 50, 100, 1000)]
    assert values == pytest.approx([1.0, 0.55, 0.1, 0.1])


def test_no_warmup_is_no_change() -> None:
    assert MultiStep([], warmup_steps=0)(0) == 1.0


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: MultiStep([20, 10]), "milestones"),
        (lambda: MultiStep([10], gamma=0), "gamma"),
        (lambda: MultiStep([10], warmup_steps=-1), "warmup_steps"),
        (lambda: MultiStep([10], warmup_factor=0), "warmup_factor"),
        (lambda: Cosine(0), "total_steps"),
        (lambda: Cosine(10, final_factor=2), "final_factor"),
    ],
)
def test_impossible_values_are_refused_by_name(make, key: str) -> None:
    with pytest.raises(ValueError, match=key):
        make()


def test_settings_that_never_take_effect_are_named() -> None:
    schedule = MultiStep([5, 60, 80], warmup_steps=50)
    assert schedule.without_effect(90) == []
    assert "[80]" in schedule.without_effect(70)[0]
    assert "warmup_steps=50" in schedule.without_effect(40)[0]
