"""A folder of images becomes shards that ShardImages reads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from vlkd.data.images.shards import ShardImages

ROOT = Path(__file__).parents[2]


def prepare(source: Path, root: Path, per_shard: int) -> tuple[int, str]:
    code = f"import prepare_shards as p; p.PER_SHARD = {per_shard}; p.sys.exit(p.run(p.__doc__, p.prepare))"
    done = subprocess.run(
        [sys.executable, "-c", code, "--source", source, "--root", root],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'datasets'}"},
    )
    return done.returncode, done.stdout + done.stderr


def test_a_folder_is_packed_in_path_order(tmp_path: Path) -> None:
    source, root = tmp_path / "images", tmp_path / "pool"
    (source / "deep").mkdir(parents=True)
    for k in range(5):
        image = Image.fromarray(np.full((2, 3, 3), 10 * k, np.uint8))
        image.save(source / ("deep" if k % 2 else "") / f"{k}.PNG")
    (source / "notes.txt").write_text("not an image")
    code, text = prepare(source, root, 2)
    assert code == 0, text
    assert sorted(p.name for p in root.iterdir()) == [f"pool-{k:06d}.tar" for k in range(3)]
    pool = ShardImages(str(root / "pool-{000000..000002}.tar"))
    assert [int(pool.image(k)[0, 0, 0]) for k in range(5)] == [0, 20, 40, 10, 30]
    first = [p.read_bytes() for p in sorted(root.iterdir())]
    assert prepare(source, root, 2)[0] == 0
    assert [p.read_bytes() for p in sorted(root.iterdir())] == first


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    code, text = prepare(tmp_path / "images", tmp_path / "pool", 2)
    assert code == 2 and text.startswith("error: ") and "no images" in text and text.count("\n") == 1
    assert not (tmp_path / "pool").exists()
