"""Tables that say how another package calls and stores what a model of ours has.

A table is read in both directions. A rule pairs two patterns of names and a transform of the
tensor that has an inverse, so that what is written reads back bit for bit: no rule computes with
the numbers, it only moves rows and channels, or adds rows of zeros that reading takes away.

A pattern is a name with places: ``{block}`` stands for anything without a dot, ``{block:int}`` for
digits and ``{rest:any}`` for anything at all. Both patterns of a rule have the same places, which
hold the same text on both sides:

    KeyRule("backbone.body.{rest:any}", "backbone.trunk.{rest:any}")
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

_PLACE = re.compile(r"\{(\w+)(?::(\w+))?\}")
_KINDS = {None: r"[^.]+", "int": r"\d+", "any": r".+"}


class Transform:
    """How their tensor becomes ours, and back; this one changes nothing."""

    def to_ours(self, theirs: Tensor) -> Tensor:
        return theirs

    def to_theirs(self, ours: Tensor) -> Tensor:
        return ours


SAME = Transform()


@dataclass(frozen=True)
class BackgroundFirst(Transform):
    """Rows of classes with the background first there, and last here.

    Args:
        rows: rows of each class.
    """

    rows: int = 1

    def to_ours(self, theirs: Tensor) -> Tensor:
        return torch.cat((theirs[self.rows :], theirs[: self.rows]))

    def to_theirs(self, ours: Tensor) -> Tensor:
        return torch.cat((ours[-self.rows :], ours[: -self.rows]))


@dataclass(frozen=True)
class UnusedBackground(Transform):
    """The first class there is a background that nothing uses, which is not here at all.

    Args:
        rows: rows of each class; zeros are written.
    """

    rows: int = 1

    def to_ours(self, theirs: Tensor) -> Tensor:
        return theirs[self.rows :].clone()

    def to_theirs(self, ours: Tensor) -> Tensor:
        return torch.cat((ours.new_zeros(self.rows, *ours.shape[1:]), ours))


@dataclass(frozen=True)
class ReversedChannels(Transform):
    """Blue, green, red are the input channels there, and red, green, blue here."""

    def to_ours(self, theirs: Tensor) -> Tensor:
        return theirs.flip(1)

    def to_theirs(self, ours: Tensor) -> Tensor:
        return ours.flip(1)


@dataclass(frozen=True)
class ReorderedRows(Transform):
    """Groups of rows in another order.

    Args:
        order: for each of our groups the number of theirs; a permutation.
        rows: rows of each group.
    """

    order: tuple[int, ...]
    rows: int = 1

    def to_ours(self, theirs: Tensor) -> Tensor:
        return self._take(theirs, self.order)

    def to_theirs(self, ours: Tensor) -> Tensor:
        inverse = sorted(range(len(self.order)), key=self.order.__getitem__)
        return self._take(ours, inverse)

    def _take(self, tensor: Tensor, order: Sequence[int]) -> Tensor:
        if len(tensor) != len(order) * self.rows:
            return tensor  # of another shape than the rule is for, which is found and said later
        groups = tensor.unflatten(0, (len(order), self.rows))
        return groups[torch.tensor(order, device=tensor.device)].flatten(0, 1)


@dataclass(frozen=True)
class KeyRule:
    """One pattern there, one here.

    Args:
        theirs: pattern of their names.
        ours: pattern of ours with the same places; ``None``: we have no such thing, it is left out.
        transform: of the tensor.
    """

    theirs: str
    ours: str | None
    transform: Transform = SAME

    def __post_init__(self) -> None:
        if self.ours is not None and _places(self.theirs) != _places(self.ours):
            raise ValueError(f"{self.theirs} and {self.ours} have different places")

    def our_name(self, name: str) -> str | None:
        """Our name of what they call ``name``, if the rule is for it and we have it."""
        match = self._their_pattern.fullmatch(name)
        return None if match is None or self.ours is None else _fill(self.ours, match)

    def their_name(self, name: str) -> str | None:
        """Their name of what we call ``name``, if the rule is for it."""
        match = None if self.ours is None else self._our_pattern.fullmatch(name)
        return None if match is None else _fill(self.theirs, match)

    def is_for(self, name: str) -> bool:
        """Whether the rule says what becomes of their ``name``."""
        return self._their_pattern.fullmatch(name) is not None

    @cached_property
    def _their_pattern(self) -> re.Pattern[str]:
        return _compile(self.theirs)

    @cached_property
    def _our_pattern(self) -> re.Pattern[str]:
        return _compile(self.ours or "")


class UnknownKeys(ValueError):
    """Names that no rule is for; they are its ``names``."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(f"{len(names)} unknown names: {', '.join(names[:3])}")
        self.names = list(names)


class KeyTable:
    """Rules, of which the first that fits a name counts."""

    def __init__(self, rules: Iterable[KeyRule]) -> None:
        self.rules = tuple(rules)

    def unknown(self, names: Iterable[str]) -> list[str]:
        """Their names that no rule is for."""
        return [name for name in names if not any(rule.is_for(name) for rule in self.rules)]

    def our_name(self, name: str) -> str | None:
        """Our name of their ``name``; ``None`` if we have no such thing or no rule is for it."""
        rule = next((rule for rule in self.rules if rule.is_for(name)), None)
        return None if rule is None else rule.our_name(name)

    def their_name(self, name: str) -> str | None:
        """Their name of our ``name``; ``None`` if no rule is for it."""
        found = (rule.their_name(name) for rule in self.rules)
        return next((theirs for theirs in found if theirs is not None), None)

    def to_ours(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our state dict of theirs; what a rule leaves out is left out.

        Raises:
            UnknownKeys: names that no rule is for.
            ValueError: two names become one.
        """
        unknown = self.unknown(state)
        if unknown:
            raise UnknownKeys(unknown)
        result: dict[str, Tensor] = {}
        for name, value in state.items():
            rule = next(rule for rule in self.rules if rule.is_for(name))
            ours = rule.our_name(name)
            if ours is not None:
                _put(result, ours, name, rule.transform.to_ours(value))
        return result

    def to_theirs(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Their state dict of ours.

        Raises:
            UnknownKeys: names that no rule is for.
            ValueError: two names become one.
        """
        unknown = [name for name in state if self.their_name(name) is None]
        if unknown:
            raise UnknownKeys(unknown)
        result: dict[str, Tensor] = {}
        for name, value in state.items():
            rule = next(rule for rule in self.rules if rule.their_name(name) is not None)
            _put(result, rule.their_name(name), name, rule.transform.to_theirs(value))
        return result


def _put(result: dict[str, Tensor], name: str, source: str, value: Tensor) -> None:
    if name in result:
        raise ValueError(f"{source}: another name stands for {name} too")
    result[name] = value


def _places(pattern: str) -> set[str]:
    return {match[1] for match in _PLACE.finditer(pattern)}


def _compile(pattern: str) -> re.Pattern[str]:
    parts, end = [], 0
    for match in _PLACE.finditer(pattern):
        parts.append(re.escape(pattern[end : match.start()]))
        parts.append(f"(?P<{match[1]}>{_KINDS[match[2]]})")
        end = match.end()
    return re.compile("".join(parts) + re.escape(pattern[end:]))


def _fill(pattern: str, match: re.Match[str]) -> str:
    return _PLACE.sub(lambda place: match[place[1]], pattern)
