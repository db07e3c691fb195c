"""Random changes to a batch of raw images, drawn for each image and made on the batch's own device.

Shape suffixes: B images, H rows, W columns, C colours, K classes. Nothing here waits for a GPU: every shape is known on
the host, random numbers are drawn there and sent asynchronously.
"""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from litcifar.errors import ConfigError


class Augment:
    """Flip, shift, rotate, cut out and mix the images of a batch, in this order. An option left at its default is off.

    The random numbers depend on (seed, epoch, step) and on the batch size, on nothing else: not on the device, not on
    torch's or NumPy's global generators, which are left as they were. NumPy's `SeedSequence` mixes the three into 128
    bits of state. (A torch CPU generator keeps the lower 32 bits of its seed only: packed seeds would collide.)

    flip: "random" mirrors each image left to right with probability 1/2. "alternating" does so in epoch 0 and from then
        on shows each image's other side in every other epoch (Jordan, arXiv:2404.00498).
    translate: largest shift in pixels, along each axis, of a crop out of the padded image.
    padding: what a shift or a rotation brings in: the image mirrored at its border pixels, or black.
    rotation: largest angle in degrees, 0 to 180, to either side; bilinear.
    cutout: side in pixels of a square, wholly inside the image, that is painted over (arXiv:1708.04552). Its colour is
        the mean of the batch: the papers paint after normalisation, with 0, which is the data set's mean.
    mixup: alpha of the Beta distribution of the share an image keeps, the rest being a partner's (arXiv:1710.09412).
    cutmix: the same, but the partner's share is a rectangle of that area, clipped at the border (arXiv:1905.04899).
        With both alphas positive, each image is treated by one of the two, with probability 1/2.
    resolution: progressive resizing, {pixels: share of the run until which images are so small}; after the last share
        they keep their size. Bilinear, antialiased.
    num_classes: number of columns of the mixed labels.
    """

    def __init__(
        self,
        flip: Literal["none", "random", "alternating"] = "none",
        translate: int = 0,
        padding: Literal["reflect", "zero"] = "reflect",
        rotation: float = 0.0,
        cutout: int = 0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        resolution: Mapping[int, float] | None = None,
        num_classes: int = 10,
        seed: int = 0,
    ) -> None:
        _require(flip in ("none", "random", "alternating"), "flip", flip, "none, random or alternating")
        _require(translate >= 0, "translate", translate, "a number of pixels, 0 or more")
        _require(padding in ("reflect", "zero"), "padding", padding, "reflect or zero")
        _require(0 <= rotation <= 180, "rotation", rotation, "an angle from 0 to 180 degrees")
        _require(cutout >= 0, "cutout", cutout, "a number of pixels, 0 or more")
        _require(0 <= mixup < float("inf"), "mixup", mixup, "a finite alpha, 0 (off) or more")
        _require(0 <= cutmix < float("inf"), "cutmix", cutmix, "a finite alpha, 0 (off) or more")
        stages = sorted((resolution or {}).items(), key=lambda stage: stage[1])
        _require(all(side >= 4 and 0 < share <= 1 for side, share in stages), "resolution", resolution, "pixels: share")
        _require(num_classes >= 1, "num_classes", num_classes, "1 or more")
        _require(seed >= 0, "seed", seed, "0 or more")
        self.flip, self.translate, self.padding, self.rotation = flip, translate, padding, rotation
        self.cutout, self.mixup, self.cutmix = cutout, mixup, cutmix
        self.stages = stages
        self.num_classes, self.seed = num_classes, seed
        self.off = flip == "none" and not (translate or rotation or cutout or mixup or cutmix or stages)

    def __call__(
        self,
        images_BHWC: Tensor,
        labels_B: Tensor,
        epoch: int,
        step: int,
        indices_B: Tensor | None = None,
        progress: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """Return new images and labels, or the very same tensors if every option is off.

        images_BHWC: uint8, contiguous; so are the images returned.
        labels_B: int64 class numbers; returned as they are, or with mixup or cutmix as float32 probabilities [B, K].
        epoch, step: 0 or more; `step` tells the batches of an epoch apart.
        indices_B: int64 place of each image in its data set, on any device; only alternating flip needs it.
        progress: share of the run that is over; only progressive resizing needs it.

        Raises ValueError if indices_B is missing or an image is too small for `cutout` or for a reflected `translate`.
        """
        if self.off:
            return images_BHWC, labels_B
        rng = np.random.default_rng((self.seed, epoch, step))
        if self.flip != "none" or self.translate:
            images_BHWC = self._flip_and_shift(images_BHWC, epoch, indices_B, rng)
        if self.rotation:
            degrees_B = rng.uniform(-self.rotation, self.rotation, len(images_BHWC))
            images_BHWC = _rotate(images_BHWC, degrees_B, self.padding)
        if self.cutout:
            images_BHWC = self._cut_out(images_BHWC, rng)
        if self.mixup or self.cutmix:
            images_BHWC, labels_B = self._mix(images_BHWC, labels_B, rng)
        side = next((side for side, share in self.stages if progress < share), images_BHWC.shape[1])
        return _resize(images_BHWC, side), labels_B

    def _flip_and_shift(
        self, images_BHWC: Tensor, epoch: int, indices_B: Tensor | None, rng: np.random.Generator
    ) -> Tensor:
        B, H, W, _ = images_BHWC.shape
        p, device = self.translate, images_BHWC.device
        if self.padding == "reflect" and p >= min(H, W):
            raise ConfigError(
                f"augment.translate={p} cannot reflect images of {H} x {W} - choose less, or padding=zero"
            )
        top_B, left_B = _send(rng.integers(0, 2 * p, (2, B), endpoint=True), device)
        flip_B = torch.zeros(1, dtype=torch.int64, device=device)
        if self.flip == "random":
            flip_B = _send(rng.integers(0, 2, B), device)
        elif self.flip == "alternating":
            if indices_B is None:
                raise ValueError("flip=alternating needs the images' indices - pass indices_B, or choose flip=random")
            flip_B = (_coin(indices_B, self.seed) + epoch).remainder(2).to(device, non_blocking=True)
        return _crop(images_BHWC, flip_B, top_B, left_B, p, self.padding)

    def _cut_out(self, images_BHWC: Tensor, rng: np.random.Generator) -> Tensor:
        B, H, W, _ = images_BHWC.shape
        s = self.cutout
        if s > min(H, W):
            raise ConfigError(f"augment.cutout={s} is larger than the images of {H} x {W} - choose less")
        top_B, left_B = rng.integers(0, H - s, B, endpoint=True), rng.integers(0, W - s, B, endpoint=True)
        inside_BHWC = _rectangle(images_BHWC, np.stack((top_B, top_B + s, left_B, left_B + s)))
        mean_C = images_BHWC.float().mean((0, 1, 2)).round().to(torch.uint8)
        return _paint(images_BHWC, mean_C.repeat(W).view(W, -1), inside_BHWC)

    def _mix(self, images_BHWC: Tensor, labels_B: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        B, H, W, _ = images_BHWC.shape
        device = images_BHWC.device
        order_B = _send(rng.permutation(B), device)
        cut_B = rng.random(B) < 0.5 if self.mixup and self.cutmix else np.full(B, self.cutmix > 0)
        partner_BHWC, kept_B = images_BHWC.index_select(0, order_B), np.ones(B)
        if self.mixup:
            kept_B = np.where(cut_B, 1.0, rng.beta(self.mixup, self.mixup, B))
            given_B111 = _send(1 - kept_B.astype(np.float32), device).view(B, 1, 1, 1)
            images_BHWC = images_BHWC.float().lerp(partner_BHWC.float(), given_B111).round().to(torch.uint8)
        if self.cutmix:
            scale_B = np.where(cut_B, np.sqrt(1 - rng.beta(self.cutmix, self.cutmix, B)), 0.0)
            edges_4B = _clipped_rectangle(scale_B, H, W, rng)
            images_BHWC = _paint(images_BHWC, partner_BHWC, _rectangle(images_BHWC, edges_4B))
            top_B, bottom_B, left_B, right_B = edges_4B
            kept_B = kept_B * (1 - (bottom_B - top_B) * (right_B - left_B) / (H * W))
        kept_B1 = _send(kept_B.astype(np.float32), device).view(B, 1)
        labels_BK = F.one_hot(labels_B, self.num_classes).float()
        return images_BHWC, kept_B1 * labels_BK + (1 - kept_B1) * labels_BK.index_select(0, order_B)


def _require(valid: bool, name: str, value: object, allowed: str) -> None:
    if not valid:
        raise ValueError(f"{name}={value} is out of range - choose {allowed}")


def _send(array: np.ndarray[Any, Any], device: torch.device) -> Tensor:
    # From memory that is not pinned, and gone after the call: CUDA copies it first, MPS does not.
    return torch.from_numpy(array).to(device, non_blocking=device.type == "cuda")


def _coin(indices_B: Tensor, seed: int) -> Tensor:
    """Return 0 or 1 for each image, the same whenever asked: an integer hash of its index, keyed by the seed."""
    hash_B = indices_B ^ int(np.random.SeedSequence(seed).generate_state(1)[0])
    for _ in range(2):
        hash_B = ((hash_B ^ (hash_B >> 16)) * 0x45D9F3B) & 0xFFFFFFFF  # 32 + 27 bits: no overflow
    return (hash_B >> 16) & 1


def _crop(images_BHWC: Tensor, flip_B: Tensor, top_B: Tensor, left_B: Tensor, p: int, padding: str) -> Tensor:
    """Cut each image, or its mirror image where flip_B is 1, out of its frame of p pixels at (top, left), 0 to 2p.

    Image and mirror image lie side by side on one canvas, whose row then holds both padded rows: a crop is H runs of
    W * C bytes, each copied in one piece. Reflection turns an image into its mirror image, so these pad each other.
    """
    B, H, W, C = images_BHWC.shape
    mirror_BHWC = images_BHWC.flip(2)
    y_BH = torch.arange(-p, H - p, device=images_BHWC.device) + top_B[:, None]
    if padding == "reflect":
        left_BHWC, right_BHWC = mirror_BHWC[:, :, W - 1 - p : W - 1], images_BHWC[:, :, 1 : p + 1]
        canvas_BHWC = torch.cat((left_BHWC, images_BHWC, mirror_BHWC[:, :, 1:], right_BHWC), 2)
        y_BH, mirror_at = (H - 1) - ((H - 1) - y_BH.abs()).abs(), W - 1
    else:
        canvas_BHWC = images_BHWC.new_zeros(B, H + 1, 2 * W + 3 * p, C)
        canvas_BHWC[:, :H, p : p + W] = images_BHWC
        canvas_BHWC[:, :H, 2 * p + W : 2 * (p + W)] = mirror_BHWC
        y_BH, mirror_at = torch.where((y_BH >= 0) & (y_BH < H), y_BH, H), W + p  # row H is black
    _, rows, columns, _ = canvas_BHWC.shape
    y_BH = y_BH + rows * torch.arange(B, device=images_BHWC.device)[:, None]
    start_BH = y_BH * columns + (left_B + mirror_at * flip_B)[:, None]
    runs = canvas_BHWC.as_strided((B * rows * columns - W + 1, W * C), (C, 1))
    return runs.index_select(0, start_BH.flatten()).view(B, H, W, C)


def _rotate(images_BHWC: Tensor, degrees_B: np.ndarray[Any, Any], padding: str) -> Tensor:
    """Turn each image about its centre, clockwise. (`affine_grid` would multiply in bfloat16 under autocast.)"""
    _, H, W, _ = images_BHWC.shape
    device = images_BHWC.device
    angle_B = np.deg2rad(degrees_B)
    cos_B11, sin_B11 = _send(np.stack((np.cos(angle_B), np.sin(angle_B))).astype(np.float32), device)[..., None, None]
    y_H1 = torch.arange(H, device=device)[:, None] - (H - 1) / 2
    x_W = torch.arange(W, device=device) - (W - 1) / 2
    x_BHW = (cos_B11 * x_W + sin_B11 * y_H1) * (2 / max(W - 1, 1))
    y_BHW = (cos_B11 * y_H1 - sin_B11 * x_W) * (2 / max(H - 1, 1))
    turned_BCHW = F.grid_sample(
        images_BHWC.permute(0, 3, 1, 2).float(),
        torch.stack((x_BHW, y_BHW), -1),
        padding_mode="reflection" if padding == "reflect" else "zeros",
        align_corners=True,  # reflect at the border pixels' centres, as a shift does
    )
    return turned_BCHW.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _resize(images_BHWC: Tensor, side: int) -> Tensor:
    if images_BHWC.shape[1] == side:
        return images_BHWC
    images_BCHW = images_BHWC.permute(0, 3, 1, 2)
    if images_BHWC.device.type != "cpu":  # torch resizes bytes on a CPU only, there five times as fast as numbers
        images_BCHW = images_BCHW.float()
    smaller_BCHW = F.interpolate(images_BCHW, (side, side), mode="bilinear", antialias=True)
    return smaller_BCHW.round_().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _clipped_rectangle(scale_B: np.ndarray[Any, Any], H: int, W: int, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Return [top, bottom, left, right] of rectangles of scale * (H, W) pixels about centres anywhere in the image."""
    height_B, width_B = (scale_B * H).astype(np.int64), (scale_B * W).astype(np.int64)
    top_B, left_B = rng.integers(0, H, len(scale_B)) - height_B // 2, rng.integers(0, W, len(scale_B)) - width_B // 2
    y_2B, x_2B = np.stack((top_B, top_B + height_B)), np.stack((left_B, left_B + width_B))
    return np.concatenate((y_2B.clip(0, H), x_2B.clip(0, W)))


def _rectangle(images_BHWC: Tensor, edges_4B: np.ndarray[Any, Any]) -> Tensor:
    """Return a uint8 mask like the images, 1 where top <= row < bottom and left <= column < right, else 0."""
    _, H, W, C = images_BHWC.shape
    top_B11, bottom_B11, left_B11, right_B11 = _send(edges_4B, images_BHWC.device)[..., None, None]
    y_H1 = torch.arange(H, device=images_BHWC.device)[:, None]
    x_WC = (
        torch.arange(W * C, device=images_BHWC.device) // C
    )  # an entry for each byte: spares a broadcast over colours
    rows_BH1 = ((y_H1 >= top_B11) & (y_H1 < bottom_B11)).to(torch.uint8)
    columns_B1WC = ((x_WC >= left_B11) & (x_WC < right_B11)).to(torch.uint8)
    return (rows_BH1 * columns_B1WC).view(images_BHWC.shape)


def _paint(images_BHWC: Tensor, paint_BHWC: Tensor, inside_BHWC: Tensor) -> Tensor:
    """Take the paint where inside is 1: exact, as uint8 counts modulo 256, and on a CPU 5 times as fast as `where`."""
    return images_BHWC + inside_BHWC * (paint_BHWC - images_BHWC)
