"""Drawn shapes: a data set with the form of CIFAR-10 that needs no file and no network.

Each image shows one of ten shapes at a random place, size, angle and colour, on a striped two-coloured ground, with a
blot, a bar across it and noise. Ground and stripes hint at the class, as sky hints at an airplane: a linear model takes
some of the colours' hint, an MLP more of it and a little of the shape, a convolutional network the shape itself.

Pixels are made with +, -, *, / and sqrt only, which IEEE 754 rounds alike on every machine: no sin, no exp, no matrix
product. P stands for the 1024 pixels of an image, row by row.
"""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

CLASSES: tuple[str, ...] = (
    "circle",
    "square",
    "triangle",
    "star",
    "cross",
    "ring",
    "heart",
    "moon",
    "arrow",
    "hourglass",
)

SIDE = 32
CHUNK = 200  # images drawn at once: their float32 planes stay in the processor's cache
HINT = 0.55  # share of the images with a ground of their class's own; of the others some get one by chance
GROUNDS = 2  # of each class: with two, no one direction in colour space stands for a class, which costs linear models


def draw(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return uint8 images [count, 32, 32, 3] and int64 labels [count], which index CLASSES.

    Each class has count / 10 images, rounded up or down, in random order. The same count and seed (not negative) give
    the same bytes on every machine.
    """
    label_seed, *chunk_seeds = np.random.SeedSequence(seed).spawn(1 + -(-count // CHUNK))
    labels = _generator(label_seed).permutation(np.arange(count, dtype=np.int64) % len(CLASSES))
    images = np.empty((count, SIDE, SIDE, 3), dtype=np.uint8)

    def fill(chunk: int) -> None:
        rows = slice(chunk * CHUNK, (chunk + 1) * CHUNK)
        images[rows] = _paint(labels[rows], _generator(chunk_seeds[chunk]))

    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:  # numpy lets go of the GIL in large operations
        list(pool.map(fill, range(len(chunk_seeds))))
    return images, labels


def _generator(seed: np.random.SeedSequence | int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def _paint(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw one chunk, back to front; return uint8 [n, 32, 32, 3]."""
    n = len(labels)
    y_P, x_P = (np.indices((SIDE, SIDE), dtype=np.float32).reshape(2, -1) - (SIDE - 1) / 2).astype(np.float32)

    def uniform(low: float, high: float, *shape: int) -> np.ndarray:
        return low + (high - low) * rng.random((n, *shape), dtype=np.float32)

    def project(direction: tuple[np.ndarray, np.ndarray], shift: np.ndarray) -> np.ndarray:
        return direction[0][:, None] * x_P + direction[1][:, None] * y_P - shift[:, None]

    def turn(t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Cosine and sine of an angle, from the tangent of its half: 0.4 stands for 44 degrees, 1 for 90."""
        return (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)

    def cover(canvas: np.ndarray, alpha_P: np.ndarray, colour: np.ndarray) -> None:
        canvas += alpha_P[:, None] * (colour[:, :, None] - canvas)

    # The ground: upper and lower colour, a soft horizon, stripes.
    grounds = _generator(0).random((len(CLASSES) * GROUNDS, 2, 3), dtype=np.float32)
    own = labels + len(CLASSES) * rng.integers(GROUNDS, size=n)
    ground = np.where(rng.random(n) < HINT, own, rng.integers(len(grounds), size=n))
    upper, lower = (0.15 + 0.7 * grounds[ground] + uniform(-0.15, 0.15, 2, 3)).transpose(1, 0, 2)
    canvas = np.repeat(upper[:, :, None], SIDE * SIDE, axis=2)  # [n, 3, P]
    cover(canvas, np.clip((y_P - uniform(-6, 6, 1)) / uniform(2, 20, 1) + 0.5, 0, 1), lower)
    own_slant = ((2 * labels + 1) / len(CLASSES) - 1).astype(np.float32)  # evenly from -0.9 to 0.9
    slant = np.where(rng.random(n) < HINT, own_slant + uniform(-0.1, 0.1), uniform(-1, 1))
    phase = project(turn(slant), uniform(0, 64)) / uniform(3, 6, 1)
    wave = np.abs(phase - np.floor(phase) - 0.5) * 4 - 1
    canvas += (wave * uniform(0.02, 0.12, 1))[:, None]

    across, along = x_P - uniform(-16, 16, 1), y_P - uniform(-16, 16, 1)
    blot = uniform(1, 4, 1) - np.sqrt(across * across + along * along)
    cover(canvas, np.clip(blot, 0, 1), uniform(0, 1, 3))

    # The shape, in its own frame (u to the right, v down, its size 1).
    size, middle_x, middle_y = uniform(7, 11), uniform(-8, 8), uniform(-8, 8)
    cos, sin = turn(uniform(-0.4, 0.4))
    u = project((cos / size, sin / size), (cos * middle_x + sin * middle_y) / size)
    v = project((-sin / size, cos / size), (cos * middle_y - sin * middle_x) / size)
    inside = np.empty_like(u)
    for k in range(len(CLASSES)):
        rows = np.flatnonzero(labels == k)
        inside[rows] = _inside(CLASSES[k], u[rows], v[rows])
    behind = (upper + lower) / 2
    away = rng.random((n, 3), dtype=np.float32) - behind
    contrast = uniform(0.3, 0.8) / np.abs(away).max(axis=1)
    cover(canvas, np.clip(inside * size[:, None] + 0.5, 0, 1), np.clip(behind + contrast[:, None] * away, 0, 1))

    # A bar in front, and noise.
    bar = np.abs(project(turn(uniform(-1, 1)), uniform(-14, 14)))
    cover(canvas, np.clip(uniform(0.5, 1.5, 1) - bar, 0, 1), uniform(0, 1, 3))
    canvas *= 255
    noise = rng.integers(256, size=canvas.shape, dtype=np.uint8)
    canvas += (noise.astype(np.float32) - 127.5) * uniform(0.05, 0.2, 1, 1)
    pixels = np.clip(canvas, 0, 255).astype(np.uint8)
    return pixels.transpose(0, 2, 1).reshape(n, SIDE, SIDE, 3)


def _inside(name: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """About the distance from (u, v) to the outline of a shape of size 1 round (0, 0); positive inside."""
    right, down = np.abs(u), np.abs(v)
    radius = np.sqrt(u * u + v * v)
    match name:
        case "circle":
            return 0.85 - radius
        case "square":
            return 0.75 - np.maximum(right, down)
        case "triangle":
            return np.minimum(0.5 - v, 0.5 + 0.5 * v - 0.866 * right)
        case "star":  # folded five times: what is left of it is half the upper point
            a, b = _fold(*_fold(right, -v, 0.809, -0.588), -0.809, -0.588)
            return 0.351 - 0.936 * np.abs(a) - 0.351 * b
        case "cross":
            return np.minimum(0.95 - np.maximum(right, down), 0.28 - np.minimum(right, down))
        case "ring":
            return 0.22 - np.abs(radius - 0.75)
        case "heart":  # a square on its corner and a circle on each upper edge
            square = 0.52 - 0.707 * (right + np.abs(v - 0.2))
            edge_x, edge_y = right - 0.368, v - 0.2 + 0.368
            return np.maximum(square, 0.52 - np.sqrt(edge_x * edge_x + edge_y * edge_y))
        case "moon":
            bite = u - 0.5
            return np.minimum(0.95 - radius, np.sqrt(bite * bite + v * v) - 0.75)
        case "arrow":
            shaft = np.minimum(0.22 - down, 0.55 - np.abs(u + 0.35))
            return np.maximum(shaft, np.minimum(u, 0.563 - 0.593 * u - 0.805 * down))
        case _:  # hourglass
            return np.minimum(0.85 - down, 0.04 + 0.648 * down - 0.762 * right)


def _fold(a: np.ndarray, b: np.ndarray, normal_a: float, normal_b: float) -> tuple[np.ndarray, np.ndarray]:
    """Mirror the points on the far side of the line through (0, 0) with this normal."""
    beyond = 2 * np.maximum(normal_a * a + normal_b * b, 0)
    return a - beyond * normal_a, b - beyond * normal_b
