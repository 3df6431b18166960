"""TRG: tokens on one grid, the same places in both networks, losses that reach what should learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from toy_images import ToyImageData, fit, toy_teacher

from vlkd.errors import UserError
from vlkd.methods.terms import Pair
from vlkd.methods.trg import TRG
from vlkd.methods.trg.method import GraphOptions, Tokens
from vlkd.models.classifier import Outputs

STUDENT: dict[str, Any] = {"student": "toy_images:ToyNet", "image_size": 16, "lr": 0.01}
WEIGHTS = {"ce": 1.0, "trg_local": 10.0, "trg_global": 1.0, "trg_contextual": 10.0}


def outputs(channels: int, side: int, batch: int = 3) -> Outputs:
    # Each value names its image and place, whatever the channel.
    place = torch.arange(batch)[:, None, None] * 1000.0 + torch.arange(side * side).view(side, side)
    return Outputs(
        torch.zeros(batch, 4), torch.zeros(batch, channels), place[:, None].repeat(1, channels, 1, 1)
    )


def test_sampled_tokens_lie_at_the_same_places() -> None:
    pair = Pair(outputs(5, 4), outputs(7, 4))
    sample = Tokens(GraphOptions(tokens=6))
    student, teacher = sample.nodes(pair)
    assert student.shape == (18, 5) and teacher.shape == (18, 7)
    assert torch.equal(student[:, 0], teacher[:, 0])
    assert len(student[:, 0].unique()) == 18
    assert torch.equal((student[:, 0] / 1000).long(), torch.arange(3).repeat_interleave(6))
    assert torch.equal(sample.nodes(pair)[0], student)
    assert not torch.equal(sample.nodes(Pair(pair.student, pair.teacher))[0], student)


def test_nodes_are_bounded() -> None:
    sample = Tokens(GraphOptions(tokens=16, max_nodes=9))
    assert len(sample.nodes(Pair(outputs(5, 4), outputs(7, 4)))[0]) == 9


def test_grids_of_different_size_meet_at_the_smaller() -> None:
    student, teacher = Tokens(GraphOptions()).all(Pair(outputs(5, 8), outputs(7, 4)))
    assert student.shape == (3, 16, 5) and teacher.shape == (3, 16, 7)
    assert float(student[0, 0, 0]) == (0 + 1 + 8 + 9) / 4


def test_bad_grids() -> None:
    with pytest.raises(
        UserError, match=r"patch=3: does not divide the common grid 4x4 of the student \(8x8\)"
    ):
        Tokens(GraphOptions(patch=3)).all(Pair(outputs(5, 8), outputs(7, 4)))
    flat = Outputs(torch.zeros(2, 4), torch.zeros(2, 5))
    with pytest.raises(UserError, match="student: has neither a map nor tokens"):
        Tokens(GraphOptions()).all(Pair(flat, outputs(7, 4)))


@pytest.mark.parametrize("local", ["edges", "literal_KLst", "masked"])
def test_trains(local: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    graph = GraphOptions(tokens=4, neighbours=3, local=local)
    method = TRG(**STUDENT, teacher=toy_teacher(tmp_path), weights=WEIGHTS, graph=graph)
    data = ToyImageData()
    fit(method, data, 3, tmp_path)
    losses = method.compute_losses(next(iter(data.train_dataloader())))
    assert losses.keys() == WEIGHTS.keys()
    assert all(torch.isfinite(value) for value in losses.values())
    method.zero_grad()
    sum(value for name, value in losses.items() if name != "ce").backward()  # type: ignore
    missing = {name for name, value in method.named_parameters() if value.grad is None}
    assert missing == {"student.network.fc.weight", "student.network.fc.bias"}
    projected = ["trg_global"] if local == "edges" else ["trg_local", "trg_global"]
    parts = {f"{name}.projector.{part}" for name in projected for part in ("weight", "bias")}
    assert set(method.terms.state_dict()) == parts


def test_the_temperature_falls(tmp_path: Path) -> None:
    method = TRG(**STUDENT, teacher=toy_teacher(tmp_path), weights={"ce": 1.0, "trg_global": 1.0})
    data = ToyImageData()
    fit(method, data, 1, tmp_path)
    term = method.terms["trg_global"]
    images = data.train_set.images[:8]
    pairs = [Pair(method.student.outputs(images), method.teacher_outputs(images), progress=p) for p in (0, 1)]
    values = []
    for pair in pairs:
        pair.shared = dict(pairs[0].shared)
        values.append(term(pair).item())
    assert values[0] != values[1]


def test_readings_that_cannot_be_are_refused() -> None:
    for wrong in ({"neighbours": 1}, {"patch": 0}, {"sigma": 0.0}):
        with pytest.raises(UserError, match=r"model\.graph: patch"):
            GraphOptions(**wrong)
    with pytest.raises(UserError, match="kernel=cosine: only the reading local=edges"):
        GraphOptions(kernel="cosine", local="tknn")


def test_unknown_loss_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.weights\.trg_gobal: no such loss; did you mean trg_global"):
        TRG(**STUDENT, teacher=toy_teacher(tmp_path), weights={"trg_gobal": 1.0})


def test_vision_transformers_have_tokens(tmp_path: Path) -> None:
    method = TRG(
        student="timm:test_vit",
        num_classes=4,
        image_size=64,
        teacher="timm:test_resnet",
        teacher_arguments={},
        weights=WEIGHTS,
        graph=GraphOptions(tokens=3),
    )
    pair = Pair(
        method.student.outputs(torch.rand(2, 3, 64, 64)), method.teacher_outputs(torch.rand(2, 3, 64, 64))
    )
    student, teacher = method.terms["trg_local"].sample.all(pair)
    assert student.shape[:2] == teacher.shape[:2]
