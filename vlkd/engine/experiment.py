"""A config made into data module, method and trainer: LightningCLI with one-line errors."""

from __future__ import annotations

import inspect
import logging
import os
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from vlkd.engine.callbacks import LAST, LastCheckpoint, PlainProgress, Stop
from vlkd.engine.config_errors import check_keys, explain, read_config
from vlkd.engine.resume import ExactResume, make_resumable
from vlkd.engine.stages import LATER, OPTION, SECTION, own_words, placeholder
from vlkd.errors import UserError, plain_errors
from vlkd.methods.base import Distiller

DEFAULTS = {"log_every_n_steps": 10, "num_sanity_val_steps": 0, "enable_model_summary": False}


class Experiment(LightningCLI):
    """What a config and its overrides describe; nothing is built before it is asked for.

    `prefix` stands before keys in messages: what is described is a section of a config (vlkd.engine.stages).
    Raises UserError for a missing file, wrong YAML, an unknown key or a value of the wrong type.
    """

    def __init__(
        self, config: Path, overrides: Sequence[str] = (), shown_as: str = "", prefix: str = ""
    ) -> None:
        self.source = config
        self.overrides = list(overrides)
        self.shown_as = shown_as or str(config)
        self.prefix = prefix
        self.content = read_config(config, self.shown_as)
        self.staged = not prefix and self.content.get(SECTION) is not None  # stage 1 trains its teacher
        self.skipped = False  # it would, but a teacher was given
        self.notes: dict[str, Any] = {}  # on stages, for the record
        self.within: tuple[Experiment, Path] | None = None  # of stage 1: the whole run and its folder
        self.written = False  # config and versions lie in the run folder
        quiet_libraries()
        super().__init__(
            Distiller,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,
            seed_everything_default=0,
            trainer_defaults=dict(DEFAULTS),
            parser_kwargs={"exit_on_error": False},
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            run=False,
        )

    def add_arguments_to_parser(self, parser: Any) -> None:
        if self.staged:
            parser.add_argument(f"--{SECTION}", type=dict, help="what stage 1, the teacher's, has different")

    def parse_arguments(self, parser: Any, args: Any) -> None:
        classes = {"model": Distiller, "data": LightningDataModule}
        own = own_words(self.overrides) if self.staged else self.overrides
        check_keys(parser, classes, self.content, own, self.shown_as, self.prefix)
        later = placeholder(self.content, own, self.shown_as) if self.staged else []
        try:
            self.config = parser.parse_args(["--config", str(self.source), *later, *own])
        except (ArgumentError, TypeError, ValueError) as problem:
            raise explain(problem, self.shown_as, self.prefix) from None
        if self.staged and self.config.get(OPTION) != LATER:
            self.staged, self.skipped = False, True
            self.config.pop(SECTION)

    def instantiate_classes(self) -> None:
        """Nothing yet: a check needs no model, a bundle brings its own."""

    @property
    def seed(self) -> int:
        return int(self.config["seed_everything"])

    def seed_again(self) -> None:
        """Random states as at the beginning, whatever was trained or read meanwhile."""
        self._set_seed()

    def merged(self) -> dict[str, Any]:
        """The whole config as plain values, defaults and overrides included.

        A teacher that stage 1 trains is not part of it: only the run knows where it lies.
        """
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # jsonargparse deprecates its own spelling from version to version
            # Nulls too: read back, a key that is left out would take its default again.
            text = self.parser.dump(self.config, format="yaml", skip_none=False)
        content = yaml.safe_load(text)
        content["trainer"] = {key: value for key, value in content["trainer"].items() if value is not None}
        content.pop("config", None)
        if self.staged:
            content["model"]["init_args"].pop("teacher")
        return content

    def build_data(self) -> LightningDataModule:
        """The data module alone."""
        with plain_errors():
            return self.parser.instantiate_classes(Namespace(data=self.config["data"]))["data"]

    def build_method(self) -> Distiller:
        """The method alone."""
        with plain_errors():
            return self.parser.instantiate_classes(Namespace(model=self.config["model"]))["model"]

    def build_trainer(self, callbacks: Sequence[Callback], logger: Any, **more: Any) -> Trainer:
        """The trainer of the config, with our callbacks beside those of the config."""
        given = self.parser.instantiate_classes(Namespace(trainer=self.config["trainer"]))[
            "trainer"
        ].as_dict()
        extra = given.pop("callbacks", None) or []
        given |= more
        if not sys.stdout.isatty():
            given["enable_progress_bar"] = False
        given["callbacks"] = [*(extra if isinstance(extra, list) else [extra]), *callbacks]
        if given.get("logger") in (None, True):
            given["logger"] = logger
        try:
            return Trainer(**given)
        except (ValueError, TypeError, MisconfigurationException) as problem:
            raise UserError(
                f"{self.shown_as}: {self.prefix}trainer: {str(problem).strip().splitlines()[0]}"
            ) from None

    def build(
        self, run: Path, stop: Stop, more: Sequence[Callback] = (), logged: bool = True
    ) -> tuple[Trainer, Distiller, LightningDataModule]:
        """All that training in the run folder needs; `stop` ends it, `more` are further callbacks."""
        data, method = self.build_data(), self.build_method()
        make_resumable(data)
        loggers = [
            CSVLogger(run, name="", version="", flush_logs_every_n_steps=20),
            TensorBoardLogger(run, name="", version="tensorboard"),
        ]
        callbacks: list[Callback] = [ExactResume(), *more, LastCheckpoint(run, stop)]
        if self.config["trainer"]["enable_progress_bar"] is not False:
            callbacks.append(RichProgressBar() if sys.stdout.isatty() else PlainProgress())
        logger = loggers if logged else False
        return self.build_trainer(callbacks, logger, default_root_dir=str(run)), method, data


def fit(trainer: Trainer, method: Distiller, data: LightningDataModule, checkpoint: Path | None) -> None:
    """Trains, from the checkpoint if there is one. Raises Interrupted when stopped."""
    restored: dict[str, Any] = {}
    if checkpoint:
        check_checkpoint(checkpoint)
        restored["ckpt_path"] = checkpoint
        if "weights_only" in inspect.signature(trainer.fit).parameters:
            restored["weights_only"] = True
    trainer.fit(method, datamodule=data, **restored)


def check_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, read without running any code that it might hold.

    Raises UserError for a damaged file and for one that holds more than tensors and plain values. Lightning
    before 2.6 loads without this guard, so it is called before Lightning sees the file.
    """
    path = path / LAST if path.is_dir() else path
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint") from None
    except Exception as problem:
        line = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
        raise UserError(f"{path}: damaged or unsafe checkpoint: {line[:160]}") from None


def quiet_libraries() -> None:
    """Keeps Lightning's notes on hardware, tips and worker counts out of the way of our own lines."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    for message in (
        ".*does not have many workers.*",
        ".*is smaller than the logging interval.*",
        ".*module\\(s\\) in eval mode.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*Experiment logs directory .* exists and is not empty.*",
        ".*No seed found.*",
        ".*It is recommended to use `self.log\\('score/.*",  # scores come from counts summed over processes
        ".*isinstance\\(treespec, LeafSpec\\).*",
    ):
        warnings.filterwarnings("ignore", message)
