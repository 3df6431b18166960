"""Prompted towers: recorded numbers, the words they start from, what is trained, bounds, identity."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from golden_cases import read
from torch import Tensor, nn

from vlkd.errors import UserError
from vlkd.models.clip import CLIPTower, build_clip, from_architecture
from vlkd.models.prompt import PromptedTower, TextPrompts, VisualPrompts

NAMES = ["car", "palm_tree", "all-day sucker"]
VIT = {"image_size": 16, "patch_size": 8, "width": 32, "layers": 5, "head_width": 8}
TEXT = {"context_length": 12, "vocab_size": 1000, "width": 32, "heads": 4, "layers": 5}
PREPROCESS = {"size": 16, "mean": (0.1, 0.2, 0.3), "std": (0.3, 0.2, 0.1), "interpolation": "bilinear"}
LONGER = TEXT | {"context_length": 24}
TEXTS: dict[str, dict[str, Any]] = {
    "clip": {},
    "custom": {"custom": True},
    "class token": {"custom": True, "embed_cls": True},
    "last token, no causal mask": {"custom": True, "no_causal_mask": True, "pool_type": "last"},
    "bias in the projection": {"custom": True, "proj_bias": True},
    "no projection": {"custom": True, "proj_type": "none", "width": 24, "heads": 3},
}


def tiny(
    vision: dict[str, Any] | None = None, text: dict[str, Any] | None = None, custom: bool = False
) -> CLIPTower:
    torch.manual_seed(0)
    config: dict[str, Any] = {"embed_dim": 24, "vision_cfg": VIT | (vision or {}), "quick_gelu": True}
    config |= {"text_cfg": text or TEXT, "custom_text": custom}
    return from_architecture({"name": "tiny", "model_cfg": config, "preprocess": PREPROCESS})


def prompted(tower: CLIPTower | None = None) -> PromptedTower:
    tower = tower or tiny()
    return PromptedTower(tower, VisualPrompts(tower.model.visual, 2, 3), TextPrompts(tower, 4, 3, words=None))


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    text = str(error.value)
    assert "\n" not in text and len(text) < 300
    return text


# --- recorded numbers --------------------------------------------------------------------------------------


def weights(case: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[Tensor]]:
    """State dict of the tower, and the prompts of the layers above the first."""
    state = {
        key.removeprefix("w_"): x for key, x in case.items() if key.startswith("w_") and "VPT" not in key
    }
    deep = sorted(key for key in case if key.endswith("VPT_shallow"))
    return state, [case[key] for key in deep]


def test_vision_is_that_of_promptkd() -> None:
    case, visual = read("promptkd_vit_tiny"), tiny().model.visual
    state, deep = weights(case)
    visual.load_state_dict(state)
    prompts = VisualPrompts(visual, length=2, depth=3)
    prompts.load_state_dict({"values": torch.stack([case["w_VPT"], *deep])})
    with torch.no_grad():
        torch.testing.assert_close(prompts(visual, case["x"]), case["y_fp32prompts"], rtol=1e-4, atol=2e-6)
        assert (visual(case["x"]) - case["y_fp32prompts"]).abs().max() > 0.1


class _Rows(nn.Module):
    """Stands for a token embedding: gives recorded rows instead of looking ids up."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, _: Tensor) -> Tensor:
        return self.rows


@pytest.mark.parametrize("custom", [False, True])
def test_text_is_that_of_promptkd(custom: bool) -> None:
    case, tower = read("promptkd_text_tiny"), tiny(custom=custom)
    state, deep = weights(case)
    text = tower.model.text if custom else tower.model
    missing, unexpected = text.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(key.startswith(("visual.", "token_embedding.", "logit_scale")) for key in missing)
    prompts = TextPrompts(tower, length=4, depth=3, words=None)
    assert prompts.start == 1
    found = []
    for ids, rows in zip(case["tokens"], case["prompts"], strict=True):
        prompts.load_state_dict({"values": torch.stack([rows[1:5], *deep])})
        spoilt = rows.clone()
        spoilt[1:5] = 7.0
        text.token_embedding = _Rows(spoilt[None])
        with torch.no_grad():
            found.append(prompts.features(tower, ids[None]))
    torch.testing.assert_close(torch.cat(found), case["y_fp32prompts"], rtol=1e-4, atol=2e-6)


# --- the words they start from -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TEXTS)
def test_shallow_prompts_of_words_equal_the_words(kind: str) -> None:
    options = dict(TEXTS[kind])
    custom = options.pop("custom", False)
    tower = tiny(text=LONGER | options, custom=custom)
    words = "a photo of a"
    length = int((tower.tokenizer([words])[0] != 0).sum()) - 2
    model = PromptedTower(tower, text=TextPrompts(tower, length, depth=1, words=words))
    expected = tower.encode_text([f"{words} {name.replace('_', ' ')}." for name in NAMES])
    torch.testing.assert_close(model.encode_text(NAMES), expected, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        model.prompts["text"].values.normal_()
        assert (model.encode_text(NAMES) - expected).abs().max() > 1e-3


def test_tokenizers_without_a_start_token_have_prompts_in_front() -> None:
    tower = tiny()
    whole = tower.tokenizer
    tower.tokenizer = lambda texts: F.pad(whole(texts)[:, 1:], (0, 1))
    prompts = TextPrompts(tower, 2, depth=1, words="a b")
    assert prompts.start == 0
    found = PromptedTower(tower, text=prompts).encode_text(NAMES[:1])
    torch.testing.assert_close(found, tower.encode_text(["a b car."]), rtol=1e-5, atol=1e-6)


def test_own_config_takes_four_words_as_four_tokens() -> None:
    tower = build_clip("vlkd-clip-s")
    prompts = TextPrompts(tower, depth=3)
    embedded = tower.model.token_embedding(tower.tokenizer(["a photo of a"]))[0]
    assert torch.equal(prompts.values[0], embedded[1:5])
    assert prompts.values.shape == (3, 4, 128) and 0.01 < prompts.values[1:].std() < 0.03
    assert PromptedTower(tower, text=prompts).encode_text(NAMES).shape == (3, 128)


# --- what they do ------------------------------------------------------------------------------------------


def test_vectors_have_unit_length_and_a_tower_without_prompts_is_as_before() -> None:
    model, images = prompted(), torch.rand(2, 3, 20, 30)
    for found, rows in ((model.encode_image(images), 2), (model.encode_text(NAMES), 3)):
        assert found.shape == (rows, 24)
        torch.testing.assert_close(found.norm(dim=-1), torch.ones(rows))
    plain = PromptedTower(model.tower)
    assert torch.equal(plain.encode_image(images), model.tower.encode_image(images))
    assert torch.equal(plain.encode_text(NAMES), model.tower.encode_text(NAMES))
    assert model.spec is model.tower.spec and model.logit_scale == model.tower.logit_scale


def test_each_layer_counts_up_to_depth() -> None:
    model, images = prompted(), torch.rand(2, 3, 16, 16)
    found = model.encode_image(images).sum() + model.encode_text(NAMES).sum()
    found.backward()
    for prompts in model.prompts.values():
        assert prompts.depth == 3 and (prompts.values.grad.abs().amax(dim=(1, 2)) > 0).all()


def test_averages_leave_prompts_out() -> None:
    visual = tiny({"pool_type": "avg", "layers": 1}).model.visual
    prompts, seen = VisualPrompts(visual, 3, 1), []
    visual.ln_post.register_forward_hook(lambda _, x, __: seen.append(x[0].shape))
    assert prompts(visual, torch.rand(2, 3, 16, 16)).shape == (2, 24)
    assert seen == [(2, 5, 32)]


def test_prompts_alone_are_trained() -> None:
    model = prompted().train()
    before = {key: x.clone() for key, x in model.tower.state_dict().items()}
    trained = {key for key, x in model.named_parameters() if x.requires_grad}
    assert trained == {"prompts.visual.values", "prompts.text.values"}
    assert model.training and not any(part.training for part in model.tower.modules())
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, weight_decay=0.1)
    logits = model.encode_image(torch.rand(3, 3, 16, 16)) @ model.encode_text(NAMES).T
    F.cross_entropy(logits, torch.arange(3)).backward()
    optimizer.step()
    assert all(x.grad is None for x in model.tower.parameters())
    assert all(torch.equal(x, before[key]) for key, x in model.tower.state_dict().items())


def test_gradients_are_the_same_with_checkpointing() -> None:
    model, images = prompted(), torch.rand(2, 3, 16, 16)
    found = []
    for enabled in (False, True):
        model.tower.model.set_grad_checkpointing(enabled)
        loss = (model.encode_image(images) @ model.encode_text(NAMES).T).square().sum()
        found.append(torch.autograd.grad(loss, list(model.prompts.parameters())))
    torch.testing.assert_close(found[0], found[1])


def test_bfloat16_in_the_towers_keeps_prompts_in_float32() -> None:
    model, images = prompted(), torch.rand(2, 3, 16, 16)
    expected = model.encode_image(images) @ model.encode_text(NAMES).T
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model.encode_image(images), model.encode_text(NAMES)
    assert all(x.dtype == torch.float32 for x in (*found, *model.prompts.parameters()))
    torch.testing.assert_close(found[0] @ found[1].T, expected, rtol=0, atol=0.03)


# --- identity and storing ----------------------------------------------------------------------------------


def test_identity_follows_tower_and_prompts() -> None:
    model = prompted()
    first = model.identity
    assert first == model.identity and first.startswith(f"{model.tower.identity}+")
    with torch.no_grad():
        model.prompts["text"].values[2, 3, 1] += 1
    assert model.identity != first
    assert PromptedTower(model.tower).identity != first


def test_prompts_are_stored_and_loaded() -> None:
    tower = tiny()
    model, other = prompted(tower), prompted(tower)
    other.prompts["visual"].values.data.normal_()
    assert other.identity != model.identity
    assert set(model.prompt_tensors()) == {"visual.values", "text.values"}
    other.load_prompts({key: x.half() for key, x in model.prompt_tensors().items()})
    assert other.identity == model.identity
    deeper = PromptedTower(tower, VisualPrompts(tower.model.visual, 2, 4), TextPrompts(tower, 4, 3, None))
    with pytest.raises(UserError, match=r"teacher\.safetensors: prompts") as caught:
        deeper.load_prompts(model.prompt_tensors(), "teacher.safetensors")
    assert "(3, 2, 32)" in one_line(caught) and "(4, 2, 32)" in one_line(caught)
    with pytest.raises(UserError, match="same depth and length"):
        PromptedTower(tower).load_prompts(model.prompt_tensors())


# --- bounds ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda t: VisualPrompts(t.model.visual, 0, 3), "length 0"),
        (lambda t: VisualPrompts(t.model.visual, 2, 0), "depth 0"),
        (lambda t: VisualPrompts(t.model.visual), "depth 9; this tower has 5 layers"),
        (lambda t: TextPrompts(t, 4, 6), "depth 6; this tower has 5 layers"),
        (lambda t: TextPrompts(t, 0, 3), "length 0"),
        (lambda t: TextPrompts(t, 10, 3, words=None), "give at most 9"),
        (lambda t: TextPrompts(t, 3, 3, words="a b"), "is 2 tokens in this vocabulary, length is 3"),
    ],
)
def test_bounds(build: Any, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        build(tiny())
    one_line(caught)


def test_all_layers_and_the_longest_context_work() -> None:
    tower = tiny()
    model = PromptedTower(
        tower, VisualPrompts(tower.model.visual, 9, 5), TextPrompts(tower, 9, 5, words=None)
    )
    assert model.encode_image(torch.rand(1, 3, 16, 16)).isfinite().all()
    assert model.encode_text(NAMES).isfinite().all()


@pytest.mark.parametrize(
    ("vision", "said"),
    [
        ({"layers": [1, 1, 1, 1], "width": 8, "image_size": 64, "head_width": 8}, "ModifiedResNet is no ViT"),
        ({"timm_model_name": "test_resnet", "timm_pool": "avg", "image_size": 64}, "ResNet is no ViT"),
        ({"timm_model_name": "test_convnext", "timm_pool": "", "image_size": 64}, "ConvNeXt is no ViT"),
        ({"timm_model_name": "test_vit", "timm_pool": "", "image_size": 160}, "VisionTransformer is no ViT"),
    ],
)
def test_other_image_towers_are_refused(vision: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        VisualPrompts(tiny(vision).model.visual)
    one_line(caught)


def test_text_towers_of_hugging_face_are_refused() -> None:
    tower = tiny(custom=True)
    tower.model.text = nn.Linear(2, 2)
    with pytest.raises(UserError, match="Linear is no text tower of open_clip's own") as caught:
        TextPrompts(tower)
    one_line(caught)
