"""Which values a default accepts."""

import pytest

from detector.setting_values import fit_value


@pytest.mark.parametrize(
    ("value", "default", "fitted"),
    [
        ("anything", None, "anything"),
        (3, 4, 3),
        (3, 0.5, 3),
        (2024, "data/shapes", "2024"),
        (None, "data/shapes", None),
        (None, [1, 2], None),
        ([1.5, 2], [1, 2], [1.5, 2]),
        ([[64, 64]], [[800, 1344]], [[64, 64]]),
        (False, True, False),
        ({"lr": 1, "new": "x"}, {"lr": 0.1}, {"lr": 1, "new": "x"}),
    ],
)
def test_values_of_the_kind_of_the_default(value, default, fitted):
    result = fit_value("key", value, default)
    assert result == fitted and type(result) is type(fitted)


@pytest.mark.parametrize(
    ("value", "default", "message"),
    [
        ("abc", 0.1, "key=abc: a number .* such as key=0.1"),
        ("abc", 1, "key=abc: a whole number"),
        (2.5, 1, "key=2.5: a whole number"),
        (True, 1, "key=True: a whole number"),
        (1, True, "key=1: true or false is expected here, such as key=true"),
        (None, 1, "key=null"),
        (5, [1, 10, 100], r"a list .* such as key=\[1,10,100\]"),
        (["a"], [1], "key=.'a'."),
        ([64, 64], [[800, 1344]], "a list"),
        (3, {"every": 1}, "key=3: a group of settings"),
        ({"lr": "x"}, {"lr": 0.1}, r"key\.lr=x: a number"),
    ],
)
def test_values_of_another_kind_are_refused(value, default, message):
    with pytest.raises(ValueError, match=message):
        fit_value("key", value, default)


@pytest.mark.parametrize("key", ["training.max_steps", "optimizer.norm_weight_decay"])
def test_null_where_the_configs_give_it_a_meaning(key):
    assert fit_value(key, None, 1) is None


def test_a_word_that_stands_for_a_number_is_accepted_there_alone():
    assert fit_value("data", {"batch_size": "auto"}, {"batch_size": 8}) == {"batch_size": "auto"}
    for key, word in (("data.batch_size", "many"), ("data.val_batch_size", "auto")):
        with pytest.raises(ValueError, match=f"{key}={word}: a whole number"):
            fit_value(key, word, 8)
