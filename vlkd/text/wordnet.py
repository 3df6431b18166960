"""A reader of WordNet's own noun files (WNDB format: index.noun, data.noun, noun.exc)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from vlkd.errors import UserError

_FILES = ("index.noun", "data.noun", "noun.exc")
# Where the files lie inside a folder that a user may name: itself, nltk's data folder, Princeton's archive.
_INSIDE = (".", "corpora/wordnet", "wordnet", "dict")
# Morphy's rules of detachment for nouns (WordNet manual, morphy(7WN)).
_ENDINGS = (
    ("s", ""),
    ("ses", "s"),
    ("ves", "f"),
    ("xes", "x"),
    ("zes", "z"),
    ("ches", "ch"),
    ("shes", "sh"),
    ("men", "man"),
    ("ies", "y"),
)


def _default_folders() -> Iterator[Path]:
    if "WNSEARCHDIR" in os.environ:
        yield Path(os.environ["WNSEARCHDIR"])
    if "WNHOME" in os.environ:
        yield Path(os.environ["WNHOME"])
    yield Path("/usr/share/wordnet")
    yield from (Path(entry) for entry in os.environ.get("NLTK_DATA", "").split(os.pathsep) if entry)
    yield Path.home() / "nltk_data"
    yield Path("/usr/share/nltk_data")


def find_wordnet(folder: str | Path | None = None) -> Path:
    """Return the folder that holds WordNet's noun files, looking in `folder` or in the usual places.

    Raises UserError where they are not there.
    """
    starts = [Path(folder)] if folder is not None else list(_default_folders())
    for start in starts:
        for inside in _INSIDE:
            if all((start / inside / name).is_file() for name in _FILES):
                return start / inside
    where = str(folder) if folder is not None else "the usual places"
    raise UserError(
        f"{where}: no WordNet files ({', '.join(_FILES)}); install Debian's wordnet-base, or name "
        "a WordNet dict/ folder or an nltk data folder with corpora/wordnet (unzipped)"
    )


class WordNet:
    """WordNet's nouns; `folder` as in `find_wordnet`. Raises UserError where files are missing or damaged."""

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = find_wordnet(folder)

    @cached_property
    def version(self) -> str:
        """The version in the licence header of data.noun, for example "3.0"."""
        found = re.search(rb"WordNet (\d[\d.]*) Copyright", self._data[:4000])
        return found.group(1).decode() if found else "unknown"

    def senses(self, name: str) -> list[list[str]]:
        """Return the lemmas of every noun sense of a name, most frequent first; [] for an unknown name.

        Spaces and underscores are the same. A plural counts for its base form too ("stairs": stairs and
        stair), as in nltk's `wordnet.synsets(name, pos="n")`.
        """
        offsets = [offset for form in self._forms(name) for offset in self._index[form]]
        return [self._lemmas(offset) for offset in dict.fromkeys(offsets)]

    def _forms(self, name: str) -> list[str]:
        form = "_".join(name.lower().replace("_", " ").split())
        if form in self._exceptions:
            forms = self._exceptions[form]
        else:
            forms = [form[: -len(old)] + new for old, new in _ENDINGS if form.endswith(old)]
        return [candidate for candidate in dict.fromkeys([form, *forms]) if candidate in self._index]

    def _lemmas(self, offset: int) -> list[str]:
        line = self._data[offset : self._data.find(b"\n", offset)]
        fields = line.split(b" ", 4)
        if len(fields) < 5 or fields[0] != b"%08d" % offset:
            raise UserError(
                f"{self.folder / 'data.noun'}: no synset at byte {offset}; the file does not fit index.noun"
            )
        count = int(fields[3], 16)  # w_cnt is hexadecimal, and each word is followed by its lex_id
        return [
            word.decode().replace("_", " ") for word in fields[4].split(b" ", 2 * count)[0 : 2 * count : 2]
        ]

    @cached_property
    def _data(self) -> bytes:
        return (self.folder / "data.noun").read_bytes()

    @cached_property
    def _index(self) -> dict[str, list[int]]:
        index = {}
        for line in (self.folder / "index.noun").read_text(encoding="utf-8").splitlines():
            if line.startswith(" "):  # the licence header
                continue
            fields = line.split()
            try:  # lemma pos synset_cnt p_cnt [ptr_symbol...] sense_cnt tagsense_cnt synset_offset...
                index[fields[0]] = [int(offset) for offset in fields[-int(fields[2]) :]]
            except (IndexError, ValueError):
                raise UserError(
                    f'{self.folder / "index.noun"}: "{line[:40]}" is no line of a WordNet index'
                ) from None
        return index

    @cached_property
    def _exceptions(self) -> dict[str, list[str]]:
        lines = (self.folder / "noun.exc").read_text(encoding="utf-8").splitlines()
        return {fields[0]: fields[1:] for fields in map(str.split, lines) if fields}
