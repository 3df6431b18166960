"""Whatever lies in vlkd/methods is found and is complete."""

from importlib import import_module
from pathlib import Path

import pytest
import yaml

import vlkd
from vlkd.errors import UserError
from vlkd.methods import class_paths, list_methods, method_class
from vlkd.methods.base import Distiller

ROOT = Path(__file__).resolve().parents[2]


def test_methods_are_the_folders_with_a_method_file() -> None:
    folders = {path.name for path in (ROOT / "vlkd" / "methods").iterdir() if (path / "method.py").exists()}
    assert set(list_methods()) == folders
    assert vlkd.list_methods() == sorted(folders)


def test_unknown_method_names_the_nearest() -> None:
    with pytest.raises(UserError, match="nosuchmethod: unknown method"):
        method_class("nosuchmethod")


@pytest.mark.parametrize("name", list_methods())
def test_method_is_complete(name: str) -> None:
    cls = method_class(name)
    assert issubclass(cls, Distiller)
    for needed in ("compute_losses", "bundle", "validation_step"):
        assert needed in {
            key for base in cls.__mro__[: cls.__mro__.index(Distiller)] for key in vars(base)
        }, needed
    readme = ROOT / "vlkd" / "methods" / name / "README.md"
    assert len(readme.read_text(encoding="utf-8")) > 200
    config = yaml.safe_load((ROOT / "configs" / name / "world.yaml").read_text(encoding="utf-8"))
    assert config["model"]["class_path"] == class_paths()[name]


OTHERS = ("paper.yaml", "ovvs")  # numbers of papers; video benchmarks, which train nothing
CONFIGS = sorted(p for p in (ROOT / "configs").rglob("*.yaml") if not {p.name, p.parent.name} & {*OTHERS})


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_config_has_only_known_keys(config: Path) -> None:
    from vlkd.engine.experiment import Experiment

    folder, _, name = Experiment(config).merged()["model"]["class_path"].rpartition(".")
    # Beside its one method a folder may export what trains the teacher, as VideoTextTeacher.
    assert folder in {f"vlkd.methods.{method}" for method in list_methods()}
    assert name in getattr(import_module(folder), "__all__", ())
