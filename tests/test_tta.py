"""Test-time augmentation: which views there are, and what each weighs."""

import pytest
import torch
from torch import Tensor

from litcifar.config import TTA
from litcifar.tta import mean_logits, views

KINDS: list[TTA] = ["mirror", "mirror_translate"]


def noise(height: int = 5, width: int = 7) -> Tensor:
    """uint8 [3, height, width, 3]"""
    return torch.randint(0, 256, (3, height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_the_six_views_by_hand() -> None:
    rows = [[1, 2, 3, 4], [5, 6, 7, 8]]
    image = torch.tensor(rows, dtype=torch.uint8).view(1, 2, 4, 1).repeat(1, 1, 1, 3)
    shown = [(weight, view[0, :, :, 0].tolist()) for weight, view in views(image, "mirror_translate")]
    assert shown == [
        (1 / 4, rows),
        (1 / 4, [[4, 3, 2, 1], [8, 7, 6, 5]]),
        (1 / 8, [[6, 7, 8, 7], [2, 3, 4, 3]]),  # up and to the left
        (1 / 8, [[7, 8, 7, 6], [3, 4, 3, 2]]),
        (1 / 8, [[6, 5, 6, 7], [2, 1, 2, 3]]),  # down and to the right
        (1 / 8, [[7, 6, 5, 6], [3, 2, 1, 2]]),
    ]
    assert [weight for weight, _ in views(image, "mirror")] == [1 / 2, 1 / 2]
    assert [view[0, :, :, 0].tolist() for _, view in views(image, "mirror")] == [rows, shown[1][1]]


@pytest.mark.parametrize(("height", "width"), [(2, 2), (5, 7), (32, 32)])
def test_views_of_any_size_are_crops_of_the_reflected_frame(height: int, width: int) -> None:
    images = noise(height, width)
    frame = torch.nn.functional.pad(images.permute(0, 3, 1, 2).float(), (1, 1, 1, 1), "reflect").permute(0, 2, 3, 1)
    frame = frame.to(torch.uint8)
    expected = [images, frame[:, 2:, 2:], frame[:, :height, :width]]
    shown = [view for _, view in views(images, "mirror_translate")]
    assert len(shown) == 6
    for crop, view, mirrored in zip(expected, shown[::2], shown[1::2], strict=True):
        assert torch.equal(view, crop)
        assert torch.equal(mirrored, crop.flip(2))
    assert {view.dtype for view in shown} == {torch.uint8}


def pixel(images_BHWC: Tensor) -> Tensor:
    """A network whose logits are the colours, [B, 3], of row 2, column 2."""
    return images_BHWC[:, 2, 2].bfloat16()


@pytest.mark.parametrize(
    ("tta", "weights"),
    [
        ("mirror", {(2, 2): 4, (2, 4): 4}),
        ("mirror_translate", {(2, 2): 2, (2, 4): 2, (3, 3): 1, (3, 5): 1, (1, 1): 1, (1, 3): 1}),
    ],
)
def test_what_each_view_weighs_in_eighths(tta: TTA, weights: dict[tuple[int, int], int]) -> None:
    images = noise()
    mean = mean_logits(pixel, images, pixel(images), tta)
    assert mean.dtype == torch.float32
    pixels = torch.stack([weight * images[:, y, x].float() for (y, x), weight in weights.items()])
    assert torch.equal(mean, pixels.sum(0) / 8)


@pytest.mark.parametrize("tta", KINDS)
def test_the_logits_of_the_image_itself_are_not_computed_again(tta: TTA) -> None:
    images = noise()
    shown: list[Tensor] = []

    def network(images_BHWC: Tensor) -> Tensor:
        shown.append(images_BHWC)
        return torch.zeros(3, 3)

    mean = mean_logits(network, images, torch.full((3, 3), 8.0), tta)
    assert mean.unique().tolist() == [4 if tta == "mirror" else 2]
    assert len(shown) == (1 if tta == "mirror" else 5)
    assert not any(torch.equal(view, images) for view in shown)


def test_a_mirror_symmetric_network_answers_the_mirror_pair_as_the_image() -> None:
    images = noise()

    def network(images_BHWC: Tensor) -> Tensor:
        return images_BHWC.float().sum((1, 2))

    assert torch.equal(mean_logits(network, images, network(images), "mirror"), network(images))
    assert not torch.equal(mean_logits(network, images, network(images), "mirror_translate"), network(images))


@pytest.mark.parametrize("tta", KINDS)
def test_images_and_logits_are_left_as_they_were(tta: TTA) -> None:
    images = noise()
    logits = images[:, 2, 2].float()
    before = images.clone(), logits.clone()
    mean_logits(pixel, images, logits, tta)
    assert torch.equal(images, before[0])
    assert torch.equal(logits, before[1])
