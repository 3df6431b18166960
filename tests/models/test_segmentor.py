import json
import math

import pytest
import torch
import torch.nn.functional as F

from vlkd.errors import UserError
from vlkd.losses.mask import mask_losses
from vlkd.losses.matching import match
from vlkd.models.segmentor import Segmentor, pool_under_masks

TINY = {
    "backbone": "timm:test_resnet",
    "channels": 32,
    "queries": 6,
    "layers": 2,
    "heads": 4,
    "text_width": 24,
}


def _tiny(seed=0, **changes):
    torch.manual_seed(seed)
    return Segmentor(**{**TINY, "encoder_layers": 1, **changes})


@pytest.mark.parametrize("pixel_decoder", ["fpn", "msdeform"])
@pytest.mark.parametrize("size", [(64, 96), (70, 101), (31, 5)])
def test_any_size_gives_masks_at_a_quarter(pixel_decoder, size):
    model = _tiny(pixel_decoder=pixel_decoder)
    levels = model(torch.rand(2, 3, *size))
    assert len(levels) == 3
    for level in levels:
        assert level.mask_logits.shape == (2, 6, math.ceil(size[0] / 4), math.ceil(size[1] / 4))
        assert level.queries.shape == (2, 6, 32)
        assert torch.allclose(level.embeddings.norm(dim=-1), torch.ones(2, 6), atol=1e-5)
    model.eval()
    (final,) = model(torch.rand(1, 3, *size))
    assert len(model(torch.rand(1, 3, *size), all_levels=True)) == 3
    assert final.embeddings.shape == (1, 6, 24)


def test_final_level_alone_equals_the_last_of_all():
    model = _tiny(embedding="sum").eval()
    images = torch.rand(1, 3, 64, 64)
    (final,), levels = model(images), model(images, all_levels=True)
    assert torch.equal(final.embeddings, levels[-1].embeddings)
    assert torch.equal(final.mask_logits, levels[-1].mask_logits)
    assert not torch.allclose(levels[0].embeddings, levels[-1].embeddings)


@pytest.mark.parametrize("pixel_decoder", ["fpn", "msdeform"])
@pytest.mark.parametrize("embedding", ["query", "sum"])
def test_padded_image_predicts_as_alone(pixel_decoder, embedding):
    model = _tiny(pixel_decoder=pixel_decoder, embedding=embedding).eval()
    small, large = torch.rand(3, 100, 72), torch.rand(3, 160, 192)
    small = F.avg_pool2d(small, 9, stride=1, padding=4)
    images, valid = torch.zeros(2, 3, 160, 192), torch.zeros(2, 160, 192, dtype=torch.bool)
    images[0, :, :100, :72], images[1] = small, large
    valid[0, :100, :72], valid[1] = True, True
    with torch.no_grad():
        (both,), (alone,), (other,) = model(images, valid), model(small[None]), model(large[None])
        images[0] = torch.where(valid[0], images[0], torch.rand(3, 160, 192))
        (dirty,) = model(images, valid)
    assert torch.equal(dirty.mask_logits, both.mask_logits), "what lies in the padding must not matter"
    padded = both.mask_logits[0, :, :25, :18]
    spread = alone.mask_logits.std()
    assert ((padded - alone.mask_logits[0]).abs().mean() / spread) < 0.05
    assert (both.embeddings[0] * alone.embeddings[0]).sum(-1).min() > 0.99
    assert torch.allclose(both.mask_logits[1], other.mask_logits[0], atol=1e-3)


def test_without_valid_the_padding_does_matter():
    model = _tiny().eval()
    image = torch.rand(1, 3, 64, 64)
    padded = F.pad(image, (0, 128, 0, 128))
    valid = F.pad(torch.ones(1, 64, 64, dtype=torch.bool), (0, 128, 0, 128))
    with torch.no_grad():
        alone = model(image)[0].embeddings
        masked, blind = model(padded, valid)[0].embeddings, model(padded)[0].embeddings
    assert (masked - alone).norm() < 0.5 * (blind - alone).norm()


def test_class_logits_are_scaled_cosines_with_no_object_last():
    model = _tiny()
    embeddings, vectors = F.normalize(torch.randn(2, 6, 24), dim=-1), 3 * torch.randn(5, 24)
    logits = model.class_logits(embeddings, vectors)
    cosine = torch.cosine_similarity(embeddings[:, :, None], vectors[None, None], dim=-1)
    assert logits.shape == (2, 6, 6)
    assert torch.allclose(logits[..., :5], cosine / 0.07, atol=1e-4)
    none = torch.cosine_similarity(embeddings, model.no_object[None, None], dim=-1) / 0.07
    assert torch.allclose(logits[..., 5], none, atol=1e-4)
    with torch.no_grad():
        model.logit_scale.fill_(9.0)
    assert torch.allclose(model.class_logits(embeddings, vectors)[..., :5], 100 * cosine, atol=1e-3)


def test_class_lists_per_image_with_padding():
    model = _tiny()
    embeddings, vectors = F.normalize(torch.randn(2, 6, 24), dim=-1), torch.randn(2, 5, 24)
    present = torch.tensor([[True] * 5, [True, True, True, False, False]])
    logits = model.class_logits(embeddings, vectors, present)
    short = model.class_logits(embeddings[1:], vectors[1, :3])
    assert torch.allclose(logits[1, :, [0, 1, 2, 5]], short[0], atol=1e-5)
    assert (logits[1].softmax(-1)[:, 3:5] == 0).all()
    assert torch.allclose(logits[0], model.class_logits(embeddings[:1], vectors[0])[0], atol=1e-5)
    shared = model.class_logits(embeddings, vectors[0], torch.tensor([True, False, True, True, True]))
    assert (shared[..., 1] < -1e3).all() and (shared[..., [0, 2, 3, 4, 5]] > -1e3).all()


def test_vectors_of_another_width_are_refused():
    with pytest.raises(UserError, match="width 12"):
        _tiny().class_logits(torch.randn(1, 6, 24), torch.randn(5, 12))


@pytest.mark.parametrize("embedding", ["query", "pooled", "sum"])
@pytest.mark.parametrize("pixel_decoder", ["fpn", "msdeform"])
def test_arguments_rebuild_the_model(embedding, pixel_decoder):
    first = _tiny(embedding=embedding, pixel_decoder=pixel_decoder).eval()
    second = Segmentor(**json.loads(json.dumps(first.arguments))).eval()
    second.load_state_dict(first.state_dict())
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(first(images)[0].embeddings, second(images)[0].embeddings)
    assert first.spec == second.spec and first.spec.width == 24


@pytest.mark.parametrize("embedding", ["query", "sum"])
@pytest.mark.parametrize("pixel_decoder", ["fpn", "msdeform"])
def test_every_parameter_is_trained(embedding, pixel_decoder):
    model = _tiny(embedding=embedding, pixel_decoder=pixel_decoder)
    levels = model(torch.rand(2, 3, 64, 64))
    vectors = torch.randn(3, 24)
    loss = sum(
        p.mask_logits.square().mean()
        + model.class_logits(p.embeddings, vectors)[..., 0].mean()
        + model.class_logits(p.embeddings, vectors)[..., -1].mean()
        for p in levels
    )
    loss.backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]


@pytest.mark.parametrize("pixel_decoder", ["fpn", "msdeform"])
def test_bfloat16_autocast_is_close_to_float32(pixel_decoder):
    model = _tiny(pixel_decoder=pixel_decoder, embedding="sum").eval()
    images, vectors = torch.rand(1, 3, 70, 64), torch.randn(5, 24)
    (exact,) = model(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (rough,) = model(images)
        logits = model.class_logits(rough.embeddings, vectors)
    assert logits.dtype == rough.embeddings.dtype == torch.float32
    assert (rough.embeddings * exact.embeddings).sum(-1).min() > 0.98
    assert torch.allclose(logits, model.class_logits(rough.embeddings, vectors))


def test_pooling_is_the_mean_under_the_mask():
    features = torch.randn(1, 7, 4, 4)
    logits = torch.full((1, 2, 16, 16), -50.0)
    logits[0, 0, :8, :4], logits[0, 1] = 50.0, 50.0
    pooled = pool_under_masks(features, logits, None)
    assert torch.allclose(pooled[0, 0], features[0, :, :2, 0].mean(1), atol=1e-5)
    valid = torch.zeros(1, 16, 16, dtype=torch.bool)
    valid[:, :, :8] = True
    pooled = pool_under_masks(features, logits, valid)
    assert torch.allclose(pooled[0, 1], features[0, :, :, :2].mean((1, 2)), atol=1e-5)


def test_pooled_embeddings_start_from_a_clip_projection():
    model = _tiny(embedding="pooled").eval()
    weight = torch.randn(24, model.backbone.channels[-1])
    model.init_pooled(weight)
    with torch.no_grad():
        images = torch.rand(1, 3, 64, 64)
        last = model.backbone(model.spec.normalise(images))[-1]
        levels = model(images)
        # A mask that covers everything asks for the global mean, which is CLIP's own pooled embedding.
        semantic = model._text_map(last)
        everything = pool_under_masks(semantic, torch.full((1, 1, 16, 16), 50.0), None)
    assert torch.allclose(
        everything[0, 0],
        F.interpolate(last, scale_factor=2.0, mode="bilinear").mean((2, 3))[0] @ weight.T,
        atol=1e-3,
    )
    assert not any(name.startswith("projections") for name in model.state_dict())
    assert levels[0].embeddings.shape == (1, 6, 24)
    with pytest.raises(UserError, match="init_pooled"):
        model.init_pooled(weight[:, :-1])
    with pytest.raises(UserError, match="embedding='pooled'"):
        _tiny().init_pooled(weight)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": 30}, "multiple of heads=4"),
        ({"pixel_decoder": "unet"}, "'fpn' or 'msdeform'"),
        ({"embedding": "mean"}, "'query', 'pooled' or 'sum'"),
        ({"layers": 0}, "at least 1"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        _tiny(**changes)


def test_sizes_from_one_to_forty_five_million():
    with torch.device("meta"):
        small = Segmentor("timm:test_resnet", channels=64, queries=20, layers=3, text_width=512)
        large = Segmentor(
            "timm:resnet50",
            "msdeform",
            channels=256,
            queries=100,
            layers=9,
            ffn=2048,
            encoder_layers=6,
            text_width=512,
        )
    count = lambda model: sum(p.numel() for p in model.parameters())  # noqa: E731
    assert 0.7e6 < count(small) < 1.2e6
    assert 43e6 < count(large) < 47e6


def test_two_masks_are_learned_in_a_few_steps():
    model = _tiny(queries=4)
    images = torch.rand(1, 3, 64, 64) * 0.2
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[0, 8:30, 8:50], masks[1, 36:60, 20:60] = True, True
    images[0, 0, masks[0]] += 0.8
    images[0, 2, masks[1]] += 0.8
    vectors, labels = F.normalize(torch.randn(2, 24), dim=-1), torch.tensor([0, 1])
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        loss = torch.zeros(())
        for level in model(images):
            logits = model.class_logits(level.embeddings, vectors)[0]
            rows, columns = match(
                logits, level.mask_logits[0], labels, masks, points=256, generator=generator
            )
            losses = mask_losses(level.mask_logits[0, rows], masks[columns], 2, 256, generator=generator)
            target = torch.full((4,), 2).index_copy(0, rows, labels[columns])
            loss = loss + F.cross_entropy(logits, target) + 5 * losses["mask"] + 5 * losses["dice"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    level = model(images)[-1]
    logits = model.class_logits(level.embeddings, vectors)[0]
    score = torch.einsum("qk,qhw->khw", logits.softmax(-1)[:, :2], level.mask_logits[0].sigmoid())
    truth = masks[:, 2::4, 2::4]
    found = score > 0.5
    iou = (found & truth).sum((1, 2)) / (found | truth).sum((1, 2))
    assert iou.min() > 0.7, iou
