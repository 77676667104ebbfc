"""Weights that torchvision publishes, by their name: ``torchvision://ResNet50_Weights.DEFAULT``."""

from __future__ import annotations

import difflib
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlparse

import torch
from torch import Tensor
from torchvision.models import get_model_weights as weights_of
from torchvision.models import get_weight, list_models
from torchvision.models._api import WeightsEnum

SCHEME = "torchvision://"


def is_torchvision(source: str | Path) -> bool:
    """Whether ``source`` is a name of torchvision's and not a file."""
    return str(source).startswith(SCHEME)


def find_weights(source: str) -> WeightsEnum:
    """The entry of torchvision's catalogue, with address and meta data; nothing is fetched.

    Args:
        source: ``torchvision://MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1``.

    Raises:
        ValueError: there is no such name; the message has similar ones.
    """
    name = source.removeprefix(SCHEME)
    try:
        return get_weight(name)
    except ValueError:
        known = [str(entry) for model in list_models() for entry in weights_of(model)]
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else "."
        raise ValueError(
            f"{source}: torchvision has no weights of this name{hint} Names are written as "
            "torchvision://ResNet50_Weights.IMAGENET1K_V2"
        ) from None


def published_file(path: str | Path) -> WeightsEnum | None:
    """The entry of torchvision's catalogue whose file is called as this one is."""
    name = Path(path).name
    for model in list_models():
        for entry in weights_of(model):
            if Path(urlparse(entry.url).path).name == name:
                return entry
    return None


def fetch_weights(source: str) -> dict[str, Tensor]:
    """The state dict of ``torchvision://NAME``, from torch.hub's folder or from the network.

    Raises:
        ValueError: there is no such name.
        OSError: it is not in the folder and cannot be fetched; the message says what to fetch by
            other means and where to put it.
    """
    weights = find_weights(source)
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    name = Path(urlparse(weights.url).path).name
    try:
        # A complete file in the folder is not fetched again.
        return torch.hub.load_state_dict_from_url(
            weights.url, map_location="cpu", progress=True, check_hash=True, weights_only=True
        )
    except (URLError, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        raise OSError(
            f"{source} cannot be fetched ({reason}). Fetch {weights.url} where there is a network "
            f"and put it into {folder} (TORCH_HOME names another place), or give the file itself: "
            f".../{name}"
        ) from error
    except Exception as error:  # a damaged file raises many types
        raise ValueError(
            f"{folder / name}: not a readable weights file ({error}); remove it and fetch it again"
        ) from error
