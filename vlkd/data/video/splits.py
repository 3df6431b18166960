"""Base and novel classes of video data sets, and what the subsets of a split keep of them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from vlkd.data.folder import read_names
from vlkd.data.splits import NAMED_SPLITS, class_indices
from vlkd.data.video.record import VideoDataset, VideoRecord, VideoView, Vocabulary
from vlkd.errors import UserError
from vlkd.text.names import class_names, nearest_hint

# What GKC (yongliu20/GKC, prepare_vspw_novel_json.py) calls base_ignore, base_delete, val_base and val_novel
SUBSETS = {
    "ignore": "novel labels become void, frames without any label left go, every video stays",
    "delete": "videos with any novel class go",
    "val_base": "base labels alone, frames and videos without any go",
    "val_novel": "novel labels alone, frames and videos without any go",
}
# The split that a kind has unless told otherwise, for data in the classes of the packaged list
DEFAULTS = {"vipseg": ("vipseg_gkc", "vipseg_124"), "vspw": ("vspw_ov2vss", "vspw_124")}

ClassChoice = str | Path | Sequence[str] | None


def with_split(
    vocabulary: Vocabulary, kind: str, base: ClassChoice = None, novel: ClassChoice = None
) -> Vocabulary:
    """The vocabulary with its base and novel classes.

    Each is a named split's novel classes ("vipseg_gkc", "vspw_ov2vss"), a text file with one name a line, or
    a list of names; an empty list is no class. Without `novel` it is the annotation's own (LV-VIS), else the
    kind's DEFAULTS; without `base` it is every other class. Raises UserError for names that are not there and
    for classes that are both.
    """
    count = len(vocabulary.names)
    if novel is not None:
        unseen = _chosen(novel, vocabulary, "novel")
    elif base is not None:
        unseen = frozenset(range(count)) - _chosen(base, vocabulary, "base")
    else:
        name, names = DEFAULTS.get(kind, ("", ""))
        default = name and vocabulary.names == tuple(class_names(names))
        unseen = _chosen(name, vocabulary, "novel") if default else vocabulary.novel
    seen = frozenset(range(count)) - unseen if base is None else _chosen(base, vocabulary, "base")
    if both := sorted(seen & unseen):
        listed = ", ".join(vocabulary.names[index] for index in both[:6])
        raise UserError(f"classes are both base and novel: {listed}; take them out of one of the lists")
    return replace(vocabulary, base=seen, novel=unseen)


def take_subset(dataset: VideoDataset, subset: str) -> VideoDataset:
    """The videos, frames and labels that one of the SUBSETS keeps.

    Where labels are tracks no frame is dropped, since results need every frame of a video. "delete",
    "val_base" and "val_novel" ask every video for its classes: VSPW, raw VIPSeg and folders then read every
    label file. Raises UserError for an unknown subset, without novel classes, and when no video is left.
    """
    if subset not in SUBSETS:
        raise UserError(
            f"unknown subset {subset!r}{nearest_hint(subset, SUBSETS)}; known: {', '.join(SUBSETS)}"
        )
    if not dataset.novel:
        raise UserError(
            f'{dataset.source}: subset "{subset}" needs novel classes and this data set names none; '
            "pass novel, a list of names or a text file with one a line"
        )
    everything = frozenset(range(len(dataset.names)))
    candidates = dataset.novel if subset == "val_novel" else dataset.base
    records: Sequence[VideoRecord] = dataset.records
    if subset != "ignore":
        with ThreadPoolExecutor() as pool:
            present = list(pool.map(lambda record: record.categories(), records))
        kept = [not p & dataset.novel if subset == "delete" else bool(p & candidates) for p in present]
        records = [record for record, keep in zip(records, kept, strict=True) if keep]
    if not records:
        raise UserError(f'{dataset.source}: subset "{subset}" leaves no video')
    hidden = {"ignore": dataset.novel, "delete": frozenset[int]()}.get(subset, everything - candidates)
    if hidden:
        records = [VideoView(record, hidden, record.form != "tracks") for record in records]
    return VideoDataset(records, dataset.vocabulary, dataset.source, dataset.problems, candidates)


def _chosen(choice: str | Path | Sequence[str], vocabulary: Vocabulary, what: str) -> frozenset[int]:
    names: Sequence[str]
    if isinstance(choice, str | Path):
        path = Path(choice)
        if str(choice) in NAMED_SPLITS:
            names = NAMED_SPLITS[str(choice)]
        elif path.is_file() or path.suffix or len(path.parts) > 1:
            names = read_names(path)
        else:
            raise UserError(
                f"unknown split {str(choice)!r}{nearest_hint(str(choice), NAMED_SPLITS)}; give a list of "
                f"names, a text file, or one of {', '.join(NAMED_SPLITS)}"
            )
    else:
        names = choice
    return class_indices(names, vocabulary.names, what)
