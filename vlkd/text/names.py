"""Class names: packaged lists of the public data sets, and the cleaning that fits them for a text encoder."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources

from vlkd.errors import UserError

_LISTS = resources.files("vlkd.text") / "assets" / "class_names"
# COCO writes variants of one stuff class as "wall-brick"; a blanket "-" -> " " would also split "t-shirt".
_COCO_VARIANT = re.compile(r"-(blind|brick|concrete|marble|panel|stone|tile|wood)$")
_COCO_SUFFIX = re.compile(r"-(merged|other|stuff)\b")
_CAMEL_CASE = re.compile(r"(?:[A-Z][a-z]+){2,}")
_SPELLING = {
    "diningtable": "dining table",
    "playingfield": "playing field",
    "pottedplant": "potted plant",
    "tvmonitor": "tv monitor",
    "vehical": "vehicle",
    "waterdrops": "water drops",
}


@dataclass(frozen=True)
class ClassList:
    """The K classes of one data set in label order; `ids` and `isthing` where the source has them."""

    dataset: str
    names: tuple[str, ...]
    raw: tuple[str, ...]
    source: str
    ids: tuple[int, ...] | None = None
    isthing: tuple[bool, ...] | None = None


def clean_name(name: str) -> str:
    """Rewrite a data set's class name as plain lower-case words, never with an underscore.

    "_" becomes a space; COCO's "-merged", "-other", "-stuff" go and "wall-brick" becomes "wall brick" (after
    process_coco_cat of GKC's code, which keeps "-stuff" and splits every hyphen); of alternatives with commas
    ("road, route") the first stays; "SignSymbol" becomes "sign symbol"; known misspelt or joined names are
    mended.
    """
    return _clean(name.split(",")[0])


def _clean(name: str) -> str:
    name = " ".join(name.replace("_", " ").split())
    if _CAMEL_CASE.fullmatch(name):
        name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    name = _COCO_VARIANT.sub(r" \1", _COCO_SUFFIX.sub("", name.lower()))
    return _SPELLING.get(name, name)


def clean_names(names: Iterable[str]) -> list[str]:
    """Clean a whole list: as `clean_name`, but where first alternatives collide only one class keeps it.

    That is the class without alternatives, or the earliest; the others take their next free one: "pot,
    flowerpot" beside "pot" gives "flowerpot", "pot". Names that the source itself repeats stay repeated.
    """
    alternatives = [[_clean(part) for part in name.split(",")] for name in names]
    owner: dict[str, int] = {}
    for index in sorted(range(len(alternatives)), key=lambda i: len(alternatives[i]) > 1):
        owner.setdefault(alternatives[index][0], index)
    taken = set(owner)
    cleaned: list[str] = []
    for index, parts in enumerate(alternatives):
        free = [part for part in parts[1:] if part not in taken]
        choice = free[0] if owner[parts[0]] != index and free else parts[0]
        taken.add(choice)
        cleaned.append(choice)
    return cleaned


def nearest_hint(name: str, options: Iterable[str]) -> str:
    """Return ' (nearest: "x")' for an error message, or '' where nothing is near."""
    near = difflib.get_close_matches(name, list(options), n=1, cutoff=0.5)
    return f' (nearest: "{near[0]}")' if near else ""


@cache
def class_lists() -> tuple[str, ...]:
    """Return the names of the packaged class lists, sorted."""
    return tuple(
        sorted(entry.name[: -len(".json")] for entry in _LISTS.iterdir() if entry.name.endswith(".json"))
    )


@cache
def class_list(dataset: str) -> ClassList:
    """Return one packaged class list; "camvid" stands for "camvid_11" where only one list begins so.

    Raises UserError for an unknown name, with the nearest one.
    """
    known = class_lists()
    variants = [name for name in known if re.fullmatch(re.escape(dataset) + r"_\d+", name)]
    if dataset not in known:
        if len(variants) > 1:
            raise UserError(f'class list "{dataset}" is ambiguous: choose one of {", ".join(variants)}')
        if not variants:
            hint = nearest_hint(dataset, known)
            raise UserError(
                f'no class list "{dataset}"{hint}; vlkd.text.class_lists() names all {len(known)}'
            )
        dataset = variants[0]
    data = json.loads((_LISTS / f"{dataset}.json").read_text(encoding="utf-8"))
    classes = data["classes"]

    def column(key: str) -> tuple | None:
        return tuple(entry[key] for entry in classes) if key in classes[0] else None

    return ClassList(
        dataset=dataset,
        names=tuple(entry["name"] for entry in classes),
        raw=tuple(entry["raw"] for entry in classes),
        source=data["source"],
        ids=column("id"),
        isthing=column("isthing"),
    )


def class_names(dataset: str, raw: bool = False) -> list[str]:
    """Return a data set's class names in label order: cleaned, or as the source writes them.

    Raises UserError for an unknown data set.
    """
    entry = class_list(dataset)
    return list(entry.raw if raw else entry.names)
