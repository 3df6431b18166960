"""The run folder: where a run's config, versions, logs, checkpoint and bundle lie."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from vlkd import __version__
from vlkd.errors import UserError

SEED_OPTIONS = ("--seed_everything", "--data.seed", "--data.init_args.seed")
PACKAGES = ("torch", "torchvision", "lightning", "timm", "open_clip_torch", "numpy", "safetensors")


def new_run_folder(config: Path, chosen: str | None = None) -> Path:
    """runs/<folder>-<stem of the config>/<time>, or the chosen folder; UserError when that holds a run."""
    first = is_first_process()
    if chosen:
        folder = Path(chosen)
        if first and (folder / "config.yaml").exists():
            raise UserError(
                f"{folder}: already holds a run; continue it with --resume {folder} or choose another --run"
            )
        return folder
    # The processes that Lightning starts for one run take over the name that the first has found.
    stamp = time.strftime("%Y%m%d-%H%M%S")
    experiment = f"{config.resolve().parent.name}-{config.stem}"
    folder = Path("runs") / experiment / (stamp if first else os.environ.get("VLKD_RUN_NAME", stamp))
    number = 1
    while first and (folder / "config.yaml").exists():
        number += 1
        folder = folder.with_name(f"{stamp}-{number}")
    os.environ["VLKD_RUN_NAME"] = folder.name
    return folder


def run_to_resume(folder: str) -> Path:
    """The folder of an earlier run. Raises UserError when it holds no config or checkpoint.

    A run whose first stage trains the teacher has no checkpoint before its second.
    """
    from vlkd.engine.config_errors import read_config
    from vlkd.engine.stages import SECTION

    path = Path(folder)
    for name in ("config.yaml", "last.ckpt"):
        if name == "last.ckpt" and SECTION in read_config(path / "config.yaml"):
            continue
        if not (path / name).is_file():
            raise UserError(f"{path / name}: missing; --resume expects the folder of a run that has begun")
    return path


def is_first_process() -> bool:
    """Whether this is the process of a distributed run that writes and prints; true in a plain run."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_versions(
    path: Path, seed: int, command: str, config: Path | None = None, overrides: Sequence[str] = ()
) -> None:
    """Writes versions.json: what is needed to tell two runs apart.

    A resumed run keeps its first command and config, and adds to its overrides.
    """
    facts: dict[str, Any] = {
        "vlkd": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    for package in PACKAGES:
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            facts[package] = None
    facts |= {"seed": seed, "git": git_state(), "command": command}
    if config is not None:
        facts |= {"config": os.fspath(config), "overrides": list(overrides)}
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        facts |= {"command": before["command"], "resumed": [*before.get("resumed", []), command]}
        facts |= {"overrides": [*before.get("overrides", []), *overrides]} if config is not None else {}
    write_text(path, json.dumps(facts, indent=2) + "\n")


def git_state() -> dict[str, Any] | None:
    """Commit of the vlkd checkout and whether it was changed since; None outside a checkout."""
    here = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(here), *arguments], capture_output=True, text=True, timeout=10
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        if Path(git("rev-parse", "--show-toplevel") or "/nowhere") != here:
            return None
        return {"commit": git("rev-parse", "HEAD") or None, "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.TimeoutExpired):
        return None


def first_command(path: Path) -> str:
    """The command that began the run of a versions.json."""
    return str(json.loads(path.read_text(encoding="utf-8"))["command"])


def first_config(path: Path) -> Path | None:
    """The config that began the run of a versions.json; None where there is none yet or it does not tell."""
    config = json.loads(path.read_text(encoding="utf-8")).get("config") if path.is_file() else None
    return Path(config) if config else None


def all_overrides(path: Path) -> list[str]:
    """What the command lines of a run set differently from its config, but for the seed."""
    words = json.loads(path.read_text(encoding="utf-8")).get("overrides", [])
    return [word for word in words if word.split("=")[0] not in SEED_OPTIONS]


def command_line() -> str:
    """The command that started this process, as one would type it."""
    program = sys.argv[0]
    if program.endswith("__main__.py"):
        return shlex.join(["python", "-m", "vlkd", *sys.argv[1:]])
    if program.endswith(".py"):
        return shlex.join(["python", os.path.relpath(program), *sys.argv[1:]])
    return shlex.join([Path(program).name, *sys.argv[1:]])
