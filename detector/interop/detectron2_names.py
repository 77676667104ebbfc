"""Detectron2's names of what our models have, in both directions."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Self

from detector.interop.key_rules import SAME, KeyRule, KeyTable, ReversedChannels, Transform

# What its files may hold beside weights: tables of anchors, and how pixels are normalised.
PIXEL_MEAN, PIXEL_STD = "pixel_mean", "pixel_std"
RPN = "proposal_generator.rpn_head."
BOX_HEAD, BOX_PREDICTOR = "roi_heads.box_head.", "roi_heads.box_predictor."
MASK_HEAD, KEYPOINT_HEAD = "roi_heads.mask_head.", "roi_heads.keypoint_head."
RES5 = "roi_heads.res5."
TRUNKS = ("backbone.bottom_up.", "backbone.", "")
# The heads of a cascade have numbers, a single one has none.
STAGES = ("", "0.", "1.", "2.")


@dataclass(frozen=True)
class Layout:
    """What of an architecture decides about names.

    Args:
        trunk: how their names of the trunk begin: ``backbone.bottom_up.`` below an FPN,
            ``backbone.`` without one, nothing in an ImageNet network.
        many_rpn_convs: the RPN has more than one convolution, which then have numbers.
        conv_box_head: the box head has convolutions, before any number of layers ``fc``.
        bgr: blue is the first input channel there; it is the last here.
    """

    trunk: str
    many_rpn_convs: bool = False
    conv_box_head: bool = False
    bgr: bool = True

    @classmethod
    def of_theirs(cls, names: Collection[str], bgr: bool) -> Self | None:
        """The layout of a state dict of theirs; ``None``: it is no residual network of Detectron2's
        or something else than what is known here stands on it."""
        trunk = next((t for t in TRUNKS if f"{t}stem.conv1.weight" in names), None)
        if trunk is None or f"{trunk}res2.0.conv1.weight" not in names:
            return None
        if trunk and not any(name.startswith((RPN, BOX_PREDICTOR)) for name in names):
            return None
        return cls(
            trunk,
            f"{RPN}conv.conv1.weight" in names,
            any(f"{BOX_HEAD}{stage}conv1.weight" in names for stage in STAGES),
            bgr,
        )

    @classmethod
    def of_ours(cls, names: Collection[str]) -> Self:
        """The layout of a state dict of ours; Detectron2's own order of channels."""
        has_fpn = any(name.startswith("backbone.lateral.") for name in names)
        return cls(
            TRUNKS[0] if has_fpn else TRUNKS[1],
            any(name.startswith("rpn.head.convs.1.") for name in names),
            any(name.startswith("box_branch.") and ".head.convs." in name for name in names),
        )

    @property
    def table(self) -> KeyTable:
        """The names of both."""
        channels: Transform = ReversedChannels() if self.bgr else SAME
        trunk, ours = self.trunk, "backbone.trunk."
        rules = [
            KeyRule(PIXEL_MEAN, None),
            KeyRule(PIXEL_STD, None),
            KeyRule("proposal_generator.anchor_generator.{rest:any}", None),
            KeyRule(f"{trunk}stem.conv1.weight", f"{ours}conv1.weight", channels),
            KeyRule(f"{trunk}stem.conv1.norm.{{kind}}", f"{ours}bn1.{{kind}}"),
        ]
        for stage in range(2, 6):
            rules += _stage_rules(f"{trunk}res{stage}.", f"{ours}layer{stage - 1}.")
        if not trunk:
            # The classifier: of torchvision's networks, and of Detectron2's own.
            rules += [KeyRule("stem.fc.{kind}", None), KeyRule("linear.{kind}", None)]
            return KeyTable(rules)
        if trunk == TRUNKS[0]:
            for kind in ("lateral", "output"):
                rules += _numbered(f"backbone.fpn_{kind}", f"backbone.{kind}.", 4, first=2)
        rules += [*self._rpn_rules(), *self._box_rules()]
        rules += _numbered(f"{MASK_HEAD}mask_fcn", "mask_branch.head.convs.", 8, first=1)
        rules += _numbered(f"{KEYPOINT_HEAD}conv_fcn", "keypoint_branch.head.convs.", 16, first=1)
        return KeyTable(
            [
                *rules,
                KeyRule(f"{MASK_HEAD}deconv.{{kind}}", "mask_branch.head.deconv.{kind}"),
                KeyRule(f"{MASK_HEAD}predictor.{{kind}}", "mask_branch.head.logits.{kind}"),
                KeyRule(
                    f"{KEYPOINT_HEAD}score_lowres.{{kind}}", "keypoint_branch.head.deconv.{kind}"
                ),
            ]
        )

    def _rpn_rules(self) -> list[KeyRule]:
        if self.many_rpn_convs:
            convs = _numbered(f"{RPN}conv.conv", "rpn.head.convs.", 4, first=0)
        else:
            convs = [KeyRule(f"{RPN}conv.{{kind}}", "rpn.head.convs.0.0.{kind}")]
        return [
            *convs,
            KeyRule(f"{RPN}objectness_logits.{{kind}}", "rpn.head.objectness.{kind}"),
            KeyRule(f"{RPN}anchor_deltas.{{kind}}", "rpn.head.deltas.{kind}"),
        ]

    def _box_rules(self) -> list[KeyRule]:
        rules = _stage_rules(RES5, "box_branch.pooler.layer4.")
        for stage in STAGES:
            ours = f"box_branch.stages.{stage}" if stage else "box_branch."
            head, predictor = f"{BOX_HEAD}{stage}", f"{BOX_PREDICTOR}{stage}"
            if self.conv_box_head:
                rules += _numbered(f"{head}conv", f"{ours}head.convs.", 8, first=1)
                for n in range(4):
                    rules.append(
                        KeyRule(f"{head}fc{n + 1}.{{kind}}", f"{ours}head.fcs.{n}.{{kind}}")
                    )
            else:
                rules.append(
                    KeyRule(f"{head}fc{{n:int}}.{{kind}}", f"{ours}head.fc{{n:int}}.{{kind}}")
                )
            rules += [
                KeyRule(f"{predictor}cls_score.{{kind}}", f"{ours}predictor.scores.{{kind}}"),
                KeyRule(f"{predictor}bbox_pred.{{kind}}", f"{ours}predictor.deltas.{{kind}}"),
            ]
        return rules


def _stage_rules(theirs: str, ours: str) -> list[KeyRule]:
    block = "{block:int}."
    return [
        KeyRule(f"{theirs}{block}shortcut.weight", f"{ours}{block}downsample.0.weight"),
        KeyRule(f"{theirs}{block}shortcut.norm.{{kind}}", f"{ours}{block}downsample.1.{{kind}}"),
        KeyRule(f"{theirs}{block}conv{{n:int}}.weight", f"{ours}{block}conv{{n:int}}.weight"),
        KeyRule(
            f"{theirs}{block}conv{{n:int}}.norm.{{kind}}", f"{ours}{block}bn{{n:int}}.{{kind}}"
        ),
    ]


def _conv_rules(theirs: str, ours: str) -> list[KeyRule]:
    """A convolution and the norm behind it, which is the next module here."""
    return [
        KeyRule(f"{theirs}.norm.{{kind}}", f"{ours}.1.{{kind}}"),
        KeyRule(f"{theirs}.{{kind}}", f"{ours}.0.{{kind}}"),
    ]


def _numbered(theirs: str, ours: str, count: int, first: int) -> list[KeyRule]:
    """Convolutions that are counted from ``first`` there and from 0 here."""
    pairs = (_conv_rules(f"{theirs}{n + first}", f"{ours}{n}") for n in range(count))
    return [rule for pair in pairs for rule in pair]
