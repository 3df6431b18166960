"""A student that starts from its teacher's weights."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from vlkd.errors import UserError
from vlkd.models.clip import CLIPTower, build_clip, from_architecture
from vlkd.models.inherit import inherit_weights


def tower(
    seed: int, vision: dict[str, Any] | None = None, text: dict[str, Any] | None = None, **more: Any
) -> CLIPTower:
    torch.manual_seed(seed)
    architecture = copy.deepcopy(build_clip("vlkd-clip-vit").architecture)
    architecture["model_cfg"]["vision_cfg"] |= {"layers": 4, **(vision or {})}
    architecture["model_cfg"]["text_cfg"] |= text or {}
    architecture["model_cfg"] |= more
    return from_architecture(architecture)


def state(tower: CLIPTower) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in tower.model.state_dict().items()}


@pytest.mark.parametrize("custom", [False, True])
def test_an_identical_architecture_is_copied_exactly(custom: bool) -> None:
    teacher, student = tower(0), tower(1, custom_text=custom)
    report = inherit_weights(student, teacher)
    for name, value in student.model.state_dict().items():
        assert torch.equal(value, teacher.model.state_dict()[name.removeprefix("text.")]), name
    assert sum(r.copied for r in report.values()) == sum(v.numel() for v in state(student).values())
    assert all(r.sliced == r.kept == 0 and not r.kept_names for r in report.values())


def test_layers_are_spread_evenly_with_first_and_last() -> None:
    teacher, student = tower(0), tower(1, {"layers": 3})
    inherit_weights(student, teacher, ["visual"])
    blocks = teacher.model.visual.transformer.resblocks
    for own, source in zip(student.model.visual.transformer.resblocks, (0, 2, 3), strict=True):
        assert torch.equal(own.mlp.c_fc.weight, blocks[source].mlp.c_fc.weight)


def test_widths_take_leading_heads_channels_and_units() -> None:
    teacher = tower(0)
    student = tower(1, {"width": 64}, embed_dim=48)
    text = {k: v for k, v in state(student).items() if not k.startswith("visual.")}
    report = inherit_weights(student, teacher, ["visual"])["visual"]
    own, given = student.model.visual.transformer.resblocks[1], teacher.model.visual.transformer.resblocks[1]
    for k in range(3):  # q, k and v
        mine, theirs = (x.attn.in_proj_weight.chunk(3)[k] for x in (own, given))
        assert torch.equal(mine, theirs[:64, :64])
        assert torch.equal(own.attn.in_proj_bias.chunk(3)[k], given.attn.in_proj_bias.chunk(3)[k][:64])
    assert torch.equal(own.attn.out_proj.weight, given.attn.out_proj.weight[:64, :64])
    assert torch.equal(own.mlp.c_proj.weight, given.mlp.c_proj.weight[:64, :256])
    assert torch.equal(student.model.visual.proj, teacher.model.visual.proj[:64, :48])
    assert torch.equal(student.model.visual.conv1.weight, teacher.model.visual.conv1.weight[:64])
    assert report.copied == report.kept == 0
    assert report.sliced == sum(v.numel() for k, v in state(student).items() if k.startswith("visual."))
    assert all(torch.equal(state(student)[k], v) for k, v in text.items())


def test_narrower_heads_take_the_first_channels_of_each_head() -> None:
    teacher, student = tower(0), tower(1, {"width": 64, "head_width": 16})  # four heads each
    inherit_weights(student, teacher, ["visual"])
    own, given = (t.model.visual.transformer.resblocks[0].attn for t in (student, teacher))
    chosen = [head * 32 + channel for head in range(4) for channel in range(16)]
    assert torch.equal(own.in_proj_weight[64:128], given.in_proj_weight[128:256][chosen][:, :64])
    assert torch.equal(own.out_proj.weight, given.out_proj.weight[:64][:, chosen])


def test_more_heads_than_the_teacher_keep_their_attention() -> None:
    teacher, student = tower(0), tower(1, {"head_width": 16})
    before = state(student)
    report = inherit_weights(student, teacher, ["visual"])["visual"]
    assert report.kept_names and all(".attn." in name for name in report.kept_names if "in_proj" in name)
    name = "visual.transformer.resblocks.0.attn.in_proj_weight"
    assert torch.equal(state(student)[name], before[name])
    assert torch.equal(
        student.model.visual.transformer.resblocks[0].mlp.c_fc.weight,
        teacher.model.visual.transformer.resblocks[0].mlp.c_fc.weight,
    )


def test_positions_of_another_grid_are_interpolated() -> None:
    teacher, student = tower(0), tower(1, {"image_size": 32})
    report = inherit_weights(student, teacher, ["visual"])["visual"]
    own, given = (t.model.visual.positional_embedding for t in (student, teacher))
    assert torch.equal(own[0], given[0])
    grid = given[1:].reshape(1, 6, 6, -1).permute(0, 3, 1, 2)
    smaller = torch.nn.functional.interpolate(
        grid, (4, 4), mode="bicubic", antialias=True, align_corners=False
    )
    torch.testing.assert_close(own[1:], smaller.permute(0, 2, 3, 1).reshape(16, -1))
    assert report.sliced == own.numel() and report.kept == 0


def test_shorter_contexts_take_the_first_positions() -> None:
    teacher, student = tower(0), tower(1, text={"context_length": 16})
    inherit_weights(student, teacher, ["text"])
    assert torch.equal(student.model.positional_embedding, teacher.model.positional_embedding[:16])


def test_what_cannot_be_inherited_keeps_its_values_and_is_listed() -> None:
    teacher = tower(0)
    student = tower(1, {"patch_size": 16, "layers": 5}, {"vocab_size": 4000, "context_length": 40})
    before = state(student)
    report = inherit_weights(student, teacher)
    kept = report["visual"].kept_names
    assert "conv1.weight" in kept and "transformer.resblocks.4.ln_1.weight" in kept
    assert report["text"].kept_names == ["positional_embedding", "token_embedding.weight"]
    after = state(student)
    for name in ("visual.conv1.weight", "visual.transformer.resblocks.4.ln_2.bias", "token_embedding.weight"):
        assert torch.equal(after[name], before[name])
    layer = "visual.transformer.resblocks.3.mlp.c_fc.weight"
    assert torch.equal(after[layer], teacher.model.state_dict()[layer])


def test_other_networks_copy_equal_names_and_shapes() -> None:
    torch.manual_seed(0)
    teacher = build_clip("vlkd-clip-m")
    same, other = build_clip("vlkd-clip-m"), build_clip("vlkd-clip-s")
    report = inherit_weights(same, teacher, ["visual"])["visual"]
    assert report.kept == report.sliced == 0
    assert all(
        torch.equal(v, teacher.model.visual.state_dict()[k])
        for k, v in same.model.visual.state_dict().items()
    )
    before = state(other)
    report = inherit_weights(other, tower(0), ["visual"])["visual"]
    assert report.copied == report.sliced == 0 and len(report.kept_names) > 10
    assert all(torch.equal(v, before[k]) for k, v in state(other).items())


def test_unknown_half() -> None:
    with pytest.raises(UserError, match="inherit: 'vision' is unknown; expected visual or text"):
        inherit_weights(tower(0), tower(1), ["vision"])
