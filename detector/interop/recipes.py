"""Which model of ours a file of weights is for, and what each format's module offers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, Self

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig
from torch import Tensor

from detector.config_files import find_configs

if TYPE_CHECKING:
    from detector.interop.files import StateFile


@dataclass(frozen=True)
class Recipe:
    """A model of ours with the numbers of the package that its weights come from.

    Args:
        name: such as ``torchvision maskrcnn_resnet50_fpn``.
        overrides: of ``configs/train.yaml``, which build the model: ``model=...``, ``key=value``.
        class_names: of label 0, 1, ...
        category_ids: likewise.
        parts: what of the model the file has, as beginnings of our names: ``("backbone.trunk.",)``
            of an ImageNet network; empty: everything.
    """

    name: str
    overrides: tuple[str, ...]
    class_names: tuple[str, ...] = ()
    category_ids: tuple[int, ...] = ()
    parts: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_names)

    def with_overrides(self, overrides: Sequence[str]) -> Self:
        """The recipe with further overrides, which win."""
        return replace(self, overrides=(*self.overrides, *overrides))

    def with_classes(self, class_names: Sequence[str], category_ids: Sequence[int]) -> Self:
        """The recipe with other names of the same classes."""
        return replace(self, class_names=tuple(class_names), category_ids=tuple(category_ids))


class Reader(Protocol):
    """What the module of a format that is read offers."""

    def recognise(self, state: StateFile) -> Recipe | None:
        """The recipe of a file by its names and shapes; ``None`` if it is not of this format."""

    def to_ours(self, state: StateFile, recipe: Recipe) -> dict[str, Tensor]:
        """Our state dict; :class:`detector.interop.key_rules.UnknownKeys` for foreign names."""

    def their_name(self, name: str, recipe: Recipe) -> str | None:
        """What they call our ``name``, for messages."""


class Format(Reader, Protocol):
    """What the module of a format that is read and written offers."""

    def from_ours(self, model_state: dict[str, Tensor], config: DictConfig) -> dict[str, Tensor]:
        """Their state dict of our model; ``ValueError`` if they have no such architecture."""

    def known_recipes(self) -> Sequence[Recipe]:
        """One recipe of each model, among which the nearest to a foreign file is looked for."""


def numbered_classes(count: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names and ids of classes that a file does not name: ``class 1``, ..."""
    ids = tuple(range(1, count + 1))
    return tuple(f"class {number}" for number in ids), ids


def compose_config(recipe: Recipe) -> DictConfig:
    """The whole configuration of a recipe, as training composes it, ``num_classes`` filled in.

    Raises:
        hydra.errors.HydraException: an override does not fit.
    """
    overrides = ["~experiment", "data=coco", *recipe.overrides, f"num_classes={recipe.num_classes}"]
    # A tool of ours may be running, whose own composition must survive this one.
    running = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(find_configs()), version_base="1.3"):
            return hydra.compose("train", overrides)
    finally:
        GlobalHydra.instance().clear()
        if running is not None:
            GlobalHydra.instance().initialize(running)
