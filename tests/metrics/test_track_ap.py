from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from golden_cases import FOLDER
from pycocotools import mask as rle

from vlkd.errors import UserError
from vlkd.metrics import TrackAPMetric, track_ap

SIZE = (12, 14)
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools
CATEGORIES = [{"id": i, "name": f"c{i}", "partition": p} for i, p in ((1, 0), (2, 1), (3, 2), (4, 3), (5, 2))]


def encode(mask):
    if mask is None or not mask.any():
        return None
    found = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(found["size"]), "counts": found["counts"].decode()}


def decode(segmentation):
    return rle.decode([segmentation])[..., 0].astype(bool)


def literal_iou(one, other):
    inter = union = 0
    for a, b in zip(one, other, strict=True):
        a, b = (np.zeros(SIZE, bool) if x is None else decode(x) for x in (a, b))
        inter, union = inter + (a & b).sum(), union + (a | b).sum()
    return inter / union if union else 0.0


def literal_match(iou, crowd, ignored, threshold):
    """COCO's greedy matching of detections (rows, by score) to tracks; 0 wrong, 1 right, 2 neither."""
    taken, outcome = set(), []
    for row in iou:
        best = None
        for g in sorted(range(len(row)), key=lambda g: ignored[g]):
            if (g in taken and not crowd[g]) or (best is not None and not ignored[best] and ignored[g]):
                continue
            if row[g] >= (threshold if best is None else row[best]):
                best = g
        taken.add(best)
        outcome.append(0 if best is None else 1 + ignored[best])
    return outcome


def literal(truth, results, rule):
    """Precision {category: (10,101)} and recall {category: (3,10)}, detection by detection."""
    precision, recall = {}, {}
    for category in sorted({a["category_id"] for a in truth["annotations"]}):
        counts, found = 0, []
        for video in sorted(v["id"] for v in truth["videos"]):
            gt, dt = (
                [x for x in items if x["video_id"] == video and x["category_id"] == category]
                for items in (truth["annotations"], results)
            )
            dt = sorted(dt, key=lambda d: -d["score"])[:100]
            crowd = [bool(g["iscrowd"]) for g in gt]
            ignored = [c and rule == "ytvis" for c in crowd]
            counts += len(gt) - sum(ignored)
            iou = [[literal_iou(d["segmentations"], g["segmentations"]) for g in gt] for d in dt]
            hits = [literal_match(iou, crowd, ignored, t) for t in np.linspace(0.5, 0.95, 10)]
            found += [(d["score"], rank, [h[rank] for h in hits]) for rank, d in enumerate(dt)]
        if not counts:
            continue
        curves = np.zeros((10, 101))
        for t in range(10):
            tp = fp = 0
            points = []
            for _, _, hit in sorted(found, key=lambda x: -x[0]):
                tp, fp = tp + (hit[t] == 1), fp + (hit[t] == 0)
                points.append((tp / counts, tp / (tp + fp + np.spacing(1))))
            for r, level in enumerate(np.linspace(0, 1, 101)):
                curves[t, r] = max((p for reached, p in points if reached >= level), default=0.0)
        precision[category] = curves
        recall[category] = np.array(
            [
                [sum(h[t] == 1 for _, rank, h in found if rank < m) / counts for t in range(10)]
                for m in (1, 10, 100)
            ]
        )
    return precision, recall


def random_set(seed, crowds=False):
    """Three videos of moving boxes; results that are shifted truth, wrong classes, doubles and nothing."""
    rng = np.random.default_rng(seed)
    videos = [
        {"id": i, "height": SIZE[0], "width": SIZE[1], "length": n} for i, n in ((7, 3), (2, 2), (4, 4))
    ]

    def track(y, x, h, w, length):
        masks = np.zeros((length, *SIZE), bool)
        for t in range(length):
            masks[t, y : y + h, x + t : x + t + w] = rng.random() > 0.07
        return [encode(mask) for mask in masks]

    annotations, results = [], []
    for video in videos:
        for _ in range(6):
            y, x, h, w = rng.integers((0, 0, 3, 3), (8, 8, 7, 7)).tolist()
            category = int(rng.integers(1, 5))
            own = {"video_id": video["id"], "category_id": category}
            crowd = int(crowds and rng.random() < 0.4)
            annotations.append(
                own
                | {"id": len(annotations) + 1, "iscrowd": crowd}
                | {"segmentations": track(y, x, h, w, video["length"])}
            )
            for _ in range(int(rng.integers(1, 4))):
                y, x, h, w = (np.array([y, x, h, w]) + (rng.random(4) < 0.15)).tolist()
                score = float(np.round(rng.random(), 1))  # with ties
                other = {"category_id": int(rng.integers(1, 6))} if rng.random() < 0.2 else {}
                results.append(
                    own | other | {"score": score, "segmentations": track(y, x, h, w, video["length"])}
                )
    return {"videos": videos, "categories": CATEGORIES, "annotations": annotations}, results


def test_golden_scores():
    data = json.loads((FOLDER / "metric_lvvis_ap_3.json").read_text())
    found = track_ap(data["ground_truth"], data["results"], rule="lvvis")
    for name, value in data["expected"].items():
        assert found[name] == pytest.approx(value, abs=1e-12), name


@pytest.mark.parametrize("rule", ["ytvis", "lvvis"])
@pytest.mark.parametrize("seed", range(6))
def test_scores_equal_a_loop_over_detections(seed, rule):
    truth, results = random_set(seed, crowds=seed % 2 == 1)
    precision, recall = literal(truth, results, rule)
    found = track_ap(truth, results, rule)
    every, levels = np.stack(list(precision.values())), np.stack(list(recall.values()))
    assert found["AP"] == pytest.approx(every.mean(), abs=1e-12) and found["AP"] > 0.1
    assert found["AP50"] == pytest.approx(every[:, 0].mean(), abs=1e-12)
    assert found["AP75"] == pytest.approx(every[:, 5].mean(), abs=1e-12)
    for i, most in enumerate((1, 10, 100)):
        assert found[f"AR{most}"] == pytest.approx(levels[:, i].mean(), abs=1e-12)
    for name, group in (("base", (1, 2)), ("novel", (3, 4, 5))):
        own = [curve for category, curve in precision.items() if category in group]
        assert found[f"AP_{name}"] == pytest.approx(np.mean(own), abs=1e-12)


def test_rules_differ_on_crowds_only():
    truth, results = random_set(1, crowds=True)
    assert track_ap(truth, results, "ytvis") != track_ap(truth, results, "lvvis")
    truth, results = random_set(1)
    assert track_ap(truth, results, "ytvis") == track_ap(truth, results, "lvvis")


def small(score=0.5, length=2):
    masks = np.zeros((length, *SIZE), bool)
    masks[:, :4, :4] = True
    segmentations = [encode(mask) for mask in masks]
    video = {"id": 1, "height": SIZE[0], "width": SIZE[1], "length": length}
    gt = {"id": 1, "video_id": 1, "category_id": 1, "iscrowd": 0, "segmentations": segmentations}
    result = {"video_id": 1, "category_id": 1, "score": score, "segmentations": segmentations}
    return {"videos": [video], "categories": CATEGORIES, "annotations": [gt]}, result


def test_missing_masks_count_in_the_union():
    truth, result = small()
    half = result | {"segmentations": [result["segmentations"][0], None]}
    found = track_ap(truth, [half])
    assert found["AP50"] == pytest.approx(1.0) and found["AP"] == pytest.approx(0.1)  # IoU is 1/2
    assert track_ap(truth, [result])["AP"] == pytest.approx(1.0)
    assert track_ap(truth, [])["AP"] == 0.0 and track_ap(truth, [])["AR100"] == 0.0


def test_masks_in_every_form():
    truth, result = small()
    uncompressed = {"size": list(SIZE), "counts": [0, 4, 8, 4, 8, 4, 8, 4, 128]}
    assert np.array_equal(decode(rle.frPyObjects(uncompressed, *SIZE)), decode(result["segmentations"][0]))
    polygon = [[0, 0, 4, 0, 4, 4, 0, 4]]
    bytes_ = result["segmentations"][0] | {"counts": result["segmentations"][0]["counts"].encode()}
    for form in (uncompressed, polygon, bytes_):
        assert track_ap(truth, [result | {"segmentations": [form, form]}])["AP"] == pytest.approx(1.0)


def test_at_most_100_detections_of_a_category_in_a_video_count():
    truth, result = small(score=0.1)
    empty = result | {"score": 0.9, "segmentations": [None, None]}
    assert track_ap(truth, [empty] * 99 + [result])["AR100"] == 1.0
    assert track_ap(truth, [empty] * 100 + [result])["AR100"] == 0.0
    other = empty | {"category_id": 2}
    assert track_ap(truth, [other] * 100 + [result])["AR1"] == 1.0


def test_categories_without_truth_are_left_out():
    truth, result = small()
    wrong = result | {"category_id": 3, "score": 1.0}
    found = track_ap(truth, [wrong, result])
    assert found["AP"] == found["AP_base"] == pytest.approx(1.0) and np.isnan(found["AP_novel"])
    plain = truth | {"categories": [{"id": c["id"]} for c in CATEGORIES]}
    assert np.isnan(track_ap(plain, [result])["AP_base"])
    assert track_ap(plain, [result], novel=[1])["AP_novel"] == pytest.approx(1.0)


def test_merging_equals_one_pass_in_any_order():
    truth, results = random_set(3)
    parts = [TrackAPMetric(CATEGORIES) for _ in range(2)]
    for i, video in enumerate(truth["videos"]):
        own = (
            [x for x in items if x["video_id"] == video["id"]] for items in (truth["annotations"], results)
        )
        parts[i % 2].update(video, *own)
    parts[0].merge(pickle.loads(pickle.dumps(parts[1])))
    assert parts[0].compute() == track_ap(truth, results)
    parts[0].reset()
    parts[0].update(truth["videos"][0], [], [])
    assert np.isnan(parts[0].compute()["AP"])


def test_wrong_input():
    truth, result = small()

    def refused(match, truth=truth, results=(), **arguments):
        with pytest.raises(UserError, match=match):
            track_ap(truth, list(results), **arguments)

    refused("no annotations", truth | {"annotations": None})
    refused("a result is for video 9,", results=[result | {"video_id": 9}])
    refused(r"^video 1: categories \[77\]", results=[result | {"category_id": 77}])
    refused("^video 1: a track has 1 segmentations", results=[result | {"segmentations": [None]}])
    refused("^video 1: a track has no 'score'", results=[{k: v for k, v in result.items() if k != "score"}])
    refused("^video 1: a result's score", results=[result | {"score": float("nan")}])
    wide = {"size": [12, 15], "counts": "0"}
    refused(r"^video 1: a mask of size \[12, 15\]", results=[result | {"segmentations": [wide, None]}])
    refused("^video 'a': expected a whole number", truth | {"videos": [{"id": "a"}], "annotations": []})
    refused("rule 'coco'", rule="coco")
    refused(r"classes \[1\] are base and novel", base=[1], novel=[1, 2])
    with pytest.raises(UserError, match="do not add up"):
        TrackAPMetric(CATEGORIES).merge(TrackAPMetric(CATEGORIES, "lvvis"))


def test_burst_counts_only_what_the_annotation_can_judge():
    truth, result = small()
    empty = result | {"score": 0.9, "segmentations": [None, {"size": list(SIZE), "counts": [0, 2, 190]}]}
    empty["segmentations"][1] = encode(np.eye(*SIZE, dtype=bool))
    video = truth["videos"][0]

    def scored(results, **lists):
        return track_ap(truth | {"videos": [video | lists]}, results, "burst")

    # A wrong track before the right one halves the precision, unless its category is labelled in part.
    assert scored([empty, result])["AP"] == pytest.approx(0.5)
    assert scored([empty, result], not_exhaustive_category_ids=[1])["AP"] == pytest.approx(1.0)
    # Of another category it is wrong only where the video certainly lacks that category.
    two = truth["annotations"][0] | {"id": 2, "video_id": 2, "category_id": 2}
    videos = [video, video | {"id": 2}]
    both = truth | {"videos": videos, "annotations": [*truth["annotations"], two]}
    right = [result, result | {"video_id": 2, "category_id": 2, "score": 0.1}]
    stray = empty | {"category_id": 2}
    assert track_ap(both, [*right, stray], "burst")["AP"] == pytest.approx(1.0)
    both["videos"] = [video | {"neg_category_ids": [2]}, videos[1]]
    assert track_ap(both, [*right, stray], "burst")["AP"] == pytest.approx(0.75)
    assert track_ap(truth, [empty] * 100 + [result], "burst")["AP"] > 0
    assert track_ap(truth, [empty] * 100 + [result], "ytvis")["AP"] == 0
