"""Noun synonyms of class names, from a table that datasets/prepare_synonyms.py makes of WordNet."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from importlib import resources

from vlkd.errors import UserError
from vlkd.text.names import clean_name
from vlkd.text.wordnet import WordNet

_TABLE = resources.files("vlkd.text") / "assets" / "synonyms.json"


def synonyms(name: str, senses: str = "all") -> list[str]:
    """Return a class name, cleaned, and its WordNet noun synonyms; only [name] where the table has none.

    `senses`: "all" takes the lemmas of every sense, as GKC's code does, and leaves unfitting ones ("car":
    "cable car") to the filtering by CLIP; "first" takes those of the most frequent sense. Other values raise
    UserError.
    """
    if senses not in ("all", "first"):
        raise UserError(f'senses="{senses}": expected "all" or "first"')
    name = clean_name(name)
    return [name, *_table().get(name, {}).get(senses, [])]


@cache
def _table() -> dict[str, dict[str, list[str]]]:
    return json.loads(_TABLE.read_text(encoding="utf-8"))["synonyms"]


def synonym_table(names: Iterable[str], wordnet: WordNet) -> dict[str, dict[str, list[str]]]:
    """Return {cleaned name: {"all": [...], "first": [...]}}, sorted, without the name itself.

    Of a name like "screen or television" that WordNet does not know, each part is a synonym and brings its
    own. Names without any synonym are left out.
    """
    table = {}
    for name in sorted({clean_name(name) for name in names}):
        groups = [wordnet.senses(name)]
        parts: list[str] = []
        if not groups[0] and " or " in name:
            parts = name.split(" or ")
            groups = [wordnet.senses(part) for part in parts]
        every = [lemma for senses in groups for lemmas in senses for lemma in lemmas]
        first = [lemma for senses in groups for lemmas in senses[:1] for lemma in lemmas]
        entry = {"all": _distinct([*parts, *every], name), "first": _distinct([*parts, *first], name)}
        if entry["all"]:
            table[name] = entry
    return table


def _distinct(lemmas: Iterable[str], name: str) -> list[str]:
    by_case = {name.lower(): name}
    for lemma in lemmas:
        by_case.setdefault(lemma.lower(), lemma)
    return list(by_case.values())[1:]
