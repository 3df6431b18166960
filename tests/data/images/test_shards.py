"""WebDataset shards: what is found in them, what is skipped, what is refused."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from vlkd.data.images import shards
from vlkd.data.images.shards import ShardImages, expand_shards
from vlkd.errors import UserError


def picture(number: int, size: tuple[int, int] = (5, 7)) -> NDArray[np.uint8]:
    return np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)


def encoded(image: NDArray[np.uint8], kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, kind, **options)
    return stream.getvalue()


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_pool(folder: Path, shard_count: int = 3, each: int = 4) -> str:
    for s in range(shard_count):
        numbers = range(s * each, (s + 1) * each)
        write_tar(folder / f"pool-{s:03d}.tar", [(f"{n:06d}.png", encoded(picture(n))) for n in numbers])
    return str(folder / f"pool-{{000..{shard_count - 1:03d}}}.tar")


def quiet(pattern: object) -> ShardImages:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return ShardImages(pattern)  # type: ignore[arg-type]


def test_images_of_all_shards_by_number(tmp_path: Path) -> None:
    pool = quiet(write_pool(tmp_path))
    assert len(pool) == 12
    for index in (11, 0, 4, 3, 7, 8):
        assert np.array_equal(pool.image(index), picture(index))
    assert pool.name(5) == f"{tmp_path}/pool-001.tar:000005.png"
    for index in (12, -1):
        with pytest.raises(IndexError):
            pool.image(index)


def test_patterns_mean_the_same_files(tmp_path: Path) -> None:
    brace = write_pool(tmp_path)
    files = [tmp_path / f"pool-00{k}.tar" for k in range(3)]
    assert expand_shards(brace) == files == expand_shards(str(tmp_path / "pool-*.tar"))
    assert expand_shards(str(tmp_path / "pool-00{2,0}.tar")) == [files[2], files[0]]
    prints = {quiet(p).fingerprint() for p in (brace, files, str(tmp_path / "*.tar"))}
    assert len(prints) == 1 and quiet(files[:2]).fingerprint() not in prints
    assert len(quiet(files[1])) == 4
    odd = write_tar(tmp_path / "[1]{2}.tar", [("0.png", encoded(picture(0)))])
    assert expand_shards(odd) == [odd]


def test_long_unicode_and_nested_names(tmp_path: Path) -> None:
    names = ["a/" * 80 + "é.PNG", "../../etc/x.png", "/abs/y.JPEG", "b.small.png"]
    kinds = ["PNG", "PNG", "JPEG", "WEBP"]
    data = [encoded(picture(k), kind) for k, kind in enumerate(kinds)]
    pool = quiet(write_tar(tmp_path / "p.tar", zip(names, data, strict=True)))
    assert [pool.name(k).split(":", 1)[1] for k in range(4)] == names
    assert np.array_equal(pool.image(1), picture(1)) and pool.image(3).shape == (5, 7, 3)


def test_only_the_image_of_a_sample_counts(tmp_path: Path) -> None:
    image = encoded(picture(0))
    names = ["1.json", "1.png", "1.mask.png", "2.webp", "2.txt", ".hidden.jpg", "d/1.mask.png", "3.gif"]
    with tarfile.open(write_tar(tmp_path / "p.tar", [(name, image) for name in names]), "a") as tar:
        folder = tarfile.TarInfo("folder.jpg")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    pool = quiet(tmp_path / "p.tar")
    assert [pool.name(k).rsplit(":", 1)[1] for k in range(len(pool))] == ["1.png", "2.webp", "d/1.mask.png"]


def test_greyscale_alpha_and_turned_images_become_upright_rgb(tmp_path: Path) -> None:
    grey, turned = picture(0)[..., 0], picture(1)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    rgba = np.dstack([picture(2), np.full((5, 7), 9, np.uint8)])
    data = [encoded(grey), encoded(turned, exif=exif), encoded(rgba)]
    pool = quiet(write_tar(tmp_path / "p.tar", [(f"{k}.png", d) for k, d in enumerate(data)]))
    assert np.array_equal(pool.image(0), np.repeat(grey[..., None], 3, 2))
    assert np.array_equal(pool.image(1), np.rot90(turned, -1))
    assert np.array_equal(pool.image(2), picture(2))


@pytest.mark.parametrize("cut", [512 * 4, 512 * 4 + 1, 512 * 4 + 200, 512 * 5, 512 * 5 + 60, 512 * 6 - 1])
def test_a_shard_that_ends_early_is_used_so_far(tmp_path: Path, cut: int) -> None:
    # Each member takes 1024 bytes: a header and one block of data.
    path = write_tar(tmp_path / "p.tar", [(f"{k}.png", encoded(picture(k))) for k in range(6)])
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    complete = 3 if cut >= 512 * 5 + len(encoded(picture(2))) else 2
    with pytest.warns(UserWarning, match=rf"{path} ends early.*first {complete} images") as caught:
        pool = ShardImages(path)
    assert len(caught) == 1 and "\n" not in str(caught[0].message)
    assert len(pool) == complete and np.array_equal(pool.image(complete - 1), picture(complete - 1))


def test_a_damaged_header_ends_the_shard(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "p.tar", [(f"{k}.png", encoded(picture(k))) for k in range(6)])
    content = bytearray(path.read_bytes())
    content[2048 : 2048 + 512] = b"\xff" * 512
    path.write_bytes(content)
    with pytest.warns(UserWarning, match="damaged at byte 2,048; its first 2 images"):
        assert len(ShardImages(path)) == 2


def test_a_member_that_is_no_image_is_named(tmp_path: Path) -> None:
    good = encoded(picture(0), "JPEG")
    members = [("a.jpg", b"hello"), ("b.jpg", good[: len(good) // 2]), ("c.jpg", b""), ("d.jpg", good)]
    pool = quiet(write_tar(tmp_path / "p.tar", members))
    for index, name in enumerate("abc"):
        with pytest.raises(UserError, match=rf"p\.tar:{name}\.jpg: image cannot be read \("):
            pool.image(index)
    assert pool.image(3).shape == (5, 7, 3)


def test_random_damage_never_raises_anything_else(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    members = []
    for number in range(300):
        kind = ("PNG", "JPEG", "WEBP")[number % 3]
        data = np.frombuffer(encoded(picture(number, (24, 24)), kind), np.uint8).copy()
        data[rng.integers(0, len(data), 6)] = rng.integers(0, 256, 6)
        members.append((f"{number}.jpg", data.tobytes()))
    pool = quiet(write_tar(tmp_path / "p.tar", members))
    outcomes = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for index in range(len(pool)):
            try:
                outcomes.append(pool.image(index).shape[2] == 3)
            except UserError:
                outcomes.append(False)
    assert 10 < sum(outcomes) < 290


def test_the_index_is_kept_until_the_shard_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLKD_CACHE", str(tmp_path / "cache"))
    path = write_tar(tmp_path / "p.tar", [("0.png", encoded(picture(0)))])
    first = quiet(path).fingerprint()
    reads: list[Path] = []
    read = shards._read_headers
    monkeypatch.setattr(shards, "_read_headers", lambda p, n: (reads.append(p), read(p, n))[1])
    assert quiet(path).fingerprint() == first and not reads
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 1
    write_tar(path, [(f"{k}.png", encoded(picture(k))) for k in range(2)])
    os.utime(path, ns=(1, 1))
    assert len(quiet(path)) == 2 and reads == [path] and quiet(path).fingerprint() != first


def test_a_cut_shard_warns_from_the_stored_index_too(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "p.tar", [(f"{k}.png", encoded(picture(k))) for k in range(3)])
    path.write_bytes(path.read_bytes()[:2500])
    for _ in range(2):
        with pytest.warns(UserWarning, match="ends early"):
            ShardImages(path)


def test_reads_from_threads_and_after_pickling(tmp_path: Path) -> None:
    pool = pickle.loads(pickle.dumps(quiet(write_pool(tmp_path))))
    order = np.random.default_rng(0).integers(0, 12, 200).tolist()
    with ThreadPoolExecutor(4) as threads:
        images = list(threads.map(pool.image, order))
    assert all(np.array_equal(image, picture(k)) for image, k in zip(images, order, strict=True))


@pytest.mark.parametrize("mode", ["gz", "bz2", "xz"])
def test_compressed_shards_are_refused(tmp_path: Path, mode: str) -> None:
    path = tmp_path / f"p.tar.{mode}"
    with tarfile.open(path, f"w:{mode}") as tar:
        info = tarfile.TarInfo("0.png")
        tar.addfile(info)
    with pytest.raises(UserError, match=rf"{path}: .*compressed.*gunzip"):
        ShardImages(path)


def test_what_holds_no_images_is_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "empty.tar", [])
    write_tar(tmp_path / "text.tar", [("a.txt", b"a")])
    (tmp_path / "page.tar").write_text("<html>not found</html>" * 100)
    with pytest.raises(UserError, match=r"text\.tar: no image members"):
        ShardImages(tmp_path / "text.tar")
    with pytest.raises(UserError, match=r"empty\.tar \.\.\. .*text\.tar: no image members"):
        ShardImages([tmp_path / "empty.tar", tmp_path / "text.tar"])
    with pytest.raises(UserError, match=r"page\.tar: not a tar file"):
        ShardImages(tmp_path / "page.tar")
    (tmp_path / "zero.tar").touch()
    with pytest.warns(UserWarning, match="ends early"), pytest.raises(UserError, match="no image members"):
        ShardImages(tmp_path / "zero.tar")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("pool-{000..004}.tar", r"pool-003\.tar \(and 1 more\): no such shard"),
        ("none-*.tar", "no file matches"),
        ("pool-{000}.tar", "is no range"),
        ("pool-{5..2}.tar", "is no range"),
        ("https://host/pool-{000..001}.tar", "local files"),
    ],
)
def test_patterns_without_files_are_refused(tmp_path: Path, pattern: str, message: str) -> None:
    write_pool(tmp_path)
    with pytest.raises(UserError, match=message):
        expand_shards(pattern if "://" in pattern else str(tmp_path / pattern))
    with pytest.raises(UserError, match="no shards are named"):
        ShardImages([])
