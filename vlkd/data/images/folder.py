"""Labelled images from a folder a class, from ImageNet's layout, and from list files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from vlkd.data.files import IMAGE_SUFFIXES, need_folder
from vlkd.data.images.files import FileImages, images_below
from vlkd.errors import UserError
from vlkd.text.names import class_list, class_names, clean_names, nearest_hint

_IMAGENET = "imagenet_1000"


def class_folders(folder: Path) -> list[str]:
    """Sorted names of the class folders. Raises UserError for none."""
    need_folder(folder, "one folder for each class")
    found = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    if not found:
        raise UserError(
            f"{folder}: no class folders; expected {folder.name}/CLASS/IMAGE (datasets/README.md)"
        )
    return found


def open_folder(
    root: str | Path, split: str, names: Sequence[str] | None = None, reference: str = "train"
) -> FileImages:
    """ROOT/SPLIT/CLASS/..., classes in the order of the sorted folder names of the `reference` split.

    Raises UserError for missing folders, a class without images, and a class that the reference lacks.
    """
    base = Path(root).expanduser()
    folder = base / split
    own = class_folders(folder)
    classes = class_folders(base / reference) if (base / reference).is_dir() else own
    for name in own:
        if name not in classes:
            raise UserError(
                f"{folder / name}: no such class in {base / reference}{nearest_hint(name, classes)}; "
                f"both need the same class folders"
            )
    files: list[str] = []
    labels: list[int] = []
    for name in own:
        found = images_below(folder / name)
        if not found:
            raise UserError(
                f"{folder / name}: no images in this class folder; expected "
                f"{', '.join(IMAGE_SUFFIXES)} files, or remove the folder"
            )
        files += [os.path.join(name, file) for file in found]
        labels += [classes.index(name)] * len(found)
    shown = tuple(names) if names is not None else tuple(clean_names(classes))
    if len(shown) != len(classes):
        raise UserError(f"data.names: {len(shown)} names for the {len(classes)} class folders of {base}")
    return FileImages(folder, files, torch.tensor(labels), shown)


def open_imagenet(
    root: str | Path, split: str, names: Sequence[str] | None = None, reference: str = "train"
) -> FileImages:
    """ROOT/SPLIT/WNID/...; with all 1000 classes named by the packaged list, else by their folders."""
    base = Path(root).expanduser()
    if names is None:
        place = base / reference if (base / reference).is_dir() else base / split
        classes = class_folders(place)
        wrong = [name for name in classes if not (name[:1] == "n" and name[1:].isdigit())]
        if wrong:
            raise UserError(f"{place / wrong[0]}: no WordNet id such as n01440764; set data.kind=folder")
        names = class_names(_IMAGENET) if len(classes) == len(class_list(_IMAGENET).names) else classes
    return open_folder(base, split, names, reference)


def open_list(
    root: str | Path, split: str, names: Sequence[str] | None = None, reference: str = "train"
) -> FileImages:
    """Images named in ROOT/SPLIT.txt, or in the file SPLIT itself: lines "PATH LABEL", paths below ROOT.

    Without names the classes are the numbers up to the reference list's largest. Raises UserError naming file
    and line for a line of another form and for a label outside the classes.
    """
    base = need_folder(Path(root).expanduser(), "the images that the list files name")
    path = list_file(base, split)
    if names is None:
        whole = list_file(base, reference)
        largest = max(label for _, label in _lines(whole if whole.is_file() else path, None))
        names = [str(k) for k in range(largest + 1)]
    listed = _lines(path, len(names))
    files, labels = zip(*listed, strict=True)
    return FileImages(base, files, torch.tensor(labels), tuple(names))


def list_file(root: Path, split: str) -> Path:
    """The list file of a split."""
    if not split.endswith(".txt"):
        return root / f"{split}.txt"
    return Path(split).expanduser() if Path(split).expanduser().is_file() else root / split


def _lines(path: Path, classes: int | None) -> list[tuple[str, int]]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f'{path}: no such list; expected lines "PATH LABEL" (datasets/README.md)') from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    found: list[tuple[str, int]] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        file, _, label = line.strip().rpartition(" ")
        if not file or not label.lstrip("-").isdigit():
            raise UserError(f'{path}:{number}: {line.strip()[:60]!r}; expected "PATH LABEL"')
        if int(label) < 0 or (classes is not None and int(label) >= classes):
            expected = "0 or more" if classes is None else f"0 to {classes - 1}"
            raise UserError(f"{path}:{number}: label {label}, expected {expected}")
        found.append((file.strip(), int(label)))
    if not found:
        raise UserError(f'{path}: names no images; expected lines "PATH LABEL"')
    return found
