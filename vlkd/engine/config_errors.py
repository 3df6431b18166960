"""Turns a wrong config into one line: which file and key, and the nearest key that exists."""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from vlkd.errors import UserError

CLASS_KEYS = ("model", "data")  # given as {class_path, init_args}


def read_config(path: Path, shown_as: str = "") -> dict[str, Any]:
    """The mapping in a YAML file. Raises UserError naming the file, and the line of a syntax error."""
    import yaml

    name = shown_as or str(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise UserError(
            f"{name}: cannot be read: {problem.strerror}; expected a config such as configs/gkc/world.yaml"
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"{name}: not a text file; expected a YAML config") from None
    except yaml.MarkedYAMLError as problem:
        line = problem.problem_mark.line + 1 if problem.problem_mark else 1
        raise UserError(f"{name}:{line}: not valid YAML: {problem.problem}") from None
    except yaml.YAMLError as problem:
        raise UserError(f"{name}: not valid YAML: {' '.join(str(problem).split())}") from None
    if not isinstance(content, dict):
        raise UserError(
            f"{name}: expected keys and values (model, data, trainer), found {type(content).__name__}"
        )
    return content


def check_keys(
    parser: Any,
    classes: dict[str, type],
    content: dict[str, Any],
    overrides: Sequence[str],
    name: str,
    prefix: str = "",
) -> None:
    """Raises UserError at the first key of the file or the command line that nothing reads.

    Messages name keys with the prefix. argparse would take `--trainer.max_epoch` for an abbreviation, and
    jsonargparse answers in ten lines.
    """
    options = {option.lstrip("-") for option in parser._option_string_actions}
    valid = {
        action.dest for action in parser._actions if action.dest not in ("help", "config", "print_config")
    }
    where = f"{name}: {prefix}"
    for key, base in classes.items():
        found = class_of(key, base, content, overrides, where)
        valid |= {f"{key}.class_path", f"{key}.init_args"}
        valid |= {f"{key}.init_args.{argument}" for argument in arguments_of(found)}
        section = content.get(key)
        given = section.get("init_args") if isinstance(section, dict) else None
        valid |= {f"{key}.init_args.{argument}" for argument in _nested_arguments(found, given or {}, where)}

    for key in _leaves(content):
        if not _is_valid(key, valid):
            raise UserError(f"{where}{key}: unknown key{_hint(key, valid, prefix)}")
    for override in overrides:
        if not override.startswith("--"):
            continue
        key = override[2:].split("=", 1)[0].rstrip("+")
        long = with_init_args(key)
        if not _is_valid(long, valid) and (key not in options or "." in key):
            raise UserError(f"--{prefix}{key}: unknown key{_hint(long, valid, prefix)}")


def class_of(key: str, base: type, content: dict[str, Any], overrides: Sequence[str], where: str) -> type:
    """The class of a section. Raises UserError, its line beginning with `where`, when there is none."""
    class_path = _class_path(key, content, overrides)
    if class_path is None:
        raise UserError(f"{where}{key}.class_path: missing; expected the path of a class, as in configs/")
    return _import(class_path, base, key, where)


def explain(problem: Exception, name: str, prefix: str = "") -> UserError:
    """The one-line form of jsonargparse's message on a value of the wrong type or a missing argument."""
    message = str(problem)
    keys = re.findall(r'(?:Parser key|Key) "([^"]+)"', message)
    key = with_init_args(".".join(keys)) if keys else ""
    absent = re.search(r"arguments are required: (.+)", message)
    if absent:
        return UserError(
            f"{name}: {prefix}{with_init_args(f'{key}.{absent[1].strip()}')}: missing; the class needs it"
        )
    subtypes = re.findall(r"Subtypes: \[(.*)\]", message)
    expected = re.findall(r"Expected an? (.+?)\. Got value: (.*)", message)
    if expected:
        wanted, value = expected[-1]
        reason = f"expected {_plain(wanted)}, got {value.strip()!r}"
    elif subtypes and len(keys) == len(subtypes):
        value = re.findall(r"Given value: (.*)", message)[-1]
        wanted = " or ".join(_plain(part) for part in subtypes[-1].split(", "))
        reason = f"expected {wanted}, got {value.strip()!r}"
    else:
        inner = re.sub(r"- Expected an? <class 'NoneType'>.*", "", message, flags=re.DOTALL)
        reason = _plain(" ".join(inner.split()))
    return UserError(f"{name}: {prefix + key + ': ' if key else ''}{reason}")


def _plain(text: str) -> str:
    text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text).replace("typing.", "")
    return text.replace("NoneType", "null")


def with_init_args(key: str) -> str:
    """`model.lr` -> `model.init_args.lr`, as the command line may leave the middle out."""
    head, _, rest = key.partition(".")
    if head in CLASS_KEYS and rest and rest.split(".")[0] not in ("class_path", "init_args"):
        return f"{head}.init_args.{rest}"
    return key


def _class_path(key: str, content: dict[str, Any], overrides: Sequence[str]) -> str | None:
    for place, override in enumerate(overrides):
        option, _, value = override.partition("=")
        if option in (f"--{key}", f"--{key}.class_path"):
            return value or (overrides[place + 1] if place + 1 < len(overrides) else None)
    section = content.get(key)
    if isinstance(section, str):
        return section
    return section.get("class_path") if isinstance(section, dict) else None


def _import(class_path: str, base: type, key: str, where: str) -> type:
    module, _, attribute = str(class_path).rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as problem:
        # A module that exists but fails inside is a fault to be seen, not a misspelt path.
        missing = getattr(problem, "name", None)
        if isinstance(problem, ImportError) and missing and not f"{module}.".startswith(f"{missing}."):
            raise UserError(
                f"{where}{key}.class_path: {class_path} needs the package {missing}, not installed"
            ) from None
        raise UserError(
            f"{where}{key}.class_path: no class {class_path!r}{_hint(str(class_path), _known_classes(key))}"
        ) from None
    if not (isinstance(found, type) and issubclass(found, base)):
        raise UserError(f"{where}{key}.class_path: {class_path} is no {base.__name__}")
    return found


def _known_classes(key: str) -> set[str]:
    if key == "model":
        from vlkd.methods import class_paths

        return set(class_paths().values())
    try:
        import vlkd.data
    except ImportError:
        return set()
    return {
        f"vlkd.data.{item}" for item in getattr(vlkd.data, "__all__", dir(vlkd.data)) if item.endswith("Data")
    }


def arguments_of(found: type) -> set[str]:
    """Names of a class's constructor arguments, those that its bases take included."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(found, fail_untyped=False, sub_configs=True)
    return {
        action.dest
        for action in parser._actions
        if action.dest != "config" and not action.dest.endswith("help")
    }


def _nested_arguments(found: type, given: dict[str, Any], where: str) -> set[str]:
    """Keys inside a class's arguments that are dataclasses or classes themselves."""
    valid = set()
    for argument, hint in get_type_hints(found.__init__).items():  # type: ignore[misc]
        for part in (p for p in get_args(hint) or (hint,) if isinstance(p, type)):
            if is_dataclass(part):
                valid |= {f"{argument}.{field}" for field in arguments_of(part)}
            elif part.__module__.startswith("vlkd."):
                value = given.get(argument)
                path = value.get("class_path") if isinstance(value, dict) else None
                inner = arguments_of(_import(path, part, f"init_args.{argument}", where) if path else part)
                valid |= {f"{argument}.class_path", f"{argument}.init_args"}
                valid |= {f"{argument}.{middle}{key}" for key in inner for middle in ("", "init_args.")}
    return valid


def _leaves(content: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in content.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{path}.")
        else:
            yield path


def _is_valid(key: str, valid: set[str]) -> bool:
    """A key is known if it is an argument, a group of arguments, or lies inside one whose type decides."""
    if key in valid:
        return True
    parts = key.split(".")
    nested = [place for place, part in enumerate(parts) if part in ("class_path", "init_args", "dict_kwargs")]
    if len(nested) > 0 and nested[-1] > 1 and ".".join(parts[: nested[-1]]) in valid:
        inner = ".".join(parts[: nested[-1] + 1])
        if not any(other.startswith(f"{inner}.") for other in valid):
            return True  # a class inside a class, of a type not known here: checked when it is built
    for length in range(len(parts), 0, -1):
        prefix = ".".join(parts[:length])
        group = any(other.startswith(f"{prefix}.") for other in valid)
        if group:
            return length == len(parts)
        if prefix in valid:
            return True
    return False


def _hint(key: str, valid: Iterable[str], prefix: str = "") -> str:
    last = key.rsplit(".", 1)[-1]

    def likeness(other: str) -> float:
        whole = difflib.SequenceMatcher(None, key, other).ratio()
        return max(whole, 0.95 * difflib.SequenceMatcher(None, last, other.rsplit(".", 1)[-1]).ratio())

    best = max(valid, key=likeness, default="")
    return f"; did you mean {prefix}{best}?" if best and likeness(best) > 0.55 else ""
