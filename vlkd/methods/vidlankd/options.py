"""The objectives of the student: their names, settings and what does not go together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlkd.errors import UserError
from vlkd.methods.vidlankd.base import check_weights

OF_STATES = ("hidden", "nst", "contrastive", "crd")
LOSSES = ("mlm", "soft_label", *OF_STATES)
RELEASED = ("mlm", "nst", "crd")
# Temperature and mode of the contrast: the setting that the world's table was made with; crd: RepDistiller.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "contrastive": {"mode": "flat", "temperature": 0.1},
    "crd": {"negatives": 4096, "temperature": 0.07, "momentum": 0.5},
    "soft_label": {"temperature": 1.0, "tokens": "hidden"},
}
_RELEASED: dict[str, dict[str, Any]] = {"crd": {"mode": "position", "temperature": 1.0}}
_WORDS = {"mode": ("flat", "position"), "tokens": ("hidden", "all")}


def with_defaults(options: Mapping[str, Mapping[str, Any]], compat: str) -> dict[str, dict[str, Any]]:
    """Settings of every loss that has some."""
    defaults = _DEFAULTS if compat == "clean" else _RELEASED
    return {name: {**values, **options.get(name, {})} for name, values in defaults.items()}


def check_objectives(
    weights: Mapping[str, float], options: Mapping[str, Mapping[str, Any]], compat: str, head: str
) -> None:
    """Raises UserError for losses and settings that there are not, or not with this `compat`."""
    check_weights(weights, LOSSES)
    if head not in ("mlp", "linear", "none"):
        raise UserError(f"model.head={head}: expected mlp, linear or none")
    for name in weights:
        if compat == "repo" and name not in RELEASED:
            raise UserError(
                f"model.weights.{name}: the release runs {', '.join(RELEASED)} alone (its contrast is called "
                "crd); set compat: clean"
            )
    known = _DEFAULTS if compat == "clean" else _RELEASED
    for name, given in options.items():
        settings = known.get(name)
        if settings is None:
            raise UserError(f"model.options.{name}: has no settings; there are {', '.join(known)}")
        for key, value in given.items():
            _check_setting(name, key, value, settings)


def _check_setting(name: str, key: str, value: Any, settings: Mapping[str, Any]) -> None:
    if key not in settings:
        raise UserError(f"model.options.{name}.{key}: no such setting; there are {', '.join(settings)}")
    if key in _WORDS and value not in _WORDS[key]:
        raise UserError(f"model.options.{name}.{key}={value}: expected {' or '.join(_WORDS[key])}")
    if key in ("temperature", "negatives") and not value > 0:
        raise UserError(f"model.options.{name}.{key}={value}: expected a number above 0")
    if key == "momentum" and not 0 <= value < 1:
        raise UserError(f"model.options.{name}.{key}={value}: expected a number in [0, 1)")
