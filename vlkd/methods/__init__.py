"""What is learned: one folder for each method. This module is the registry and imports nothing heavy."""

from __future__ import annotations

import difflib
import importlib
import inspect
from pathlib import Path
from typing import TYPE_CHECKING

from vlkd.errors import UserError

if TYPE_CHECKING:
    from vlkd.methods.base import Distiller


def list_methods() -> list[str]:
    """Names of the folders beside this file that hold a method.py, sorted."""
    return sorted(path.parent.name for path in Path(__file__).parent.glob("*/method.py"))


def method_class(name: str) -> type[Distiller]:
    """The one public Distiller of a method's method.py. Raises UserError for an unknown name."""
    from vlkd.methods.base import Distiller

    names = list_methods()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        raise UserError(
            f"{name}: unknown method; {f'did you mean {near[0]}?' if near else f'there are {names}'}"
        )
    module = importlib.import_module(f"vlkd.methods.{name}.method")
    found = [
        item
        for key, item in vars(module).items()
        if inspect.isclass(item)
        and issubclass(item, Distiller)
        and item.__module__ == module.__name__
        and not key.startswith("_")
    ]
    if len(found) != 1:
        raise UserError(f"{module.__file__}: {len(found)} public Distiller classes, expected one")
    return found[0]


def class_paths() -> dict[str, str]:
    """Name -> class path as configs write it (`vlkd.methods.gkc.GKC`); imports every method."""
    return {name: f"vlkd.methods.{name}.{method_class(name).__name__}" for name in list_methods()}
