"""GKC: the traps of the released code, the class lists, the bank of teacher regions, training end to end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer

from vlkd.data import WorldSegmentationData
from vlkd.data.regions import Regions, crop_regions
from vlkd.data.sample import Segment, SegmentationSample
from vlkd.errors import UserError
from vlkd.methods.gkc import GKC, DiversifyOptions, KDOptions
from vlkd.methods.gkc.criterion import MaskCriterion, Matches, over_void
from vlkd.methods.gkc.diversify import WordTable
from vlkd.methods.gkc.regions import RegionBank
from vlkd.models.clip import build_clip
from vlkd.models.segmentor import Segmentor
from vlkd.text import ClassVectors


def encode(words: Any) -> ClassVectors:
    generator = torch.Generator().manual_seed(len(list(words)))
    return ClassVectors(F.normalize(torch.randn(len(words), 16, generator=generator), dim=-1), tuple(words))


def table() -> WordTable:
    listed = {"car": ["automobile", "auto", "dog"], "tree": ["plant"], "plant": ["plant"], "sky": []}
    return WordTable.build(list(listed), lambda name: listed[name], encode)


def make(**options: Any) -> GKC:
    torch.manual_seed(0)
    student = Segmentor(
        "open_clip:vlkd-clip-s", queries=8, layers=2, channels=32, text_width=128, embedding="sum"
    )
    return GKC(student, teacher="vlkd-clip-m", criterion=MaskCriterion(points=64), **options)


def data(**options: Any) -> WorldSegmentationData:
    return WorldSegmentationData(
        train_scenes=8, val_scenes=4, size=(64, 64), batch_size=4, val_batch_size=2, **options
    )


def trainer(**options: Any) -> Trainer:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(accelerator="cpu", **quiet, **options)


# --- text diversification ----------------------------------------------------------------------------------


def test_a_word_of_two_classes_or_equal_to_a_name_is_no_synonym() -> None:
    assert table().words == ["car", "tree", "plant", "sky", "automobile", "auto", "dog"]
    assert table().category.tolist() == [0, 1, 2, 3, 0, 0, 0]


def test_filter_is_a_softmax_over_the_words_of_the_own_class() -> None:
    words = table()
    regions, labels = F.normalize(torch.randn(3, 16), dim=-1), torch.tensor([0, 1, 0])
    probability = words.probabilities(regions, labels)
    own = [0, 4, 5, 6]
    assert torch.allclose(
        probability[0, own], (100 * regions[0] @ words.vectors[own].T).softmax(0), atol=1e-6
    )
    assert probability[0, [1, 2, 3]].sum() == 0 and probability[1, 1] == 1


def test_words_below_the_threshold_are_never_drawn() -> None:
    torch.manual_seed(0)
    words = table()
    region = F.normalize(words.vectors[4] + words.vectors[5], dim=0)[None].expand(400, -1)
    drawn = words.sample(region, torch.zeros(400, dtype=torch.long), threshold=0.1)
    probability = words.probabilities(region[:1], torch.zeros(1, dtype=torch.long))[0]
    assert set(drawn.tolist()) == set((probability > 0.1).nonzero()[:, 0].tolist()) == {4, 5}
    counts = torch.bincount(drawn, minlength=7)[4:6]
    assert counts.min() > 150  # uniform, not by probability


def test_class_list_of_an_image() -> None:
    words, base = table(), torch.tensor([True, True, True, False])
    labels = [torch.tensor([0, 0, 1, 0, 0]), torch.tensor([2])]
    drawn = [torch.tensor([4, 5, 1, 4, 0]), torch.tensor([2])]
    lists = words.class_lists(labels, drawn, base)
    assert lists.rows[0].tolist() == [4, 1, 2, 3, 5, 0]  # automobile replaces car; auto and car are appended
    assert lists.slots[0].tolist() == [0, 4, 1, 0, 5]
    assert lists.present[0].tolist() == [True, True, True, False, True, True]
    assert lists.slots[1].tolist() == [2]
    # Shorter lists are padded with rows that no softmax sees (upstream encodes empty strings as negatives).
    assert lists.present[1].tolist() == [True, True, True, False, False, False]


def test_padding_is_no_negative() -> None:
    words = table()
    student = Segmentor("timm:test_resnet", queries=2, layers=1, channels=32, text_width=16)
    alone = words.class_lists([torch.tensor([2])], [torch.tensor([2])], torch.ones(4, dtype=torch.bool))
    padded = words.class_lists(
        [torch.tensor([0, 0]), torch.tensor([2])],
        [torch.tensor([4, 5]), torch.tensor([2])],
        torch.ones(4, dtype=torch.bool),
    )
    vectors = F.normalize(torch.randn(1, 2, 16), dim=-1)
    a = student.class_logits(vectors, words.vectors[alone.rows], alone.present).softmax(-1)
    b = student.class_logits(vectors, words.vectors[padded.rows[1:]], padded.present[1:]).softmax(-1)
    assert torch.allclose(a[..., :4], b[..., :4]) and torch.allclose(a[..., -1], b[..., -1])


@pytest.mark.parametrize("how", ["clusterMax", "clusterAvg"])
def test_cluster_reduction(how: Any) -> None:
    words, logits = table(), torch.randn(2, 3, 8)
    reduced = words.reduce(logits, how)
    of_car = logits[..., [0, 4, 5, 6]]
    assert torch.allclose(reduced[..., 0], of_car.amax(-1) if how == "clusterMax" else of_car.mean(-1))
    assert torch.equal(reduced[..., 1:4], logits[..., 1:4]) and torch.equal(reduced[..., 4], logits[..., 7])


# --- the teacher's regions ---------------------------------------------------------------------------------


def two_regions() -> SegmentationSample:
    segments = np.zeros((8, 8), np.int32)
    segments[2:5, 1:7] = 3
    segments[7, 7] = 9  # one pixel: upstream's exclusive box has no size
    image = np.full((8, 8, 3), 200, np.uint8)
    return SegmentationSample("a", image, segments, [Segment(3, 0, True), Segment(9, 1, True)])


def test_crops_keep_the_last_row_and_single_pixels() -> None:
    crops, kept = crop_regions(two_regions(), 4)
    assert kept == [0, 1]
    assert (crops == 200).all()  # both boxes hold nothing but their segment, to the last row and column


def test_outside_is_grey_unless_unmasked() -> None:
    sample = two_regions()
    sample.segments[3, 3] = 0
    masked, _ = crop_regions(sample, (3, 6))
    assert masked[0, :, 1, 2].tolist() == [128] * 3 and masked[0, :, 0, 0].tolist() == [200] * 3
    assert (crop_regions(sample, (3, 6), masked=False)[0] == 200).all()


class Counting(torch.nn.Module):
    """A teacher that counts the images it sees, and fails when it is in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = build_clip("vlkd-clip-s")
        self.spec, self.identity, self.seen = self.tower.spec, self.tower.identity, 0

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        assert not self.tower.model.training
        self.seen += len(images)
        return self.tower.encode_image(images)


def test_teacher_sees_each_region_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLKD_CACHE", str(tmp_path))
    teacher, samples = Counting(), Regions([two_regions()])
    bank = RegionBank.build(samples, teacher)  # type: ignore[arg-type]
    assert teacher.seen == 2 and bank.rows(["a/9", "a/3"]).tolist() == [1, 0]
    again = RegionBank.build(samples, teacher)  # type: ignore[arg-type]
    assert teacher.seen == 2 and torch.equal(again.vectors, bank.vectors)
    changed = two_regions()
    changed.image[0, 0] = 0
    RegionBank.build(Regions([changed]), teacher)  # type: ignore[arg-type]
    teacher.identity = "other@0"
    RegionBank.build(samples, teacher)  # type: ignore[arg-type]
    assert teacher.seen == 6
    with pytest.raises(UserError, match="region b/1"):
        bank.rows(["b/1"])


# --- losses ------------------------------------------------------------------------------------------------


def test_the_teacher_is_scored_on_validation_regions() -> None:
    method, scenes = make(kd=KDOptions()), data()
    trainer(max_steps=1).fit(method, datamodule=scenes)
    teacher, vectors = method.held("teacher"), method.vectors.vectors
    assert scenes.val_dataset is not None
    cropped = [(sample, *crop_regions(sample, teacher.spec.size)) for sample in scenes.val_dataset]
    labels = torch.tensor([sample.info[k].category for sample, _, kept in cropped for k in kept])
    images = torch.cat([crops for _, crops, _ in cropped]).float() / 255
    with torch.no_grad():
        right = (teacher.encode_image(images) @ vectors.T).argmax(1) == labels
        assert method.score_teacher(()) == {"accuracy": pytest.approx(float(right.float().mean()))}
    assert len(labels) > 10
    assert method.teacher_record() == {"name": "vlkd-clip-m"}
    method.kd, method.diversify = KDOptions(form="none"), DiversifyOptions(mode="none")
    assert method.score_teacher(()) == {}  # its image half is not used


def test_sub_sampled_regions_stay_in_order() -> None:
    torch.manual_seed(0)
    matches = Matches(torch.arange(50) // 10, torch.arange(50), torch.arange(50) % 10)
    some = matches.first(20)
    assert len(some.image) == 20 and (some.image.diff() >= 0).all() and (some.query.diff() > 0).all()
    assert matches.first(50) is matches


def test_levels_see_the_regions_in_the_same_order() -> None:
    pairs = [(torch.tensor([4, 0, 2]), torch.tensor([2, 0, 1])), (torch.tensor([1]), torch.tensor([0]))]
    matches = Matches.of(pairs, torch.device("cpu"))
    assert matches.query.tolist() == [0, 2, 4, 1] and matches.segment.tolist() == [0, 1, 2, 0]
    assert matches.gather([torch.tensor([7, 8, 9]), torch.tensor([5])]).tolist() == [7, 8, 9, 5]


def test_region_dropout_only_touches_the_classification() -> None:
    criterion = MaskCriterion(no_object=0.1)
    logits = torch.randn(1, 3, 5)
    matches = Matches(torch.tensor([0, 0]), torch.tensor([0, 2]), torch.tensor([0, 1]))
    labels = torch.tensor([1, 3])
    log = -logits.log_softmax(-1)[0]
    everything = (log[0, 1] + log[2, 3] + 0.1 * log[1, 4]) / 2.1
    assert torch.allclose(criterion.classes(logits, matches, labels, torch.tensor([True, True])), everything)
    dropped = (log[0, 1] + 0.1 * log[1, 4]) / 1.1
    assert torch.allclose(criterion.classes(logits, matches, labels, torch.tensor([True, False])), dropped)


def test_queries_on_unlabelled_pixels_are_not_taught_that_nothing_is_there() -> None:
    masks = torch.full((1, 3, 4, 4), -9.0)
    masks[0, 0, :, :2] = masks[0, 1, :, 2:] = 9.0  # left half; right half; nowhere
    semantic = torch.zeros(1, 16, 16, dtype=torch.long)
    semantic[:, :, 8:] = 255
    unknown = over_void(masks, semantic, 255)
    assert unknown[0, :2].tolist() == [False, True]
    logits = torch.randn(1, 3, 5)
    matches = Matches(torch.tensor([0]), torch.tensor([0]), torch.tensor([0]))
    log = -logits.log_softmax(-1)[0]
    found = MaskCriterion().classes(
        logits, matches, torch.tensor([1]), torch.tensor([True]), torch.tensor([[False, True, False]])
    )
    assert torch.allclose(found, (log[0, 1] + 0.1 * log[2, 4]) / 1.1)


@pytest.mark.parametrize(
    ("kd", "diversify", "words", "names"),
    [
        (KDOptions(), DiversifyOptions(), 0, {"mask", "dice", "class", "synonym", "kd"}),
        (
            KDOptions("distance", "direct"),
            DiversifyOptions("clusterMax"),
            5,
            {"mask", "dice", "class", "synonym", "kd", "grounding"},
        ),
        (KDOptions("vanilla"), DiversifyOptions("clusterAvg"), 0, {"mask", "dice", "class", "synonym", "kd"}),
        (KDOptions("none"), DiversifyOptions("none"), 0, {"mask", "dice", "class"}),
    ],
)
def test_what_should_train_does_and_nothing_else(
    kd: KDOptions, diversify: DiversifyOptions, words: int, names: set[str]
) -> None:
    method = make(kd=kd, diversify=diversify, caption_words=words)
    before = {k: v.clone() for k, v in method.held("teacher").state_dict().items()}
    seen: dict[str, Any] = {}
    method.on_after_backward = lambda: seen.update(
        grads={n for n, p in method.named_parameters() if p.grad is not None}
    )  # type: ignore[method-assign]
    method.on_train_batch_end = lambda out, batch, index: seen.update(losses=out)  # type: ignore[method-assign]
    run = trainer(max_steps=1, limit_val_batches=0)
    run.fit(method, datamodule=data())
    assert set(method.weights) == names and torch.isfinite(seen["losses"]["loss"])
    assert seen["grads"] == {n for n, _ in method.named_parameters()}
    after = method.held("teacher").state_dict()
    assert not method.held("teacher").training and all(torch.equal(before[k], after[k]) for k in before)
    assert not any(k.startswith("_held") or "teacher" in k for k in method.state_dict())


def test_novel_classes_are_neither_labels_nor_negatives() -> None:
    method, module = make(), data()
    run = trainer(max_steps=1, limit_val_batches=0)
    run.fit(method, datamodule=module)
    batch = next(iter(module.train_dataloader()))
    assert all(int(k) not in module.novel for t in batch["targets"] for k in t["labels"])
    assert method.table is not None
    assert not any(int(c) in module.novel for c in method.table.category[method.table.classes :])
    lists = method.table.class_lists(
        [t["labels"] for t in batch["targets"]], [t["labels"] for t in batch["targets"]], method.base
    )
    assert not lists.present[:, sorted(module.novel)].any()


def test_scores_and_bundle(tmp_path: Path) -> None:
    from vlkd.engine.bundle import save_bundle
    from vlkd.infer import Predictor

    method, module = make(), data()
    run = trainer(max_steps=1)
    scores = run.validate(method, datamodule=module, verbose=False)[0]
    kinds = {f"score/mIoU{a}{b}" for a in ("", "_seen", "_unseen") for b in ("", "_synonyms")}
    assert set(scores) == kinds and all(0 <= v <= 1 for v in scores.values())
    card, tensors = method.bundle()
    path = save_bundle(tmp_path / "gkc.safetensors", {**card, "name": "t"}, tensors)
    scene = module.val_dataset[0]  # type: ignore[index]
    result = Predictor.from_bundle(path)(scene.image, classes=["car|automobile", "a purple zebra"])
    assert result.labels.shape == (64, 64) and set(np.unique(result.labels)) <= {0, 1}
    assert result.names == ("car|automobile", "a purple zebra")


def test_a_bundle_is_scored_without_its_teacher(tmp_path: Path) -> None:
    from vlkd.engine.bundle import save_bundle

    method, module = make(), data()
    expected = trainer().validate(method, datamodule=module, verbose=False)[0]
    card, tensors = method.bundle()
    student = {"class_path": "vlkd.models.segmentor.Segmentor", "init_args": {"backbone": "clip:gone"}}
    model = {"class_path": "vlkd.methods.gkc.GKC", "init_args": {"teacher": "gone", "student": student}}
    path = save_bundle(tmp_path / "b.safetensors", {**card, "name": "b", "config": {"model": model}}, tensors)
    again = GKC.from_bundle(path)
    assert trainer().validate(again, datamodule=data(), verbose=False)[0] == expected


def test_width_mismatch_is_one_line() -> None:
    student = Segmentor("timm:test_resnet", queries=2, layers=1, channels=32, text_width=64)
    with pytest.raises(UserError, match=r"text_width=64.*width 128"):
        GKC(student, teacher="vlkd-clip-m")


def test_padded_batches_train() -> None:
    method, module = make(), data(crop_size=(48, 64))
    run = trainer(max_steps=1, limit_val_batches=0)
    run.fit(method, datamodule=module)
    batch = next(iter(module.train_dataloader()))
    wider = {**batch, "images": F.pad(batch["images"], (0, 32, 0, 16))}
    wider["targets"] = [{**t, "masks": F.pad(t["masks"], (0, 32, 0, 16))} for t in batch["targets"]]
    method.train()
    losses = method.compute_losses(wider)
    assert all(torch.isfinite(value) for value in losses.values())
