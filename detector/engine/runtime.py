"""Device, precision, memory layout and threads, applied from outside the model."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import torch
from torch import nn
from torch.amp import GradScaler

from detector.backbones.folded_norms import fold_norms
from detector.structures import Batch

Precision = Literal["auto", "float32", "bf16", "fp16"]
Switch = bool | Literal["auto"]


@dataclass(frozen=True)
class Runtime:
    """How a model is run; what it computes stays the same up to rounding.

    Args:
        device: ``"auto"`` (CUDA where there is one, else the CPU), ``"cpu"``, ``"cuda"``,
            ``"cuda:1"``, ...
        precision: ``"float32"``, ``"bf16"`` for autocast to bfloat16 with float32 weights,
            ``"fp16"`` for float16 with a loss scale (GPUs before Ampere have no bf16), or
            ``"auto"``: bf16 where the hardware computes in it, float32 where it would be emulated.
        channels_last: NHWC memory, which tensor cores and oneDNN prefer; ``"auto"`` is true.
        num_threads: CPU threads of one operation; ``None`` leaves torch's choice.
        tf32: whether tensor cores may round float32's factors to 10 bits in matrix products and
            convolutions; ``None`` leaves torch's choice (in convolutions they may), ``"auto"`` is
            true on a GPU that can. The CPU does not care.
        tune_convolutions: whether cuDNN measures, for each shape, which of its algorithms is the
            fastest; ``"auto"`` is true on a GPU, since batches come in few shapes.
        compile: whether the dense parts go through ``torch.compile``, see
            :mod:`detector.engine.compiled`; ``"auto"`` is true on a GPU.
        graphs: how many CUDA graphs of the training step there may be at a time, 0 for none, see
            :mod:`detector.engine.graphs`; ``"auto"`` is 8 on a GPU.

    Attributes:
        choices: what ``"auto"`` became, and why.

    Raises:
        ValueError: a device that is not there, or an unknown precision.
    """

    device: str = "auto"
    precision: Precision = "float32"
    channels_last: Switch = False
    num_threads: int | None = None
    tf32: Switch | None = None
    tune_convolutions: Switch = False
    compile: Switch = False
    graphs: int | Literal["auto"] = 0
    choices: tuple[str, ...] = field(default=(), compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            raise ValueError(
                f"runtime.precision={self.precision}: choose {', '.join(get_args(Precision))}"
            )
        if self.num_threads is not None and self.num_threads < 1:
            raise ValueError(f"runtime.num_threads={self.num_threads} must be at least 1, or null")
        for key in ("channels_last", "tf32", "tune_convolutions", "compile"):
            if getattr(self, key) not in (True, False, "auto", None):
                raise ValueError(f"runtime.{key}={getattr(self, key)}: choose true, false or auto")
        number = isinstance(self.graphs, int) and not isinstance(self.graphs, bool)
        if self.graphs != "auto" and not (number and self.graphs >= 0):
            raise ValueError(
                f"runtime.graphs={self.graphs}: give how many there may be at a time, 0 for none, "
                "or auto"
            )
        name = self.device
        if name == "auto":
            found = torch.cuda.is_available()
            name = "cuda" if found else "cpu"
            why = torch.cuda.get_device_name() if found else "torch sees no NVIDIA GPU"
            self._choose("device", name, why)
        try:
            device = torch.device(name)
        except RuntimeError as error:
            raise ValueError(f"runtime.device={name}: choose auto, cpu or cuda") from error
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise ValueError(
                f"runtime.device={name}: torch sees {torch.cuda.device_count()} CUDA devices; "
                "use runtime.device=auto"
            )
        if self.precision == "auto":
            computes = _computes_bf16(device)
            why = "the hardware computes in it" if computes else "bf16 would be emulated"
            self._choose("precision", "bf16" if computes else "float32", why)
        if self.channels_last == "auto":
            reader = "tensor cores read" if device.type == "cuda" else "oneDNN reads"
            self._choose("channels_last", True, f"the layout that {reader}")
        on_gpu = device.type == "cuda"
        if self.tf32 == "auto":
            capable = on_gpu and torch.cuda.get_device_capability(device) >= (8, 0)
            self._choose("tf32", capable, "tensor cores have it" if capable else None)
        if self.tune_convolutions == "auto":
            why = "batches come in few shapes" if on_gpu else None
            self._choose("tune_convolutions", on_gpu, why)
        if self.compile == "auto":
            # Mask R-CNN R50-FPN, 2 x 480 x 640, bf16, NHWC, on one core with AVX512-BF16, five
            # steps each in turns: 5.5 s a step with backbone and RPN head compiled, after 220 s of
            # compiling, and 5.2 as written; 5.0 with box and mask head compiled, and 5.0 as
            # written. Convolutions and products stay oneDNN's, and the rest is little there.
            why = "fewer kernels" if on_gpu else "on CPUs it was measured to be no faster"
            self._choose("compile", on_gpu, why)
        if self.graphs == "auto":
            why = "one launch for each step" if on_gpu else "it takes an NVIDIA GPU"
            self._choose("graphs", 8 if on_gpu else 0, why)

    def _choose(self, key: str, value: str | bool | int, why: str | None) -> None:
        """Without a ``why`` there was nothing to choose, and nothing is said."""
        object.__setattr__(self, key, value)
        if why is not None:
            text = str(value).lower() if isinstance(value, bool) else str(value)
            object.__setattr__(self, "choices", (*self.choices, f"{key}={text} ({why})"))

    @property
    def torch_device(self) -> torch.device:
        """A GPU with its number, without which some of torch's functions refuse it."""
        device = torch.device(self.device)
        return torch.device("cuda", device.index or 0) if device.type == "cuda" else device

    def apply(self) -> None:
        """Sets the process-wide part: the number of threads, the current GPU and its switches.

        :func:`detector.engine.randomness.set_deterministic`, called after it, has the last word.
        """
        if self.torch_device.type == "cuda":
            torch.cuda.set_device(self.torch_device)
            if self.tf32 is not None:
                torch.set_float32_matmul_precision("high" if self.tf32 else "highest")
                torch.backends.cudnn.allow_tf32 = bool(self.tf32)
            torch.backends.cudnn.benchmark = bool(self.tune_convolutions)
        if self.num_threads is not None:
            torch.set_num_threads(self.num_threads)

    def place(self, model: nn.Module) -> nn.Module:
        """The model on the device and in the memory layout; in 16 bits with folded norms."""
        model = model.to(self.torch_device)
        if self.precision != "float32":
            fold_norms(model)
        if self.channels_last:
            model = model.to(memory_format=torch.channels_last)
        return model

    def move(self, batch: Batch) -> Batch:
        """The batch on the device and in the memory layout; the copy does not block the host.

        Images travel as uint8 and are normalised by the model. What only the host asks for, ids and
        original sizes, stays there.
        """
        used = ("images", "image_sizes", "targets", "proposals")
        given = {name: value for name in used if (value := getattr(batch, name)) is not None}
        moved = {n: v.to(self.torch_device, non_blocking=True) for n, v in given.items()}
        batch = replace(batch, **moved)
        if self.channels_last:
            images = batch.images.contiguous(memory_format=torch.channels_last)
            batch = replace(batch, images=images)
        return batch

    def autocast(self) -> AbstractContextManager[object]:
        """The context in which forward passes run."""
        if self.precision == "float32":
            return nullcontext()
        dtype = torch.float16 if self.precision == "fp16" else torch.bfloat16
        return torch.autocast(self.torch_device.type, dtype)

    def loss_scaler(self, scale: float | None = None) -> GradScaler | None:
        """What keeps small float16 gradients from becoming zero; ``None`` in other precisions.

        Args:
            scale: to begin with; ``None`` is torch's choice.
        """
        if self.precision != "fp16":
            return None
        return GradScaler(
            self.torch_device.type, **({} if scale is None else {"init_scale": scale})
        )

    def peak_memory(self) -> float | None:
        """GiB: the most allocated on the GPU, or the most resident of the process on a CPU."""
        if self.torch_device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.torch_device) / 2**30
        try:
            import resource
        except ImportError:  # Windows has no such count in the standard library
            return None
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (2**30 if sys.platform == "darwin" else 2**20)


def _computes_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # torch has no public question for it yet.
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return device.type == "cpu" and supported()
