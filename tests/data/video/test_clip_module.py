from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from toy_videos import save, vipseg_720p, vspw, write_json, ytvis, ytvis_frames

from vlkd.data import TrainTransform, VideoClipData, WorldSegmentationData, WorldVideoClipData
from vlkd.data.sample import Segment, SegmentationSample
from vlkd.data.video import open_dataset, write_world
from vlkd.data.video.clip_module import collate_clips, frame_sample
from vlkd.data.world import NOVEL, World
from vlkd.errors import UserError


def world(**options):
    given = {"train_videos": 5, "val_videos": 2, "train_frames": 6, "val_frames": 4, "size": (48, 64)}
    data = WorldVideoClipData(**{**given, "batch_size": 2, "scale": (0.8, 1.3), **options})
    data.setup()
    return data


def same(one, other):
    assert one.keys() == other.keys() and one["ids"] == other["ids"]
    assert torch.equal(one["images"], other["images"])
    for a, b in zip(one["targets"], other["targets"], strict=True):
        assert a["regions"] == b["regions"] and torch.equal(a["masks"], b["masks"])


def test_a_batch_of_clips():
    data = world(frames=3, stride=(1, 2))
    batch = next(iter(data.train_dataloader()))
    assert batch["images"].shape == (6, 3, 48, 64) and batch["frames"] == 3
    assert [target["clip"] for target in batch["targets"]] == [0, 0, 0, 1, 1, 1]
    for clip in (0, 1):
        names = [id.rsplit("/", 1) for id in batch["ids"][3 * clip : 3 * clip + 3]]
        assert len({video for video, _ in names}) == 1
        steps = {int(b) - int(a) for (_, a), (_, b) in pairwise(names)}
        assert len(steps) == 1 and steps <= {1, 2}
    for target in batch["targets"]:
        assert target["masks"].flatten(1).any(1).all() and len(target["tracks"]) == len(target["labels"])


def test_an_object_has_one_number_in_all_frames_of_its_clip():
    data = world(frames=4, scale=(1.0, 1.0))
    for batch in data.train_dataloader():
        objects = {}
        for target in batch["targets"]:
            for region, track, label in zip(
                target["regions"], target["tracks"].tolist(), target["labels"].tolist(), strict=True
            ):
                video, _, segment = region.rsplit("/", 2)
                known = objects.setdefault((target["clip"], track), (video, segment, label))
                assert known == (video, segment, label)
        counts = {clip: [t for c, t in objects if c == clip] for clip, _ in objects}
        assert all(sorted(tracks) == list(range(len(tracks))) for tracks in counts.values())


def test_same_seed_and_epoch_same_clips():
    first, again = world(), world()
    for one, other in zip(first.train_dataloader(), again.train_dataloader(), strict=True):
        same(one, other)
    loader = again.train_dataloader()
    loader.sampler.set_epoch(1)
    assert next(iter(loader))["ids"] != next(iter(first.train_dataloader()))["ids"]
    other_seed = next(iter(world(seed=1).train_dataloader()))
    assert other_seed["ids"] != next(iter(first.train_dataloader()))["ids"]


def test_the_loader_continues_where_it_stopped():
    data = world(batch_size=1)
    loader = data.train_dataloader()
    batches = list(loader)
    again = data.train_dataloader()
    again.load_state_dict({"epoch": 0, "batches": 3})
    rest = list(again)
    assert len(batches) == 5 and len(rest) == 2
    for one, other in zip(batches[3:], rest, strict=True):
        same(one, other)


def test_no_novel_class_is_ever_labelled_in_training():
    data = world(train_videos=12)
    assert {data.names[k] for k in data.novel} == set(NOVEL)
    shown = set()
    for batch in data.train_dataloader():
        labels = set(batch["semantic"].unique().tolist()) | {
            k for t in batch["targets"] for k in t["labels"].tolist()
        }
        assert not labels & data.novel
        shown |= {
            record.id for record in data.train_dataset.videos if record.record.categories() & data.novel
        }
    assert shown  # there was something to hide
    keys = [key for names, _ in data.train_regions().crops((8, 8), True) for key in names]
    listed = {f"{s.id}/{i.id}": i.category for s in data.train_dataset for i in s.info}
    assert set(keys) == set(listed) and not set(listed.values()) & data.novel
    assert any(k in data.novel for sample in data.val_dataset for k in (s.category for s in sample.info))


def test_every_region_of_a_batch_is_among_the_teachers():
    data = world(frames=3)
    keys = {key for names, _ in data.train_regions().crops((8, 8), True) for key in names}
    for batch in data.train_dataloader():
        assert {key for target in batch["targets"] for key in target["regions"]} <= keys


def test_validation_is_whole_videos_that_training_never_sees(tmp_path):
    data = world()
    batches = list(data.val_dataloader())
    assert [batch["frames"] for batch in batches] == [4, 4]
    scenes = list(World(0).video(1_000_001, 4, (48, 64)))
    expected = np.stack([scene.semantic for scene in scenes])
    assert np.array_equal(batches[1]["semantic"].numpy(), expected)
    assert np.array_equal((batches[1]["images"][2] * 255).round().byte().permute(1, 2, 0), scenes[2].image)
    # These are the videos that write_world writes.
    write_world("vipseg_720p", tmp_path, "val", 2, 4, (48, 64))
    written = open_dataset("vipseg", tmp_path, "val")
    names = [written.names[k] if k < 255 else "" for k in written[1].semantic(2).flatten()[::37]]
    assert names == [data.names[k] for k in expected[2].flatten()[::37]]
    assert data.held_out_synonym("car") == WorldSegmentationData.held_out_synonym("car")


def test_limits_count_videos_and_frames():
    data = world(limit=2, val_limit=1, val_frames=3)
    assert len(data.train_dataset) == 12 and len(data.val_dataset) == 3
    assert len(list(data.val_dataloader())) == 1


def test_one_augmentation_for_all_frames():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (40, 60, 3)).astype(np.uint8)
    segments = rng.integers(0, 3, (40, 60)).astype(np.int32)
    info = [Segment(1, 0, True), Segment(2, 1, True)]
    labelled = SegmentationSample("a", image, segments, info)
    void = SegmentationSample("b", image, np.zeros_like(segments), [])
    transform = TrainTransform((16, 16), (0.5, 2.0), 0.5, 0.3)
    for seed in range(8):
        # A frame without labels would be cropped again if it were alone.
        first, second = transform.clip([void, labelled], np.random.default_rng(seed))
        assert np.array_equal(first.image, second.image) and second.segments.any()
    alone = transform(labelled, np.random.default_rng(3))
    assert np.array_equal(alone.image, transform.clip([labelled], np.random.default_rng(3))[0].image)


def test_stuff_is_one_segment_for_a_class(tmp_path):
    whole = list(range(24))
    frames = [
        [(1, 0, whole[:6]), (2, 0, whole[6:12]), (7, 2, whole[12:18]), (8, 2, whole[18:])],
        [(2, 0, whole)],
    ]
    record = open_dataset("vipseg", vipseg_720p(tmp_path, frames), "val")[0]
    samples = [frame_sample(record, t) for t in (0, 1)]
    assert [(s.id, s.category) for s in samples[0].info] == [(1, 0), (7, 2), (8, 2)]
    assert np.bincount(samples[0].segments.ravel()).tolist() == [0, 12, 0, 0, 0, 0, 0, 6, 6]
    targets = collate_clips([samples], 255)["targets"]
    # Class 0 is one object though its ids differ; the two things of class 2 stay two.
    assert targets[0]["tracks"].tolist() == [0, 1, 2] and targets[1]["tracks"].tolist() == [0]
    assert targets[0]["regions"] == ["a/0/1", "a/0/7", "a/0/8"] and targets[1]["regions"] == ["a/1/2"]


def test_clips_of_tracks(tmp_path):
    def rle(*pixels):
        flat = np.zeros(24, np.uint8)
        flat[list(pixels)] = 1
        counts, value = [0], 0
        for v in flat:
            if v != value:
                counts.append(0)
                value = v
            counts[-1] += 1
        return {"size": [4, 6], "counts": counts}  # column by column

    content = ytvis(["cat", "dog"], [rle(0, 1, 2), None])
    content["annotations"].append(
        {"id": 9, "video_id": 7, "category_id": 2, "iscrowd": 0, "segmentations": [rle(2, 3), rle(2, 3)]}
    )
    for split in ("train", "valid"):
        write_json(tmp_path / f"{split}.json", content)
        ytvis_frames(tmp_path / split / "JPEGImages", 2)
    data = VideoClipData(
        "youtube_vis_2019", str(tmp_path), novel=["cat"], frames=2, batch_size=1, crop_size=(4, 6),
        scale=(1, 1), flip=0, num_workers=0,
    )  # fmt: skip
    data.setup()
    (batch,) = data.train_dataloader()
    assert [target["labels"].tolist() for target in batch["targets"]] == [[1], [1]]
    assert [target["masks"].sum().item() for target in batch["targets"]] == [2, 2]
    (video,) = data.val_dataloader()
    assert [target["labels"].tolist() for target in video["targets"]] == [[0, 1], [1]]
    assert video["semantic"][0, :, 0].tolist() == [0, 0, 1, 1]  # the later track lies on top


def test_semantic_sets_and_frames_without_labels(tmp_path):
    vspw(tmp_path, {"v": [[1, 1, 81], [1, 0, 81]]}, "train")
    vspw(tmp_path, {"w": [[81]]}, "val")
    data = VideoClipData("vspw", str(tmp_path), frames=2, batch_size=1, crop_size=(4, 6), num_workers=0)
    data.setup()
    (batch,) = data.train_dataloader()
    assert [target["labels"].tolist() for target in batch["targets"]] == [[0], [0]]  # 81 is novel
    assert data.check() == []
    save(tmp_path / "data" / "v" / "mask" / "00000001.png", np.full((2, 2), 1, np.uint8))
    assert len(data.check()) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": 0}, "data.frames=0"),
        ({"stride": (3, 2)}, "small stride first"),
        ({"val_frames": 0}, "data.val_frames=0"),
        ({"train_videos": 2_000_000}, "data.train_videos must be at most 1000000"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(UserError, match=message):
        WorldVideoClipData(**options)


def test_a_set_without_novel_classes_says_so(tmp_path):
    write_world("youtube_vis_2019", tmp_path, "train", 1, 2, (32, 32))
    write_world("youtube_vis_2019", tmp_path, "val", 1, 2, (32, 32))
    with pytest.raises(UserError, match="needs novel classes"):
        VideoClipData("youtube_vis_2019", str(tmp_path)).setup()
    data = VideoClipData("youtube_vis_2019", str(tmp_path), subset=None)
    data.setup()
    assert not data.novel and data.novel_handling == "keep"
