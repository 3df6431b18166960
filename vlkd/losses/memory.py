"""What a contrastive loss remembers of the whole training set."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlkd.errors import UserError

_GATHER_LIMIT = 2**22  # elements of gathered rows held at a time: 16 MiB in float32


class CRDMemory(nn.Module):
    """One unit vector of student and of teacher for each training sample, for the loss `crd`.

    items: training samples; width: D; negatives: K; labels (items,): negatives are then of other classes,
    without them any other sample is one. In state_dict: `student`, `teacher` (items,D) and `log_partition`
    (2,), log Z of both sides, NaN until the first batch fixes it. They change only in `fix` and `update`.
    UserError when a sample has no possible negative.
    Source: CRD (arXiv 1910.10699), section 3.3; megvii-research/mdistiller@a08d46f.
    """

    student: Tensor
    teacher: Tensor
    log_partition: Tensor
    order: Tensor
    first: Tensor
    size: Tensor

    def __init__(
        self,
        items: int,
        width: int = 128,
        negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.items, self.negatives, self.temperature, self.momentum = items, negatives, temperature, momentum
        bound = (width / 3) ** -0.5
        for name in ("student", "teacher"):
            bank = torch.empty(items, width).uniform_(-bound, bound, generator=generator)
            self.register_buffer(name, bank)
        self.register_buffer("log_partition", torch.full((2,), float("nan")))
        groups = torch.arange(items) if labels is None else labels.cpu()
        if len(groups) != items:
            raise UserError(f"CRD memory of {items} samples got {len(groups)} labels; expected one a sample")
        counts = groups.bincount()
        if items < 2 or counts.max() == items:
            raise UserError(
                "CRD memory: all samples have one class, so there is no negative; leave labels out"
            )
        # Samples of one class lie side by side in `order`, so that drawing outside a class is one shift.
        self.register_buffer("order", groups.argsort(stable=True), persistent=False)
        self.register_buffer("first", (counts.cumsum(0) - counts)[groups], persistent=False)
        self.register_buffer("size", counts[groups], persistent=False)

    def draw(self, indices: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Places (B,1+K) for samples (B,): their own, then K negatives, uniform with replacement.

        Drawn where `generator` lives, by default on the CPU: that random state is in every checkpoint.
        """
        device = generator.device if generator is not None else torch.device("cpu")
        first, size = self.first[indices, None], self.size[indices, None]
        uniform = torch.rand(len(indices), self.negatives, generator=generator, device=device)
        others = self.items - size
        place = (uniform.to(first.device) * others).long().minimum(others - 1)
        return torch.cat([indices[:, None], self.order[place + (place >= first) * size]], 1)

    @torch.no_grad()
    def fix(self, log_partition: Tensor) -> None:
        """Keep log Z (2,) of the student's and the teacher's side, from now on the same."""
        self.log_partition.copy_(log_partition)

    @torch.no_grad()
    def update(self, student: Tensor, teacher: Tensor, indices: Tensor) -> None:
        """Move the rows at indices (B,), each at most once, towards vectors (B,D) and make them unit."""
        for bank, vectors in ((self.student, student), (self.teacher, teacher)):
            mixed = self.momentum * bank[indices] + (1 - self.momentum) * vectors.to(bank)
            bank.index_copy_(0, indices, F.normalize(mixed))


def similarities(vectors: Tensor, bank: Tensor, places: Tensor) -> Tensor:
    """Inner products of vectors (B,D) with the rows of bank (N,D) at places (B,J) -> (B,J)."""
    if _dense(bank, places):
        return (vectors @ bank.T).gather(1, places)
    size = max(1, _GATHER_LIMIT // (places.shape[1] * bank.shape[1]))
    chunks = zip(vectors.split(size), places.split(size), strict=True)
    return torch.cat([(bank[rows] @ vector[:, :, None]).squeeze(2) for vector, rows in chunks])


def weighted_rows(weights: Tensor, bank: Tensor, places: Tensor) -> Tensor:
    """Sums over J of the rows of bank (N,D) at places (B,J), with weights (B,J) -> (B,D)."""
    if _dense(bank, places):
        return weights.new_zeros(len(places), len(bank)).scatter_add_(1, places, weights) @ bank
    return F.embedding_bag(places, bank, mode="sum", per_sample_weights=weights)


def _dense(bank: Tensor, places: Tensor) -> bool:
    # Measured on a CPU, D = 128: gathering J rows costs as much as a product with 16 J rows in order.
    return len(bank) <= 16 * places.shape[1]
