"""How networks of Detectron2 take their pixels and where they stride, which no name tells.

It follows from where a network comes from:

=====================================  ==========  =============================  =================
network                                channels    mean, standard deviation       stride
=====================================  ==========  =============================  =================
R-50, R-101 of MSRA (the default)      BGR         ImageNet's, 1                  in the 1x1
X-101 of FAIR                          BGR         ImageNet's                     in the 3x3
with group norm                        BGR         ImageNet's, 1                  in the 3x3
torchvision's R-50, R-101              RGB         ImageNet's                     in the 3x3
=====================================  ==========  =============================  =================

A file that has ``pixel_mean`` and ``pixel_std`` says so itself; a deviation other than 1 means the
stride in the 3x3. Where a network was trained in another way, settings win.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from detector.interop.caffe2_names import detectron2_tensors, is_caffe2
from detector.interop.detectron2_names import PIXEL_MEAN, PIXEL_STD, TRUNKS, Layout
from detector.interop.files import StateFile

# Of red, green, blue. Detectron, before Detectron2, had its own mean.
MEAN, STD, NO_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375), (1.0, 1.0, 1.0)
DETECTRON_MEAN = (122.7717, 115.9465, 102.9801)


@dataclass(frozen=True)
class Conventions:
    """What a trained network expects.

    Args:
        mean: of red, green, blue in 0..255, as is ``std``.
        std: see ``mean``.
        bgr: blue is its first channel.
        stride_in_1x1: see :class:`detector.backbones.resnet.ResNet`.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    bgr: bool = True
    stride_in_1x1: bool = False

    @property
    def overrides(self) -> list[str]:
        """The settings of ours that meet it; the order of the channels is the weights' part."""
        return [
            f"model.backbone.stride_in_1x1={str(self.stride_in_1x1).lower()}",
            f"model.normalizer.mean=[{','.join(map(str, self.mean))}]",
            f"model.normalizer.std=[{','.join(map(str, self.std))}]",
        ]


@dataclass(frozen=True)
class ImageNetNetwork:
    """A residual network under torchvision's names, for pixels in the order red, green, blue."""

    tensors: dict[str, Tensor]
    conventions: Conventions


def current_names(state: StateFile) -> dict[str, Tensor]:
    """The tensors under Detectron2's names, whatever they are called in the file."""
    if is_caffe2(state.tensors):
        return detectron2_tensors(state.tensors)
    return {name.removeprefix("module."): value for name, value in state.tensors.items()}


def imagenet_network(state: StateFile) -> ImageNetNetwork | None:
    """The ImageNet network in a file of Detectron2's; ``None`` if it is another file.

    Raises:
        detector.interop.key_rules.UnknownKeys: it has layers that are not known here.
    """
    tensors = current_names(state)
    conventions = conventions_of(tensors, state)
    layout = Layout.of_theirs(tensors, conventions.bgr)
    if layout is None or layout.trunk:
        return None
    ours = layout.table.to_ours(tensors)
    renamed = {name.removeprefix("backbone.trunk."): value for name, value in ours.items()}
    return ImageNetNetwork(renamed, conventions)


def conventions_of(tensors: Mapping[str, Tensor], state: StateFile) -> Conventions:
    """What the residual network among ``tensors`` expects.

    Args:
        tensors: of :func:`current_names`.
        state: the file that they are of.
    """
    trunk = next((t for t in TRUNKS if f"{t}stem.conv1.weight" in tensors), "")
    conv2 = tensors.get(f"{trunk}res2.0.conv2.weight")
    has_groups = conv2 is not None and conv2.shape[0] != conv2.shape[1]
    bgr, mean = True, MEAN
    given = [tensors[name].flatten() for name in (PIXEL_MEAN, PIXEL_STD) if name in tensors]
    if [len(values) for values in given] == [3, 3]:
        bgr = bool(given[0][0] <= given[0][2])  # red is the brightest of ImageNet's
        mean, std = (_decimal(x.flip(0) if bgr else x) for x in given)
    elif state.metadata.get("__author__") == "torchvision":
        bgr, std = False, STD
    elif is_caffe2(state.tensors) and trunk:
        mean, std = DETECTRON_MEAN, NO_STD
    else:
        std = STD if has_groups else NO_STD
    has_batch_norm = f"{trunk}stem.conv1.norm.running_mean" in tensors
    is_bottleneck = f"{trunk}res2.0.conv3.weight" in tensors
    in_1x1 = std == NO_STD and has_batch_norm and is_bottleneck and not has_groups
    return Conventions(mean, std, bgr, in_1x1)


def _decimal(values: Tensor) -> tuple[float, ...]:
    """The decimal numbers that were rounded to float32."""
    numbers: Sequence[float] = values.tolist()
    return tuple(float(f"{number:.7g}") for number in numbers)
