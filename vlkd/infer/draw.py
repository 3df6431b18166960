"""Pictures that a person can read: label maps with contours and a legend; sheets of labelled images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Paul Tol's "bright" and Okabe-Ito hues, ordered so that neighbours also differ in lightness.
_FIRST = (
    (68, 119, 170),
    (230, 159, 0),
    (34, 136, 51),
    (238, 102, 119),
    (102, 204, 238),
    (170, 51, 119),
    (240, 228, 66),
    (213, 94, 0),
    (0, 158, 115),
    (204, 121, 167),
    (136, 34, 85),
    (187, 187, 187),
)
_GOLDEN = math.pi * (3 - math.sqrt(5))
_LIGHTNESS = (0.75, 0.5, 0.87, 0.62)
_FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial.ttf", "NotoSansCJK-Regular.ttc", "msyh.ttc")
_SMALLEST = 480  # long side of a picture below which it is enlarged, so that the legend is readable


@lru_cache(maxsize=8)
def palette(count: int) -> np.ndarray:
    """Colours (count,3) uint8, an index always having the same; the first 12 suit colour-blind readers."""
    index = np.arange(max(count - len(_FIRST), 0))
    light = np.take(_LIGHTNESS, index % len(_LIGHTNESS))
    chroma = np.where(index % 3 == 2, 0.08, 0.14)
    lab = np.stack([light, chroma * np.cos(index * _GOLDEN), chroma * np.sin(index * _GOLDEN)], axis=1)
    colours = np.concatenate([np.array(_FIRST, np.uint8), _srgb(lab)])[:count]
    colours.setflags(write=False)
    return colours


def overlay(image: np.ndarray, labels: np.ndarray, colours: np.ndarray, strength: float = 0.5) -> np.ndarray:
    """Image (H,W,3) uint8 tinted by labels (H,W) with colours (K,3), light contours between the classes."""
    tinted = np.clip(np.arange(256) * (1 - strength), 0, 255).astype(np.uint8)[image]
    tinted += (colours * strength).astype(np.uint8)[labels]
    edge = _edges(labels, max(1, round(min(labels.shape) / 360)))
    tinted[edge] = 255 - (255 - colours[labels[edge]]) // 3
    return tinted


def picture(
    image: np.ndarray, labels: np.ndarray, names: Sequence[str], areas: np.ndarray, steady: bool = False
) -> np.ndarray:
    """Overlay of image (H,W,3) and labels (H,W) with a legend of names and areas (fractions) below it.

    The legend lists what is there, largest first; `steady` (for video) keeps every class at its place while
    they are few, and always the same height. Small images are enlarged by a whole factor.
    """
    factor = max(1, math.ceil(_SMALLEST / max(labels.shape)))
    if factor > 1:
        height, width = labels.shape[0] * factor, labels.shape[1] * factor
        image = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
        labels = labels.repeat(factor, 0).repeat(factor, 1)
    colours = palette(len(names))
    order = np.argsort(-areas, kind="stable")
    order = order[: np.count_nonzero(areas)]
    drawn = overlay(image, labels, colours)
    legend = Legend(drawn.shape[1], drawn.shape[0], names)
    chosen = range(len(names)) if steady and len(names) <= legend.slots else [int(i) for i in order]
    return np.concatenate([drawn, legend.draw(chosen, areas, colours, steady)])


class Legend:
    """Layout of a legend under a picture of `width` x `height`: equal columns, at most 40 % as high."""

    def __init__(self, width: int, height: int, names: Sequence[str]) -> None:
        self.width, self.names = width, names
        self.size = int(np.clip(min(width, height) / 28, 13, 48))
        self.line = round(self.size * 1.6)
        longest = max(self._length(name) for name in names) + self._length(" 100 %") + 2.2 * self.size
        self.columns = int(np.clip(width // longest, 1, max(1, len(names))))
        self.rows = max(2, int(0.4 * height / self.line))

    @property
    def slots(self) -> int:
        """How many classes fit."""
        return self.rows * self.columns

    def draw(self, chosen: Sequence[int], areas: np.ndarray, colours: np.ndarray, steady: bool) -> np.ndarray:
        """Legend (h,width,3) uint8 of the chosen class indices; a last entry counts those that do not fit."""
        shown = list(chosen) if len(chosen) <= self.slots else list(chosen)[: self.slots - 1]
        rest = len(chosen) - len(shown)
        reserved = min(len(self.names), self.slots) if steady else len(shown) + (rest > 0)
        rows = max(1, math.ceil(reserved / self.columns))
        canvas = Image.new("RGB", (self.width, rows * self.line + self.size // 2), "white")
        pen = ImageDraw.Draw(canvas)
        step = self.width / self.columns
        for place, index in enumerate(shown):
            x, y = (
                place % self.columns * step + self.size * 0.4,
                place // self.columns * self.line + self.size * 0.4,
            )
            box = [x, y, x + self.size, y + self.size]
            pen.rectangle(box, fill=tuple(int(c) for c in colours[index]), outline=(60, 60, 60))
            share = _percent(float(areas[index]))
            room = step - 2.2 * self.size - self._length(" " + share)
            name = _fitting(self.names[index], room, self.size)
            ink = (20, 20, 20) if areas[index] else (150, 150, 150)
            middle = y + self.size / 2
            pen.text((x + 1.5 * self.size, middle), name, ink, _font(name, self.size), anchor="lm")
            offset = x + 1.5 * self.size + self._length(name + " ")
            pen.text((offset, middle), share, (120, 120, 120), _font(share, self.size), anchor="lm")
        if rest:
            x, y = len(shown) % self.columns * step, len(shown) // self.columns * self.line + self.size * 0.9
            pen.text(
                (x + self.size * 0.4, y),
                f"and {rest} more",
                (120, 120, 120),
                _font("a", self.size),
                anchor="lm",
            )
        return np.asarray(canvas)

    def _length(self, text: str) -> float:
        return _length(text, self.size)


def sheet(shown: Sequence[tuple[np.ndarray, str, float]], columns: int = 6) -> np.ndarray:
    """One picture (h,w,3) uint8 of many: each image (H,W,3) uint8 over its label and its score in [0, 1]."""
    side, margin, size = 160, 8, 15
    cell, line = side + 2 * margin, round(size * 1.5)
    rows, columns = math.ceil(len(shown) / columns), min(columns, len(shown))
    high = cell + 2 * line
    canvas = Image.new("RGB", (columns * cell, rows * high), "white")
    pen = ImageDraw.Draw(canvas)
    for place, (image, label, score) in enumerate(shown):
        x, y = place % columns * cell + margin, place // columns * high + margin
        scale = side / max(image.shape[:2])
        width, height = (max(1, round(length * scale)) for length in image.shape[1::-1])
        small = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
        canvas.paste(small, (x + (side - width) // 2, y + side - height))
        name, share = _fitting(label, side, size), _percent(score)
        pen.text((x, y + side + line // 2), name, (20, 20, 20), _font(name, size), anchor="lm")
        bottom = y + side + line + line // 2
        pen.text((x, bottom), share, (120, 120, 120), _font(share, size), anchor="lm")
        left, right = x + 4 * size, x + side
        pen.rectangle([left, bottom - 3, right, bottom + 3], fill=(230, 230, 230))
        pen.rectangle([left, bottom - 3, left + (right - left) * score, bottom + 3], fill=_FIRST[0])
    return np.asarray(canvas)


def _length(text: str, size: int) -> float:
    return _font(text, size).getlength(text)


def _fitting(name: str, room: float, size: int) -> str:
    if _length(name, size) <= room:
        return name
    while len(name) > 1 and _length(name + "…", size) > room:
        name = name[:-1]
    return name + "…"


def _percent(area: float) -> str:
    if 0 < area < 0.01:
        return "<1 %"
    return f"{100 * area:.0f} %"


def _edges(labels: np.ndarray, width: int) -> np.ndarray:
    """(H,W) bool: pixels within `width` pixels above or left of a change of label."""
    edge = np.zeros(labels.shape, bool)
    for shift in range(1, width + 1):
        edge[shift:] |= labels[shift:] != labels[:-shift]
        edge[:, shift:] |= labels[:, shift:] != labels[:, :-shift]
    return edge


def _srgb(oklab: np.ndarray) -> np.ndarray:
    """sRGB (n,3) uint8 of OKLab (n,3), clipped into gamut (B. Ottosson's matrices)."""
    to_lms = np.array(
        [
            [1, 0.3963377774, 0.2158037573],
            [1, -0.1055613458, -0.0638541728],
            [1, -0.0894841775, -1.2914855480],
        ]
    )
    to_rgb = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = ((oklab @ to_lms.T) ** 3 @ to_rgb.T).clip(0, 1)
    return np.rint(
        255 * np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)
    ).astype(np.uint8)


@lru_cache(maxsize=4096)
def _font(text: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The first font at hand that has every letter of `text`, else the first at hand."""
    fonts = _fonts(size)
    return next((f for f in fonts if _covers(f, text)), fonts[0])


@lru_cache(maxsize=32)
def _fonts(size: int) -> list[ImageFont.FreeTypeFont | ImageFont.ImageFont]:
    found: list[ImageFont.FreeTypeFont | ImageFont.ImageFont] = []
    for name in (*_FONTS, *_matplotlib_font()):
        try:
            found.append(ImageFont.truetype(name, size))
        except OSError:
            continue
    return [*found, ImageFont.load_default(size)]


def _matplotlib_font() -> tuple[str, ...]:
    from importlib.util import find_spec

    spec = find_spec("matplotlib")
    if spec is None or spec.origin is None:
        return ()
    return (str(Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"),)


def _covers(font: ImageFont.FreeTypeFont | ImageFont.ImageFont, text: str) -> bool:
    missing = bytes(font.getmask("\U0010ffff"))
    return all(
        letter.isspace() or bytes(font.getmask(letter)) != missing for letter in set(text) if letter > "~"
    )
