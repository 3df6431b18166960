"""Two stages in one run: a config's section `teacher` trains the teacher of its model first."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlkd.engine.callbacks import LAST
from vlkd.engine.config_errors import CLASS_KEYS, arguments_of, class_of, read_config, with_init_args
from vlkd.engine.records.record import RECORD, read_record
from vlkd.engine.run_folder import all_overrides, first_config, is_first_process
from vlkd.errors import UserError

if TYPE_CHECKING:
    from vlkd.engine.experiment import Experiment

Fit = Callable[["Experiment", Path, bool], int]

SECTION = "teacher"
PREFIX = f"{SECTION}."
OPTION = "model.init_args.teacher"
LATER = "the teacher that stage 1 trains"  # stands for the bundle's path, so that the config can be parsed
SHARED = ("accelerator", "devices", "num_nodes")  # of the trainer: decide how many processes there are

# --- what Experiment needs of the section ------------------------------------------------------------------


def own_words(overrides: Sequence[str]) -> list[str]:
    """The overrides that are not of the section; a value that is a word of its own stays with its key."""
    return [word for mine, word in _sorted(overrides) if not mine]


def placeholder(content: Mapping[str, Any], overrides: Sequence[str], name: str) -> list[str]:
    """The override that stands for the teacher until it is trained.

    Raises UserError when the config gives a teacher beside the section, and when the method takes none.
    """
    from vlkd.methods.base import Distiller

    model = content.get("model")
    given = (model.get("init_args") or {}).get("teacher") if isinstance(model, dict) else None
    if given not in (None, LATER):  # --print_config shows the latter
        raise UserError(
            f"{name}: {OPTION}: {given!r} beside a section {SECTION}; leave one of them out "
            "(--model.teacher=BUNDLE on the command line skips stage 1)"
        )
    found = class_of("model", Distiller, dict(content), overrides, f"{name}: ")
    if "teacher" not in arguments_of(found):
        raise UserError(f"{name}: {SECTION}: {found.__name__} takes no teacher; leave the section out")
    return [f"--{OPTION}={LATER}"]


def refuse_words(overrides: Sequence[str], reason: str) -> None:
    """Raises UserError at the first override of the section."""
    for mine, word in _sorted(overrides):
        if mine:
            raise UserError(f"{word}: {reason}; leave it out")


# --- stage 1 as an experiment ------------------------------------------------------------------------------


def first_stage(main: Experiment) -> Experiment | None:
    """Stage 1 of a run, parsed and checked; None where the run has one stage.

    What its overrides set is written into the section of `main`, so that a resumed run knows it.
    """
    import yaml

    from vlkd.engine.experiment import Experiment

    if not main.staged:
        return None
    config = main.merged()
    section = config[SECTION]
    mine = [word for of_section, word in _sorted(main.overrides) if of_section]
    words = [word.replace(f"--{PREFIX}", "--", 1) if word.startswith("--") else word for word in mine]
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "config.yaml"
        written.write_text(yaml.safe_dump(composed(config)), encoding="utf-8")
        first = Experiment(written, words, main.shown_as, PREFIX)
    found = first.merged()
    for word in words:
        if word.startswith("--"):
            _copy(section, found, with_init_args(word[2:].split("=", 1)[0].rstrip("+")).split("."))
    main.config[SECTION] = section
    _seed_like(first, config, section)
    for key in SHARED:
        if found["trainer"].get(key) != config["trainer"].get(key):
            raise UserError(
                f"{main.shown_as}: {PREFIX}trainer.{key}: both stages run in the same processes; leave it "
                "out, or train stage 1 as a run of its own and give --model.teacher=BUNDLE"
            )
    first.overrides, first.notes = main.overrides, {"stage": SECTION}
    return first


def composed(config: Mapping[str, Any]) -> dict[str, Any]:
    """The whole config of stage 1: the section over the merged config of the run."""
    section = config[SECTION]
    data = section.get("data")
    if data is None or (isinstance(data, dict) and "class_path" not in data):
        data = data or {}
        arguments = _over(_data_arguments(config), data.get("init_args"))
        data = {**config["data"], **data, "init_args": arguments}
    return {
        "seed_everything": config["seed_everything"],
        **section,
        "data": data,
        "trainer": _over(config["trainer"], section.get("trainer")),
    }


def other_data(first: Experiment | None, main: Experiment) -> list[Experiment]:
    """Stage 1, where its data are not those of stage 2."""
    return [first] if first and first.merged()["data"] != main.merged()["data"] else []


def _over(base: Mapping[str, Any], given: Any) -> Any:
    return {**base, **(given or {})} if given is None or isinstance(given, dict) else given


def _sorted(overrides: Sequence[str]) -> Iterator[tuple[bool, str]]:
    """Each word, and whether it is of the section."""
    mine = False
    for word in overrides:
        mine = word.startswith(f"--{PREFIX}") if word.startswith("-") else mine
        yield mine, word


def _copy(section: dict[str, Any], found: Mapping[str, Any], keys: list[str]) -> None:
    """Takes over the value of a key, as stage 1 has parsed it: a whole argument, or a whole class."""
    *path, last = [key for key in keys[: 3 if keys[0] in CLASS_KEYS else 2] if key != "class_path"]
    value: Any = found
    for key in path:
        value = value.get(key) or {}
        if not isinstance(section.setdefault(key, {}), dict):
            section[key] = value  # given as a bare class path
            return
        section = section[key]
    section[last] = value.get(last)  # what is null is not part of a merged config


def _seed_like(first: Experiment, config: Mapping[str, Any], section: Mapping[str, Any]) -> None:
    """Another data module in stage 1 has the run's data.seed, unless the section sets it."""
    seed = _data_arguments(config).get("seed")
    has_one = "seed" in _data_arguments(first.merged())
    if seed is not None and has_one and "seed" not in _data_arguments(section):
        first.config["data.init_args.seed"] = seed


def _data_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    data = config.get("data")
    return (data.get("init_args") or {}) if isinstance(data, dict) else {}


# --- one stage after the other -----------------------------------------------------------------------------


def train_stages(
    main: Experiment,
    first: Experiment | None,
    run: Path,
    resumed: bool,
    fit: Fit,
    dry_run: bool = False,
) -> int:
    """Trains stage 1 in RUN/teacher unless it is finished, then stage 2 in RUN; a run of one stage as it is.

    `fit` trains an experiment in a folder, from its checkpoint or anew, and returns the exit code. Raises
    UserError when RUN/teacher holds another run, and for overrides of a stage 1 that is finished.
    """
    from vlkd.methods.base import Distiller

    if main.skipped:
        _say(f"stage 1: left out, model.teacher is given: {main.config[OPTION]}")
    if first is None:
        return fit(main, run, resumed and (run / LAST).is_file())
    folder = run / SECTION
    finished = (folder / RECORD).is_file()
    _say(f"stage 1: {SECTION}, in {folder}{': finished before' if finished else ''}")
    if finished and resumed:
        if read_config(run / "config.yaml").get(SECTION) != main.merged()[SECTION]:
            refuse_words(main.overrides, "stage 1 is finished")
    elif is_first_process() and not resumed:
        if (folder / "config.yaml").is_file():
            raise UserError(
                f"{folder}: already holds a run; choose another --run, or take its teacher with "
                f"--model.teacher={folder}"
            )
        (run / "versions.json").unlink(missing_ok=True)  # of an attempt that trained nothing
    if not finished:
        model = main.merged()["model"]
        method: Any = class_of("model", Distiller, {"model": model}, (), "")
        method.check_before_teacher(model["init_args"])
        code = _train_first(main, first, run, resumed, fit)
        if code:
            return code
    if dry_run:
        _say("stage 2: needs the teacher that stage 1 trains; its dry run comes before its first step")
        return 0
    _wait_for_all()
    take_teacher(main, run)
    _say(f"stage 2: student, in {run}")
    main.seed_again()
    return fit(main, run, (run / LAST).is_file())


def _train_first(main: Experiment, first: Experiment, run: Path, resumed: bool, fit: Fit) -> int:
    folder = run / SECTION
    begun = (folder / LAST).is_file()
    first.within = (main, run)
    first.source = first_config(run / "versions.json") or main.source
    if resumed and not begun and (run / "versions.json").is_file():
        first.overrides = [*all_overrides(run / "versions.json"), *main.overrides]
    try:
        return fit(first, folder, begun)
    except UserError:
        if is_first_process() and not (resumed or (folder / LAST).is_file()):
            (run / "config.yaml").unlink(missing_ok=True)  # nothing was trained: the folder may be used again
        raise


def take_teacher(main: Experiment, run: Path) -> None:
    """Gives stage 2 the bundle of the stage 1 that was finished in RUN, and its scores to keep.

    Raises UserError when there is none.
    """
    folder = run / SECTION
    if not (folder / RECORD).is_file():
        raise UserError(f"{folder / RECORD}: missing, stage 1 is not finished; give --model.teacher=BUNDLE")
    record = read_record(folder / RECORD)
    bundle = folder / str(record.get("bundle"))
    if not bundle.is_file():
        raise UserError(f"{bundle}: missing; it is the teacher that stage 1 trained")
    main.config[OPTION] = str(bundle)
    kept = {key: record.get(key) for key in ("scores", "protocol")}
    main.notes = {"stages": {SECTION: {**kept, "bundle": f"{SECTION}/{bundle.name}"}}}


def _wait_for_all() -> None:
    """Other processes must not look for the record of stage 1 before the first has written it."""
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


def _say(text: str) -> None:
    if is_first_process():
        print(text, flush=True)
