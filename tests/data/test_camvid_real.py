from __future__ import annotations

import tarfile

import numpy as np
import pytest

from vlkd.data import check_dataset, open_segmentation
from vlkd.data.splits import DatasetView


@pytest.mark.realdata
def test_real_camvid_frames_and_class_order(tmp_path, shared_data):
    with tarfile.open(shared_data / "camvid.tar") as content:
        content.extractall(tmp_path, filter="data")
    dataset = open_segmentation("camvid", tmp_path / "camvid", "train")
    assert len(dataset) == 367 and len(open_segmentation("camvid", tmp_path / "camvid", "val")) == 101
    assert dataset.missing() == []
    listed = (tmp_path / "camvid" / "classes.txt").read_text().split()
    assert [name.replace(" ", "") for name in dataset.names] == [name.lower() for name in listed[:11]]
    every_tenth = DatasetView(dataset, range(0, 367, 10))
    assert check_dataset(every_tenth) == []
    labels = np.stack([sample.semantic() for sample in every_tenth])
    share = np.bincount(labels.ravel(), minlength=256) / labels.size
    # the data's own README: Sky 15.8 %, Building 24.1 %, Road 29.3 %, void 3.6 % over all 701 maps
    assert share[[0, 1, 3, 255]] == pytest.approx([0.158, 0.241, 0.293, 0.036], abs=0.06)
    rows = np.arange(360)[None, :, None]
    assert (rows * (labels == 0)).sum() / (labels == 0).sum() < 120  # sky above
    assert (rows * (labels == 3)).sum() / (labels == 3).sum() > 240  # road below
