"""What was being computed when memory ran out, and what to lower."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Self

from omegaconf import DictConfig, OmegaConf

from detector.engine.device_memory import GIB, is_out_of_memory, memory_of
from detector.engine.distributed import place_in_environment
from detector.engine.run_directory import RunDirectory, resume_command
from detector.engine.runtime import Runtime
from detector.structures import Batch

SMALLER_IMAGES = "the size of images, in augment.{split} and data.buckets"
_LISTED = 16  # image ids


class OutOfMemory(MemoryError):
    """Memory ran out; the message says where, and what to lower.

    Attributes:
        instead: settings that would need less, for a command that goes on.
    """

    def __init__(self, message: str, instead: Mapping[str, object] | None = None) -> None:
        super().__init__(message)
        self.instead = dict(instead or {})


@contextmanager
def memory_explained(
    what: str,
    batches: Sequence[Batch],
    runtime: Runtime,
    lower: Sequence[str],
    instead: Mapping[str, object] | None = None,
) -> Iterator[None]:
    """Within it, an error for want of memory says what it happened to.

    Args:
        what: is being done, such as ``"training, step 57"``.
        batches: with what.
        runtime: on which device.
        lower: what would need less memory, the first choice first.
        instead: see :class:`OutOfMemory`.

    Raises:
        OutOfMemory: in the place of torch's error, which stays its cause.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, OutOfMemory) or not is_out_of_memory(error):
            raise
        described = "; ".join(describe_batch(batch) for batch in batches)
        raise OutOfMemory(
            f"out of memory in {what}, with {described}. {describe_memory(runtime)}; torch says: "
            f"{_first_sentence(error)}.\nLower, in this order:\n  " + "\n  ".join(lower),
            instead,
        ) from error


def describe_batch(batch: Batch) -> str:
    """``"2 images padded to 800x1344, 64 gt slots (51 filled at most), image ids [7, 9]"``."""
    height, width = batch.images.shape[-2:]
    count = len(batch.images)
    said = f"{count} image{'s' if count > 1 else ''} padded to {height}x{width}"
    if batch.targets is not None:
        valid = batch.targets.valid
        said += f", {valid.shape[1]} gt slots ({int(valid.sum(dim=1).max())} filled at most)"
    if batch.proposals is not None:
        said += f", {batch.proposals.valid.shape[1]} proposal slots"
    ids = batch.image_ids.tolist()
    more = f" and {len(ids) - _LISTED} more" if len(ids) > _LISTED else ""
    return f"{said}, image ids {ids[:_LISTED]}{more}"


def describe_memory(runtime: Runtime) -> str:
    """``"Peak 13.20 GiB, of 14.56 that this process may have on cuda:0"``."""
    peak = runtime.peak_memory()
    said = f"Peak {'unknown' if peak is None else f'{peak:.2f} GiB'}"
    # After an error on the device, or where the system does not tell.
    with contextlib.suppress(RuntimeError, ValueError, OSError):
        available = memory_of(runtime.torch_device).available() / GIB
        said += f", of {available:.2f} that this process may have on {runtime.device}"
    return said


class TrainingMemory:
    """Around a training: says of an error for want of memory how to go on without it.

    Args:
        cfg: of the training.
        runtime: how it runs.
        run: where its checkpoints are.
        whole: of the training in stages that this is one of.
    """

    def __init__(
        self, cfg: DictConfig, runtime: Runtime, run: RunDirectory, whole: RunDirectory | None
    ) -> None:
        self._cfg = cfg
        self._runtime = runtime
        self._run = run
        self._whole = whole
        # Made once: a step may take milliseconds.
        self._instead = smaller_batch(cfg)
        self._lower = less_memory(cfg, runtime.precision) + _graphs(runtime)
        if self._instead:
            words = " ".join(f"{key}={value}" for key, value in self._instead.items())
            self._lower.insert(0, f"images at a time, with the same gradient: {words}")

    def step(self, step: int, batches: Sequence[Batch]) -> contextlib.AbstractContextManager[None]:
        """Around a step (1 is the first) with these batches."""
        return memory_explained(
            f"training, step {step}", batches, self._runtime, self._lower, self._instead
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: object) -> None:
        if not isinstance(error, RuntimeError | MemoryError):
            return
        if isinstance(error, OutOfMemory):
            said, instead = str(error), error.instead
        elif is_out_of_memory(error):
            said, instead = f"out of memory: {_first_sentence(error)}", self._instead
        elif "DataLoader worker" in str(error) and "killed" in str(error):
            workers = self._cfg.data.num_workers // 2
            said = f"{_first_sentence(error)}: the system ends processes when memory runs out"
            instead = {"data.num_workers": workers}
        else:
            return
        left = "No checkpoint has been written yet; begin again"
        if self._run.last.is_file():
            left = f"{self._run.last} stays as it is; go on"
        command = resume_command(self._whole or self._run, instead=instead)
        raise OutOfMemory(f"{said}\n{left} with\n    {command}", instead) from error


def smaller_batch(cfg: DictConfig) -> dict[str, object]:
    """Settings that take the same steps with fewer images at a time; none if that cannot be."""
    images, ranks = cfg.data.batch_size, place_in_environment().size
    for factor in range(2, images // ranks + 1):
        if images // ranks % factor == 0:
            accumulate = cfg.training.accumulate * factor
            return {"data.batch_size": images // factor, "training.accumulate": accumulate}
    return {}


def less_memory(cfg: DictConfig, precision: str) -> list[str]:
    """What makes a training step need less memory, but for its images, the first choice first."""
    lower = []
    if precision == "float32":
        lower.append("the precision of activations: runtime.precision=bf16 (or fp16)")
    lower.append(SMALLER_IMAGES.format(split="train"))
    for key in ("model.roi_sampler.num_samples", "model.rpn.train_proposals.post_nms_top_n"):
        value = OmegaConf.select(cfg, key)
        if isinstance(value, int) and value > 1:
            lower.append(f"{key}={value // 2} (now {value})")
    if cfg.training.get("ema_decay") is not None:
        lower.append("the second copy of the weights: training.ema_decay=null")
    lower.append("the model: a smaller backbone, or frozen parts (freeze=[backbone.trunk])")
    return lower


def explained_detection(
    what: str, batch: Batch, runtime: Runtime
) -> contextlib.AbstractContextManager[None]:
    """:func:`memory_explained` around a batch without gradients."""
    images = len(batch.images)
    lower, instead = [], {}
    if images > 1:
        instead = {"data.val_batch_size": max(images // 2, 1)}
        lower.append(f"data.val_batch_size={images // 2} (now {images})")
    if runtime.precision == "float32":
        lower.append("the precision of activations: runtime.precision=bf16 (or fp16)")
    lower.append(SMALLER_IMAGES.format(split="val"))
    lower += _graphs(runtime)
    lower.append("looks at an image: evaluation.tta=null")
    if runtime.torch_device.type != "cpu":
        lower.append("or compute on the CPU: runtime.device=cpu")
    return memory_explained(what, [batch], runtime, lower, instead)


def _graphs(runtime: Runtime) -> list[str]:
    return ["the memory that CUDA graphs keep: runtime.graphs=0"] if runtime.graphs else []


def _first_sentence(error: BaseException) -> str:
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line.partition(". ")[0].removesuffix(".")
