import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vlkd.models.deformable import DeformableAttention, MSDeformDecoder, reference_points
from vlkd.models.mask_decoder import Attention, MaskDecoder, attention_mask, sine_positions
from vlkd.models.pixel_decoder import FPN, MaskedGroupNorm


def _valids(height, width, size=64):
    valid = torch.zeros(1, size, size, dtype=torch.bool)
    valid[:, :height, :width] = True
    return [valid[:, ::s, ::s] for s in (4, 8, 16, 32)]


def test_masked_group_norm_is_group_norm_of_the_valid_part():
    norm = MaskedGroupNorm(4, 16)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(2, 16, 8, 8) + 3
    valid = torch.zeros(2, 8, 8, dtype=torch.bool)
    valid[:, :5, :6] = True
    assert torch.allclose(
        norm(x, valid)[:, :, :5, :6], nn.GroupNorm.forward(norm, x[:, :, :5, :6]), atol=1e-5
    )


@pytest.mark.parametrize("form", [FPN, MSDeformDecoder])
def test_pixel_decoder_shapes_and_blindness_to_padding(form):
    torch.manual_seed(0)
    decoder = form((8, 12, 16, 20), 32, 24)
    maps = [torch.randn(1, c, 64 // s, 64 // s) for c, s in zip((8, 12, 16, 20), (4, 8, 16, 32), strict=True)]
    valids = _valids(64, 32)
    features, scales = decoder(maps, valids)
    assert features.shape == (1, 24, 16, 16)
    assert [tuple(s.shape[1:]) for s in scales] == [(32, 2, 2), (32, 4, 4), (32, 8, 8)]
    noise = [torch.where(v[:, None], m, 1e3 * torch.randn_like(m)) for m, v in zip(maps, valids, strict=True)]
    for a, b, v in zip(
        [features, *scales],
        [decoder(noise, valids)[0], *decoder(noise, valids)[1]],
        [valids[0], valids[3], valids[2], valids[1]],
        strict=True,
    ):
        a, b = (t * v[:, None] for t in (a, b))
        assert torch.allclose(a, b, atol=1e-3)
    alone = decoder([m[..., : m.shape[-1] // 2] for m in maps], [None] * 4)[1]
    for a, b in zip(scales, alone, strict=True):
        assert torch.allclose(a[..., : b.shape[-1]], b, atol=1e-3)


def test_deformable_attention_against_explicit_bilinear_reads():
    torch.manual_seed(0)
    sizes, channels, heads, points = [(4, 6), (2, 3)], 8, 2, 3
    layer = DeformableAttention(channels, 2, heads, points)
    nn.init.normal_(layer.offsets.weight, std=0.3)
    nn.init.normal_(layer.weights.weight, std=0.5)
    count = sum(h * w for h, w in sizes)
    query, tokens = torch.randn(1, count, channels), torch.randn(1, count, channels)
    references = reference_points(sizes, [], torch.device("cpu"))
    got = layer(query, references.expand(1, -1, -1, -1), tokens, sizes, None)

    value = layer.value(tokens)[0].view(count, heads, channels // heads)
    offsets = layer.offsets(query)[0].view(count, heads, 2, points, 2)
    weights = layer.weights(query)[0].view(count, heads, -1).softmax(-1).view(count, heads, 2, points)
    want = torch.zeros(count, heads, channels // heads)
    for n in range(count):
        for head in range(heads):
            for level, (height, width) in enumerate(sizes):
                base = 0 if level == 0 else 24
                for p in range(points):
                    x = references[0, n, level, 0] * width + offsets[n, head, level, p, 0] - 0.5
                    y = references[0, n, level, 1] * height + offsets[n, head, level, p, 1] - 0.5
                    for row in (int(y.floor()), int(y.floor()) + 1):
                        for column in (int(x.floor()), int(x.floor()) + 1):
                            if 0 <= row < height and 0 <= column < width:
                                share = (1 - (y - row).abs()) * (1 - (x - column).abs())
                                cell = value[base + row * width + column, head]
                                want[n, head] += weights[n, head, level, p] * share * cell
    assert torch.allclose(got[0], layer.output(want.flatten(1)), atol=1e-5)


def test_reference_points_of_padded_levels_line_up():
    sizes = [(4, 4), (2, 2)]
    valids = [torch.zeros(1, h, w, dtype=torch.bool) for h, w in sizes]
    valids[0][:, :, :2], valids[1][:, :, :1] = True, True
    points = reference_points(sizes, valids, torch.device("cpu"))
    # Cell (0, 1) of the fine level: x = 0.75 of the valid half, that is 0.375 of either padded map.
    assert torch.allclose(points[0, 1], torch.tensor([[0.375, 0.125], [0.375, 0.125]]))


def test_attention_mask_falls_back_to_all_valid_cells():
    logits = torch.tensor([[[[1.0, -1.0], [1.0, -1.0]], [[-1.0, -1.0], [-1.0, 5.0]]]])
    assert attention_mask(logits, None)[0].tolist() == [
        [True, False, True, False],
        [False, False, False, True],
    ]
    valid = torch.tensor([[[True, False], [True, False]]])
    assert attention_mask(logits, valid)[0].tolist() == [[True, False, True, False]] * 2
    assert attention_mask(-torch.ones(1, 1, 2, 2), None).all()


def test_attention_is_softmax_attention_over_allowed_cells():
    layer = Attention(8, 2)
    q, k, v = torch.randn(1, 3, 8), torch.randn(1, 5, 8), torch.randn(1, 5, 8)
    allowed = torch.rand(1, 3, 5) > 0.4
    allowed[..., 0] = True
    heads = []
    for h in range(2):
        part = slice(4 * h, 4 * h + 4)
        scores = layer.query(q)[..., part] @ layer.key(k)[..., part].transpose(1, 2) / 2
        heads.append(scores.masked_fill(~allowed, -torch.inf).softmax(-1) @ layer.value(v)[..., part])
    assert torch.allclose(layer(q, k, v, allowed), layer.output(torch.cat(heads, -1)), atol=1e-5)


def test_sine_positions_depend_on_the_valid_extent_only():
    alone = sine_positions(torch.zeros(1, 16, 4, 6), None)
    valid = torch.zeros(1, 8, 8, dtype=torch.bool)
    valid[:, :4, :6] = True
    padded = sine_positions(torch.zeros(1, 16, 8, 8), valid)
    assert alone.shape == (1, 16, 4, 6)
    assert torch.allclose(alone, padded[:, :, :4, :6], atol=1e-5)
    flat = alone.flatten(2)[0].T
    distance = torch.cdist(flat, flat) + torch.eye(24) * 9
    assert distance.min() > 0.05, "positions must differ"


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_decoder_levels_and_final_only(layers):
    torch.manual_seed(0)
    decoder = MaskDecoder(32, 16, queries=5, layers=layers, heads=4, hidden=64)
    features, scales = torch.randn(2, 16, 16, 16), [torch.randn(2, 32, s, s) for s in (2, 4, 8)]
    levels = decoder(features, scales, [None] * 3)
    assert len(levels) == layers + 1
    assert all(level.mask_logits.shape == (2, 5, 16, 16) for level in levels)
    (final,) = decoder(features, scales, [None] * 3, final_only=True)
    assert torch.equal(final.mask_logits, levels[-1].mask_logits)
    sum(level.mask_logits.sum() + level.queries.sum() for level in levels).backward()
    assert not [name for name, p in decoder.named_parameters() if p.grad is None]


def test_small_attention_masks_equal_interpolated_full_ones():
    kernels, features = torch.randn(1, 4, 8), torch.randn(1, 8, 16, 16)
    full = torch.einsum("bqc,bchw->bqhw", kernels, features)
    small = F.interpolate(features, (4, 4), mode="bilinear", align_corners=False)
    want = F.interpolate(full, (4, 4), mode="bilinear", align_corners=False)
    assert torch.allclose(torch.einsum("bqc,bchw->bqhw", kernels, small), want, atol=1e-5)
