"""The truth of small written worlds, written as predictions."""

from __future__ import annotations

from vlkd.data.predictions import Predictions, PredictionWriter
from vlkd.data.video import open_dataset, write_world
from vlkd.data.video.masks import encode_mask

SIZE = (40, 56)
FORMS = {"semantic": ("semantic",), "panoptic": ("semantic", "panoptic", "tracks"), "tracks": ("tracks",)}


def world(kind, root, frames=5, videos=2):
    write_world(kind, root / "data", "val", videos, frames, SIZE)
    return open_dataset(kind.removesuffix("_720p"), root / "data", "val")


def give_truth(sink, record, forms):
    for t in range(len(record)):
        labels = record.semantic(t) if "semantic" in forms else None
        ids, categories = record.panoptic(t) if "panoptic" in forms else (None, None)
        if forms != ("tracks",):
            sink.frame(t, labels, ids, categories, ms=10.0 + t)
    if "tracks" in forms:
        found = []
        for track in record.tracks:
            masks = [track.mask(t) for t in range(len(record))]
            found.append((track.category, 0.9, [None if m is None else encode_mask(m) for m in masks]))
        sink.tracks(found)


def write_truth(dataset, root):
    forms = FORMS[dataset[0].form]
    writer = PredictionWriter(root, {"settings": {"size": 64}}, dataset, forms)
    for record in dataset:
        with writer.video(record) as sink:
            give_truth(sink, record, forms)
    return Predictions(root, dataset)
