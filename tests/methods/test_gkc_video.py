"""GKC on clips: one assignment for a clip, GKC's own losses for one frame, queries that carry on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from vlkd.data import WorldVideoClipData
from vlkd.engine.bundle import load_bundle, save_bundle
from vlkd.engine.hub import resolve
from vlkd.errors import UserError
from vlkd.methods.gkc import GKC, VideoGKC
from vlkd.methods.gkc.clips import ClipTargets, TrackSteadiness, match_clips
from vlkd.methods.gkc.criterion import MaskCriterion
from vlkd.models.segmentor import Prediction, Segmentor

QUIET: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def student(memory: bool = True) -> Segmentor:
    torch.manual_seed(0)
    return Segmentor("timm:test_resnet", queries=8, layers=2, channels=32, text_width=128, memory=memory)


def make(form: type[GKC] = VideoGKC, memory: bool = True, **options: Any) -> GKC:
    network = student(memory)
    torch.manual_seed(1)  # of the teacher, which has no trained weights here, and of the heads
    return form(student=network, teacher="vlkd-clip-m", criterion=MaskCriterion(points=64), **options)


def data(**options: Any) -> WorldVideoClipData:
    given = {"train_videos": 4, "val_videos": 2, "train_frames": 4, "val_frames": 10, "size": (64, 64)}
    return WorldVideoClipData(**{**given, "batch_size": 2, **options})


def fitted(method: GKC, module: WorldVideoClipData) -> Trainer:
    run = Trainer(accelerator="cpu", max_steps=1, limit_val_batches=0, **QUIET)
    run.fit(method, datamodule=module)
    return run


# --- one assignment for a clip -----------------------------------------------------------------------------


def half(left: bool) -> torch.Tensor:
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[:, :8] = left
    mask[:, 8:] = not left
    return mask


def crossing() -> tuple[Prediction, list[dict[str, Any]]]:
    """Two objects that change sides; object 1 is not seen in the last frame. Query 0 and 2 follow them."""
    sides = [True, False, True]
    targets: list[dict[str, Any]] = []
    logits = torch.full((3, 3, 4, 4), -8.0)
    for t, left in enumerate(sides):
        objects = [0, 1] if t < 2 else [0]
        masks = torch.stack([half(left if k == 0 else not left) for k in objects])
        # In every frame the segments come in another order.
        order = torch.tensor(objects[::-1] if t else objects)
        targets.append({"masks": masks[order], "labels": 5 + order, "tracks": order, "clip": 0})
        small = masks[..., ::4, ::4].float() * 16 - 8
        logits[t, 2] = small[0]
        if t < 2:
            logits[t, 0] = small[1]
        # Query 1 fits object 0 as well in the first frame, and never again.
        logits[t, 1] = small[0] if t == 0 else -8.0
    return Prediction(logits, *(torch.zeros(3, 3, 4) for _ in range(3))), targets


def test_clip_targets_bring_the_frames_together() -> None:
    _, targets = crossing()
    clip = ClipTargets.of(targets)
    assert clip.labels.tolist() == [5, 6] and clip.present.tolist() == [
        [True, True],
        [True, True],
        [True, False],
    ]
    assert torch.equal(clip.masks[1, 0], half(False)) and not clip.masks[2, 1].any()
    empty = {"masks": torch.zeros(0, 4, 4, dtype=torch.bool), "labels": torch.zeros(0).long()}
    nothing = ClipTargets.of([{**empty, "tracks": torch.zeros(0).long(), "clip": 0}] * 2)
    assert nothing.masks.shape == (2, 0, 4, 4)


def test_one_query_for_an_object_in_all_frames() -> None:
    torch.manual_seed(0)
    prediction, targets = crossing()
    logits = torch.zeros(3, 3, 9)
    matches, losses = match_clips(MaskCriterion(points=256), logits, prediction, targets, 5.0)
    query_of = {0: 2, 1: 0}
    found = zip(matches.image.tolist(), matches.query.tolist(), matches.segment.tolist(), strict=True)
    pairs = [(frame, query, int(targets[frame]["tracks"][segment])) for frame, query, segment in found]
    assert len(pairs) == 5  # the object that is gone is not found in the last frame
    assert all(query == query_of[obj] for _, query, obj in pairs)
    assert losses["mask"] < 0.5
    # In the frame without object 1 its query is taught an empty mask.
    prediction.mask_logits[2, 0] = 8.0
    assert match_clips(MaskCriterion(points=256), logits, prediction, targets, 5.0)[1]["mask"] > 1.0


def test_clips_of_a_batch_are_matched_apart() -> None:
    torch.manual_seed(0)
    prediction, targets = crossing()
    twice = Prediction(
        torch.cat([prediction.mask_logits, prediction.mask_logits[:, [2, 1, 0]]]),
        *(torch.zeros(6, 3, 4) for _ in range(3)),
    )
    both = targets + [{**target, "clip": 1} for target in targets]
    matches, _ = match_clips(MaskCriterion(points=256), torch.zeros(6, 3, 9), twice, both, 10.0)
    objects = [int(both[i]["tracks"][s]) for i, s in zip(matches.image, matches.segment, strict=True)]
    expected = [{0: 2, 1: 0}, {0: 0, 1: 2}]
    assert [expected[i // 3][o] for i, o in zip(matches.image.tolist(), objects, strict=True)] == (
        matches.query.tolist()
    )


def test_the_class_counts_where_the_object_is_seen() -> None:
    prediction, targets = crossing()
    prediction.mask_logits[:] = -8.0  # masks tell nothing
    logits = torch.zeros(3, 3, 9)
    logits[:2, 1, 6] = 9.0  # query 1 names object 1 in its two frames; query 0 half as surely in all three
    logits[:, 0, 6] = 2.5
    matches, _ = match_clips(MaskCriterion(points=64), logits, prediction, targets, 5.0)
    of_one = [q for i, q, s in zip(matches.image, matches.query, matches.segment, strict=True)
              if int(targets[i]["tracks"][s]) == 1]  # fmt: skip
    assert [int(q) for q in of_one] == [1, 1]


def test_steadiness_counts_things_that_keep_their_query() -> None:
    prediction, targets = crossing()
    isthing = torch.tensor([True] * 8)
    steady = TrackSteadiness()
    prediction.mask_logits[:, 1] = -8.0
    steady.update(prediction.mask_logits, targets, isthing)
    assert steady.counts.tolist() == [3, 3]
    swapped = prediction.mask_logits.clone()
    swapped[1] = swapped[1, [2, 1, 0]]
    steady.update(swapped, targets, isthing)
    assert steady.counts.tolist() == [3, 6]
    isthing[5] = False
    steady.update(prediction.mask_logits, targets, isthing)
    assert steady.counts.tolist() == [4, 7]


# --- the method --------------------------------------------------------------------------------------------


def test_one_frame_has_the_losses_of_the_image_method() -> None:
    module = data(frames=1)
    video, image = make(), make(GKC, memory=False)
    fitted(video, module)
    fitted(image, module)
    video.student.load_state_dict(image.student.state_dict(), strict=False)
    video.load_state_dict({k: v for k, v in image.state_dict().items() if "student" not in k}, strict=False)
    batch = next(iter(module.train_dataloader()))
    found = []
    for method in (video, image):
        method.train()
        torch.manual_seed(3)
        found.append(method.compute_losses(batch))
    assert found[0].keys() == found[1].keys() == {"mask", "dice", "class", "synonym", "kd"}
    for name, value in found[1].items():
        assert torch.allclose(found[0][name], value, rtol=1e-5), name


def test_what_should_train_does_and_nothing_else() -> None:
    method, module = make(), data(frames=3)
    seen: dict[str, Any] = {}
    method.on_after_backward = lambda: seen.update(  # type: ignore[method-assign]
        grads={n: p.grad.abs().sum() for n, p in method.named_parameters() if p.grad is not None}
    )
    fitted(method, module)
    assert seen["grads"].keys() == {n for n, _ in method.named_parameters()}
    assert seen["grads"]["student.decoder.propagation.weight"] > 0
    moved = method.student.decoder.propagation.weight - torch.eye(32)
    assert float(moved.detach().abs().sum()) > 0


def test_no_word_of_a_novel_class_is_used() -> None:
    method, module = make(), data(train_videos=6)
    run = fitted(method, module)
    table = method.table
    assert table is not None and not any(int(c) in module.novel for c in table.category[table.classes :])
    for batch in run.train_dataloader:
        labels = [target["labels"] for target in batch["targets"]]
        assert not {int(k) for part in labels for k in part} & module.novel
        assert not set(batch["semantic"].unique().tolist()) & module.novel
        lists = table.class_lists(labels, labels, method.base)
        assert not lists.present[:, sorted(module.novel)].any()
    with pytest.raises(UserError, match="novel classes would be labels"):
        fitted(make(), data(subset=None))


def test_scores_and_a_bundle_that_is_scored_alone(tmp_path: Path) -> None:
    method, module = make(), data()
    scores = Trainer(accelerator="cpu", **QUIET).validate(method, datamodule=module, verbose=False)[0]
    assert {"score/mIoU_seen", "score/mIoU_unseen", "score/VC8"} <= scores.keys()
    assert all(0 <= value <= 1 for value in scores.values())
    card, tensors = method.bundle()
    assert card["kind"] == "segmentor" and card["architecture"]["memory"] is True
    init = {"teacher": "gone", "init": "gone", "student": {"class_path": "vlkd.models.segmentor.Segmentor"}}
    model = {"class_path": "vlkd.methods.gkc.VideoGKC", "init_args": init}
    path = save_bundle(tmp_path / "b.safetensors", {**card, "name": "b", "config": {"model": model}}, tensors)
    again = GKC.from_bundle(path)  # as vlkd test does, which knows the folder of the method
    assert isinstance(again, VideoGKC)
    assert Trainer(accelerator="cpu", **QUIET).validate(again, datamodule=data(), verbose=False)[0] == scores
    # Every frame but a video's first is given a memory; a student without memory none.
    given: list[bool] = []
    again.student.register_forward_pre_hook(
        lambda module, args, options: given.append(options["memory"] is not None), with_kwargs=True
    )
    for remembers in (True, False):
        given.clear()
        again.student.arguments["memory"] = remembers
        Trainer(accelerator="cpu", **QUIET).validate(again, datamodule=data(), verbose=False)
        assert given == [False, *[remembers] * 9] * 2
    assert "each frame on its own" in again.protocol["frames"]


def test_a_start_from_an_image_student() -> None:
    card, tensors = load_bundle(resolve("gkc-world"))
    arguments = {**card["architecture"], "memory": True}
    network = Segmentor(**arguments)
    VideoGKC(network, init="gkc-world")
    assert torch.equal(network.decoder.norm.weight, tensors["student.decoder.norm.weight"])
    assert torch.equal(network.decoder.propagation.weight, torch.eye(64))
    with pytest.raises(UserError, match=r"model.student.queries=8: gkc-world has 20"):
        VideoGKC(Segmentor(**{**arguments, "queries": 8}), init="gkc-world")
    with pytest.raises(UserError, match="clip-world-s: the bundle holds a 'clip'"):
        VideoGKC(network, init="clip-world-s")
