"""A guard: the training step asks no tensor for its value and does not loop over images.

On a GPU each such question makes the CPU wait, and the answer makes shapes depend on data.
"""

from collections import Counter
from contextlib import ExitStack
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from detector.ops.slots import keep_empty_slots
from detector.structures import Batch

# Operators whose answer or whose shape depends on values, and the one behind torch.tensor(...):
# a constant made on the CPU would be copied, which waits too.
QUESTIONS = {
    "_local_scalar_dense",
    "item",
    "is_nonzero",
    "equal",
    "nonzero",
    "nonzero_numpy",
    "argwhere",
    "masked_select",
    "masked_scatter",
    "unique",
    "_unique",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "bincount",
    "histc",
    "lift_fresh",
    "allclose",
}
# Python methods that read a CPU tensor's memory without calling any operator.
READING = ("tolist", "numpy", "__array__", "cpu")
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}


class Guard(TorchDispatchMode):
    """Fails on questions, and counts what is called. It does not look inside custom operators."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.inside_operator = False
        self.patches = ExitStack()

    def __enter__(self):
        for name in READING:
            self.patches.enter_context(mock.patch.object(Tensor, name, self.refuse_outside(name)))
        return super().__enter__()

    def __exit__(self, *error) -> None:
        super().__exit__(*error)
        self.patches.close()

    def refuse_outside(self, name: str):
        read = getattr(Tensor, name)

        def refuse(tensor, *args, **kwargs):
            assert self.inside_operator, f"Tensor.{name} reads values"
            return read(tensor, *args, **kwargs)

        return refuse

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.split("::")[1]
        self.calls[str(function)] += 1
        assert name not in QUESTIONS, f"{function} asks for values"
        if name in INDEXING:
            dtypes = {index.dtype for index in tree_leaves(args[1]) if isinstance(index, Tensor)}
            assert not dtypes & {torch.bool, torch.uint8}, f"{function} by a mask"
        if name == "repeat_interleave":
            assert (kwargs or {}).get("output_size") is not None, "length depends on values"
        self.inside_operator = True
        try:
            return function(*args, **(kwargs or {}))
        finally:
            self.inside_operator = False


def training_step(model, batch: Batch) -> None:
    losses = model(batch.images, batch.image_sizes, batch.targets)
    sum(losses.values()).backward()


def guarded_step(model, batch: Batch) -> Counter[str]:
    model.zero_grad()
    with keep_empty_slots(), Guard() as guard:
        training_step(model, batch)
    return guard.calls


SETTINGS = ("model.roi_sampler.num_samples=32", "model.rpn.num_samples=64")
FOUR = ((128, 96), (90, 128), (128, 128), (64, 100), (128, 30))


@pytest.mark.parametrize("masks", [True, False])
def test_training_step_asks_nothing_and_does_not_loop_over_images(make_model, make_batch, masks):
    model = make_model(*SETTINGS, masks=masks)
    few = guarded_step(model, make_batch(FOUR[:2], (3, 0)))
    many = guarded_step(model, make_batch(FOUR, (5, 0, 1, 8, 2)))
    assert many == few, "what is called depends on the number of images or objects"
    assert sum(few.values()) > 500, "the guard should have seen the whole step"
    assert few["detector.nms_slots.default"] == 1


@pytest.mark.parametrize(
    "settings",
    [
        ("box_loss=giou",),
        ("box_loss=diou",),
        ("box_loss=ciou",),
        ("smooth_l1_beta=1.0", "inside_weights=[1.0,1.0,0.5,0.5]"),
    ],
)
def test_no_box_loss_asks_anything(make_model, make_batch, settings):
    """And every one trains both stages."""
    overrides = [f"model.{part}.{word}" for part in ("rpn", "box_branch") for word in settings]
    model = make_model(*SETTINGS, *overrides, "model.rpn.border=0", masks=False)
    few = guarded_step(model, make_batch(FOUR[:2], (3, 0)))
    many = guarded_step(model, make_batch(FOUR, (5, 0, 1, 8, 2)))
    assert few == many
    for part in (model.rpn.head.deltas, model.box_branch.predictor.deltas):
        assert part.weight.grad.isfinite().all()
        assert part.weight.grad.abs().max() > 0


@torch.no_grad()
def test_detection_asks_nothing_and_does_not_loop_over_images(make_model, make_batch):
    model = make_model().eval()
    calls = []
    for count in (2, 5):
        batch = make_batch(FOUR[:count], (1,) * count)
        with keep_empty_slots(), Guard() as guard:
            model.detect(batch.images, batch.image_sizes)
        calls.append(guard.calls)
    assert calls[0] == calls[1]


def test_shapes_follow_from_configuration_and_padded_size(make_model, make_batch):
    """Whatever the images hold."""
    model = make_model(*SETTINGS).eval()
    shapes = []

    def note(module, inputs, output) -> None:
        shapes[-1].append([tuple(x.shape) for x in tree_leaves(output) if isinstance(x, Tensor)])

    for module in model.modules():
        module.register_forward_hook(note)
    for objects, seed in (((3, 0), 0), ((0, 0), 1), ((8, 8), 2)):
        shapes.append([])
        batch = make_batch(FOUR[:2], objects, seed=seed)
        with keep_empty_slots():
            model(batch.images, batch.image_sizes, batch.targets)
            with torch.no_grad():
                detections = model.detect(batch.images, batch.image_sizes)
        assert detections.boxes.shape == (2, 30, 4)
        assert detections.masks.shape == (2, 30, 28, 28)
    assert shapes[0] == shapes[1] == shapes[2]


def test_training_step_is_one_graph(make_model, make_batch):
    """Nothing breaks it, and it computes the same."""
    model, batch = make_model(*SETTINGS), make_batch()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    results = []
    for call in (compiled, model):
        model.zero_grad()
        torch.manual_seed(0)
        with keep_empty_slots():
            losses = call(batch.images, batch.image_sizes, batch.targets)
            sum(losses.values()).backward()
        results.append(
            ({k: v.detach() for k, v in losses.items()}, model.rpn.head.deltas.weight.grad)
        )
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "question",
    [
        lambda x: x.sum().item(),
        lambda x: float(x.sum()),
        lambda x: bool((x > 0).any()),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: torch.where(x > 0),
        lambda x: x.masked_select(x > 0),
        lambda x: x.unique(),
        lambda x: x.index_put((x > 0,), torch.zeros(())),
        lambda x: x.tolist(),
        lambda x: x.numpy(),
        lambda x: torch.repeat_interleave(x.long().clamp(min=0)),
        lambda x: x * torch.tensor([2.0, 3.0, 4.0]),
    ],
)
def test_the_guard_notices(question):
    x = torch.tensor([0.5, -1.0, 2.0])
    with pytest.raises(AssertionError), Guard():
        question(x)


def test_without_the_switch_the_cpu_does_ask(make_model, make_batch):
    """That is why the guard must switch the dropping of empty slots off."""
    model, batch = make_model(*SETTINGS), make_batch()
    with pytest.raises(AssertionError, match="nonzero"), Guard():
        training_step(model, batch)
