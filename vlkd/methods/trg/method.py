"""TRG: the student's tokens relate to each other, across the batch, as the teacher's do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlkd import losses
from vlkd.errors import UserError
from vlkd.methods.classifier import ClassifierDistiller
from vlkd.methods.terms import Pair, Term, check_options, same_grid, unknown_loss
from vlkd.models.classifier import Outputs
from vlkd.models.projector import TokenProjector

Local = Literal["edges", "literal_KLst", "literal_KLts", "literal_raw", "tknn", "masked"]
_LOSSES = ("trg_local", "trg_global", "trg_contextual")


@dataclass
class GraphOptions:
    """Tokens and graph.

    Args:
        tokens: tokens sampled from each image, the same places in teacher and student; None takes all.
        max_nodes: bound of the nodes of a batch's graph; fewer tokens are sampled where it would be exceeded.
        patch: side of the square patch of a map that makes one token.
        neighbours: edges of a node, to its nearest tokens in the teacher.
        normalise: tokens as unit vectors in the local loss.
        sigma: of the kernel exp(-d^2 / (2 sigma)) in the local loss.
        kernel: rbf, or cosine.
        local: reading of the local loss: edges (the recommended one: teacher's edges, softmax over
        neighbours, KL(teacher || student), student tokens as they are), or one of
        vlkd.losses.trg_local_dense; of these all but literal_raw take projected student tokens.
        temperature: first and last temperature of the global loss.
        temperature_shape: course between them.
    """

    tokens: int | None = 16
    max_nodes: int = 1024
    patch: int = 1
    neighbours: int = 8
    normalise: bool = True
    sigma: float = 1.0
    kernel: Literal["rbf", "cosine"] = "rbf"
    local: Local = "edges"
    temperature: tuple[float, float] = (0.5, 0.07)
    temperature_shape: Literal["cosine", "linear", "constant"] = "cosine"

    def __post_init__(self) -> None:
        if self.patch < 1 or self.neighbours < 2 or self.sigma <= 0:
            raise UserError(
                f"model.graph: patch {self.patch} must be at least 1, neighbours {self.neighbours} at least "
                f"2 (a softmax over one says nothing), sigma {self.sigma} above 0"
            )
        if self.local != "edges" and self.kernel != "rbf":
            raise UserError(f"model.graph.kernel={self.kernel}: only the reading local=edges has it")


class TRG(ClassifierDistiller):
    """Losses trg_local, trg_global, trg_contextual beside ce, kd and the other baselines.

    Args:
        graph: tokens, graph and readings.
        kwargs: see ClassifierDistiller.
    """

    def __init__(self, graph: GraphOptions | None = None, **kwargs: Any) -> None:
        self.graph = graph or GraphOptions()
        super().__init__(**kwargs)

    def build_term(self, name: str, pair: Pair, options: dict[str, Any]) -> Term:
        """The losses of TRG, and those of ClassifierDistiller."""
        if not name.startswith("trg_"):
            return super().build_term(name, pair, options)
        if name not in _LOSSES:
            raise unknown_loss(name, _LOSSES)
        check_options(name, _no_options, options)
        sample = Tokens(self.graph)
        sample.all(pair)
        if name == "trg_local":
            return LocalTerm(sample, pair)
        if name == "trg_contextual":
            return ContextualTerm(sample)
        return GlobalTerm(sample, pair)


class Tokens:
    """Tokens (B,N,D) of both networks on one grid, and the sampled ones as nodes (P,D)."""

    def __init__(self, options: GraphOptions) -> None:
        self.options = options

    def all(self, pair: Pair) -> tuple[Tensor, Tensor]:
        """All tokens (B,N,D) of student and teacher, equally many. Raises UserError without maps."""
        if "tokens" not in pair.shared:
            student, teacher = _map("student", pair.student), _map("teacher", pair.teacher)
            maps, patch = same_grid(student, teacher), self.options.patch
            if any(side % patch for side in maps[0].shape[-2:]):
                raise UserError(
                    f"model.graph.patch={patch}: does not divide the common grid {_grid(maps[0])} of the "
                    f"student ({_grid(student)}) and the teacher ({_grid(teacher)})"
                )
            pair.shared["tokens"] = [losses.patch_tokens(item, patch) for item in maps]
        student, teacher = pair.shared["tokens"]
        return student, teacher

    def nodes(self, pair: Pair) -> tuple[Tensor, Tensor]:
        """Sampled tokens (P,D) of both, image by image, drawn without replacement at the same places."""
        if "nodes" not in pair.shared:
            student, teacher = self.all(pair)
            batch, count = student.shape[:2]
            wanted = min(count, self.options.tokens or count, max(1, self.options.max_nodes // batch))
            places = torch.rand(batch, count, device=student.device).topk(wanted, 1).indices
            pair.shared["nodes"] = [
                item.gather(1, places[..., None].expand(-1, -1, item.shape[2])).flatten(0, 1)
                for item in (student, teacher)
            ]
        student, teacher = pair.shared["nodes"]
        return student, teacher


class LocalTerm(Term):
    """trg_local: each node's distribution over its neighbours."""

    def __init__(self, sample: Tokens, pair: Pair) -> None:
        super().__init__()
        self.sample = sample
        projected = sample.options.local not in ("edges", "literal_raw")
        self.projector: nn.Module = _projector(sample, pair) if projected else nn.Identity()

    def forward(self, pair: Pair) -> Tensor:
        student, teacher = self.sample.nodes(pair)
        student, options = self.projector(student), self.sample.options
        if options.normalise:
            student, teacher = F.normalize(student.float(), dim=1), F.normalize(teacher.float(), dim=1)
        neighbours = min(options.neighbours, len(teacher) - 1)
        if options.local != "edges":
            total = losses.trg_local_dense(student, teacher, neighbours, options.sigma, options.local)
            return total / len(student)
        edges = losses.knn_edges(teacher, neighbours)
        return losses.trg_local(student, teacher, edges, options.kernel, sigma=options.sigma)


class GlobalTerm(Term):
    """trg_global: each student token finds its own teacher token among all; the temperature falls."""

    def __init__(self, sample: Tokens, pair: Pair) -> None:
        super().__init__()
        self.sample = sample
        self.projector = _projector(sample, pair)

    def forward(self, pair: Pair) -> Tensor:
        student, teacher = self.sample.nodes(pair)
        options = self.sample.options
        temperature = losses.trg_temperature(pair.progress, *options.temperature, options.temperature_shape)
        return losses.trg_global(self.projector(student), teacher, temperature)


class ContextualTerm(Term):
    """trg_contextual: attention among all tokens of each image."""

    def __init__(self, sample: Tokens) -> None:
        super().__init__()
        self.sample = sample

    def forward(self, pair: Pair) -> Tensor:
        return losses.trg_contextual(*self.sample.all(pair))


def _projector(sample: Tokens, pair: Pair) -> nn.Module:
    student, teacher = sample.all(pair)
    return TokenProjector(student.shape[2], teacher.shape[2])


def _no_options() -> None:
    """The losses of TRG take their options from `model.graph`."""


def _map(part: str, outputs: Outputs) -> Tensor:
    if outputs.map is None:
        raise UserError(
            f"model.{part}: has neither a map nor tokens on a grid; TRG needs a convolutional network or a "
            "vision transformer with a square token grid"
        )
    return outputs.map


def _grid(item: Tensor) -> str:
    return "x".join(map(str, item.shape[-2:]))
