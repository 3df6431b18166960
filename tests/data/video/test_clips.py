from __future__ import annotations

import numpy as np
import pytest
from toy_videos import vspw

from vlkd.data.loader import EpochSampler
from vlkd.data.video import VideoClips, open_dataset, read_clip, sample_clip, write_world
from vlkd.data.world import THINGS, World
from vlkd.errors import UserError

SIZE = (32, 40)


class Length:
    """A record as far as sampling looks at it."""

    def __init__(self, count, labelled=()):
        self.id, self.count, self.labelled = "v", count, tuple(labelled)

    def __len__(self):
        return self.count


def starts(record, frames, stride, draws=200):
    rng = np.random.default_rng(0)
    return {sample_clip(record, frames, stride, rng) for _ in range(draws)}


def test_all_places_of_a_clip_and_no_other():
    assert starts(Length(7), 3, 2) == {(0, 2, 4), (1, 3, 5), (2, 4, 6)}
    assert starts(Length(4), 1, 5) == {(0,), (1,), (2,), (3,)}


def test_short_videos():
    assert starts(Length(6), 3, 4) == {(0, 2, 4), (1, 3, 5)}  # the stride shrinks to 2
    assert starts(Length(3), 3, 4) == {(0, 1, 2)}
    assert starts(Length(2), 4, 1) == {(0, 1, 1, 1)}
    assert starts(Length(1), 2, 1) == {(0, 0)}


def test_stride_counts_labelled_frames():
    assert starts(Length(20, [0, 6, 12, 18]), 2, 1) == {(0, 6), (6, 12), (12, 18)}


def test_wrong_clips():
    rng = np.random.default_rng(0)
    with pytest.raises(UserError, match="clip of 0 frames with stride 1: both must be at least 1"):
        sample_clip(Length(3), 0, 1, rng)
    with pytest.raises(UserError, match="clip of 2 frames with stride 0"):
        sample_clip(Length(3), 2, 0, rng)
    with pytest.raises(UserError, match="video v: no frame is left"):
        sample_clip(Length(0), 2, 1, rng)


@pytest.mark.parametrize("kind", ["vspw", "vipseg", "lvvis"])
def test_clip_has_the_worlds_labels(tmp_path, kind):
    write_world(kind, tmp_path, "train", 1, 8, SIZE)
    record = open_dataset(kind, tmp_path, "train")[0]
    clip = read_clip(record, (1, 6))
    count = len(clip.ids)
    assert clip.images.shape == (2, *SIZE, 3) and clip.masks.shape == (2, count, *SIZE) and count > 2
    assert clip.video == record.id and clip.times == (1, 6) and not clip.crowd.any()
    scenes = list(World(0).video(0, 8, SIZE))
    for k, t in enumerate(clip.times):
        expected = sorted(
            (scenes[t].names[c], (scenes[t].panoptic == segment).sum())
            for segment, c in scenes[t].categories.items()
            if c < THINGS or kind != "lvvis"
        )
        if kind == "vspw":
            expected = sorted(
                (name, sum(n for other, n in expected if other == name)) for name in dict(expected)
            )
        areas = clip.masks[k].sum((1, 2))
        found = [(record.names[c], n) for c, n in zip(clip.categories, areas, strict=True) if n]
        assert sorted(found) == expected
        assert np.array_equal(clip.images[k], record.frame(t))


def test_clip_without_labels(tmp_path):
    write_world("lvvis", tmp_path, "test", 1, 3, SIZE)
    write_world("vspw", tmp_path, "test", 1, 3, SIZE)
    for kind in ("lvvis", "vspw"):
        clip = read_clip(open_dataset(kind, tmp_path, "test")[0], (0, 2))
        assert clip.masks.shape == (2, 0, *SIZE) and clip.categories.shape == (0,)


def test_clips_depend_on_seed_epoch_and_index_alone(tmp_path):
    write_world("vspw", tmp_path, "train", 3, 9, SIZE)
    dataset = open_dataset("vspw", tmp_path, "train")
    clips = VideoClips(dataset, frames=2, stride=2, seed=5)
    pairs = [(epoch, index) for epoch in range(4) for index in range(len(clips))]
    times = {pair: clips[pair].times for pair in pairs}
    assert times == {pair: VideoClips(dataset, 2, 2, 5)[pair].times for pair in reversed(pairs)}
    assert times != {pair: VideoClips(dataset, 2, 2, 6)[pair].times for pair in pairs}
    assert len({times[epoch, 0] for epoch in range(4)}) > 1
    assert all(clips[pair].video == dataset[pair[1]].id for pair in pairs)
    assert sorted(index for _, index in EpochSampler(clips, seed=1)) == [0, 1, 2]


def test_a_video_that_lost_all_frames_gives_way(tmp_path):
    vspw(tmp_path, {"novel": [[81], [81]], "base": [[1], [2]]}, "train")
    clips = VideoClips(open_dataset("vspw", tmp_path, "train", "ignore"), frames=2)
    assert clips[0, 0].video == "base" == clips[0, 1].video
    alone = open_dataset("vspw", tmp_path, "train", "ignore", novel=["wall", "ceiling", "trash can"])
    with pytest.raises(UserError, match="video novel: no frame is left"):
        VideoClips(alone)[0, 0]
