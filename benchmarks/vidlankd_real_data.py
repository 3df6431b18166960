"""What benchmarks/vidlankd_real.py trains on: captioned pictures and clips as features, and plain text."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from promptkd_caltech_data import DATA, MobileNet
from torch import Tensor

from vlkd.infer.features import FeatureIndex, Stream, extract
from vlkd.infer.image_io import whole_file
from vlkd.models.clip import weights_identity
from vlkd.models.frame_features import FrameFeatures
from vlkd.text.word_ids import build_tokenizer, tokenizer_text

SIDE, PIECES = 224, 6000
EVERY = 4  # each fourth video is held out for the scores, the next one for choosing settings
MULTI30K, WIKITEXT = ("multi30k-train.txt", "multi30k-val.txt"), ("wikitext-valid.txt", "wikitext-test.txt")


def prepare(folder: Path) -> None:
    """Write captions, features, lists of ids, text files and tokenizer.json, which comes last, once."""
    if (folder / "tokenizer.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    captions = unpack(folder / "packs")
    _features(folder, captions)
    _standardise(folder, captions)
    (folder / "captions.json").write_text(json.dumps({id: spoken for id, (_, spoken) in captions.items()}))
    for name, rest in (("test", 0), ("tune", 1)):
        ids = [id for k, id in enumerate(captions) if k % EVERY == rest]
        (folder / f"{name}.ids").write_text("\n".join(ids) + "\n")
    ids = [id for k, id in enumerate(captions) if k % EVERY > 1]
    (folder / "fit.ids").write_text("\n".join(ids) + "\n")
    names = _texts(folder)
    texts = [line.replace("[UNK]", "") for name in names for line in (folder / name).open(encoding="utf-8")]
    tokenizer = build_tokenizer(texts, "pieces", PIECES)
    with whole_file(folder / "tokenizer.json") as part:
        part.write_text(tokenizer_text(tokenizer))


def unpack(folder: Path) -> dict[str, tuple[Path, dict[str, list]]]:
    """Id -> file and timed captions: pictures of COCO with all of theirs, then the clips with their one."""
    if not folder.is_dir():
        for name in ("coco_small", "video_small"):
            with tarfile.open(DATA / f"{name}.tar") as pack:
                pack.extractall(folder, filter="data")
    found: dict[str, tuple[Path, dict[str, list]]] = {}
    images = json.loads((folder / "coco_small" / "annotations.json").read_text())["images"]
    for image in images:
        if texts := image["captions"]:
            file = folder / "coco_small" / "images" / image["split"] / f"{image['id']:012d}.jpg"
            # A picture is a video of one frame; all its captions are said in its one second.
            found[file.stem] = file, {"start": [0] * len(texts), "end": [1] * len(texts), "text": texts}
    for clip in json.loads((folder / "video_small" / "meta.json").read_text())["clips"]:
        file = folder / "video_small" / clip["file"]
        above, _, below = clip["fps"].partition("/")
        end = clip["frames"] * int(below) / int(above)
        found[file.stem] = file, {"start": [0], "end": [end], "text": [clip["caption"]]}
    return found


def _features(folder: Path, captions: dict[str, tuple[Path, dict[str, list]]]) -> None:
    """One vector a second of each video, as `vlkd features --raw` writes them."""
    out = folder / "features"
    out.mkdir(exist_ok=True)
    stream = Stream("image", mobilenet(), 1.0, unit=False)
    index = FeatureIndex(out, [stream])
    for id, (file, _) in captions.items():
        if index.lacks(id, [stream]):
            index.add(id, file, extract(file, [stream], out, id))
    index.save()


def _standardise(folder: Path, ids: Iterable[str]) -> None:
    """standard/ID.npy: the same numbers with mean 0 and spread 1 over the videos that are not held out."""
    rows = {id: np.load(folder / "features" / f"{id}.image.npy").astype(np.float32) for id in ids}
    known = np.concatenate([found for k, found in enumerate(rows.values()) if k % EVERY])
    mean, spread = known.mean(0), known.std(0) + 1e-3
    (folder / "standard").mkdir(exist_ok=True)
    for id, found in rows.items():
        np.save(folder / "standard" / f"{id}.npy", ((found - mean) / spread).astype(np.float16))


def mobilenet() -> FrameFeatures:
    """The pooled features (1280) of the ImageNet network of shared/data."""
    network = MobileNet().backbone.eval().requires_grad_(False)

    def run(images01: Tensor) -> Tensor:
        return network(255 * images01, features=True)[1]

    identity = weights_identity("mobilenetv2", network.state_dict())
    size = (SIDE, SIDE)
    return FrameFeatures("mobilenetv2", identity, 1280, size, size, "bilinear", 1, network, run)


def _texts(folder: Path) -> Iterator[str]:
    """Names of the student's two training files, all four being written to `folder`."""
    with tarfile.open(DATA / "text.tar.xz") as pack:
        for name, kept in zip(MULTI30K, ("train", "val"), strict=True):
            lines = _member(pack, f"multi30k/{kept}.en").splitlines()
            # Blank lines between: a file of its own format beside WikiText's.
            (folder / name).write_text("\n\n".join(lines) + "\n")
        for name, kept in zip(WIKITEXT, ("valid", "test"), strict=True):
            # What the pack hides is no word to guess; and its spaces within numbers are undone.
            text = _member(pack, f"wikitext-2/{kept}.txt").replace("<unk>", "[UNK]")
            (folder / name).write_text(re.sub(r" @(.)@ ", r"\1", text))
    yield from (MULTI30K[0], WIKITEXT[0])


def _member(pack: tarfile.TarFile, name: str) -> str:
    file = pack.extractfile(next(x for x in pack.getmembers() if x.name.endswith(name)))
    assert file is not None
    return file.read().decode("utf-8")
