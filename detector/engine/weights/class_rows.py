"""Rows of a model's layers that belong to classes, when it goes on with other classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class ClassRows:
    """How the rows of a tensor belong to names.

    Attributes:
        of: ``"classes"`` or ``"keypoints"``.
        per_name: rows of each: 4 of a class's box, M * M of its mask where that lies flat.
        dim: the dimension that the rows lie along.
    """

    of: str
    per_name: int
    dim: int = 0


def class_rows(model: nn.Module) -> dict[str, ClassRows]:
    """The tensors of a model that have rows of names, by their names in its state dict.

    A module says so by ``class_rows`` or ``keypoint_rows``: rows of each class or keypoint by the
    name of its layer. After the classes' rows may come as many of background.
    """
    found = {}
    for path, module in model.named_modules():
        for of, attribute in (("classes", "class_rows"), ("keypoints", "keypoint_rows")):
            for name, per_name in getattr(module, attribute, {}).items():
                layer = module.get_submodule(name)
                for key, _ in layer.named_parameters():
                    # A transposed convolution has its outputs second.
                    dim = int(isinstance(layer, nn.ConvTranspose2d) and key == "weight")
                    found[f"{path}.{name}.{key}"] = ClassRows(of, per_name, dim)
    return found


@dataclass(frozen=True)
class NameMatch:
    """Which former name each new one goes on from.

    Attributes:
        former: names of the former rows, in order.
        names: of the new rows.
        source: for each new name the place of the former one, or ``None`` for random values.
        how: ``"same"`` names, ``"order"`` where other names stand for the same rows, ``"name"``
            or ``"none"``.
    """

    former: tuple[str, ...]
    names: tuple[str, ...]
    source: tuple[int | None, ...]
    how: str

    @property
    def carried(self) -> list[str]:
        """The names that go on."""
        return [
            name for name, place in zip(self.names, self.source, strict=True) if place is not None
        ]


def match_names(former: Sequence[str], names: Sequence[str], by_name: bool) -> NameMatch:
    """Decides which rows go on.

    The same names in order are the same rows; in another order they are found by name. Of other
    names only those are carried that are in both, and only if ``by_name``. Without it, as many
    other names are taken to mean the same rows, and another number of names to mean none.

    Args:
        former: names that a checkpoint was trained on.
        names: names of now.
        by_name: whether rows are carried by name.
    """
    former, names = tuple(former), tuple(names)
    in_order = tuple(range(len(names)))
    if former == names:
        return NameMatch(former, names, in_order, "same")
    if by_name or sorted(former) == sorted(names):
        exact = {name: place for place, name in enumerate(former)}
        alike, own = _unique_folded(former), _unique_folded(names)
        source = tuple(
            exact.get(name, alike.get(_folded(name)) if _folded(name) in own else None)
            for name in names
        )
        how = "name" if any(place is not None for place in source) else "none"
        return NameMatch(former, names, source, how)
    if len(former) == len(names):
        return NameMatch(former, names, in_order, "order")
    return NameMatch(former, names, (None,) * len(names), "none")


def _folded(name: str) -> str:
    """Spelling aside: ``Traffic_Light`` is ``traffic light``."""
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


def _unique_folded(names: Sequence[str]) -> dict[str, int]:
    """Places by folded names, of those that only one name folds to."""
    folded = [_folded(name) for name in names]
    return {form: place for place, form in enumerate(folded) if folded.count(form) == 1}


def rows_fit(former: Tensor, own: Tensor, rows: ClassRows, match: NameMatch) -> bool:
    """Whether two tensors differ in nothing but the number of names.

    Args:
        former: of a checkpoint.
        own: of the model, whose shape says whether background has rows.
        rows: how they belong to names.
        match: of the names.
    """
    background = own.shape[rows.dim] // rows.per_name - len(match.names)
    expected = list(own.shape)
    expected[rows.dim] = rows.per_name * (len(match.former) + background)
    return background in (0, 1) and list(former.shape) == expected


def carry_rows(former: Tensor, own: Tensor, rows: ClassRows, match: NameMatch) -> Tensor:
    """``own`` with the rows of all names that go on, and of background, from ``former``.

    Args:
        former, own, rows, match: as in :func:`rows_fit`, which must hold.
    """
    carried = own.clone()
    pairs = [(i, place) for i, place in enumerate(match.source) if place is not None]
    if own.shape[rows.dim] > rows.per_name * len(match.names):
        pairs.append((len(match.names), len(match.former)))
    for to, place in pairs:
        carried.narrow(rows.dim, to * rows.per_name, rows.per_name).copy_(
            former.narrow(rows.dim, place * rows.per_name, rows.per_name)
        )
    return carried
