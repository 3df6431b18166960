"""Base and novel classes: which names a student must not see, and what happens to their segments."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from vlkd.data.sample import SegmentationDataset, SegmentationSample
from vlkd.errors import UserError
from vlkd.text.names import class_names, clean_name, nearest_hint

Handling = Literal["keep", "ignore", "delete", "base", "novel"]

# Novel classes by name. coco_gkc: the 18 COCO panoptic classes of GKC's ablation (yongliu20/GKC,
# prepare_coco_novel_json.py); vipseg_gkc: its 12 VIPSeg classes (prepare_vspw_novel_json.py);
# vspw_ov2vss: label values 81..124 of VSPW (AVC2-UESTC/OV2VSS, handle_data)
NAMED_SPLITS: dict[str, tuple[str, ...]] = {
    "coco_gkc": (
        *("bicycle", "suitcase", "cow", "giraffe", "bridge", "keyboard", "apple", "carrot", "toilet"),
        *("playing field", "scissors", "wine glass", "stop sign", "cardboard", "frisbee", "skateboard"),
        *("wall stone", "river"),
    ),
    "vipseg_gkc": (
        *("basket", "bathtub", "blackboard", "box", "fan", "ice", "instrument", "printer", "trash can"),
        *("tyre", "grandstand", "pillar"),
    ),
    "vspw_ov2vss": tuple(class_names("vspw_124")[80:]),
}


def resolve_novel(novel: str | Sequence[str] | None, names: Sequence[str]) -> frozenset[int]:
    """Class indices of the novel names, a list or a named split ("coco_gkc"); spelling is cleaned first.

    Raises UserError for a split or a name that is not there, with the nearest one.
    """
    if not novel:
        return frozenset()
    if isinstance(novel, str):
        if novel not in NAMED_SPLITS:
            hint = nearest_hint(novel, NAMED_SPLITS)
            raise UserError(
                f"unknown split {novel!r}{hint}; give a list of names or one of {', '.join(NAMED_SPLITS)}"
            )
        novel = NAMED_SPLITS[novel]
    return class_indices(novel, names)


def class_indices(chosen: Sequence[str], names: Sequence[str], what: str = "novel") -> frozenset[int]:
    """Class indices of the names `chosen`, spelling cleaned. Raises UserError for one that is not there."""
    index_of = {clean_name(name): index for index, name in enumerate(names)}
    unknown = [name for name in chosen if clean_name(name) not in index_of]
    if unknown:
        raise UserError(
            f"{what} class {unknown[0]!r} is not a class of this data set{nearest_hint(unknown[0], names)}"
        )
    return frozenset(index_of[clean_name(name)] for name in chosen)


class DatasetView(SegmentationDataset):
    """The samples `indices` of a data set, without the segments of the classes `hidden`."""

    def __init__(
        self,
        dataset: SegmentationDataset,
        indices: Sequence[int] | None = None,
        hidden: frozenset[int] = frozenset(),
        novel: frozenset[int] | None = None,
    ) -> None:
        self.dataset = dataset
        self.indices = range(len(dataset)) if indices is None else indices
        self.hidden = hidden
        self.names, self.isthing = dataset.names, dataset.isthing
        self.novel = dataset.novel if novel is None else novel

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> SegmentationSample:  # type: ignore[override]
        sample = self.dataset[self.indices[index]]
        return sample.keep([segment.category not in self.hidden for segment in sample.info])

    def categories(self, index: int) -> frozenset[int]:
        """Class indices of one sample that are not hidden."""
        return self.dataset.categories(self.indices[index]) - self.hidden

    def check(self, index: int) -> list[str]:
        """Faults of the underlying sample."""
        return self.dataset.check(self.indices[index])

    def missing(self) -> list[str]:
        """Missing files of the underlying data set."""
        return self.dataset.missing()


def apply_split(
    dataset: SegmentationDataset, novel: str | Sequence[str] | None = None, handling: Handling = "keep"
) -> SegmentationDataset:
    """The data set with `novel` (default: its own) marked and its segments handled.

    "keep" changes nothing; "ignore" makes novel segments void and keeps every image; "delete" drops images
    with any novel segment; "base" / "novel" keep only those segments and drop images that then have none.
    Raises UserError when no image is left.
    """
    indices = resolve_novel(novel, dataset.names) or dataset.novel
    if handling == "keep" or not indices:
        return DatasetView(dataset, novel=indices)
    everything = frozenset(range(len(dataset.names)))
    if handling == "ignore":
        return DatasetView(dataset, hidden=indices, novel=indices)
    with ThreadPoolExecutor() as pool:
        present = list(pool.map(dataset.categories, range(len(dataset))))
    if handling == "delete":
        kept, hidden = [i for i, found in enumerate(present) if not found & indices], frozenset[int]()
    else:
        hidden = indices if handling == "base" else everything - indices
        kept = [i for i, found in enumerate(present) if found - hidden]
    if not kept:
        novel_names = ", ".join(dataset.names[i] for i in sorted(indices)[:6])
        raise UserError(f'handling "{handling}" leaves no image: novel classes are {novel_names}')
    return DatasetView(dataset, kept, hidden, indices)
