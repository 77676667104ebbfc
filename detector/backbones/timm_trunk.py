"""Trunks from timm (pytorch-image-models, the optional extra ``timm``) under FPN."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from detector.backbones.fpn import FPN
from detector.backbones.freezing import FreezableTrunk, check_increasing
from detector.backbones.weights import copy_weights, read_state_dict


class TimmTrunk(FreezableTrunk):
    """Any of timm's models that has ``features_only``; strides and channels are timm's own.

    Args:
        name: timm's name of the model, such as ``convnext_tiny``.
        levels: maps to give, by their stride: 2 for stride 4 (C2), 5 for stride 32 (C5).
        norm: ``frozen_bn`` or ``sync_bn`` replace the model's batch norms; ``None`` leaves the
            model's norms as they are.
        freeze_at: stages that stay as loaded, with all that precedes them, as
            ``timm.create_model(name, features_only=True).feature_info`` counts them; 0 none.
        weights: file of the model's weights as timm writes them, or ``None`` for random weights.
        options: further arguments of ``timm.create_model``. Swin needs
            ``{strict_img_size: false, always_partition: true}``: any image size, and windows that
            shift at the coarsest stage too.

    Raises:
        ValueError: timm is not installed, an unknown name, levels that the model does not have, a
            model that does not take images of any size, or weights that do not fit.
        FileNotFoundError: no such weights file.
    """

    def __init__(
        self,
        name: str,
        levels: Sequence[int] = (2, 3, 4, 5),
        norm: str | None = None,
        freeze_at: int = 0,
        weights: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        timm = _import_timm()
        options = dict(options or {})
        if not timm.is_model(name):
            close = difflib.get_close_matches(name, timm.list_models(), n=5)
            similar = f"similar names: {', '.join(close)}" if close else "see timm.list_models()"
            raise ValueError(f"backbone name={name!r} is not known to timm; {similar}")
        levels = check_increasing("levels", levels, range(1, 8))
        network = _create(timm, name, options)
        indices = _feature_indices(name, network, levels)
        if indices != tuple(network.feature_info.out_indices):
            network = _create(timm, name, options, out_indices=indices)
        if weights is not None:
            _load_weights(timm, name, options, network, weights)
        self.network = _replace_norms(timm, name, network, norm)
        self.strides = tuple(2**level for level in levels)
        self.out_channels = tuple(network.feature_info.channels())
        self.is_nhwc = getattr(network, "output_fmt", None) == "NHWC"
        self._probe(name)
        self._name, self._last_index = name, indices[-1]
        self.freeze(self.stages if freeze_at else [], freeze_at)

    @property
    def stages(self) -> list[list[nn.Module]]:
        """The modules of each of ``feature_info``'s stages, with all that precede the first.

        Raises:
            ValueError: the model names no modules for its stages.
        """
        # Looked for when asked: it matters only where stages are frozen or learn differently.
        return _modules_by_stage(self._name, self.network, self._last_index)

    @torch.no_grad()
    def _probe(self, name: str) -> None:
        """Runs a small image, of no size that a model is made for, to see what timm promised."""
        images = next(self.network.parameters()).new_zeros(
            1, 3, 2 * self.strides[-1], 3 * self.strides[-1]
        )
        training = self.training
        try:
            maps = self.eval()(images)
        except Exception as error:  # models say in many ways that they want another size
            raise ValueError(
                f"timm's {name} does not take images of any size ({error}); if it has an option "
                "for that, give it, such as model.backbone.options={strict_img_size: false} "
                "(Swin) or {dynamic_img_size: true} (ViT)"
            ) from error
        self.train(training)
        expected = [
            (channels, images.shape[2] // stride, images.shape[3] // stride)
            for channels, stride in zip(self.out_channels, self.strides, strict=True)
        ]
        found = [tuple(x.shape[1:]) for x in maps]
        if found != expected:
            raise ValueError(
                f"timm's {name} gives maps of shapes {found} for an image of "
                f"{tuple(images.shape[2:])}, where its feature_info says {expected}; a pyramid "
                "cannot be built on it"
            )

    def forward(self, images: Tensor) -> list[Tensor]:
        """``(B, 3, H, W)`` to maps ``(B, C, H / stride, W / stride)``, finest first.

        Sides are rounded up: images are padded with zeros to whole cells of the coarsest map,
        since models round differently, and some take nothing else.
        """
        height, width = images.shape[2:]
        below, right = -height % self.strides[-1], -width % self.strides[-1]
        if below or right:
            images = F.pad(images, (0, right, 0, below))
        maps = self.network(images)
        if self.is_nhwc:
            maps = [x.permute(0, 3, 1, 2) for x in maps]
        if below or right:
            maps = [
                x[:, :, : -(-height // stride), : -(-width // stride)]
                for x, stride in zip(maps, self.strides, strict=True)
            ]
        return maps


def timm_fpn(
    name: str,
    weights: str | None = None,
    norm: str | None = None,
    freeze_at: int = 0,
    options: Mapping[str, Any] | None = None,
    out_channels: int = 256,
    fpn_norm: str = "none",
    levels: Sequence[int] = (2, 3, 4, 5),
    extra: str = "pool",
) -> FPN:
    """One of timm's models under FPN.

    Args:
        name: see :class:`TimmTrunk`, as are ``weights``, ``norm``, ``freeze_at`` and ``options``.
        weights: file of weights as timm writes them, or ``None``.
        norm: what replaces the model's batch norms, or ``None``.
        freeze_at: how much of the trunk stays as loaded.
        options: further arguments of ``timm.create_model``.
        out_channels: C of every level.
        fpn_norm: normalisation of FPN's own convolutions.
        levels: maps of the trunk that the pyramid is built on, 2 for C2 and P2.
        extra: coarser levels on top; see :class:`detector.backbones.fpn.FPN`.
    """
    trunk = TimmTrunk(name, levels, norm, freeze_at, weights, options)
    return FPN(trunk, out_channels, fpn_norm, extra)


def _import_timm() -> ModuleType:
    try:
        import timm
        import timm.layers
    except ImportError as error:
        raise ValueError(
            f"timm's backbones need the package timm ({error}): pip install 'detector[timm]'"
        ) from error
    return timm


def _create(timm: ModuleType, name: str, options: Mapping[str, Any], **more: Any) -> nn.Module:
    try:
        return timm.create_model(name, pretrained=False, features_only=True, **options, **more)
    except Exception as error:  # timm and its models refuse arguments in many ways
        raise ValueError(
            f"timm cannot build {name} with features_only=True and "
            f"model.backbone.options={dict(options)}: {error}"
        ) from error


def _feature_indices(name: str, network: nn.Module, levels: Sequence[int]) -> tuple[int, ...]:
    """timm's index of the last feature map of each level's stride."""
    reductions = [stage["reduction"] for stage in network.feature_info.info]
    last = {reduction: index for index, reduction in enumerate(reductions)}
    absent = [2**level for level in levels if 2**level not in last]
    if absent:
        had = [n for n in range(1, 8) if 2**n in last]
        raise ValueError(
            f"levels={list(levels)} need maps of strides {absent}, which timm's {name} does not "
            f"have; choose from model.backbone.levels={had}"
        )
    return tuple(last[2**level] for level in levels)


def _own_name(name: str, own: Collection[str]) -> str | None:
    """The name in a ``features_only`` network of what a whole model calls ``name``.

    timm flattens the model's first sequential containers (``stages.0`` is ``stages_0``), wraps
    the model, or leaves it as it is.
    """
    candidates = (name, name.replace(".", "_", 1), f"model.{name}", f"body.{name}")
    return next((candidate for candidate in candidates if candidate in own), None)


def network_names(
    name: str, options: Mapping[str, Any], levels: Sequence[int] = (2, 3, 4, 5)
) -> dict[str, str | None]:
    """What a trunk's network calls the tensors of the whole model ``name``.

    Args:
        name: see :class:`TimmTrunk`, as are ``options`` and ``levels``.
        options: of ``timm.create_model``.
        levels: where the trunk ends.

    Returns:
        By the names of timm's files; ``None`` for what the trunk leaves out.

    Raises:
        ValueError: see :class:`TimmTrunk`.
    """
    timm = _import_timm()
    network = _create(timm, name, options)
    indices = _feature_indices(name, network, levels)
    network = _create(timm, name, options, out_indices=indices)
    return _names_of_file(timm, name, options, network)


def _names_of_file(
    timm: ModuleType, name: str, options: Mapping[str, Any], network: nn.Module
) -> dict[str, str | None]:
    own = network.state_dict().keys()
    whole = timm.create_model(name, pretrained=False, **options).state_dict().keys()
    return {key: _own_name(key, own) for key in whole}


def _load_weights(
    timm: ModuleType, name: str, options: Mapping[str, Any], network: nn.Module, path: str
) -> None:
    """Copies a whole model's file; what ``features_only`` cut off is left out."""
    names = _names_of_file(timm, name, options, network)
    own = network.state_dict().keys()
    state = {}
    for key, value in read_state_dict(path).items():
        renamed = names[key] if key in names else _own_name(key, own) or key
        if renamed is not None:  # an unknown name is refused when copying
            state[renamed] = value
    copy_weights(network, state, path)


def _replace_norms(timm: ModuleType, name: str, network: nn.Module, norm: str | None) -> nn.Module:
    replacements = {
        None: lambda module: module,
        "frozen_bn": timm.layers.freeze_batch_norm_2d,
        "sync_bn": timm.layers.convert_sync_batchnorm,
    }
    if norm not in replacements:
        raise ValueError(f"norm={norm!r} must be frozen_bn, sync_bn or null (the model's own)")
    if norm is not None and not any(isinstance(m, _BatchNorm) for m in network.modules()):
        raise ValueError(f"norm={norm!r}, but timm's {name} has no batch norm; use norm=null")
    return replacements[norm](network)


def _modules_by_stage(name: str, network: nn.Module, last_index: int) -> list[list[nn.Module]]:
    """The modules of each stage up to timm's ``last_index``: its own and all that precede it."""
    modules = dict(network.named_modules())
    stages: list[list[nn.Module]] = []
    seen: set[str] = set()
    for stage in network.feature_info.info[: last_index + 1]:
        end = _own_name(stage["module"], modules)
        if end is None:
            raise ValueError(
                f"timm's {name} has no module {stage['module']!r} for one of its stages, so that "
                "it has no stages to tell apart; use freeze_at=0 and optimizer.layer_decay=null"
            )
        members = []
        for path, module in modules.items():
            holds_the_end = path == "" or end.startswith(f"{path}.")
            if path not in seen and not holds_the_end:
                seen.add(path)
                members.append(module)
            if path == end:
                break
        seen.update(path for path in modules if path.startswith(f"{end}."))  # with the end itself
        stages.append(members)
    return stages
