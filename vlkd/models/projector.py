"""Small networks around a loss: they bring a student's features to the teacher's width, grid or levels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather as gather

from vlkd.errors import UserError
from vlkd.losses.feature import pooled_to
from vlkd.models.cifar.network import conv1x1, conv3x3


@contextmanager
def batch_of_one() -> Iterator[None]:
    """Turn torch's ValueError about statistics of a single value into a UserError that says what to do."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            "batch of one with BatchNorm: statistics of a single value do not exist; "
            "use a batch_size of at least 2, and drop_last where the last batch has one image"
        ) from error


class NDProjector(nn.Sequential):
    """BatchNorm, Dropout, Linear: (B,student_width) -> (B,teacher_width). ND, arXiv 2305.17007, CIFAR code.

    Raises UserError for a batch of one in training.
    """

    def __init__(self, student_width: int, teacher_width: int, dropout: float = 0.5) -> None:
        super().__init__(
            nn.BatchNorm1d(student_width), nn.Dropout(dropout), nn.Linear(student_width, teacher_width)
        )

    def forward(self, pooled: Tensor) -> Tensor:
        """(B,student_width) -> (B,teacher_width)."""
        with batch_of_one():
            return super().forward(pooled)


class GlobalBatchNorm1d(nn.BatchNorm1d):
    """BatchNorm1d over the vectors of all processes, on any device: as one process with the whole batch.

    torch's SyncBatchNorm needs a GPU, and vectors are small enough to be gathered.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B,D) -> (B,D); in training, B must be the same in all processes."""
        if not (self.training and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(x)
        whole = super().forward(torch.cat(gather(x.contiguous())))
        return whole.split(len(x))[dist.get_rank()]


class PromptProjector(nn.Sequential):
    """`layers` linear maps with BatchNorm and ReLU between: (B,student_width) -> (B,teacher_width).

    PromptKD (CVPR 2024): 2 layers, hidden = teacher width; the published 1x1 convolutions are the same map.
    Runs in its own precision inside autocast; statistics are those of the batch of all processes. Raises
    UserError for a number of layers other than 1 to 3, and for a batch of one in training with more than one
    layer.
    """

    def __init__(
        self, student_width: int, teacher_width: int, layers: int = 2, hidden: int | None = None
    ) -> None:
        if layers not in (1, 2, 3):
            raise UserError(f"PromptKD projector: {layers} layers; expected 1, 2 or 3")
        if hidden is not None and hidden < 1:
            raise UserError(
                f"PromptKD projector: hidden {hidden}; expected a width, or null for the last one"
            )
        widths = [student_width, *[hidden or teacher_width] * (layers - 1), teacher_width]
        parts: list[nn.Module] = [nn.Linear(widths[0], widths[1])]
        for before, after in itertools.pairwise(widths[1:]):
            parts += [GlobalBatchNorm1d(before), nn.ReLU(), nn.Linear(before, after)]
        super().__init__(*parts)

    def forward(self, pooled: Tensor) -> Tensor:
        """(B,student_width) -> (B,teacher_width)."""
        own = next(self.parameters()).dtype
        with batch_of_one(), torch.autocast(pooled.device.type, enabled=False):
            return super().forward(pooled.to(own))


class TokenProjector(nn.Linear):
    """One linear map of tokens: (B,N,student_width) -> (B,N,teacher_width), bias kept."""

    def __init__(self, student_width: int, teacher_width: int) -> None:
        super().__init__(student_width, teacher_width)


class SharedHeadProjector(nn.Module):
    """1x1, 3x3, 1x1 convolutions to the teacher's channels, then the teacher's own head.

    KD3 and SimKD (arXiv 2203.14001): the student is classified by the teacher's last linear layer.
    """

    def __init__(self, student_channels: int, teacher_channels: int, factor: int = 2) -> None:
        super().__init__()
        width = teacher_channels // factor
        self.transfer = nn.Sequential(
            *_normalised(conv1x1(student_channels, width)),
            *_normalised(conv3x3(width, width)),
            *_normalised(conv1x1(width, teacher_channels)),
        )

    def forward(self, student_map: Tensor, teacher_map: Tensor, head: nn.Linear) -> tuple[Tensor, ...]:
        """student_map (B,C,h,w), teacher_map (B,D,h',w') -> aligned maps of both and the student's logits.

        The larger of both grids is average-pooled to the smaller; both maps (B,D,min h,min w), logits (B,K).
        Raises UserError for a batch of one in training where BatchNorm sees a single value.
        """
        student = self.project(student_map, teacher_map.shape[-2:])
        return student, pooled_to(teacher_map, student.shape[-2:]), self.classify(student, head)

    def project(self, student_map: Tensor, grid: Sequence[int]) -> Tensor:
        """(B,student_channels,h,w) -> (B,teacher_channels,h',w'), h' and w' at most the teacher's `grid`."""
        size = [min(a, b) for a, b in zip(student_map.shape[-2:], grid, strict=True)]
        with batch_of_one():
            return self.transfer(pooled_to(student_map, size))

    @staticmethod
    def classify(projected: Tensor, head: nn.Linear) -> Tensor:
        """Mean over the map (B,D,h,w), then `head` -> logits (B,K)."""
        return head(projected.mean((2, 3)))


class FitNetRegressor(nn.Sequential):
    """1x1 convolution, BatchNorm, ReLU: (B,student,h,w) -> (B,teacher,h,w). FitNets, arXiv 1412.6550.

    With bias, as mdistiller@a08d46f. Raises UserError for a batch of one in training on a 1x1 map.
    """

    def __init__(self, student_channels: int, teacher_channels: int) -> None:
        super().__init__(
            nn.Conv2d(student_channels, teacher_channels, 1), nn.BatchNorm2d(teacher_channels), nn.ReLU()
        )

    def forward(self, student_map: Tensor) -> Tensor:
        """(B,student_channels,h,w) -> (B,teacher_channels,h,w)."""
        with batch_of_one():
            return super().forward(student_map)


class VIDRegressor(nn.Module):
    """Mean of q(t|s) by three 1x1 convolutions and its variance by `log_scale` (C,). VID, arXiv 1904.05835.

    The variance is softplus(log_scale) + epsilon and starts at `initial_variance`. Here it is learned, as in
    the paper; mdistiller keeps it in a plain list, which its optimiser never sees.
    """

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        initial_variance: float = 5.0,
        epsilon: float = 1e-5,
    ) -> None:
        super().__init__()
        self.mean = nn.Sequential(
            conv1x1(student_channels, teacher_channels),
            nn.ReLU(),
            conv1x1(teacher_channels, teacher_channels),
            nn.ReLU(),
            conv1x1(teacher_channels, teacher_channels),
        )
        start = math.log(math.expm1(initial_variance - epsilon))
        self.log_scale = nn.Parameter(torch.full((teacher_channels,), start))

    def forward(self, student_map: Tensor) -> Tensor:
        """(B,student_channels,h,w) -> (B,teacher_channels,h,w)."""
        return self.mean(student_map)


class ReviewFusion(nn.Module):
    """Fuses a student's levels from the deepest up, each with what the deeper ones knew.

    ReviewKD (arXiv 2104.09044), attention based fusion. `student_channels`: channels of the levels, shallow
    first; `teacher_shapes`: (C,h,w) of the teacher's; `width`: channels of the fused stream, by default that
    of the deepest student level, at most 512. Raises UserError where the numbers of levels differ, and for a
    batch of one in training with a level of one pixel.
    """

    def __init__(
        self,
        student_channels: Sequence[int],
        teacher_shapes: Sequence[tuple[int, int, int]],
        width: int | None = None,
    ) -> None:
        super().__init__()
        if len(student_channels) != len(teacher_shapes):
            raise UserError(
                f"review_kd: {len(student_channels)} levels of the student, {len(teacher_shapes)} of the "
                "teacher; give as many taps of both"
            )
        width = width or min(512, student_channels[-1])
        self.sizes = [tuple(shape[1:]) for shape in teacher_shapes]
        deepest = len(student_channels) - 1
        self.levels = nn.ModuleList(
            FusionLevel(channels, width, shape[0], fuses=i != deepest)
            for i, (channels, shape) in enumerate(zip(student_channels, teacher_shapes, strict=True))
        )

    def forward(self, student_maps: Sequence[Tensor]) -> list[Tensor]:
        """Levels (B,C,h,w), shallow first, pooled features as a 1x1 map -> maps of the teacher's shapes."""
        outputs: list[Tensor] = []
        stream: Tensor | None = None
        with batch_of_one():
            for level, x, size in reversed(list(zip(self.levels, student_maps, self.sizes, strict=True))):
                output, stream = level(x, stream, size)
                outputs.append(output)
        return outputs[::-1]


class FusionLevel(nn.Module):
    """One attention based fusion: the level's own features and the deeper stream, weighted pixel by pixel."""

    def __init__(self, channels: int, width: int, teacher_channels: int, fuses: bool) -> None:
        super().__init__()
        enter, leave = conv1x1(channels, width), conv3x3(width, teacher_channels)
        for convolution in (enter, leave):
            nn.init.kaiming_uniform_(convolution.weight, a=1)
        self.enter = nn.Sequential(enter, nn.BatchNorm2d(width))
        self.attention = nn.Conv2d(2 * width, 2, 1) if fuses else None
        self.leave = nn.Sequential(leave, nn.BatchNorm2d(teacher_channels))

    def forward(self, x: Tensor, stream: Tensor | None, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """x (B,C,h,w), stream (B,width,h',w') of the deeper level -> output (B,D,*size), new stream."""
        x = self.enter(x)
        if self.attention is not None and stream is not None:
            stream = F.interpolate(stream, x.shape[-2:], mode="nearest")
            own, deeper = self.attention(torch.cat([x, stream], dim=1)).sigmoid().split(1, dim=1)
            x = own * x + deeper * stream
        output = x if x.shape[-2:] == size else _resized(x, size)
        return self.leave(output), x


def _normalised(convolution: nn.Conv2d) -> tuple[nn.Module, ...]:
    return convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU(inplace=True)


def _resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(B,C,h,w) -> (B,C,*size): average-pooled where it shrinks, nearest where it grows."""
    return pooled_to(F.interpolate(x, [max(a, b) for a, b in zip(x.shape[-2:], size, strict=True)]), size)
