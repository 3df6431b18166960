import pytest

from vlkd.errors import UserError
from vlkd.text import template_sets, templates


def test_sizes_and_places_for_the_name() -> None:
    assert {name: len(templates(name)) for name in template_sets()} == {
        "bare": 1,
        "photo": 1,
        "vild": 14,
        "imagenet": 80,
    }
    for name in template_sets():
        assert len(set(templates(name))) == len(templates(name))
        assert all(template.count("{}") == 1 for template in templates(name))
    assert templates("bare") == ("{}",)
    assert templates("photo") == ("a photo of a {}",)


def test_imagenet_templates_are_open_clips() -> None:
    open_clip = pytest.importorskip("open_clip")
    assert templates("imagenet") == tuple(template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES)


def test_unknown_set_names_the_nearest() -> None:
    with pytest.raises(UserError, match='nearest: "imagenet"'):
        templates("imagenet80")
