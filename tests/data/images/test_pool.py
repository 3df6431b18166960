"""Pools of unlabelled images: sources, their merging, and decoding once."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from vlkd.data.images import pool as pool_module
from vlkd.data.images.files import FileImages, centre
from vlkd.data.images.pool import MergedPool, PackPool, decode_pool, open_pool, open_source
from vlkd.data.images.shards import ShardImages
from vlkd.errors import UserError


def picture(number: int, size: tuple[int, int] = (6, 6)) -> NDArray[np.uint8]:
    return np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)


def save(path: Path, number: int, size: tuple[int, int] = (6, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(number, size)).save(path)


def jpeg(image: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def write_pack(path: Path, parts: dict[str, list[bytes]], header: bytes = b"") -> Path:
    arrays: dict[str, NDArray[np.generic]] = {}
    for prefix, images in parts.items():
        arrays[f"{prefix}data"] = np.frombuffer(b"".join(images), np.uint8)
        arrays[f"{prefix}offsets"] = np.cumsum([0, *map(len, images)])
        arrays[f"{prefix}labels"] = np.arange(len(images))
    if header:
        arrays["header"] = np.frombuffer(header, np.uint8)
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def test_a_folder_with_all_below_it(tmp_path: Path) -> None:
    for k, name in enumerate(("b/1.png", "a.PNG", "b/c/0.png")):
        save(tmp_path / "pool" / name, k)
    (tmp_path / "pool" / "readme.txt").write_text("no image")
    (tmp_path / "link").symlink_to(tmp_path / "pool")
    pool = open_source(tmp_path / "pool")
    assert (
        len(pool) == 3
        and np.array_equal(pool.image(0), picture(1))
        and np.array_equal(pool.image(1), picture(0))
    )
    before = pool.fingerprint()
    assert open_source(tmp_path / "link").fingerprint() == before
    save(tmp_path / "pool" / "d.png", 3)
    assert open_source(tmp_path / "pool").fingerprint() != before


def test_packs_with_and_without_a_shared_header(tmp_path: Path) -> None:
    whole = [jpeg(picture(k)) for k in range(3)]
    expected = [np.asarray(Image.open(io.BytesIO(data))) for data in whole]
    plain = PackPool(write_pack(tmp_path / "a.npz", {"": whole}))
    split = PackPool(write_pack(tmp_path / "b.npz", {"train_": whole, "test_": whole[:1]}))
    cut = whole[0].index(b"\xff\xda")
    assert all(data[:cut] == whole[0][:cut] for data in whole[:1])
    shared = PackPool(write_pack(tmp_path / "c.npz", {"train_": [whole[0][cut:]]}, whole[0][:cut]))
    for pool in (plain, split):
        assert len(pool) == 3
        assert all(np.array_equal(pool.image(k), expected[k]) for k in range(3))
    assert len(shared) == 1 and np.array_equal(shared.image(0), expected[0])
    assert len({p.fingerprint() for p in (plain, shared)}) == 2 and plain.fingerprint() == split.fingerprint()


def write_shard(path: Path, images: list[bytes]) -> None:
    with tarfile.open(path, "w") as shard:
        for k, data in enumerate(images):
            info = tarfile.TarInfo(f"{k}.jpg")
            info.size = len(data)
            shard.addfile(info, io.BytesIO(data))


@pytest.fixture
def mixed(tmp_path: Path) -> list[str]:
    """A folder of 3, two shards of 2, a pack of 2; one image in each of them is broken."""
    for k in range(2):
        save(tmp_path / "folder" / f"{k}.png", k, (6, 9))
    (tmp_path / "folder" / "2.png").write_bytes(b"broken")
    write_shard(tmp_path / "s-0.tar", [jpeg(picture(3)), b"broken"])
    write_shard(tmp_path / "s-1.tar", [jpeg(picture(5)), jpeg(picture(6))])
    write_pack(tmp_path / "pack.npz", {"": [jpeg(picture(7)), jpeg(picture(8))[:-60]]})
    return [str(tmp_path / name) for name in ("folder", "s-{0..1}.tar", "pack.npz")]


def test_sources_are_told_apart_and_merged_in_order(mixed: list[str]) -> None:
    kinds = [type(open_source(name)) for name in mixed]
    assert kinds == [FileImages, ShardImages, PackPool]
    pool = open_pool(mixed)
    parts = [open_source(name) for name in mixed]
    assert len(pool) == 9
    for k, (part, index) in {0: (0, 0), 1: (0, 1), 3: (1, 0), 5: (1, 2), 6: (1, 3), 7: (2, 0)}.items():
        assert np.array_equal(pool.image(k), parts[part].image(index))
    for k in (2, 4, 8):
        with pytest.raises(UserError, match=r"cannot be read"):
            pool.image(k)
    assert pool.fingerprint() != MergedPool(parts[::-1]).fingerprint()


@pytest.mark.parametrize("workers", [0, 2])
def test_decoding_skips_what_is_broken(
    mixed: list[str], workers: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VLKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(pool_module, "_CHUNK", 2)
    pool = open_pool(mixed)
    images, numbers = decode_pool(pool, 4, workers)
    assert numbers.tolist() == [0, 1, 3, 5, 6, 7] and images.shape == (6, 3, 4, 4)
    for image, number in zip(images, numbers.tolist(), strict=True):
        assert np.array_equal(image.permute(1, 2, 0), centre(pool.image(number), 4, 1))
    tried, same = decode_pool(pool, None, workers)
    assert torch.equal(same, numbers) and tried.shape == (6, 0)

    def forbidden(self: MergedPool, index: int) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(MergedPool, "image", forbidden)
    again, _ = decode_pool(pool, 4)
    assert torch.equal(again, images)
    with pytest.raises(AssertionError, match="decoded again"):
        decode_pool(pool, 5)


def test_a_part_of_a_pool(mixed: list[str]) -> None:
    pool = open_pool(mixed)
    part = pool.select(torch.tensor([7, 0, 5]))
    assert len(part) == 3 and part.labels.tolist() == [-1] * 3 and part.names == ()
    assert np.array_equal(part.image(0), pool.image(7)) and np.array_equal(part.image(2), pool.image(5))
    again = part.select(torch.tensor([2]))
    assert np.array_equal(again.image(0), pool.image(5))
    assert len({pool.fingerprint(), part.fingerprint(), again.fingerprint()}) == 3
    assert pool.select(torch.tensor([5])).fingerprint() == again.fingerprint()


def test_nothing_to_use_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.jpg").write_bytes(b"broken")
    (tmp_path / "text.npz").write_text("no pack")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    whole = write_pack(tmp_path / "whole.npz", {"": [jpeg(picture(0))]}).read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    cases = {
        "empty": "empty: no images here or below",
        "none": "none: no such pool",
        "none.npz": "no such image pack",
        "text.npz": r"text\.npz: no image pack",
        "other.npz": r"other\.npz: no image pack .*expected arrays data and offsets",
        "cut.npz": r"cut\.npz: no image pack",
        "none-*.tar": "no file matches",
    }
    for name, message in cases.items():
        with pytest.raises(UserError, match=message) as caught:
            open_pool([tmp_path / name])
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="names no source"):
        open_pool([])
    with pytest.raises(UserError, match=r"none of 1 images can be decoded; the first: .*a\.jpg"):
        decode_pool(open_pool([tmp_path / "bad"]), 4)


@pytest.mark.realdata
def test_the_shared_packs(shared_data: Path) -> None:
    expected = {"cifar100.npz": 50_000, "imagenet1k_sample.npz": 1000, "caltech101_subset.npz": 2020}
    pool = open_pool([shared_data / name for name in expected])
    assert len(pool) == sum(expected.values())
    ends = np.cumsum([0, *expected.values()])
    assert pool.image(49_999).shape == (32, 32, 3) and pool.image(int(ends[1])).shape == (224, 224, 3)
    assert min(pool.image(int(ends[3]) - 1).shape[:2]) == 96
    means = np.stack([pool.image(k) for k in range(0, 50_000, 97)]).mean((0, 1, 2)) / 255
    assert np.allclose(means, (0.507, 0.487, 0.441), atol=0.02)
