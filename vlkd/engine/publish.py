"""From a run's bundle to an entry of the model zoo."""

from __future__ import annotations

from pathlib import Path

import yaml
from torch import Tensor

from vlkd.engine.bundle import bundle_name, load_bundle, save_bundle
from vlkd.engine.download import sha256
from vlkd.engine.hub import Zoo
from vlkd.engine.run_folder import write_text
from vlkd.errors import UserError

_HEADER = """\
# The models that `vlkd.load(name)` and `--model name` know. Columns: see README.md beside this file.
"""


def publish(bundle: Path, name: str, score: str, config: str, licence: str) -> Path:
    """Write a bundle of any kind in half precision into the zoo, its manifest entry in place of an older one.

    Raises UserError when the card has no such score.
    """
    zoo = Zoo.open()
    card, tensors = load_bundle(bundle)
    scores = {key.removeprefix("score/"): value for key, value in card.get("scores", {}).items()}
    if score not in scores:
        raise UserError(f"--score {score}: the card has {', '.join(scores) or 'no scores'}")
    halves = {key: _half(value) for key, value in tensors.items()}
    path = zoo.folder / bundle_name(name, halves)
    save_bundle(path, {**card, "name": name, "licence": licence}, halves)
    entry = {
        "name": name,
        "file": path.name,
        "sha256": sha256(path),
        "size": path.stat().st_size,
        "licence": licence,
        "kind": card["kind"],
        "input": "x".join(map(str, card["input_spec"]["size"])),
        "score": f"{score} {scores[score]:.4f}",
        "config": config,
        "command": card.get("command", ""),
    }
    manifest = zoo.folder / "manifest.yaml"
    models = yaml.safe_load(manifest.read_text(encoding="utf-8"))["models"]
    kept = [model for model in models if model["name"] != name]
    models_now = sorted([*kept, entry], key=lambda model: model["name"])
    write_text(manifest, _HEADER + yaml.safe_dump({"models": models_now}, sort_keys=False, width=110))
    for old in (
        zoo.folder / model["file"] for model in models if model["name"] == name and model.get("file")
    ):
        if old != path:
            old.unlink(missing_ok=True)
    return path


def _half(values: Tensor) -> Tensor:
    """float16, except where it cannot hold the values: a running variance may exceed 65504."""
    halved = values.half() if values.is_floating_point() else values
    return halved if halved.isfinite().all() else values
