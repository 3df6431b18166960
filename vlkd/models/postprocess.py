"""From class logits (Q,K+1) and mask logits (Q,h,w) to label maps and segments, never holding (K,H,W)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vlkd.errors import UserError

FORMS = ("strips", "full")


@dataclass(frozen=True)
class SemanticMap:
    """Label map (H,W) int64; scores (H,W) and probabilities (K,H,W) where they were asked for."""

    labels: Tensor
    scores: Tensor | None = None
    probabilities: Tensor | None = None


@dataclass(frozen=True)
class PanopticSegment:
    """A segment of a panoptic map: its id there, category, mean class score in [0,1], area in pixels.

    `query`: the row of the logits that it comes from, the first one where queries share a segment.
    """

    id: int
    category: int
    isthing: bool
    score: float
    area: int
    query: int


def semantic_labels(
    class_logits: Tensor,
    mask_logits: Tensor,
    size: tuple[int, int],
    form: str = "strips",
    *,
    topk: int = 3,
    live: float = 0.02,
    rival: float = 0.5,
    tile: int | None = None,
) -> Tensor:
    """Label map (H,W) int64 of class_logits (Q,K+1), no-object last, and mask_logits (Q,h,w).

    Options and errors as in `semantic_map`.
    """
    return semantic_map(
        class_logits, mask_logits, size, form, topk=topk, live=live, rival=rival, tile=tile
    ).labels


def semantic_map(
    class_logits: Tensor,
    mask_logits: Tensor,
    size: tuple[int, int],
    form: str = "strips",
    *,
    scores: bool = False,
    probabilities: bool = False,
    topk: int = 3,
    live: float = 0.02,
    rival: float = 0.5,
    tile: int | None = None,
) -> SemanticMap:
    """argmax_k sum_q softmax(class_logits)[q,k] sigmoid(upsampled mask_logits)[q] per pixel (Mask2Former).

    "full" is that formula over all queries and classes. "strips" goes through strips of rows in tiles of
    `tile` pixels, pixels first; a tile knows only the queries that come within a factor `live` of the
    strongest one in some mask cell of it, and of the union of these queries' `topk` classes those that come
    within a factor `rival` of the best one in some cell. With `probabilities` it uses all queries and
    classes, so the labels are exact and the only large tensor is the result.

    A probability is the sum of the formula, divided by its total over classes where that exceeds 1; what the
    classes leave to 1 says "nothing was found here". `scores` holds the winner's. Raises UserError for an
    unknown form and for shapes that do not fit.
    """
    _check(class_logits, mask_logits, size, form)
    probs = class_logits.float().softmax(-1)[:, :-1]
    if form == "full":
        return _full(probs, mask_logits, size, scores, probabilities)
    ranked = probs.topk(min(topk, probs.shape[1]), dim=-1).indices
    labels = torch.empty(size, dtype=torch.int64, device=probs.device)
    score_map = torch.empty(size, device=probs.device) if scores else None
    maps = torch.empty((probs.shape[1], *size), device=probs.device) if probabilities else None
    floor = 0.0 if probabilities else live
    strength = _strength(probs.amax(-1))
    for rows, cols, queries, cells, logits in _tiles(mask_logits, size, strength, floor, tile):
        masks = logits.sigmoid_()
        table = probs[queries]
        classes = None if probabilities else _rivals(cells, table, ranked[queries].unique(), rival)
        values = masks @ (table if classes is None else table[:, classes])
        top, winner = values.max(-1)
        labels[rows, cols] = winner if classes is None else classes[winner]
        if score_map is None and maps is None:
            continue
        total = (masks @ table.sum(-1)).clamp_(min=1)
        if score_map is not None:
            score_map[rows, cols] = top / total
        if maps is not None:
            maps[:, rows, cols] = values.div_(total[..., None]).permute(2, 0, 1)
    return SemanticMap(labels, score_map, maps)


def class_probabilities(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """Class probabilities (K,h,w) of `semantic_map`, at the resolution of mask_logits (Q,h,w).

    Raises UserError as `semantic_map` does.
    """
    _check(class_logits, mask_logits, (1, 1), "strips")
    probs = class_logits.float().softmax(-1)[:, :-1]
    maps = torch.einsum("qk,qhw->khw", probs, mask_logits.float().sigmoid())
    return maps.div_(maps.sum(0).clamp_(min=1))


def label_probabilities(
    maps: Tensor,
    size: tuple[int, int],
    form: str = "strips",
    *,
    scores: bool = False,
    rival: float = 0.5,
    tile: int | None = None,
) -> SemanticMap:
    """Most probable class per pixel of class probabilities (K,h,w), upsampled tile by tile.

    "strips" looks in a tile only at classes that come within a factor `rival` of the best one in some cell
    of it, "full" at all. `scores` holds the winner's probability.
    """
    labels = torch.empty(size, dtype=torch.int64, device=maps.device)
    score_map = torch.empty(size, device=maps.device) if scores else None
    floor = 0.0 if form == "full" else rival
    for rows, cols, classes, _, values in _tiles(maps, size, lambda strip: strip, floor, tile):
        top, winner = values.max(-1)
        labels[rows, cols] = classes[winner]
        if score_map is not None:
            score_map[rows, cols] = top
    return SemanticMap(labels, score_map)


def binary_masks(mask_logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks (n,W,H) bool, transposed for run lengths down the columns, of mask_logits (n,h,w) at (H,W)."""
    turned = mask_logits.float().transpose(1, 2)[None]
    return F.interpolate(turned, size[::-1], mode="bilinear", align_corners=False)[0] > 0


def panoptic_segments(
    class_logits: Tensor,
    mask_logits: Tensor,
    size: tuple[int, int],
    isthing: Sequence[bool],
    *,
    object_threshold: float = 0.8,
    overlap_threshold: float = 0.8,
    tile: int | None = None,
) -> tuple[Tensor, list[PanopticSegment]]:
    """Segment map (H,W) int32 (0 = void) and its segments: thing instances, and one per stuff category.

    Mask2Former's rule: keep queries whose best class is an object above `object_threshold`; a pixel goes to
    the query with the largest score x sigmoid(mask); a query whose share of its own mask (logit >= 0) falls
    below `overlap_threshold` is dropped. Raises UserError as `semantic_map`, and where `isthing` (K,) is of
    another length.
    """
    _check(class_logits, mask_logits, size, "strips")
    if len(isthing) != class_logits.shape[1] - 1:
        raise UserError(
            f"isthing has {len(isthing)} entries for {class_logits.shape[1] - 1} classes: give one per class"
        )
    scores, categories = class_logits.float().softmax(-1).max(-1)
    kept = ((categories < len(isthing)) & (scores > object_threshold)).nonzero()[:, 0]
    scores, categories = scores[kept], categories[kept]
    count = len(kept)
    owner = torch.full(size, count, dtype=torch.int64, device=scores.device)
    if not count:
        return owner.int(), []
    won = torch.zeros(count, dtype=torch.int64, device=scores.device)
    claimed = torch.zeros_like(won)
    for rows, cols, _, _, logits in _tiles(mask_logits[kept], size, _strength(scores), 0.0, tile):
        winner = (logits.sigmoid() * scores).argmax(-1)
        inside = logits >= 0
        won += torch.bincount(winner.flatten(), minlength=count)
        claimed += inside.sum((0, 1))
        owner[rows, cols] = torch.where(inside.gather(-1, winner[..., None])[..., 0], winner, count)
    area = torch.bincount(owner.flatten(), minlength=count + 1)[:count]
    holds = (area > 0) & (won >= overlap_threshold * claimed)
    queries = [q for q, hold in enumerate(holds.tolist()) if hold]
    ids, segments = _number(
        queries, kept.tolist(), categories.tolist(), scores.tolist(), area.tolist(), isthing
    )
    return torch.tensor([*ids, 0], dtype=torch.int32, device=owner.device)[owner], segments


def _number(
    held: list[int],
    rows: list[int],
    categories: list[int],
    scores: list[float],
    areas: list[int],
    isthing: Sequence[bool],
) -> tuple[list[int], list[PanopticSegment]]:
    """Segment id of every query (0 = not held) and the segments, queries of one stuff category sharing one.

    `rows`: where in the logits a query is.
    """
    ids = [0] * len(categories)
    members: list[list[int]] = []
    stuff: dict[int, int] = {}
    for query in held:
        category = categories[query]
        if not isthing[category] and category in stuff:
            ids[query] = stuff[category]
            members[ids[query] - 1].append(query)
            continue
        members.append([query])
        ids[query] = len(members)
        if not isthing[category]:
            stuff[category] = ids[query]
    segments = []
    for index, queries in enumerate(members, start=1):
        area = sum(areas[q] for q in queries)
        score = sum(scores[q] * areas[q] for q in queries) / area
        category = categories[queries[0]]
        thing = bool(isthing[category])
        segments.append(PanopticSegment(index, category, thing, score, area, rows[queries[0]]))
    return ids, segments


def _rivals(cells: Tensor, table: Tensor, classes: Tensor, rival: float) -> Tensor:
    """Those of `classes` that come within a factor `rival` of the best one in some mask cell (h',w',n)."""
    values = (cells.sigmoid() @ table[:, classes]).flatten(0, 1)
    return classes[(values >= rival * values.amax(-1, keepdim=True)).any(0)]


def _full(
    probs: Tensor, mask_logits: Tensor, size: tuple[int, int], scores: bool, probabilities: bool
) -> SemanticMap:
    masks = F.interpolate(mask_logits.float()[None], size, mode="bilinear", align_corners=False)[0].sigmoid()
    maps = torch.einsum("qk,qhw->khw", probs, masks)
    labels = maps.argmax(0)
    if not (scores or probabilities):
        return SemanticMap(labels)
    maps /= maps.sum(0).clamp(min=1)
    return SemanticMap(labels, maps.amax(0) if scores else None, maps if probabilities else None)


def _strength(best: Tensor) -> Callable[[Tensor], Tensor]:
    """How strong queries with the largest class probabilities `best` (Q,) are where logits (...,Q) say so."""
    return lambda logits: logits.sigmoid() * best


def _tiles(
    maps: Tensor,
    size: tuple[int, int],
    strength: Callable[[Tensor], Tensor],
    live: float,
    tile: int | None,
) -> Iterator[tuple[slice, slice, Tensor, Tensor, Tensor]]:
    """(rows, columns, live maps (n,), their cells (h',w',n), and upsampled (rows,columns,n)) per tile.

    `maps` (Q,h,w) are mask logits or the like; one is live where its `strength` comes within a factor `live`
    of the largest. Bilinear weights are convex: what is weak in all cells around a tile is so in its pixels.
    """
    # 64 keeps a tile's masks and class values in a core's cache; a GPU prefers few large kernels.
    step = tile or (64 if maps.device.type == "cpu" else 256)
    height, width = maps.shape[1:]
    columns = [_axis(start, step, size[1], width, maps.device) for start in range(0, size[1], step)]
    everything = torch.arange(len(maps), device=maps.device)
    for start in range(0, size[0], step):
        rows, source_rows, row_weights = _axis(start, step, size[0], height, maps.device)
        strip = maps[:, source_rows].float().permute(1, 2, 0).contiguous()
        values = strength(strip)
        strong = (values >= live * values.amax(-1, keepdim=True)).any(0)
        for cols, source_cols, col_weights in columns:
            chosen = strong[source_cols].any(0).nonzero()[:, 0] if live else everything
            cells = strip[:, source_cols].index_select(2, chosen)
            tall = (row_weights @ cells.flatten(1)).view(-1, *cells.shape[1:])
            yield rows, cols, chosen, cells, col_weights @ tall


def _axis(start: int, step: int, out: int, source: int, device: torch.device) -> tuple[slice, slice, Tensor]:
    """Output range, source range and bilinear weights (output, source) between them, align_corners=False."""
    stop = min(start + step, out)
    place = ((torch.arange(start, stop, dtype=torch.float64) + 0.5) * (source / out) - 0.5).clamp(
        0, source - 1
    )
    low = place.long()
    high = (low + 1).clamp(max=source - 1)
    first, last = int(low[0]), int(high[-1]) + 1
    weights = torch.zeros(stop - start, last - first, dtype=torch.float64)
    row = torch.arange(stop - start)
    weights[row, low - first] += 1 - (place - low)
    weights[row, high - first] += place - low
    return slice(start, stop), slice(first, last), weights.float().to(device)


def _check(class_logits: Tensor, mask_logits: Tensor, size: tuple[int, int], form: str) -> None:
    if form not in FORMS:
        raise UserError(f"form {form!r} is unknown: use one of {', '.join(FORMS)}")
    shapes = f"class_logits {tuple(class_logits.shape)} and mask_logits {tuple(mask_logits.shape)}"
    if class_logits.ndim != 2 or mask_logits.ndim != 3 or len(class_logits) != len(mask_logits):
        raise UserError(f"{shapes} do not fit: expected (Q, K+1) and (Q, h, w) of one image")
    if class_logits.shape[1] < 2 or 0 in mask_logits.shape or min(size) < 1:
        raise UserError(f"{shapes}, size {tuple(size)}: need at least one class, one query and one pixel")
