"""The device-resident pipeline against plain indexing, on any number of processes, and after a resume."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vlkd.data.images.device import DeviceAugment, DeviceEvalLoader, DeviceImages, DeviceLoader
from vlkd.data.loader import EpochSampler, EvalSampler
from vlkd.errors import UserError

COUNT = 23


@pytest.fixture
def data() -> DeviceImages:
    pixels = np.random.default_rng(0).integers(0, 256, (COUNT, 3, 6, 8), dtype=np.uint8)
    return DeviceImages(torch.from_numpy(pixels), torch.arange(COUNT) % 4, ("a", "b", "c", "d"))


def loader(data: DeviceImages, batch: int = 5, world: tuple[int, int] = (1, 0), **options) -> DeviceLoader:
    options = {"augment": DeviceAugment(crop=2), **options}
    return DeviceLoader(data, EpochSampler(data, 7, *world), batch, **options)


def epoch(source: DeviceLoader, number: int = 0) -> list[dict[str, Tensor]]:
    source.sampler.set_epoch(number)
    return list(source)


def joined(batches: list[dict[str, Tensor]], key: str) -> Tensor:
    return torch.cat([batch[key] for batch in batches])


def same(one: list[dict[str, Tensor]], other: list[dict[str, Tensor]]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a[key], b[key]) for a, b in zip(one, other, strict=True) for key in a
    )


@pytest.mark.parametrize("border", [0, 1, 4])
def test_crop_and_flip_are_those_of_plain_indexing(data: DeviceImages, border: int) -> None:
    augment = DeviceAugment(crop=border, flip=0.5)
    draws = augment.draws(COUNT, seed=1, epoch=2)
    found = augment(data.images, draws)
    padded = F.pad(data.images, (border,) * 4)
    flips = 0
    for image, (row, column, flip, *_), expected in zip(padded, draws, found, strict=True):
        top, left = int(row * (2 * border + 1)), int(column * (2 * border + 1))
        flips += int(flip < 0.5)
        turned = image.flip(-1) if flip < 0.5 else image
        assert torch.equal(turned[:, top : top + 6, left : left + 8].float() / 255, expected)
    assert 0 < flips < COUNT
    # Every offset of the border is drawn, and none outside.
    many = augment.draws(2000, 0, 0)
    assert set((many[:, 0] * (2 * border + 1)).long().tolist()) == set(range(2 * border + 1))


def test_resized_crop_of_the_whole_image_is_the_image_and_stays_inside(data: DeviceImages) -> None:
    draws = DeviceAugment().draws(COUNT, 0, 0)
    draws[:, 4] = 0.5  # aspect ratio 1
    whole = DeviceAugment(flip=0, resized_crop=(1.0, 1.0))(data.images, draws)
    assert torch.allclose(whole, data.images / 255, atol=1e-5)
    mirrored = DeviceAugment(flip=1, resized_crop=(1.0, 1.0))(data.images, draws)
    assert torch.allclose(mirrored, (data.images / 255).flip(-1), atol=1e-5)
    # On a picture of its own coordinates: the part has the area that was asked for, and lies within.
    ramp = torch.stack(torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")).to(torch.uint8)
    ramp = torch.cat([ramp, ramp[:1]])[None].repeat(300, 1, 1, 1)
    draws = DeviceAugment().draws(300, 0, 0)
    part = DeviceAugment(flip=0.5, resized_crop=(0.2, 0.6))(ramp, draws) * 255
    tall, wide = (
        part[:, 0].amax((1, 2)) - part[:, 0].amin((1, 2)),
        part[:, 1].amax((1, 2)) - part[:, 1].amin((1, 2)),
    )
    area = (tall * 64 / 63) * (wide * 64 / 63) / 64**2
    assert 0.17 < area.min() < 0.25 and 0.5 < area.max() < 0.62
    assert part.min() >= 0 and part.max() <= 63
    assert (wide / tall).max() < 1.45 and (wide / tall).min() > 0.7


def test_normalise_is_for_benchmarks(data: DeviceImages) -> None:
    plain, draws = DeviceAugment(), DeviceAugment().draws(COUNT, 0, 0)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    shift = torch.tensor(mean).view(3, 1, 1), torch.tensor(std).view(3, 1, 1)
    found = DeviceAugment(normalise=(mean, std))(data.images, draws)
    assert torch.allclose(found, (plain(data.images, draws) - shift[0]) / shift[1], atol=1e-5)


def test_pixels_depend_on_seed_epoch_and_image_alone(data: DeviceImages) -> None:
    first = epoch(loader(data), 3)
    assert first[0]["images"].dtype == torch.float32 and first[0]["images"].shape == (5, 3, 6, 8)
    assert torch.equal(joined(first, "labels"), data.labels[joined(first, "indices")])
    state = torch.get_rng_state()
    other = epoch(loader(data, batch=COUNT), 3)
    assert torch.equal(state, torch.get_rng_state())
    order = joined(other, "indices")[:20]
    assert torch.equal(joined(first, "indices"), order) and len(set(order.tolist())) == 20
    assert torch.equal(joined(first, "images"), joined(other, "images")[:20])
    assert not torch.equal(joined(epoch(loader(data), 4), "indices"), order)
    changed = {
        int(i): x for b in epoch(loader(data), 4) for i, x in zip(b["indices"], b["images"], strict=True)
    }
    again = {int(i): x for b in first for i, x in zip(b["indices"], b["images"], strict=True)}
    assert any(not torch.equal(changed[i], again[i]) for i in changed.keys() & again.keys())


@pytest.mark.parametrize("world", [2, 3, 4])
def test_processes_share_an_epoch(data: DeviceImages, world: int) -> None:
    shares = [loader(data, world=(world, rank), drop_last=False) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    indices = torch.stack([joined(epoch(share, 1), "indices") for share in shares], 1).flatten()
    alone = epoch(loader(data, drop_last=False), 1)
    assert torch.equal(indices[:COUNT], joined(alone, "indices"))
    images = torch.stack([joined(epoch(share, 1), "images") for share in shares], 1).flatten(0, 1)
    assert torch.equal(images[:COUNT], joined(alone, "images"))


def test_views_repeat_the_pixels_of_the_first_epochs_in_another_order(data: DeviceImages) -> None:
    def by_index(batches: list[dict[str, Tensor]]) -> Tensor:
        return joined(batches, "images")[joined(batches, "indices").argsort()]

    shown = [epoch(loader(data, batch=COUNT, views=2), number) for number in range(4)]
    for number, batches in enumerate(shown):
        free = epoch(loader(data, batch=COUNT), number)
        assert set(free[0]) == set(batches[0]) - {"views"}, "without views there is no such key"
        assert torch.equal(joined(free, "indices"), joined(batches, "indices"))
        assert batches[0]["views"].dtype == torch.int64
        assert joined(batches, "views").tolist() == [number % 2] * COUNT
        first = epoch(loader(data, batch=COUNT), number % 2)
        assert torch.equal(by_index(batches), by_index(first))
        assert torch.equal(by_index(batches), by_index(free)) == (number < 2)
    assert not torch.equal(by_index(shown[0]), by_index(shown[1]))
    plain = epoch(loader(data, augment=None, views=3), 2)
    assert set(joined(plain, "views").tolist()) == {2}


def test_processes_share_an_epoch_of_a_view(data: DeviceImages) -> None:
    shares = [epoch(loader(data, world=(2, r), drop_last=False, views=2), 3) for r in range(2)]
    alone = epoch(loader(data, drop_last=False, views=2), 3)
    for key in ("images", "indices", "views"):
        mixed = torch.stack([joined(share, key) for share in shares], 1).flatten(0, 1)
        assert torch.equal(mixed[:COUNT], joined(alone, key))


@pytest.mark.parametrize("views", [None, 2])
@pytest.mark.parametrize("drop_last", [True, False])
def test_resumes_within_an_epoch(data: DeviceImages, drop_last: bool, views: int | None) -> None:
    options = {"drop_last": drop_last, "views": views}
    whole = epoch(loader(data, **options), 3)
    assert len(whole) == len(loader(data, **options)) == (4 if drop_last else 5)
    source = loader(data, **options)
    source.sampler.set_epoch(3)
    batches = iter(source)
    begun = [next(batches), next(batches)]
    state = source.state_dict()
    assert state == {"epoch": 3, "batches": 2}
    resumed = loader(data, **options)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert same(whole, begun + epoch(resumed, 3))
    assert same(whole, epoch(resumed, 3))
    resumed.load_state_dict({"epoch": 3, "batches": len(whole)})
    assert same(epoch(loader(data, **options), 4), epoch(resumed, 4))


def test_a_chosen_part_begins_with_the_next_epoch_and_is_resumed(data: DeviceImages) -> None:
    source = loader(data, drop_last=False)
    source.sampler.set_epoch(0)
    batches = iter(source)
    begun = [next(batches)]
    chosen = torch.tensor([1, 4, 5, 9, 11, 12, 20])
    source.set_indices(chosen)
    state = source.state_dict()
    rest = list(batches)
    assert sorted(joined(begun + rest, "indices").tolist()) == list(range(COUNT))
    second = epoch(source, 1)
    assert sorted(joined(second, "indices").tolist()) == chosen.tolist()
    assert len(source) == len(second) == 2 and len(second[1]["labels"]) == 2

    resumed = loader(data, drop_last=False)
    resumed.load_state_dict(state)
    assert same(rest, epoch(resumed, 0)) and same(second, epoch(resumed, 1))

    source.sampler.set_epoch(2)
    third = iter(source)
    begun = [next(third)]
    state = source.state_dict()
    assert state["indices"][0].tolist() == chosen.tolist()
    resumed = loader(data, drop_last=False)
    resumed.load_state_dict(state)
    assert len(resumed) == 2 and same(list(third), epoch(resumed, 2))
    resumed.load_state_dict({"epoch": 1, "batches": 0})
    assert same(second, epoch(resumed, 1))
    resumed.set_indices(None)
    assert sorted(joined(epoch(resumed, 3), "indices").tolist()) == list(range(COUNT))


@pytest.mark.parametrize(("world", "rank"), [(1, 0), (2, 1)])
def test_validation_is_in_order(data: DeviceImages, world: int, rank: int) -> None:
    source = DeviceEvalLoader(data, EvalSampler(data, world, rank), 5)
    batches = list(source)
    assert len(batches) == len(source)
    expected = [i % COUNT for i in range(rank, -(-COUNT // world) * world, world)]
    assert joined(batches, "indices").tolist() == expected
    assert torch.equal(joined(batches, "images"), data.images[expected].float() / 255)


def test_fingerprint_tells_pixels_labels_and_names(data: DeviceImages) -> None:
    known = data.fingerprint()
    assert DeviceImages(data.images.clone(), data.labels, data.names).fingerprint() == known
    pixels = data.images.clone()
    pixels[3, 1, 2, 2] ^= 1
    others = [
        DeviceImages(pixels, data.labels, data.names),
        DeviceImages(data.images, data.labels.flip(0), data.names),
        DeviceImages(data.images, data.labels, ("a", "b", "c", "e")),
        data.select(torch.arange(22)),
    ]
    assert len({known, *(other.fingerprint() for other in others)}) == 5


@pytest.mark.parametrize(
    "options", [{"crop": -1}, {"flip": 1.5}, {"resized_crop": (0.5, 0.2)}, {"resized_crop": (0.0, 1.0)}]
)
def test_wrong_options(options: dict) -> None:
    with pytest.raises(UserError, match=f"data.*{next(iter(options))}"):
        DeviceAugment(**options)
