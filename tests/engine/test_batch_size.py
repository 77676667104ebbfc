"""The largest batch that fits, against budgets and devices that are written out."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace

import albumentations as A
import numpy as np
import pytest
import torch

from detector.commands.train import train
from detector.data.augmentation import Augmentation
from detector.data.collate import Collate
from detector.data.end_of_training import OffAtTheEnd
from detector.data.largest_batch import LargestBatch
from detector.data.loader import build_train_loader
from detector.engine import assembly
from detector.engine.batch_size import TrialSteps, _trials, largest_on_all, largest_that_fits
from detector.engine.checkpoint import checkpoint_config, load_checkpoint
from detector.engine.device_memory import HostMemory, cgroup_free, is_out_of_memory, parse_memory
from detector.engine.distributed import Ranks
from detector.engine.runtime import Runtime
from detector.rcnn import FasterRCNN
from tests.engine.toy_training import toy_config

GIB = 2**30


class PretendedMemory:
    """A device of so many bytes, of which an image takes ``each``, and others as time goes by."""

    share = 1.0

    def __init__(self, total: float, each: float, fixed: float, forgiving: bool) -> None:
        self.total, self.each, self.fixed, self.forgiving = total, each, fixed, forgiving
        self.tried: list[int] = []

    def step(self, images: int) -> None:
        self.tried.append(images)
        self.last = self.fixed + self.each * images
        if self.last > self.total:
            assert self.forgiving, f"{images} images would have killed the process"
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    def available(self) -> float:
        return self.total

    def begin(self) -> None:
        self.last = 0.0

    def bounded(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def used(self) -> float:
        return self.fixed

    def peak(self) -> float:
        return self.last


@pytest.mark.parametrize("most", [1, 2, 3, 7, 8, 9, 40])
def test_doubling_and_bisecting_find_every_number(most: int) -> None:
    for fitting in range(42):
        asked = []

        def fits(images: int, fitting: int = fitting, asked: list = asked) -> bool:
            asked.append(images)
            return images <= fitting

        assert largest_that_fits(fits, most) == min(fitting, most)
        assert len(asked) == len(set(asked)) <= 2 * most.bit_length() + 1
        assert not asked or (asked[0] == 1 and max(asked) <= most)


@pytest.mark.parametrize("forgiving", [True, False])
@pytest.mark.parametrize("room", [0.5, 1.0, 5.0, 6.9, 19.0])
def test_what_fits_is_found_and_a_cpu_is_not_asked_for_more(forgiving: bool, room: float) -> None:
    memory = PretendedMemory(total=3.0 + room, each=1.0, fixed=3.0, forgiving=forgiving)
    if not forgiving and room < 1:
        memory.total = 4.0  # one image is tried in any case
    trials = TrialSteps(memory.step, memory, limit=3.0 + room)
    assert largest_that_fits(trials.fits, 100) == int(room)
    refused = forgiving and room < 1
    assert memory.tried[:2] == ([1] if refused else [1, 1])  # the first makes the optimiser's state


def test_what_training_needs_beside_steps_is_kept_free() -> None:
    memory = PretendedMemory(total=100.0, each=1.0, fixed=3.0, forgiving=True)
    trials = TrialSteps(memory.step, memory, 20.0, lambda images: 2.0 + 0.5 * images)
    assert largest_that_fits(trials.fits, 100) == 10
    assert trials.peaks[10] == 20.0


@pytest.mark.parametrize("other", [3, 8, 20])
def test_all_ranks_take_what_fits_on_each(other: int) -> None:
    memory = PretendedMemory(total=11.0, each=1.0, fixed=3.0, forgiving=True)
    asked = []

    class TwoRanks(Ranks):
        size = 2

        def __init__(self) -> None:
            pass

        def exchange(self, value: bool) -> list[bool]:
            asked.append(memory.tried[-1])  # both try the same number
            return [value, asked[-1] <= other]

    trials = TrialSteps(memory.step, memory, 11.0)
    images, peaks = largest_on_all(trials, TwoRanks(), 100)
    assert images == min(8, other) and peaks[images] == 3.0 + images


def test_an_error_that_is_not_about_memory_is_not_swallowed() -> None:
    def fail(images: int) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    trials = TrialSteps(fail, PretendedMemory(1, 1, 1, True), 1.0)
    with pytest.raises(RuntimeError, match="multiplied"):
        trials.fits(1)
    assert is_out_of_memory(
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
    )


def test_peak_of_the_host_is_what_was_touched() -> None:
    memory = HostMemory()
    memory.begin()
    before = memory.peak()
    torch.zeros(64 * 2**20, dtype=torch.uint8).fill_(1)
    assert 60 * 2**20 < memory.peak() - before < 80 * 2**20
    memory.begin()
    assert memory.peak() - before < 16 * 2**20
    assert memory.used() < memory.available()


def test_within_the_bounds_too_much_is_an_error() -> None:
    memory = HostMemory()
    with pytest.raises(RuntimeError) as raised, memory.bounded():
        torch.empty(int(memory.available() + GIB), dtype=torch.uint8)
    assert is_out_of_memory(raised.value)


def test_control_groups_of_both_versions(tmp_path: Path) -> None:
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)

    def group(path: str, names: tuple[str, str], limit: str, usage: int, statistics: str) -> None:
        (cgroups / path).mkdir(parents=True, exist_ok=True)
        (cgroups / path / names[0]).write_text(f"{limit}\n")
        (cgroups / path / names[1]).write_text(f"{usage}\n")
        (cgroups / path / "memory.stat").write_text(statistics)

    second = ("memory.max", "memory.current")
    (proc / "self" / "cgroup").write_text("0::/job/task\n")
    group("job/task", second, "max", 5, "anon 5\n")
    group("job", second, "1000", 600, "anon 400\ninactive_file 150\n")
    assert cgroup_free(proc, cgroups) == [550]
    first = ("memory.limit_in_bytes", "memory.usage_in_bytes")
    (proc / "self" / "cgroup").write_text("3:cpu:/x\n2:memory:/job\n")
    group("memory/job", first, "900", 700, "total_inactive_file 50\ninactive_file 1\n")
    assert cgroup_free(proc, cgroups) == [250]
    assert cgroup_free(tmp_path / "nowhere", cgroups) == []


@pytest.mark.parametrize(
    ("value", "expected"),
    [("16GiB", 16 * GIB), ("1.5 gb", 1.5 * GIB), ("500MiB", 500 * 2**20), (0.25, 25), (None, 90)],
)
def test_amounts_of_memory(value: str | float | None, expected: float) -> None:
    assert parse_memory("training.memory_limit", value, 100.0, 0.9) == expected


@pytest.mark.parametrize("value", ["16", 0, 1.5, -1, True, "0GiB", "much"])
def test_other_words_are_no_amounts(value: str | float) -> None:
    with pytest.raises(ValueError, match=r"training\.memory_limit=.*16GiB"):
        parse_memory("training.memory_limit", value, 100.0, 0.9)


def test_no_batch_of_the_training_is_larger(shapes_root: Path, tmp_path: Path) -> None:
    cfg = toy_config(shapes_root, tmp_path, "model=mask_rcnn_fpn", "augment=any_orientation")
    dataset = assembly.build_dataset(cfg.data, "train")
    largest = LargestBatch(dataset, Collate())(3)
    assert len(largest.images) == 3 and largest.targets.valid.any(1).all()
    boxes = largest.targets.boxes[largest.targets.valid]
    assert (boxes[:, 2:] - boxes[:, :2] > 1).all() and boxes.min() >= 0
    loader = build_train_loader(dataset, 3, with_masks=True)
    for batch in loader.batches_at((0, 0), 40):
        assert np.less_equal(batch.images.shape, largest.images.shape).all()
        for ours, theirs in (
            (largest.targets.valid, batch.targets.valid),
            (largest.targets.polygons.edges, batch.targets.polygons.edges),
        ):
            assert ours.shape[1] >= theirs.shape[1]
        assert largest.targets.polygons.max_edges >= batch.targets.polygons.max_edges


def test_what_stands_in_the_place_of_others_at_the_end_is_looked_at(
    shapes_root: Path, tmp_path: Path
) -> None:
    cfg = toy_config(shapes_root, tmp_path)
    dataset = assembly.build_dataset(cfg.data, "train")
    switch = OffAtTheEnd([A.Resize(64, 96)], last_steps=1, replaced_by=[A.Resize(192, 160)])
    dataset.augmentation = Augmentation([switch])
    largest = LargestBatch(dataset, Collate())
    assert (largest.height, largest.width) == (192, 160)


def test_the_number_found_trains_as_the_number_given(
    shapes_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """The device refuses four images; the rate follows the three that fit, and a resume keeps."""
    forward = FasterRCNN.forward

    def refusing(self, images, *arguments):
        if len(images) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(self, images, *arguments)

    monkeypatch.setattr(FasterRCNN, "forward", refusing)
    recipe = ("optimizer.reference_batch_size=6", "training.max_steps=3", "optimizer.lr=0.02")
    found, given = tmp_path / "found", tmp_path / "given"
    auto = "data.batch_size=auto"
    expected = train(toy_config(shapes_root, given, *recipe, "data.batch_size=3"))
    assert train(toy_config(shapes_root, found, *recipe, auto)) == expected
    said = capsys.readouterr().out
    assert "data.batch_size=auto: 3; 3 of up to 128x128 with 8 gt slots take" in said
    assert "optimizer.lr 0.02 -> 0.01" in said
    one, other = load_checkpoint(found), load_checkpoint(given)
    assert checkpoint_config(one, allow_code=True).data.batch_size == 3 and one["step"] == 6
    assert all(torch.equal(value, other["model"][name]) for name, value in one["model"].items())
    assert one["optimizer"]["param_groups"] == other["optimizer"]["param_groups"]

    def never(*arguments: object) -> None:
        raise AssertionError("the checkpoint knows the number")

    monkeypatch.setattr("detector.engine.batch_size.LargestBatch", never)
    again = ("training.max_steps=4", "optimizer.lr=0.02", recipe[0])
    train(toy_config(shapes_root, found, *again, auto, "resume=auto"))
    assert "data.batch_size=auto: 3, as in the checkpoint" in capsys.readouterr().out
    assert load_checkpoint(found)["step"] == 8


def test_a_budget_decides_on_a_cpu(
    shapes_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The peak of the process itself is measured, with activations of 24 MiB an image."""
    each, forward, memory = 24 * 2**20, FasterRCNN.forward, HostMemory()

    def heavy(self, images, *arguments):
        activations = torch.full((len(images), each // 4), 1.0)
        losses = forward(self, images, *arguments)
        return {**losses, "loss_box": losses["loss_box"] + 0 * activations.sum()}

    monkeypatch.setattr(FasterRCNN, "forward", heavy)

    def found(amount: float) -> int:
        memory.begin()
        run = tmp_path / f"{amount:.0f}"
        limit = f"training.memory_limit={(memory.used() + amount) / 2**20:.0f}MiB"
        one = ("data.batch_size=auto", "training.max_steps=1", limit)
        train(toy_config(shapes_root, run, *one))
        return checkpoint_config(load_checkpoint(run), allow_code=True).data.batch_size

    few, many = found(3.5 * each), found(7.5 * each)
    assert 1 <= few <= 4 and 3 <= many - few <= 5
    with pytest.raises(ValueError, match=r"(?s)one image of 128x128.*memory_limit.*num_samples=4"):
        found(-2 * each)


def test_other_words_for_a_batch_are_refused(shapes_root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.batch_size=many.*auto"):
        train(toy_config(shapes_root, tmp_path, "data.batch_size=many"))


def test_each_graph_has_gradients_of_its_own(shapes_root: Path, tmp_path: Path) -> None:
    cfg = toy_config(shapes_root, tmp_path)
    cfg.num_classes = 5
    model = assembly.build(cfg.model)
    memory = PretendedMemory(100.0, 1.0, 3.0, True)
    size = SimpleNamespace(height=128, width=128)
    none, eight = (
        _trials(cfg, model, Runtime("cpu", graphs=graphs), Ranks(), size, memory, 1.0)._beside(1)
        for graphs in (0, 8)
    )
    gradients = sum(4 * p.numel() for p in model.parameters() if p.requires_grad)
    assert eight - none == 8 * gradients
