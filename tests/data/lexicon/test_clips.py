"""Clips, their video files and the features of them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from vlkd.data.lexicon import ATTRIBUTES, Lexicon, clips, features
from vlkd.data.lexicon.clips import Film, film_all, plan, read_mp4, render_clip, videos, write_mp4
from vlkd.data.lexicon.features import APPEARANCE, WIDTH, describe, load_features
from vlkd.errors import UserError

FILM = Film(nouns=32, train_clips=4, val_clips=2)


@pytest.fixture(scope="module")
def filmed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the videos of FILM."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("VLKD_CACHE", str(folder))
        film_all(FILM)
    return folder


@pytest.fixture
def cache(filmed: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VLKD_CACHE", str(filmed))
    return filmed


def shot(motion: str, number: int = 0, colour: str = "red", shape: str = "round") -> np.ndarray:
    return render_clip({"colour": colour, "shape": shape, "motion": motion}, FILM, number)


def test_pixels_are_pinned() -> None:
    found = np.stack([shot("spins", 3), shot("drifts", 4, "blue", "starry")])
    assert found.shape == (2, 8, 64, 64, 3) and found.dtype == np.uint8
    assert hashlib.sha256(found.tobytes()).hexdigest()[:16] == "c5ec6ac328e6d4bd"


@pytest.mark.parametrize("shape", ATTRIBUTES["shape"])
def test_the_first_frame_is_the_same_whatever_the_motion(shape: str) -> None:
    frames = [shot(motion, 5, shape=shape) for motion in ATTRIBUTES["motion"]]
    for other in frames[1:]:
        assert np.array_equal(other[0], frames[0][0])
        assert not np.array_equal(other[1], frames[0][1]) and not np.array_equal(other[1], other[0])


@pytest.mark.parametrize(("motion", "moves"), [("drifts", 0), ("bounces", 1), ("swells", 2), ("spins", 3)])
def test_a_motion_changes_one_thing(motion: str, moves: int) -> None:
    changes = slice(APPEARANCE, APPEARANCE + 4)
    found = np.mean([describe(shot(motion, number))[:, changes].mean(0) for number in range(8)], 0)
    still = np.mean(
        [
            describe(shot(other, number))[:, APPEARANCE + moves].mean()
            for other in ATTRIBUTES["motion"]
            if other != motion
            for number in range(8)
        ]
    )
    assert found[moves] > 4 * still


def test_the_plan_is_balanced() -> None:
    found = plan(FILM)
    for val, each in ((False, 4), (True, 2)):
        chosen = found.val == val
        table = np.zeros((32, 2), int)
        np.add.at(table, (found.noun[chosen], found.family[chosen]), 1)
        assert (table == each // 2).all()
    groups = videos(FILM, found.val)
    assert sorted(np.concatenate(groups).tolist()) == list(range(32 * 6))
    assert all(len(set(found.val[group])) == 1 and len(group) <= 6 for group in groups)


def test_videos_are_real_files_with_their_captions(cache: Path) -> None:
    paths, found, lexicon = film_all(FILM), plan(FILM), Lexicon(32)
    said = json.loads((FILM.folder / "captions.json").read_text())
    assert len(paths) == len(said) == 33 and not list(cache.rglob("*.part"))
    for k in (0, 21, 32):
        group = videos(FILM, found.val)[k]
        spoken = said[f"{k:05d}"]
        assert spoken["start"] == [2.0 * n for n in range(len(group))]
        assert spoken["end"] == [2.0 * n + 2 for n in range(len(group))]
        assert spoken["text"] == [clips.caption(lexicon, found, int(n)) for n in group]
        frames = read_mp4(paths[k], 8 * len(group)).reshape(len(group), 8, 64, 64, 3)
        for shown, number in zip(frames, group, strict=True):
            drawn = render_clip(lexicon.values(int(found.noun[number])), FILM, int(number))
            assert np.abs(shown.astype(int) - drawn).mean() < 6  # colour is stored at half the resolution


def test_filming_goes_on_where_it_stopped(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = film_all(FILM)
    before = {path: path.stat().st_mtime_ns for path in paths}
    content = paths[7].read_bytes()
    paths[7].unlink()
    film_all(FILM)
    assert paths[7].read_bytes() == content
    assert {p for p in paths if p.stat().st_mtime_ns != before[p]} == {paths[7]}

    def forbidden() -> None:
        raise AssertionError("filmed again")

    monkeypatch.setattr(clips, "ProcessPoolExecutor", forbidden)
    assert film_all(FILM) == paths


def test_features_come_from_the_files_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = load_features(FILM)
    assert found.shape == (32 * 6, 8, WIDTH) and found.dtype == torch.float16 and found.isfinite().all()
    monkeypatch.setattr(features, "ProcessPoolExecutor", None)
    assert torch.equal(load_features(FILM), found)
    frames = read_mp4(film_all(FILM)[2], 48)
    raw = torch.from_numpy(np.stack([describe(frames[8 * k : 8 * k + 8]) for k in range(6)]))
    # Turning keeps all distances.
    turned = features.mix(raw, torch.zeros(6, dtype=torch.bool)).float()
    known = (raw - raw.flatten(0, 1).mean(0)) / raw.flatten(0, 1).std(0).clamp(min=1e-3)
    assert torch.cdist(turned.flatten(1), turned.flatten(1)) == pytest.approx(
        torch.cdist(known.flatten(1), known.flatten(1)), abs=0.05
    )
    assert not torch.allclose(turned, known, atol=0.1)


def test_still_clips_have_one_frame_and_no_motion(cache: Path) -> None:
    still = load_features(FILM, still=True)
    assert torch.equal(still, still[:, :1].expand_as(still))
    assert (still[..., APPEARANCE:] == 0).all() and still[..., :APPEARANCE].std() > 0.5


def test_jitter_cuts_some_clips_elsewhere(cache: Path) -> None:
    group, path = videos(FILM, plan(FILM).val)[1], film_all(FILM)[1]
    frames = read_mp4(path, 48)
    found = features._describe_video(FILM, False, 0.5, (path, group))
    shifts = set()
    for k, descriptors in enumerate(found):
        starts = [s for s in range(8 * k - 2, 8 * k + 3) if 0 <= s <= 40]
        fits = [s - 8 * k for s in starts if np.array_equal(describe(frames[s : s + 8]), descriptors)]
        assert len(fits) == 1
        shifts |= set(fits)
    assert len(shifts) > 2
    assert not torch.equal(load_features(FILM), load_features(FILM, jitter=0.5))
    with pytest.raises(UserError, match=r"data.jitter=-1"):
        load_features(FILM, jitter=-1)


def test_damaged_videos_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_mp4(path, shot("spins"), 4)
    assert read_mp4(path, 8).shape == (8, 64, 64, 3) and list(tmp_path.iterdir()) == [path]
    with pytest.raises(UserError, match=r"a.mp4: 8 frames can be read, expected 9; delete it"):
        read_mp4(path, 9)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=r"a.mp4: 0 frames can be read, expected 8"):
        read_mp4(path, 8)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"frames": 1}, "data.frames=1"),
        ({"size": 31}, "size=31"),
        ({"train_clips": 0}, "train_clips"),
        ({"seed": -1}, "seeds 0 or more"),
    ],
)
def test_films_that_cannot_be_are_refused(options: dict[str, int], line: str) -> None:
    with pytest.raises(UserError, match=line):
        Film(**options)
