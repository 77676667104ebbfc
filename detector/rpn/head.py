"""The RPN's sliding network."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor, nn

from detector.backbones.normalization import conv_norm

Objectness = Literal["sigmoid", "softmax"]


class RPNHead(nn.Module):
    """A 3x3 convolution shared by all levels, then objectness and deltas (Faster R-CNN, 3.1).

    With ``softmax`` every anchor has two outputs, as in the paper; the first k channels are
    background, the last k foreground. What leaves is their difference, whose sigmoid is the softmax
    probability of an object: the losses, the order of the proposals and their scores follow
    from it as from the one output of ``sigmoid``.

    Args:
        in_channels: C of the features.
        num_anchors: anchors per cell.
        num_convs: shared 3x3 convolutions, 1 in the papers.
        conv_channels: their width, 512 for VGG16 in the paper; ``None`` keeps C.
        objectness: ``sigmoid`` or ``softmax``.

    Raises:
        ValueError: no convolution, or an unknown ``objectness``.
    """

    def __init__(
        self,
        in_channels: int = 256,
        num_anchors: int = 3,
        num_convs: int = 1,
        conv_channels: int | None = None,
        objectness: Objectness = "sigmoid",
    ) -> None:
        super().__init__()
        if num_convs < 1:
            raise ValueError(f"rpn.head.num_convs={num_convs} must be at least 1")
        if objectness not in get_args(Objectness):
            raise ValueError(
                f"rpn.head.objectness={objectness} is not known: write "
                f"{' or '.join(get_args(Objectness))}"
            )
        self.softmax = objectness == "softmax"
        self.num_anchors = num_anchors
        width = conv_channels or in_channels
        self.convs = nn.Sequential(
            *(
                conv_norm(in_channels if i == 0 else width, width, 3, activation=True)
                for i in range(num_convs)
            )
        )
        self.objectness = nn.Conv2d(width, num_anchors * (2 if self.softmax else 1), 1)
        self.deltas = nn.Conv2d(width, 4 * num_anchors, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Logits ``(B, H_l * W_l * num_anchors)`` and deltas ``(B, ..., 4)`` of each level."""
        logits, deltas = [], []
        for feature in features:
            x = self.convs(feature)
            objectness = self.objectness(x).permute(0, 2, 3, 1).float()
            if self.softmax:
                background, foreground = objectness.chunk(2, dim=-1)
                objectness = foreground - background
            logits.append(objectness.flatten(1))
            level_deltas = self.deltas(x).permute(0, 2, 3, 1).flatten(1).float()
            deltas.append(level_deltas.unflatten(1, (-1, 4)))
        return logits, deltas
