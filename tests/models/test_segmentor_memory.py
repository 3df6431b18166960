"""Queries that carry on from the frame before: the contract between student, training and inference."""

import pytest
import torch

from vlkd.engine.bundle import load_bundle
from vlkd.engine.hub import resolve
from vlkd.errors import UserError
from vlkd.models.segmentor import Segmentor

TINY = {"backbone": "timm:test_resnet", "channels": 32, "queries": 6, "layers": 2, "text_width": 24}


def tiny(memory, seed=0):
    torch.manual_seed(seed)
    return Segmentor(**TINY, memory=memory).eval()


def fields(prediction):
    return [prediction.mask_logits, prediction.queries, prediction.embeddings, prediction.memory]


@pytest.mark.parametrize("memory", [False, True])
def test_every_level_has_a_memory_and_the_last_is_what_is_handed_on(memory):
    levels = tiny(memory)(torch.rand(2, 3, 64, 96), all_levels=True)
    assert [tuple(level.memory.shape) for level in levels] == [(2, 6, 32)] * 3
    model = tiny(memory)
    last = levels[-1]
    assert torch.equal(model.query_head(last.memory), last.queries)


def test_without_memory_nothing_changed():
    plain, able = tiny(False), tiny(True)
    missing = able.load_state_dict(plain.state_dict(), strict=False)
    assert missing.missing_keys == ["decoder.propagation.weight", "decoder.propagation.bias"]
    images = torch.rand(2, 3, 64, 64)
    for one, other in zip(fields(plain(images)[-1]), fields(able(images)[-1]), strict=True):
        assert torch.equal(one, other)
    assert "decoder.propagation.weight" not in plain.state_dict()


def test_old_bundles_load():
    card, tensors = load_bundle(resolve("gkc-world"))
    assert "memory" not in card["architecture"]
    student = Segmentor(**card["architecture"])
    student.load_state_dict({k[8:]: v for k, v in tensors.items() if k.startswith("student.")})
    assert student.arguments["memory"] is False


def test_memory_moves_with_its_query_and_belongs_to_its_image():
    model = tiny(True)
    images, memory = torch.rand(2, 3, 64, 64), torch.randn(2, 6, 32)
    together = model(images, memory=memory)[-1]
    alone = model(images[1:], memory=memory[1:])[-1]
    for one, other in zip(fields(together), fields(alone), strict=True):
        assert torch.allclose(one[1:], other, atol=1e-4)
    fresh = model(images)[-1]
    assert not torch.allclose(fresh.mask_logits, together.mask_logits, atol=1e-2)
    # A query starts from its own memory: the first masks of the others do not change.
    other = memory.clone()
    other[:, 3] += 1
    start, moved = (model(images, all_levels=True, memory=given)[0].mask_logits for given in (memory, other))
    changed = (start - moved).abs().amax((0, 2, 3)) > 0
    assert changed.tolist() == [False, False, False, True, False, False]


def test_gradient_flows_back_through_the_frames():
    model = tiny(True).train()
    images = torch.rand(1, 3, 64, 64, requires_grad=True)
    first = model(images)[-1]
    second = model(torch.rand(1, 3, 64, 64), memory=first.memory)[-1]
    second.mask_logits.sum().backward()
    assert images.grad.abs().sum() > 0 and model.decoder.propagation.weight.grad.abs().sum() > 0


def test_the_architecture_says_so():
    assert Segmentor(**tiny(True).arguments).decoder.propagation is not None


def test_a_memory_that_does_not_fit_is_refused():
    images = torch.rand(2, 3, 64, 64)
    with pytest.raises(UserError, match="built with memory=True"):
        tiny(False)(images, memory=torch.zeros(2, 6, 32))
    with pytest.raises(UserError, match=r"\(1, 6, 32\) was given, needs \(2, 6, 32\)"):
        tiny(True)(images, memory=torch.zeros(1, 6, 32))


@pytest.mark.parametrize("memory", [False, True])
def test_a_clip_is_its_frames_in_order(memory):
    model = tiny(memory)
    images = torch.rand(2, 3, 3, 64, 64)  # two clips of three frames
    clip = model.clip(images.flatten(0, 1), 3, all_levels=True)
    state = None
    for t in range(3):
        levels = model(images[:, t], all_levels=True, memory=state)
        for whole, frame in zip(clip, levels, strict=True):
            for one, other in zip(fields(whole), fields(frame), strict=True):
                assert torch.allclose(one.unflatten(0, (2, 3))[:, t], other, atol=1e-4)
        state = levels[-1].memory if memory else None
