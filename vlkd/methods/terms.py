"""Terms: one loss between teacher and student with what it needs around it (taps, projector, memory)."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlkd import losses
from vlkd.errors import UserError
from vlkd.losses.feature import pooled_to
from vlkd.models.classifier import Outputs
from vlkd.models.projector import FitNetRegressor, ReviewFusion, VIDRegressor


@dataclass
class Pair:
    """What student and teacher gave for the same images; labels (B,); indices (B,), places in the data."""

    student: Outputs
    teacher: Outputs
    labels: Tensor | None = None
    indices: Tensor | None = None
    progress: float = 0.0
    shared: dict[str, Any] = field(default_factory=dict)  # what several terms of one step use


class Term(nn.Module):
    """A named loss: `forward(pair)` gives an unweighted scalar; its parameters train with the student."""

    reads_labels = False

    def prepare(self, data: Any, device: torch.device) -> None:
        """Before training on `device`: make what depends on the training data."""

    def forward(self, pair: Pair) -> Tensor:
        raise NotImplementedError


class LogitTerm(Term):
    """kd, dkd, dist, sinkhorn: between logits; `standardise` z-scores both sides first."""

    def __init__(self, function: Callable[..., Tensor], options: dict[str, Any]) -> None:
        super().__init__()
        self.standardise = bool(options.pop("standardise", False))
        self.function, self.options = function, options
        self.reads_labels = "labels" in inspect.signature(function).parameters

    def forward(self, pair: Pair) -> Tensor:
        logits = [pair.student.logits, pair.teacher.logits]
        if self.standardise:
            logits = [losses.logit_standardise(item) for item in logits]
        labels = {"labels": pair.labels} if self.reads_labels else {}
        return self.function(*logits, **labels, **self.options)


class PooledTerm(Term):
    """rkd, pkt: between pooled features, whose widths may differ."""

    def __init__(self, function: Callable[..., Tensor], options: dict[str, Any]) -> None:
        super().__init__()
        self.function, self.options = function, options

    def forward(self, pair: Pair) -> Tensor:
        return self.function(pair.student.pooled, pair.teacher.pooled, **self.options)


class MapTerm(Term):
    """at, nst, sp: between the maps at the taps (the last map where there are none)."""

    def __init__(self, pair: Pair, function: Callable[..., Tensor], options: dict[str, Any]) -> None:
        super().__init__()
        self.function, self.options = function, options
        maps_of(pair)

    def forward(self, pair: Pair) -> Tensor:
        student, teacher = maps_of(pair)
        return self.function(student, teacher, **self.options)


class SimilarityTerm(MapTerm):
    """sp: summed over the taps."""

    def forward(self, pair: Pair) -> Tensor:
        pairs = zip(*maps_of(pair), strict=True)
        return torch.stack([self.function(s, t, **self.options) for s, t in pairs]).sum()


class FitNetTerm(Term):
    """fitnet: MSE after a 1x1 convolution, at one tap (`tap`: its place among the taps)."""

    def __init__(self, pair: Pair, tap: int = -1) -> None:
        super().__init__()
        self.tap = tap
        count = len(maps_of(pair)[0])
        if not -count <= tap < count:
            raise UserError(f"model.options.fitnet.tap={tap}: there are {count} taps, the first is 0")
        student, teacher = (maps[tap] for maps in maps_of(pair))
        self.regressor = FitNetRegressor(student.shape[1], teacher.shape[1])

    def forward(self, pair: Pair) -> Tensor:
        student, teacher = (maps[self.tap] for maps in maps_of(pair))
        student, teacher = same_grid(student, teacher)
        return losses.fitnet(self.regressor(student), teacher)


class VIDTerm(Term):
    """vid: the teacher's maps under a Gaussian around a regression from the student's; sum over taps."""

    def __init__(self, pair: Pair, initial_variance: float = 5.0) -> None:
        super().__init__()
        self.regressors = nn.ModuleList(
            VIDRegressor(s.shape[1], t.shape[1], initial_variance)
            for s, t in zip(*maps_of(pair), strict=True)
        )

    def forward(self, pair: Pair) -> Tensor:
        values = []
        regressor: Any
        for regressor, student, teacher in zip(self.regressors, *maps_of(pair), strict=True):
            student, teacher = same_grid(student, teacher)
            values.append(losses.vid(regressor(student), teacher, regressor.log_scale))
        return torch.stack(values).sum()


class ReviewTerm(Term):
    """review_kd: fused student maps against the teacher's; the pooled features are the deepest level."""

    def __init__(self, pair: Pair, width: int | None = None) -> None:
        super().__init__()
        student, teacher = self._levels(pair)
        shapes = [(level.shape[1], level.shape[2], level.shape[3]) for level in teacher]
        self.fusion = ReviewFusion([level.shape[1] for level in student], shapes, width)

    def forward(self, pair: Pair) -> Tensor:
        student, teacher = self._levels(pair)
        return losses.review_kd(self.fusion(student), teacher)

    @staticmethod
    def _levels(pair: Pair) -> tuple[list[Tensor], list[Tensor]]:
        student, teacher = maps_of(pair)
        return (
            [*student, pair.student.pooled[:, :, None, None]],
            [*teacher, pair.teacher.pooled[:, :, None, None]],
        )


class OFDTerm(Term):
    """ofd: maps before their ReLU, the student's after a 1x1 convolution; a deeper tap counts twice as much.

    The margin of a channel is the mean of the teacher's negative values, over all batches seen so far (the
    paper's definition; released code approximates it by the statistics of the preceding BatchNorm).
    """

    def __init__(self, pair: Pair) -> None:
        super().__init__()
        if not pair.teacher.taps:
            raise UserError(
                "model.teacher_taps: ofd compares maps before their ReLU; name them in teacher and student, "
                "for example layer3.4.relu2:input"
            )
        students, teachers = maps_of(pair)
        self.connectors = nn.ModuleList(
            nn.Sequential(nn.Conv2d(s.shape[1], t.shape[1], 1, bias=False), nn.BatchNorm2d(t.shape[1]))
            for s, t in zip(students, teachers, strict=True)
        )
        for i, teacher in enumerate(teachers):
            self.register_buffer(f"negative{i}", torch.zeros(2, teacher.shape[1]))

    def forward(self, pair: Pair) -> Tensor:
        values = []
        for i, (student, teacher) in enumerate(zip(*maps_of(pair), strict=True)):
            student, teacher = same_grid(student, teacher)
            seen = self.get_buffer(f"negative{i}")
            if self.training:
                low = teacher.float().clamp(max=0)
                seen += torch.stack([low.sum((0, 2, 3)), (low < 0).float().sum((0, 2, 3))])
            margin = seen[0] / seen[1].clamp(min=1)
            factor = 0.5 ** (len(self.connectors) - 1 - i)
            values.append(factor * losses.ofd(self.connectors[i](student), teacher, margin))
        return torch.stack(values).sum()


class CRDTerm(Term):
    """crd: contrast of embedded pooled features against a memory of the training set."""

    reads_labels = True  # negatives are of other classes
    memory: losses.CRDMemory | None

    def __init__(
        self,
        pair: Pair,
        width: int = 128,
        negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
    ) -> None:
        super().__init__()
        self.student_embedding = nn.Linear(pair.student.pooled.shape[1], width)
        self.teacher_embedding = nn.Linear(pair.teacher.pooled.shape[1], width)
        self.width, self.negatives, self.temperature, self.momentum = width, negatives, temperature, momentum
        self.memory = None

    def prepare(self, data: Any, device: torch.device) -> None:
        """Make the memory, one slot for each training image; negatives are of other classes."""
        labels = data.train_labels
        memory = losses.CRDMemory(
            len(labels), self.width, self.negatives, self.temperature, self.momentum, labels
        )
        self.memory = memory.to(device)

    def forward(self, pair: Pair) -> Tensor:
        assert pair.indices is not None and self.memory is not None, "crd needs prepare() and indices"
        student = F.normalize(self.student_embedding(pair.student.pooled).float(), dim=1)
        teacher = F.normalize(self.teacher_embedding(pair.teacher.pooled).float(), dim=1)
        return losses.crd(student, teacher, pair.indices, self.memory)

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *others: Any) -> None:
        if self.memory is None:  # a checkpoint that is only scored
            for key in [key for key in state if key.startswith(f"{prefix}memory.")]:
                del state[key]
        super()._load_from_state_dict(state, prefix, *others)


_LOGITS = {name: getattr(losses, name) for name in ("kd", "dkd", "dist", "sinkhorn")}
_POOLED = {name: getattr(losses, name) for name in ("rkd", "pkt")}
_MAPS = {name: getattr(losses, name) for name in ("at", "nst")}
_WITH_PARTS: dict[str, type[Term]] = {
    "fitnet": FitNetTerm,
    "vid": VIDTerm,
    "ofd": OFDTerm,
    "review_kd": ReviewTerm,
    "crd": CRDTerm,
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "dkd": {"alpha": 1.0, "beta": 8.0, "temperature": 4.0},
    "dist": {"temperature": 4.0},
    "rkd": {"distance_weight": 25.0, "angle_weight": 50.0},
}


def build_term(name: str, pair: Pair, options: dict[str, Any]) -> Term:
    """The loss called `name` between networks with such outputs.

    Raises UserError for an unknown loss or option and for outputs that it cannot compare.
    """
    options = {**_DEFAULTS.get(name, {}), **options}
    if name in _LOGITS:
        check_options(name, _LOGITS[name], options, extra=("standardise",))
        return LogitTerm(_LOGITS[name], options)
    if name in _POOLED:
        check_options(name, _POOLED[name], options)
        return PooledTerm(_POOLED[name], options)
    if name in _MAPS:
        check_options(name, _MAPS[name], options)
        return MapTerm(pair, _MAPS[name], options)
    if name == "sp":
        check_options(name, losses.sp, options)
        return SimilarityTerm(pair, losses.sp, options)
    if name in _WITH_PARTS:
        check_options(name, _WITH_PARTS[name], options)
        return _WITH_PARTS[name](pair, **options)
    raise unknown_loss(name)


def unknown_loss(name: str, more: Sequence[str] = ()) -> UserError:
    """The error for a loss that does not exist; `more` are those that a method adds."""
    known = sorted(["ce", *_LOGITS, *_POOLED, *_MAPS, "sp", *_WITH_PARTS, *more])
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
    return UserError(f"model.weights.{name}: no such loss; {hint}")


def check_options(
    name: str, function: Callable[..., Any], options: dict[str, Any], extra: Sequence[str] = ()
) -> None:
    """Raise UserError for an option that the loss does not take."""
    parameters = list(inspect.signature(function).parameters.values())
    known = [p.name for p in parameters if p.default is not inspect.Parameter.empty or p.name in options]
    known = [item for item in known if not item.startswith(("student", "teacher", "labels", "pair"))]
    for key in options:
        if key not in (*known, *extra):
            raise UserError(f"model.options.{name}.{key}: no such option; {name} takes {[*known, *extra]}")


def maps_of(pair: Pair) -> tuple[list[Tensor], list[Tensor]]:
    """Maps (B,C,h,w) of student and teacher: those at the taps, else the last ones. Raises UserError."""
    found = []
    for part, outputs in (("student", pair.student), ("teacher", pair.teacher)):
        maps: dict[str, Any] = dict(outputs.taps) or {"map": outputs.map}
        for path, tap in maps.items():
            if tap is None or tap.ndim != 4:
                shape = "nothing" if tap is None else tuple(tap.shape)
                raise UserError(
                    f"model.{part}_taps {path}: gives {shape}, but this loss compares maps (B,C,h,w); "
                    "tap a convolutional stage"
                )
        found.append(list(maps.values()))
    return found[0], found[1]


def same_grid(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Maps (B,C,h,w), each side average-pooled to the smaller of both grids."""
    (h, w), (rows, columns) = student.shape[-2:], teacher.shape[-2:]
    size = (min(h, rows), min(w, columns))
    return pooled_to(student, size), pooled_to(teacher, size)
