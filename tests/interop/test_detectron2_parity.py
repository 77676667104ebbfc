"""Our models of Detectron2's weights give the numbers that Detectron2 gave.

``compare_detectron2.py`` wrote them and compares more; the weights follow from their names.
"""

import numpy as np
import pytest

from detector.interop import detectron2
from detector.interop.recipes import compose_config
from tests.interop.detectron2_cases import (
    CASES,
    TRAIN_SIZES,
    VAL_SIZES,
    build_ours,
    make_scene,
    make_weights,
    our_outputs,
    our_training,
)
from tests.interop.detectron2_expected import (
    HERE,
    TOLERANCES,
    compare,
    gradient_errors,
    shapes_of,
    summarise,
    summarise_gradients,
)


@pytest.mark.parametrize("name", CASES)
def test_same_numbers_as_detectron2(name):
    case = CASES[name]
    with np.load(HERE / f"{name}.npz") as file:
        expected = dict(file)
    weights = make_weights(shapes_of(case), case)
    model, recipe = build_ours(weights, case, case.ours)
    outputs = our_outputs(model, make_scene(VAL_SIZES, recipe.num_classes))
    stages = {
        key: value for key, value in expected.items() if "." not in key and key != "gradients"
    }
    assert compare(summarise(outputs), stages) == []
    assert min(len(outputs["labels0"]), len(outputs["labels1"])) == case.detections

    # Written back, the weights are what they were.
    theirs = detectron2.from_ours(model.state_dict(), compose_config(recipe))
    assert theirs.keys() == {*weights, "pixel_mean", "pixel_std"}
    assert all(np.array_equal(theirs[key].numpy(), value) for key, value in weights.items())

    losses, gradients = our_training(model, make_scene(TRAIN_SIZES, recipe.num_classes, seed=1))
    assert {f"loss.{key}" for key in losses} == {key for key in expected if key[:5] == "loss."}
    for key, loss in losses.items():
        assert loss == pytest.approx(float(expected[f"loss.{key}"]), rel=TOLERANCES["losses"])
    names = sorted(gradients)
    difference = np.abs(summarise_gradients(gradients) - expected["gradients"]).max(1)
    lengths = dict(zip(names, expected["gradients"][:, 0], strict=True))
    errors = gradient_errors(dict(zip(names, difference, strict=True)), lengths)
    assert {k: e for k, e in errors.items() if not e <= TOLERANCES["gradients"]} == {}
