"""Compiled parts against the same parts as they are written."""

import copy
import shutil
import warnings
from pathlib import Path

import pytest
import torch

from detector.engine import compiled
from detector.engine.compiled import compile_parts, dense_parts
from detector.engine.stopwatch import Stopwatch
from tests.engine.toy_training import toy_batches, toy_step

CLOCK = Stopwatch(torch.device("cpu"))
PARTS = ["normalizer", "backbone", "rpn.head", "box_branch.head", "mask_branch.head"]


@pytest.fixture(scope="module")
def batches(shapes_root: Path, tmp_path_factory):
    return toy_batches(shapes_root, tmp_path_factory.mktemp("batches"), 4)


@pytest.fixture
def build(shapes_root: Path, tmp_path: Path):
    return lambda *overrides, **options: toy_step(shapes_root, tmp_path, *overrides, **options)


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler on a CPU")
def test_losses_and_gradients_are_those_of_the_parts_as_written(
    build, batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By inductor, in float32: other kernels in another order of sums, over two sizes of rows."""
    torch.compiler.reset()
    plain, fast = build(), build()
    some = {path: fast.model.get_submodule(path) for path in ("backbone", "box_branch.head")}
    monkeypatch.setattr(compiled, "dense_parts", lambda model: some)  # the others take as long
    compile_parts(fast.model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # nothing fell back
        for step, batch in enumerate(batches[:2]):
            for one in (plain, fast):
                one.model.zero_grad()
            expected = plain.backward([batch], step, CLOCK)
            found = fast.backward([batch], step, CLOCK)
            for name, value in expected.items():
                torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6, msg=name)
            wanted = gradients(plain.model)
            assert gradients(fast.model).keys() == wanted.keys()
            for name, value in gradients(fast.model).items():
                torch.testing.assert_close(value, wanted[name], rtol=1e-4, atol=1e-6, msg=name)


def test_names_copies_and_evaluation_stay_as_they_are(build, batches) -> None:
    torch.compiler.reset()
    step = build(average=0.5)
    names = list(step.model.state_dict())
    compile_parts(step.model, "aot_eager")
    assert list(step.model.state_dict()) == names
    calls = count_calls(step.model)
    step(batches[:1], 0, CLOCK)
    assert calls == dict.fromkeys(PARTS, 1)
    # The average was copied before, this one after: both are plain, and neither shares weights.
    twin = copy.deepcopy(step.model)
    for path, part in dense_parts(twin).items():
        assert part._compiled_call_impl is None, path
    moved, batch = step.runtime.move(batches[1]), batches[1]
    with torch.no_grad():
        found = step.model.eval().detect(moved.images, batch.image_sizes)
        expected = twin.eval().detect(moved.images, batch.image_sizes)
    assert torch.equal(found.boxes, expected.boxes) and found.valid.any()
    assert calls == dict.fromkeys(PARTS, 1), "evaluation runs what is written"
    twin.load_state_dict(step.model.state_dict())
    step.model.train()
    step(batches[1:2], 1, CLOCK)
    assert calls == dict.fromkeys(PARTS, 2)


def count_calls(model) -> dict[str, int]:
    """How often the compiled code of each part ran, from now on."""
    calls = dict.fromkeys(dense_parts(model), 0)
    for path, part in dense_parts(model).items():
        wrapper = part._compiled_call_impl

        def counted(*inputs, path=path, run=wrapper._compiled, **options):
            calls[path] += 1
            return run(*inputs, **options)

        wrapper._compiled = counted
    return calls


def test_a_failure_says_why_and_the_step_is_taken_all_the_same(build, batches) -> None:
    torch.compiler.reset()

    def broken(graph, inputs):
        raise OSError("no compiler lives here")

    plain, fast = build(), build()
    compile_parts(fast.model, broken)
    expected = plain(batches[:1], 0, CLOCK)
    with pytest.warns(RuntimeWarning) as said:
        found = fast(batches[:1], 0, CLOCK)
    messages = [str(warning.message) for warning in said]
    assert [text.partition(" ")[0] for text in messages] == PARTS
    assert all("could not be compiled (OSError: no compiler lives here)" in m for m in messages)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fast(batches[1:2], 1, CLOCK)  # once is enough


def test_a_missing_compiler_is_named(build, batches, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.compiler.reset()
    from torch._inductor import cpp_builder, exc

    def search(*_, **__) -> str:
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", search)
    fast = build()
    monkeypatch.setattr(
        compiled, "dense_parts", lambda model: {"rpn.head": model.get_submodule("rpn.head")}
    )
    compile_parts(fast.model)
    with (
        torch._inductor.config.patch(force_disable_caches=True),
        pytest.warns(RuntimeWarning, match=r"rpn\.head could not be compiled .*C\+\+ compiler"),
    ):
        fast(batches[:1], 0, CLOCK)


def test_an_error_of_the_model_is_raised_as_without_a_compiler(build, batches) -> None:
    torch.compiler.reset()
    fast = build()
    compile_parts(fast.model, "eager")
    fast.model.rpn.head.objectness.weight.data = torch.zeros(3, 5, 1, 1)  # of other channels
    with pytest.warns(RuntimeWarning), pytest.raises(RuntimeError, match="channels"):
        fast(batches[:1], 0, CLOCK)
