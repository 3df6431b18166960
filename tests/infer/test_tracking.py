import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pycocotools import mask as coco

from vlkd.infer.tracking import SegmentIds, Tracker, TrackTable

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools

YES, NO = torch.tensor([0.9, 0.9, 0.9]), torch.tensor([0.9, 0.1, 0.9])


def logits_of(*rows):
    return torch.tensor(rows).clamp(min=1e-6).log()


def blocks(*places, size=8):
    """Mask logits (n,8,8): row i is inside in the columns places[i]."""
    masks = torch.full((len(places), size, size), -9.0)
    for mask, place in zip(masks, places, strict=True):
        mask[:, place] = 9
    return masks


def test_query_i_is_slot_i_when_nothing_is_matched():
    tracker = Tracker(match=False)
    for seed in range(3):
        order, began = tracker(torch.randn(3, 4, generator=torch.Generator().manual_seed(seed)), YES)
        assert order.tolist() == [0, 1, 2] and began.all() == (seed == 0)
        assert tracker.tracks.tolist() == [1, 2, 3]


def test_shuffled_and_noisy_queries_find_their_slots():
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(6, 16, generator=generator)
    tracker = Tracker(match=True)
    tracker(queries, torch.ones(6))
    for _ in range(20):
        shuffle = torch.randperm(6, generator=generator)
        length = 10 ** torch.randn(6, 1, generator=generator)  # only the direction counts
        noisy = (queries + 0.3 * torch.randn(6, 16, generator=generator)) * length
        order, began = tracker(noisy[shuffle], torch.ones(6))
        assert shuffle[order].tolist() == list(range(6)) and not began.any()
    assert tracker.tracks.tolist() == [1, 2, 3, 4, 5, 6]


def test_the_pairing_is_the_best_one_as_a_whole():
    angle = torch.tensor([0.0, 0.6])
    tracker = Tracker(match=True)
    tracker(torch.stack([angle.cos(), angle.sin()], 1), torch.ones(2))
    # Both are nearest to slot 1; one of them has to take slot 0, and it costs less for the first.
    angle = torch.tensor([0.5, 0.9])
    order, _ = tracker(torch.stack([angle.cos(), angle.sin()], 1), torch.ones(2))
    assert order.tolist() == [0, 1]
    order, _ = tracker(torch.stack([angle.cos(), angle.sin()], 1).flip(0), torch.ones(2))
    assert order.tolist() == [1, 0]


def test_memory_outlives_a_hidden_object():
    a, b, idle, noise = torch.eye(4)
    tracker = Tracker(match=True, patience=3, momentum=0.1)
    tracker(torch.stack([a, b, idle]), torch.tensor([1.0, 1.0, 0.0]))
    for _ in range(2):  # a is hidden, its query means nothing
        tracker(torch.stack([noise, b, idle]), torch.tensor([0.0, 1.0, 0.0]))
    order, began = tracker(torch.stack([b, noise, a]), torch.tensor([1.0, 0.0, 1.0]))
    assert order.tolist() == [2, 0, 1] and not began.any() and tracker.tracks.tolist() == [1, 2, 0]


def test_memory_follows_a_slow_change():
    tracker = Tracker(match=True, momentum=0.5)
    for degrees in range(0, 181, 5):
        angle = torch.deg2rad(torch.tensor([degrees, degrees + 90.0]))
        queries = torch.stack([angle.cos(), angle.sin()], 1)
        flipped = degrees % 2
        order, _ = tracker(queries.flip(0) if flipped else queries, torch.ones(2))
        assert order.tolist() == ([1, 0] if flipped else [0, 1])
    assert tracker.tracks.tolist() == [1, 2]


@pytest.mark.parametrize(("gap", "after"), [(2, [1, 2, 3]), (3, [1, 4, 3]), (9, [1, 4, 3])])
def test_a_slot_is_free_after_some_frames_without_an_object(gap, after):
    tracker = Tracker(match=False, patience=3)
    queries = torch.eye(3)
    tracker(queries, YES)
    for _ in range(gap):
        _, began = tracker(queries, NO)
        assert not began.any()
    assert (tracker.tracks[1] == 0) == (gap >= 3)
    _, began = tracker(queries, YES)
    assert tracker.tracks.tolist() == after and began.tolist() == [False, after[1] == 4, False]


def test_a_slot_that_never_held_an_object_is_free():
    tracker = Tracker(match=False)
    tracker(torch.eye(3), NO)
    assert tracker.tracks.tolist() == [1, 0, 2]


def test_segment_ids():
    ids = SegmentIds([True, True, False])
    assert [ids(1, 0), ids(2, 0), ids(1, 1), ids(1, 0)] == [1, 2, 3, 1]
    assert ids(5, 2) == ids(6, 2) == 4  # stuff: one per class, whatever the track
    ids.keep(np.array([2, 0]))
    assert [ids(2, 0), ids(0, 2), ids(1, 0)] == [2, 4, 5]


def test_run_lengths_are_the_upsampled_mask():
    masks = 4 * torch.randn(3, 8, 12, generator=torch.Generator().manual_seed(0))
    size = (37, 50)
    table = TrackTable([True, True])
    table.add(np.array([1, 2, 3]), logits_of(*[[0.6, 0.3, 0.1]] * 3), masks, size)
    expected = F.interpolate(masks[None], size, mode="bilinear", align_corners=False)[0].sigmoid() > 0.5
    found = {str(track.segmentations): track for track in table.results()}
    assert len(found) == 3
    json.dumps([track.segmentations for track in found.values()])
    decoded = [coco.decode(track.segmentations[0]).astype(bool) for track in found.values()]
    for mask in expected.numpy():
        assert any(np.array_equal(mask, one) for one in decoded)
    assert all(track.segmentations[0]["size"] == [37, 50] for track in found.values())


def test_scores_are_means_over_the_video():
    table = TrackTable([True, False, True])
    masks = blocks(slice(0, 4), slice(4, 8))
    table.add(np.array([1, 2]), logits_of([0.6, 0.1, 0.2, 0.1], [0.1, 0.8, 0.01, 0.09]), masks, (8, 8))
    table.add(np.array([1, 2]), logits_of([0.2, 0.1, 0.6, 0.1], [0.0, 0.9, 0.01, 0.09]), masks, (8, 8))
    table.add(np.array([1, 2]), logits_of([0.01, 0.0, 0.01, 0.98], [0.0, 0.9, 0.01, 0.09]), masks, (8, 8))
    found = table.results()
    assert [(t.category, round(t.score, 4)) for t in found] == [
        (0, 0.2667),
        (2, 0.2667),
        (0, 0.0333),
        (2, 0.0033),
    ]
    assert [m is None for m in found[0].segmentations] == [False, False, True]  # 0.01 is below the floor
    assert [m is None for m in found[2].segmentations] == [False, True, True]  # stuff alone is no track


def test_only_the_best_pairs_come_back():
    table = TrackTable([True] * 4, top=3)
    for t in range(6):  # six tracks, one after the other, each likelier than the one before
        p = 0.3 + 0.1 * t
        table.add(np.array([t + 1]), logits_of([p, 0.05, 0.0, 0.0, 0.95 - p]), blocks(slice(0, 4)), (8, 8))
    found = table.results()
    assert [(t.category, round(6 * t.score, 4)) for t in found] == [(0, 0.8), (0, 0.7), (0, 0.6)]
    assert [[i for i, m in enumerate(t.segmentations) if m] for t in found] == [[5], [4], [3]]
    assert len(table._ended) == 3


def test_empty_masks_free_slots_and_no_things():
    sure = logits_of([0.9, 0.1], [0.9, 0.1])
    table = TrackTable([True])
    table.add(np.array([0, 1]), sure, torch.stack([blocks(slice(0, 8))[0], torch.full((8, 8), -9.0)]), (8, 8))
    assert table.results() == [] and TrackTable([True]).results() == []
    table = TrackTable([False])
    table.add(np.array([1, 2]), sure, blocks(slice(0, 4), slice(4, 8)), (8, 8))
    assert table.results() == []
