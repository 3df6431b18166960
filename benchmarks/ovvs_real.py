"""Real video: python benchmarks/ovvs_real.py --model BUNDLE [--camvid FOLDER] [--clips FOLDER]

CamVid's val split, one dense clip, by a student of configs/gkc/camvid.yaml, frame by frame and smoothed;
and bmx-trees (DAVIS), a rider with a bicycle that fills 2 % of the picture, as a track: by that student, who
has met "bicyclist" in CamVid, and by a DeepLab of PASCAL VOC that is no student of ours. Folders are those of
camvid.tar and video_small.tar of shared/data. Writes benchmarks/results/ovvs_real.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from machine import machine
from PIL import Image
from pycocotools import mask as rle

from vlkd.engine.cli import main as vlkd
from vlkd.infer import VideoPredictor
from vlkd.metrics import track_ap

HERE = Path(__file__).parent
DATA = HERE.parents[1] / "shared" / "data"
RUNS = HERE / "runs" / "ovvs_real"
CONFIG = HERE.parent / "configs" / "ovvs" / "camvid.yaml"
THINGS = ("pole", "sign symbol", "car", "pedestrian", "bicyclist")
SMOOTHING = (0.0, 0.5)


def camvid(model: str, root: str, smoothing: float) -> dict[str, Any]:
    """The content of scores.json."""
    out = RUNS / f"camvid-{smoothing}"
    if not (out / "scores.json").is_file():
        options = [f"--benchmark.dataset.root={root}", f"--benchmark.smoothing={smoothing}"]
        if code := vlkd(["test", str(CONFIG), "--model", model, "--out", str(out), *options]):
            raise SystemExit(code)
    return json.loads((out / "scores.json").read_text())


def encoded(mask: np.ndarray) -> dict[str, Any] | None:
    """RLE of a mask (H,W) bool, None where it is empty."""
    if not mask.any():
        return None
    found = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": found["counts"].decode("ascii")}


def student_tracks(model: str, frames: list[np.ndarray]) -> list[dict[str, Any]]:
    """Tracks of bicyclists, as results of the one video."""
    predictor = VideoPredictor.from_bundle(model)
    names = predictor.predictor.names()
    session = predictor.start(names, [name.lower() in THINGS for name in names], ("tracks",))
    for frame in frames:
        session(frame)
    wanted = [name.lower() for name in names].index("bicyclist")
    return [
        {"video_id": 1, "category_id": 1, "score": track.score, "segmentations": track.segmentations}
        for track in session.tracks()
        if track.category == wanted
    ]


def deeplab_track(frames: list[np.ndarray]) -> list[dict[str, Any]]:
    """One track: all pixels that DeepLab calls person or bicycle."""
    spec = importlib.util.spec_from_file_location("tflite_net", DATA / "tflite_net.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network = module.TFLiteNet(DATA / "teacher_deeplabv3_voc21.npz").eval()
    wanted = torch.tensor([network.g["classes"].index(name) for name in ("person", "bicycle")])
    masks = []
    for frame in frames:
        image = torch.tensor(frame).permute(2, 0, 1)[None].float()
        with torch.inference_mode():
            logits = network(F.interpolate(image, (513, 513), mode="bilinear", antialias=True))
            labels = F.interpolate(logits, frame.shape[:2], mode="bilinear").argmax(1)[0]
        masks.append(encoded(torch.isin(labels, wanted).numpy()))
    return [{"video_id": 1, "category_id": 1, "score": 1.0, "segmentations": masks}]


def tube_iou(truth: list[np.ndarray], track: dict[str, Any]) -> float:
    """Intersection over union, each summed over the frames."""
    met = either = 0
    for mask, found in zip(truth, track["segmentations"], strict=True):
        guess = rle.decode(found).astype(bool) if found else np.zeros_like(mask)
        met, either = met + (mask & guess).sum(), either + (mask | guess).sum()
    return float(met / either)


def bmx(folder: Path, model: str) -> list[str]:
    """Rows of the table."""
    frames = [np.asarray(Image.open(f).convert("RGB")) for f in sorted((folder / "frames").iterdir())]
    masks = [np.asarray(Image.open(f)) > 0 for f in sorted((folder / "masks").iterdir())]
    height, width = masks[0].shape
    truth: dict[str, Any] = {
        "videos": [{"id": 1, "height": height, "width": width, "length": len(frames)}],
        "categories": [{"id": 1}],
        "annotations": [
            {"id": 1, "video_id": 1, "category_id": 1, "segmentations": [encoded(mask) for mask in masks]}
        ],
    }
    rows = []
    for name, results in {
        'CamVid student, "bicyclist", tracked': student_tracks(model, frames),
        "DeepLab, person or bicycle, all pixels as one track": deeplab_track(frames),
    }.items():
        scores = track_ap(truth, results)
        best = max((tube_iou(masks, track) for track in results), default=0.0)
        rows.append(f"| {name} | {len(results)} | {scores['AP']:.3f} | {scores['AP50']:.3f} | {best:.3f} |")
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="bundle of configs/gkc/camvid.yaml")
    parser.add_argument("--camvid", default="data/camvid")
    parser.add_argument("--clips", default="data/video_small")
    arguments = parser.parse_args()
    columns = ("mIoU", "VC8", "VC16", "VC8_correct", "VC16_correct")
    lines = [
        "# Real video",
        "",
        "`python benchmarks/ovvs_real.py`: a student of `configs/gkc/camvid.yaml` (13 epochs, one seed). "
        f"{machine()}",
        "",
        "CamVid val, 101 labelled frames of one clip, 11 classes, at 480 x 360.",
        "",
        f"| smoothing | {' | '.join(columns)} |",
        f"|---|{'---|' * len(columns)}",
    ]
    for smoothing in SMOOTHING:
        scores = camvid(arguments.model, arguments.camvid, smoothing)["scores"]
        lines.append(f"| {smoothing} | {' | '.join(f'{scores[c]:.3f}' for c in columns)} |")
    lines += [
        "",
        "bmx-trees, 80 frames of 432 x 240, one track of rider and bicycle; no label of it was used.",
        "",
        "| prediction | tracks | AP | AP50 | IoU of the best track |",
        "|---|---|---|---|---|",
        *bmx(Path(arguments.clips) / "bmx-trees", arguments.model),
    ]
    (HERE / "results" / "ovvs_real.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
