"""What things are called: class lists, prompt templates, synonyms, class vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlkd.text.names import ClassList, class_list, class_lists, class_names, clean_name, clean_names
from vlkd.text.synonyms import synonyms
from vlkd.text.templates import template_sets, templates

if TYPE_CHECKING:
    from vlkd.text.class_vectors import ClassVectors

__all__ = [
    "ClassList",
    "ClassVectors",
    "class_list",
    "class_lists",
    "class_names",
    "clean_name",
    "clean_names",
    "synonyms",
    "template_sets",
    "templates",
]


def __getattr__(name: str) -> object:
    if name == "ClassVectors":  # imports torch
        from vlkd.text.class_vectors import ClassVectors

        return ClassVectors
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
