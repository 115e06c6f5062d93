"""Built-in street scenes, drawn with numpy from a seed, with exact labels and nothing to download."""

from __future__ import annotations

import itertools

import numpy as np

from degrid.types import IGNORE_INDEX, LabelSpace, Sample, UserError

LABELS = LabelSpace(
    ("sky", "building", "vegetation", "road", "sidewalk", "car", "person", "pole", "sign"),
    (
        *((70, 130, 180), (70, 70, 70), (107, 142, 35), (128, 64, 128), (244, 35, 232), (0, 0, 142), (220, 20, 60)),
        *((153, 153, 153), (220, 220, 0)),
    ),
)
SKY, BUILDING, VEGETATION, ROAD, SIDEWALK, CAR, PERSON, POLE, SIGN = range(9)

# Each split has its own random stream, so that held-out scenes never occur in training.
_SPLITS = {"train": (0, 400), "val": (1, 40), "test": (2, 100)}


class SyntheticScenes:
    """Street scenes with large areas, thin poles and wires, small people and signs, and surfaces told apart by texture.

    A scene depends only on (split, seed, index). The bonnet of the camera's car and a thin rim around cars and people
    are labelled void. Scenes are kept in memory once drawn.

    Args:
        split: train (400 scenes), val (40) or test (100); no two splits share a scene.
        num_images: the number of scenes, if not the default of the split.
        size: height and width, pixels, at least 64.
        seed: another seed draws other scenes.
    Raises:
        UserError: the split is unknown, or the size is too small to draw.
    """

    labels = LABELS

    def __init__(
        self, split: str = "train", num_images: int | None = None, size: tuple[int, int] = (144, 192), seed: int = 0
    ) -> None:
        if split not in _SPLITS:
            raise UserError(f'the synthetic scenes have the splits {", ".join(_SPLITS)}; there is no "{split}"')
        if min(size) < 64:
            raise UserError(f"synthetic scenes need at least 64x64 pixels, got {size[0]}x{size[1]}")
        stream, default = _SPLITS[split]
        self.split, self.size = split, size
        self._entropy = (seed, stream)
        self._num_images = default if num_images is None else num_images
        self._drawn: dict[int, Sample] = {}

    def __len__(self) -> int:
        return self._num_images

    def __getitem__(self, index: int) -> Sample:
        """Scene `index`."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        if index not in self._drawn:
            import torch  # imported here: neither drawing nor checking files needs it

            image, label = draw_scene(np.random.default_rng([*self._entropy, index]), *self.size)
            self._drawn[index] = Sample(
                torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(label), f"{self.split}/{index:04d}"
            )
        return self._drawn[index]


class _Canvas:
    """A picture in progress: colours 0-255 as float [H,W,3], and the class of every pixel."""

    def __init__(self, rng: np.random.Generator, height: int, width: int) -> None:
        self.rng, self.height, self.width = rng, height, width
        # [H,1] and [1,W]: whatever depends only on the row or only on the column is computed once per row or column.
        self.y, self.x = np.arange(float(height))[:, None], np.arange(float(width))[None]
        self.color = np.zeros((height, width, 3))
        self.label = np.zeros((height, width), np.uint8)

    def paint(self, mask: np.ndarray, color: np.ndarray, label: int) -> None:
        at = np.flatnonzero(np.broadcast_to(mask, self.label.shape))
        self.color.reshape(-1, 3)[at] = color if color.ndim == 1 else color.reshape(-1, 3)[at]
        self.label.reshape(-1)[at] = label

    def tint(self, low: tuple[int, int, int], high: tuple[int, int, int]) -> np.ndarray:
        return self.rng.uniform(low, high)

    def clouds(self, cells: int) -> np.ndarray:
        """Smooth noise in -1..1: a coarse random grid, interpolated."""
        grid = self.rng.uniform(-1, 1, (cells + 1, cells + 1))
        at_y, at_x = (np.linspace(0, cells, n) for n in (self.height, self.width))
        knots = np.arange(cells + 1)
        rows = np.stack([np.interp(at_y, knots, column) for column in grid.T], axis=1)
        return np.stack([np.interp(at_x, knots, row) for row in rows])

    def grain(self, strength: float) -> np.ndarray:
        """Independent noise per pixel, [H,W,1]."""
        noise: np.ndarray = self.rng.normal(0, strength, (self.height, self.width, 1))
        return noise

    def box(self, top: float, bottom: float, left: float, right: float) -> np.ndarray:
        inside: np.ndarray = (self.y >= top) & (self.y < bottom) & (self.x >= left) & (self.x < right)
        return inside

    def disc(self, y: float, x: float, radius_y: float, radius_x: float | None = None) -> np.ndarray:
        radius_x = radius_y if radius_x is None else radius_x
        inside: np.ndarray = ((self.y - y) / radius_y) ** 2 + ((self.x - x) / radius_x) ** 2 <= 1
        return inside


def draw_scene(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """One scene: image uint8 [H,W,3] RGB, label uint8 [H,W]."""
    canvas = _Canvas(rng, height, width)
    horizon = height * rng.uniform(0.42, 0.55)
    _draw_sky(canvas)
    _draw_buildings(canvas, horizon)
    _draw_ground(canvas, horizon)
    _draw_trees(canvas, horizon)
    _draw_poles(canvas, horizon)
    things = np.zeros((height, width), bool)
    for depth in np.sort(rng.uniform(0.1, 0.75, rng.integers(3, 7))):
        draw = _draw_car if rng.random() < 0.45 else _draw_person
        things |= draw(canvas, horizon, float(depth))
    canvas.label[_rim(things)] = IGNORE_INDEX
    if rng.random() < 0.5:
        bonnet = canvas.disc(height * rng.uniform(1.02, 1.1), width / 2, height * 0.18, width * 0.45)
        canvas.paint(bonnet, canvas.tint((20, 20, 20), (90, 90, 110)), IGNORE_INDEX)
    return _expose(canvas), canvas.label


def _draw_sky(canvas: _Canvas) -> None:
    top, low = canvas.tint((60, 110, 170), (130, 170, 230)), canvas.tint((170, 190, 200), (235, 235, 240))
    mix = np.clip(canvas.y / (0.55 * canvas.height), 0, 1)[..., None]
    cloud = np.clip(canvas.clouds(5) * 1.5, 0, 1)[..., None]
    color = (top * (1 - mix) + low * mix) * (1 - 0.6 * cloud) + 235 * 0.6 * cloud
    canvas.paint(np.ones_like(canvas.y, bool), color, SKY)


def _draw_buildings(canvas: _Canvas, horizon: float) -> None:
    rng, left = canvas.rng, -canvas.width * 0.05
    while left < canvas.width:
        wide = canvas.width * rng.uniform(0.12, 0.3)
        if rng.random() < 0.75:
            top = horizon - canvas.height * rng.uniform(0.1, 0.42)
            # Walls may be as green as leaves or as grey as the sky: texture tells them apart.
            wall = canvas.tint((80, 75, 60), (200, 190, 180)) + canvas.grain(3)
            step_y, step_x = rng.uniform(8, 13), rng.uniform(7, 12)
            in_window = ((canvas.y - top) % step_y > 0.45 * step_y) & ((canvas.x - left) % step_x > 0.5 * step_x)
            color = np.where(in_window[..., None], wall * rng.uniform(0.35, 0.6), wall)
            canvas.paint(canvas.box(top, horizon + 2, left, left + wide), color, BUILDING)
        left += wide * rng.uniform(0.8, 1.3)


def _draw_ground(canvas: _Canvas, horizon: float) -> None:
    rng = canvas.rng
    below = canvas.y >= horizon
    depth = np.clip((canvas.y - horizon) / (canvas.height - horizon), 1e-3, 1)
    centre = canvas.width * rng.uniform(0.4, 0.6)
    kerb = canvas.width * (0.08 + rng.uniform(0.35, 0.6) * depth)
    road = below & (np.abs(canvas.x - centre) < kerb)
    walk = below & ~road & (np.abs(canvas.x - centre) < kerb + canvas.width * (0.06 + 0.25 * depth))
    grey = canvas.tint((70, 70, 70), (110, 110, 115)) + 8 * canvas.clouds(9)[..., None] + canvas.grain(5)
    line = (np.abs(canvas.x - centre) < 0.6 + 2 * depth) & ((8 * np.log(depth)) % 2 < 1)
    # Tiles shrink towards the horizon, like everything on the ground.
    tile = ((6 * np.log(depth)) % 1 < 0.2) | (((canvas.x - centre) / (20 * depth + 4)) % 1 < 0.15)
    slab = canvas.tint((130, 120, 110), (185, 175, 165)) + canvas.grain(4) - 30 * tile[..., None]
    grass = canvas.tint((50, 80, 25), (100, 130, 60)) + canvas.grain(16)
    canvas.paint(below, grass, VEGETATION)
    canvas.paint(walk, slab, SIDEWALK)
    canvas.paint(road, np.where(line[..., None], 215.0, grey), ROAD)


def _draw_trees(canvas: _Canvas, horizon: float) -> None:
    rng = canvas.rng
    for _ in range(rng.integers(1, 5)):
        x, crown = canvas.width * rng.uniform(0, 1), canvas.height * rng.uniform(0.07, 0.16)
        y = horizon - crown * rng.uniform(0.6, 1.8)
        mask = np.zeros_like(canvas.label, bool)
        for _ in range(7):
            radius = crown * rng.uniform(0.4, 0.8)
            mask |= canvas.disc(y + crown * rng.uniform(-0.6, 0.6), x + crown * rng.uniform(-0.8, 0.8), radius)
        trunk = canvas.box(y, horizon + 2, x - crown * 0.1, x + crown * 0.1)
        canvas.paint(trunk, canvas.tint((60, 45, 30), (95, 75, 55)), VEGETATION)
        leaves = canvas.tint((40, 70, 20), (110, 130, 70)) + canvas.grain(24)
        canvas.paint(mask, leaves, VEGETATION)


def _draw_poles(canvas: _Canvas, horizon: float) -> None:
    rng = canvas.rng
    tops: list[tuple[float, float]] = []
    metal = canvas.tint((60, 60, 60), (150, 150, 150))
    for x in np.sort(rng.uniform(0.05, 0.95, rng.integers(2, 5))) * canvas.width:
        depth = rng.uniform(0.1, 0.5)
        foot = horizon + depth * (canvas.height - horizon)
        top = horizon - canvas.height * rng.uniform(0.25, 0.4)
        half = 1.5 + 2 * depth
        canvas.paint(canvas.box(top, foot, x - half, x + half), metal + canvas.grain(3), POLE)
        tops.append((top + 2, x))
        if rng.random() < 0.7:
            _draw_sign(canvas, foot - (foot - top) * rng.uniform(0.4, 0.7), x, 5 + 6 * depth)
    for (y0, x0), (y1, x1) in itertools.pairwise(tops):
        if rng.random() < 0.8:  # a wire that sags between two poles
            t = np.clip((canvas.x - x0) / max(1.0, x1 - x0), 0, 1)
            wire_y = y0 + (y1 - y0) * t + canvas.height * 0.06 * 4 * t * (1 - t)
            wire = (np.abs(canvas.y - wire_y) <= 1.4) & (canvas.x >= x0) & (canvas.x <= x1)
            canvas.paint(wire, np.full(3, 35.0), POLE)


def _draw_sign(canvas: _Canvas, y: float, x: float, radius: float) -> None:
    shapes = (canvas.disc(y, x, radius), canvas.box(y - radius, y + radius, x - radius, x + radius))
    shape, inner = shapes[canvas.rng.integers(2)], canvas.disc(y, x, radius * 0.55)
    paints = np.array([[200, 30, 30], [30, 60, 190], [225, 190, 20]], float)
    canvas.paint(shape, paints[canvas.rng.integers(3)], SIGN)
    canvas.paint(shape & inner, np.full(3, 235.0), SIGN)


def _draw_car(canvas: _Canvas, horizon: float, depth: float) -> np.ndarray:
    rng = canvas.rng
    foot, size = horizon + depth * (canvas.height - horizon), canvas.height * (0.06 + 0.22 * depth)
    x = canvas.width * rng.uniform(0.15, 0.85)
    body = canvas.box(foot - 0.75 * size, foot - 0.15 * size, x - 1.1 * size, x + 1.1 * size)
    roof = canvas.disc(foot - 0.72 * size, x, 0.5 * size, 0.75 * size) & (canvas.y < foot - 0.6 * size)
    glass = canvas.disc(foot - 0.74 * size, x, 0.34 * size, 0.58 * size) & (canvas.y < foot - 0.74 * size)
    wheels = canvas.disc(foot - 0.18 * size, x - 0.65 * size, 0.2 * size) | canvas.disc(
        foot - 0.18 * size, x + 0.65 * size, 0.2 * size
    )
    canvas.paint(body | roof, canvas.tint((20, 20, 20), (230, 230, 230)) * rng.uniform(0.3, 1, 3), CAR)
    canvas.paint(glass, np.array([40.0, 50.0, 60.0]), CAR)
    canvas.paint(wheels, np.full(3, 20.0), CAR)
    whole: np.ndarray = body | roof | wheels
    return whole


def _draw_person(canvas: _Canvas, horizon: float, depth: float) -> np.ndarray:
    rng = canvas.rng
    foot, tall = horizon + depth * (canvas.height - horizon), canvas.height * (0.1 + 0.26 * depth)
    x = canvas.width * rng.uniform(0.05, 0.95)
    head = canvas.disc(foot - 0.88 * tall, x, 0.11 * tall)
    torso = canvas.disc(foot - 0.6 * tall, x, 0.22 * tall, 0.15 * tall)
    legs = canvas.box(foot - 0.45 * tall, foot, x - 0.12 * tall, x + 0.12 * tall)
    canvas.paint(torso, rng.uniform(20, 235, 3), PERSON)
    canvas.paint(legs, rng.uniform(20, 120, 3), PERSON)
    canvas.paint(head, canvas.tint((110, 75, 55), (230, 190, 165)), PERSON)
    whole: np.ndarray = head | torso | legs
    return whole


def _rim(mask: np.ndarray) -> np.ndarray:
    """Pixels just outside a mask, which hand-made labels leave void."""
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    rim: np.ndarray = grown & ~mask
    return rim


def _expose(canvas: _Canvas) -> np.ndarray:
    """Add uneven lighting, a colour cast, a slight horizontal blur and sensor noise."""
    rng = canvas.rng
    light = rng.uniform(0.65, 1.2) * (1 + 0.15 * canvas.clouds(3)[..., None])
    color = canvas.color * light * rng.uniform(0.92, 1.08, 3)
    color[:, 1:-1] = 0.25 * color[:, :-2] + 0.5 * color[:, 1:-1] + 0.25 * color[:, 2:]
    color += rng.normal(0, rng.uniform(2, 7), color.shape)
    return np.clip(np.rint(color), 0, 255).astype(np.uint8)


def scene(size: tuple[int, int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A built-in scene of any size: image uint8 [H,W,3], label uint8 [H,W]."""
    height, width = size
    image, label = draw_scene(np.random.default_rng(seed), max(64, height), max(64, width))
    return np.ascontiguousarray(image[:height, :width]), np.ascontiguousarray(label[:height, :width])
