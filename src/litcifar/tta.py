"""Test-time augmentation: a network's mean answer to several views of the same image.

Shape suffixes: B batch, H height, W width, C channels, K classes.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from litcifar.config import TTA

# The weight of each shift (pixels to the right and down), half for the shifted image and half for its mirror image; the
# image as it is comes first. `mirror_translate` is that of airbench (Jordan 2024, arXiv 2404.00498).
SHIFTS: dict[TTA, dict[int, float]] = {"mirror": {0: 1.0}, "mirror_translate": {0: 0.5, -1: 0.25, 1: 0.25}}


def views(images_BHWC: Tensor, tta: TTA) -> Iterator[tuple[float, Tensor]]:
    """The weight and the images, uint8 [B, H, W, C], of each view; first of all the images themselves."""
    for pixels, weight in SHIFTS[tta].items():
        view_BHWC = _shift(images_BHWC, pixels) if pixels else images_BHWC
        yield weight / 2, view_BHWC
        yield weight / 2, view_BHWC.flip(2)


def mean_logits(network: Callable[[Tensor], Tensor], images_BHWC: Tensor, logits_BK: Tensor, tta: TTA) -> Tensor:
    """The weighted mean, float32 [B, K], of the network's logits of all views; logits_BK: those of the images."""
    (weight, _), *others = views(images_BHWC, tta)
    mean_BK = weight * logits_BK.float()
    for weight, view_BHWC in others:
        mean_BK += weight * network(view_BHWC).float()
    return mean_BK


def _shift(images_BHWC: Tensor, pixels: int) -> Tensor:
    """The images moved to the right and down; what comes in is the image reflected at its border pixels."""
    for axis in (1, 2):
        last = images_BHWC.shape[axis] - 1
        source = (torch.arange(last + 1, device=images_BHWC.device) - pixels).abs()
        images_BHWC = images_BHWC.index_select(axis, last - (last - source).abs())
    return images_BHWC
