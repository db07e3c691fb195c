"""Augment: what each option does to the pixels and labels of a batch, compared with plain NumPy."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from litcifar.data.augment import Augment, _rotate
from tests.conftest import fake_gpu, in_a_child

EVERYTHING: dict[str, Any] = {
    "flip": "random",
    "translate": 2,
    "rotation": 10.0,
    "cutout": 5,
    "mixup": 0.8,
    "cutmix": 1.0,
}
ONE_OPTION: list[dict[str, Any]] = [{name: value} for name, value in EVERYTHING.items()]


def batch(size: int, height: int = 12, width: int = 12) -> tuple[Tensor, Tensor]:
    """Return noise, so that no two images, crops or sides of an image are alike, and its labels."""
    generator = torch.Generator().manual_seed(1)
    images_BHWC = torch.randint(0, 256, (size, height, width, 3), dtype=torch.uint8, generator=generator)
    return images_BHWC, torch.randint(0, 10, (size,), generator=generator)


def matches(image_HWC: Tensor, candidates: list[Any]) -> list[int]:
    return [i for i, candidate in enumerate(candidates) if np.array_equal(image_HWC.numpy(), candidate)]


def crops(image_HWC: Tensor, pad: int, mode: str) -> list[Any]:
    """Return the crops of a padded image, in the order of (top, left), made one by one."""
    height, width, _ = image_HWC.shape
    frame = np.pad(image_HWC.numpy(), ((pad, pad), (pad, pad), (0, 0)), "reflect" if mode == "reflect" else "constant")
    places = range(2 * pad + 1)
    return [frame[top : top + height, left : left + width] for top in places for left in places]


@pytest.mark.parametrize("options", [EVERYTHING, *ONE_OPTION])
def test_gives_a_batch_like_the_one_it_got_and_leaves_that_unchanged(options: dict[str, Any]) -> None:
    images_BHWC, labels_B = batch(64)
    before_BHWC, before_B = images_BHWC.clone(), labels_B.clone()
    new_BHWC, new_labels = Augment(**options)(images_BHWC, labels_B, epoch=0, step=0)
    assert (new_BHWC.dtype, new_BHWC.shape, new_BHWC.is_contiguous()) == (torch.uint8, images_BHWC.shape, True)
    assert torch.equal(images_BHWC, before_BHWC)
    assert torch.equal(labels_B, before_B)
    assert not torch.equal(new_BHWC, images_BHWC)
    if "mixup" in options or "cutmix" in options:
        assert (new_labels.dtype, new_labels.shape) == (torch.float32, (64, 10))
    else:
        assert new_labels is labels_B


def test_nothing_on_gives_the_very_same_tensors() -> None:
    images_BHWC, labels_B = batch(4)
    new_BHWC, new_labels_B = Augment()(images_BHWC, labels_B, epoch=0, step=0)
    assert new_BHWC is images_BHWC
    assert new_labels_B is labels_B


@pytest.mark.parametrize("options", [EVERYTHING, *ONE_OPTION])
def test_draws_depend_on_seed_epoch_and_step_alone(options: dict[str, Any]) -> None:
    images_BHWC, labels_B = batch(64)

    def images(seed: int, epoch: int, step: int) -> Tensor:
        new_BHWC: Tensor = Augment(**options, seed=seed)(images_BHWC, labels_B, epoch, step)[0]
        return new_BHWC

    first_BHWC = images(1, 2, 3)
    torch.rand(1)
    np.random.default_rng().random()
    assert torch.equal(images(1, 2, 3), first_BHWC)
    # 2**32 + 1 equals 1 in the lower 32 bits, all that a torch CPU generator looks at
    for other in [(0, 2, 3), (1, 0, 3), (1, 2, 0), (1, 3, 2), (2, 1, 3), (2**32 + 1, 2, 3)]:
        assert not torch.equal(images(*other), first_BHWC), other


@pytest.mark.parametrize("options", [EVERYTHING, *ONE_OPTION, {"flip": "alternating"}, {"resolution": {8: 1.0}}])
@in_a_child
def test_a_gpu_augments_its_own_images_and_is_not_waited_for(options: dict[str, Any]) -> None:
    with fake_gpu() as gpu:
        images_BHWC, labels_B = (whole.to(gpu) for whole in batch(4))
        for padding in ("reflect", "zero"):
            augmented = Augment(padding=padding, **options)(images_BHWC, labels_B, 0, 0, torch.arange(4).to(gpu), 0.5)
            assert [whole.device for whole in augmented] == [gpu, gpu]


def test_leaves_the_global_generators_alone() -> None:
    images_BHWC, labels_B = batch(8)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index]  # noqa: NPY002
    Augment(**EVERYTHING)(images_BHWC, labels_B, epoch=0, step=0)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.random.get_state()[1].tolist() == numpy_state  # type: ignore[index]  # noqa: NPY002


@pytest.mark.parametrize("padding", ["reflect", "zero"])
def test_random_flip_mirrors_about_half_of_the_images(padding: Any) -> None:
    images_BHWC, labels_B = batch(1000)
    new_BHWC, _ = Augment(flip="random", padding=padding)(images_BHWC, labels_B, epoch=0, step=0)
    kept_B = (new_BHWC == images_BHWC).flatten(1).all(1)
    flipped_B = (new_BHWC == images_BHWC.flip(2)).flatten(1).all(1)
    assert (kept_B ^ flipped_B).all()
    assert 420 < flipped_B.sum() < 580  # five standard deviations


def test_alternating_flip_shows_the_other_side_in_every_other_epoch() -> None:
    images_BHWC, labels_B = batch(1000)
    augment = Augment(flip="alternating", seed=3)
    order_B = torch.randperm(1000, generator=torch.Generator().manual_seed(0))

    def side(epoch: int, order_B: Tensor) -> Tensor:
        """Return the images as shown in an epoch that visits them in an order of its own, put back in place."""
        shown_BHWC, _ = augment(images_BHWC[order_B], labels_B, epoch, step=epoch, indices_B=order_B)
        return shown_BHWC[order_B.argsort()]

    first_BHWC = side(0, torch.arange(1000))
    flipped_B = (first_BHWC != images_BHWC).flatten(1).any(1)
    assert 420 < flipped_B.sum() < 580
    assert torch.equal(first_BHWC[flipped_B], images_BHWC[flipped_B].flip(2))
    assert torch.equal(side(1, order_B), first_BHWC.flip(2))
    assert torch.equal(side(2, order_B), first_BHWC)


def test_alternating_flip_draws_the_first_side_by_seed_and_index() -> None:
    ramp_BHWC = torch.arange(2, dtype=torch.uint8).view(1, 1, 2, 1).expand(50_000, 1, 2, 3).contiguous()
    indices_B = torch.arange(50_000)
    first, other = (
        Augment(flip="alternating", seed=seed)(ramp_BHWC, indices_B, 0, 0, indices_B)[0][:, 0, 0, 0] for seed in (0, 1)
    )
    for wanted_half in [
        first,
        other,
        first ^ other,
        first[1:] ^ first[:-1],
        first[::2],
        first[:25_000] ^ first[25_000:],
    ]:
        assert abs(wanted_half.float().mean().item() - 0.5) < 0.02


def test_alternating_flip_asks_for_the_indices() -> None:
    with pytest.raises(ValueError, match="indices_B"):
        Augment(flip="alternating")(*batch(2), epoch=0, step=0)


@pytest.mark.parametrize("padding", ["reflect", "zero"])
@pytest.mark.parametrize("flip", ["none", "random"])
@pytest.mark.parametrize(("pad", "height", "width"), [(1, 6, 6), (2, 7, 6), (4, 10, 13)])
def test_translate_equals_a_crop_of_the_padded_image(
    padding: Any, flip: Any, pad: int, height: int, width: int
) -> None:
    images_BHWC, labels_B = batch(600, height, width)
    new_BHWC, _ = Augment(flip=flip, translate=pad, padding=padding, seed=1)(images_BHWC, labels_B, epoch=0, step=0)
    seen = set()
    for image_HWC, new_HWC in zip(images_BHWC, new_BHWC, strict=True):
        candidates = crops(image_HWC, pad, padding)
        if flip == "random":
            candidates += crops(image_HWC.flip(1), pad, padding)
        found = matches(new_HWC, candidates)
        assert len(found) == 1
        seen.update(found)
    choices = (2 * pad + 1) ** 2 * (2 if flip == "random" else 1)
    assert len(seen) > 0.9 * choices  # each image has its own draw, and none is left out


def test_rotation_by_quarter_turns_moves_pixels_exactly() -> None:
    images_BHWC, _ = batch(4)
    new_BHWC = _rotate(images_BHWC, np.array([0.0, 90.0, -90.0, 180.0]), "zero")
    for new_HWC, image_HWC, clockwise in zip(new_BHWC, images_BHWC, [0, 1, -1, 2], strict=True):
        assert np.array_equal(new_HWC.numpy(), np.rot90(image_HWC.numpy(), -clockwise))


@pytest.mark.parametrize("padding", ["reflect", "zero"])
def test_rotation_fills_the_corners_by_the_padding(padding: Any) -> None:
    white_BHWC = torch.full((32, 12, 12, 3), 255, dtype=torch.uint8)
    new_BHWC, _ = Augment(rotation=180.0, padding=padding)(white_BHWC, torch.zeros(32).long(), epoch=0, step=0)
    corners_B = new_BHWC[:, 0, 0, 0].long()
    assert (new_BHWC[:, 4:8, 4:8] == 255).all()
    assert len(corners_B.unique()) == 1 if padding == "reflect" else len(corners_B.unique()) > 3
    assert corners_B.min() == (255 if padding == "reflect" else 0)


def test_rotation_stays_within_its_range_on_both_sides() -> None:
    dot_BHWC = torch.zeros(200, 65, 65, 3, dtype=torch.uint8)
    dot_BHWC[:, 31:34, 61:64] = 255  # at the right of the centre
    new_BHWC, _ = Augment(rotation=30.0, padding="zero")(dot_BHWC, torch.zeros(200).long(), epoch=0, step=0)
    weight_BHW = new_BHWC[..., 0].double()
    y_B = (weight_BHW.sum(2) @ torch.arange(-32.0, 33.0).double()) / weight_BHW.sum((1, 2))
    degrees_B = torch.rad2deg(torch.asin(y_B / 30))
    assert degrees_B.abs().max() < 30.5
    assert degrees_B.max() > 27
    assert degrees_B.min() < -27


@pytest.mark.parametrize("side", [4, 5, 12])
def test_cutout_paints_one_square_of_the_mean_colour(side: int) -> None:
    images_BHWC, labels_B = batch(300)
    images_BHWC = images_BHWC | 1  # odd, unlike the mean
    images_BHWC[0, 0] = 0
    mean_C = images_BHWC.float().mean((0, 1, 2)).round().to(torch.uint8)
    assert images_BHWC[1:].ne(mean_C).any(3).all(), "the paint must differ from every pixel"
    new_BHWC, _ = Augment(cutout=side)(images_BHWC, labels_B, epoch=0, step=0)
    painted_BHW = (new_BHWC == mean_C).all(3)
    corners = set()
    for painted_HW in painted_BHW:
        rows, columns = torch.where(painted_HW)
        top, left = int(rows.min()), int(columns.min())
        assert painted_HW.sum() == painted_HW[top : top + side, left : left + side].sum() == side * side
        corners.add((top, left))
    assert torch.equal(new_BHWC[~painted_BHW], images_BHWC[~painted_BHW])
    assert len(corners) > 0.8 * (12 - side + 1) ** 2
    assert {top for top, _ in corners} == {left for _, left in corners} == set(range(12 - side + 1))


def flat_batch(size: int) -> tuple[Tensor, Tensor]:
    """Return images whose every pixel is their own number, and one class for each: a mixture shows its parts."""
    numbers_B = torch.arange(size)
    return numbers_B.to(torch.uint8).view(-1, 1, 1, 1).expand(size, 8, 10, 3).contiguous(), numbers_B


def test_mixup_labels_match_the_mixture_of_pixels() -> None:
    images_BHWC, labels_B = flat_batch(200)
    new_BHWC, new_labels_BK = Augment(mixup=1.0, num_classes=200)(images_BHWC, labels_B, epoch=0, step=0)
    torch.testing.assert_close(new_labels_BK.sum(1), torch.ones(200))
    assert (new_labels_BK >= 0).all()
    assert (new_labels_BK.count_nonzero(1) <= 2).all()
    mixed_B = new_labels_BK @ torch.arange(200.0)  # the pixel value that the label promises
    assert (new_BHWC.float() - mixed_B.view(-1, 1, 1, 1)).abs().max() <= 0.5 + 1e-3
    kept_B = new_labels_BK.diagonal()
    assert kept_B.min() < 0.1  # a share for each image, uniform for alpha 1
    assert 0.42 < kept_B.mean() < 0.58


def test_a_small_alpha_keeps_nearly_all_or_nearly_nothing() -> None:
    _, labels_BK = Augment(mixup=1e-3, num_classes=200)(*flat_batch(200), epoch=0, step=0)
    assert labels_BK.isfinite().all()
    assert ((labels_BK < 0.01) | (labels_BK > 0.99)).float().mean() > 0.99


def test_cutmix_labels_are_the_pasted_areas() -> None:
    images_BHWC, labels_B = flat_batch(200)
    new_BHWC, new_labels_BK = Augment(cutmix=1.0, num_classes=200)(images_BHWC, labels_B, epoch=0, step=0)
    areas = set()
    for own, (new_HWC, label_K) in enumerate(zip(new_BHWC, new_labels_BK, strict=True)):
        assert (new_HWC == new_HWC[..., :1]).all()
        shares_K = torch.bincount(new_HWC[..., 0].flatten().long(), minlength=200) / 80
        torch.testing.assert_close(label_K, shares_K, rtol=0, atol=1e-7)
        rows, columns = torch.where(new_HWC[..., 0] != own)
        if len(rows):
            assert len(rows) == (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
        areas.add(len(rows))
    assert len(areas) > 20
    # of the uniform lambda's mean area, 1/2, the border clips away a part
    assert 0.2 < (1 - new_labels_BK.diagonal()).mean() < 0.45


def test_mixup_and_cutmix_share_the_images() -> None:
    new_BHWC, labels_BK = Augment(mixup=1.0, cutmix=1.0, num_classes=200)(*flat_batch(200), epoch=0, step=0)
    torch.testing.assert_close(labels_BK.sum(1), torch.ones(200))
    mean_B = new_BHWC.float().mean((1, 2, 3))
    assert (mean_B - labels_BK @ torch.arange(200.0)).abs().max() <= 0.5 + 1e-3
    even_B = (new_BHWC == new_BHWC[:, :1, :1]).flatten(1).all(1)  # mixed up, or cut from nothing or everything
    assert 75 < even_B.sum() < 135
    assert labels_BK.diagonal()[even_B].unique().numel() > 50


@pytest.mark.parametrize(
    "options",
    [
        {"flip": "sometimes"},
        {"translate": -1},
        {"padding": "wrap"},
        {"rotation": -1.0},
        {"rotation": 181.0},
        {"rotation": float("nan")},
        {"cutout": -1},
        {"mixup": -0.1},
        {"mixup": float("inf")},
        {"cutmix": float("nan")},
        {"num_classes": 0},
        {"seed": -1},
    ],
)
def test_refuses_what_it_cannot_do(options: dict[str, Any]) -> None:
    name = next(iter(options))
    with pytest.raises(ValueError, match=f"^{name}=.* - choose [^\n]+$"):
        Augment(**options)


@pytest.mark.parametrize("options", [{"cutout": 13}, {"translate": 12}])
def test_refuses_images_that_are_too_small(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="12 x 12 - choose"):
        Augment(**options)(*batch(2), epoch=0, step=0)


def test_accepts_the_largest_that_fits() -> None:
    images_BHWC, labels_B = batch(20)
    mean_C = images_BHWC.float().mean((0, 1, 2)).round().to(torch.uint8)
    assert (Augment(cutout=12)(images_BHWC, labels_B, epoch=0, step=0)[0] == mean_C).all()
    for pad, padding in [(11, "reflect"), (14, "zero")]:
        new_BHWC, _ = Augment(translate=pad, padding=padding)(images_BHWC, labels_B, epoch=0, step=0)  # type: ignore[arg-type]
        for image_HWC, new_HWC in zip(images_BHWC, new_BHWC, strict=True):
            assert matches(new_HWC, crops(image_HWC, pad, padding))


# --- Progressive resizing


def test_images_are_small_until_the_share_of_the_run_that_is_asked_for() -> None:
    augment = Augment(resolution={8: 0.5, 4: 0.25})  # in any order, as Hydra merges them
    images, labels = batch(3)
    sides = [
        augment(images, labels, 0, 0, progress=progress)[0].shape for progress in (0.0, 0.24, 0.25, 0.49, 0.5, 1.0)
    ]
    assert [tuple(shape) for shape in sides] == [(3, side, side, 3) for side in (4, 4, 8, 8, 12, 12)]


def test_resizing_is_bilinear_and_antialiased() -> None:
    """Antialiased bilinear weights for half the size are 1, 3, 3, 1, here across an edge."""
    images = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    images[:, :, 4:] = 80
    smaller = Augment(resolution={4: 1.0})(images, torch.zeros(1, dtype=torch.int64), 0, 0, progress=0.0)[0]
    assert smaller.dtype == torch.uint8
    assert smaller[0, 0, :, 0].tolist() == [0, 10, 70, 80]


@pytest.mark.parametrize("resolution", [{2: 0.5}, {8: 0.0}, {8: 1.5}])
def test_resolutions_out_of_range_are_refused(resolution: dict[int, float]) -> None:
    with pytest.raises(ValueError, match="resolution="):
        Augment(resolution=resolution)
