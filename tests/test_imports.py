"""The arrows of docs/design.md section 2: which part may import which."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "vlkd"

# The bundle and the hub are file formats, errors is one class: everybody may use them.
COMMON = ("vlkd.errors", "vlkd.cache", "vlkd.engine.bundle", "vlkd.engine.hub")
ALLOWED = {
    "losses": (),
    "metrics": (),
    "text": (),
    "models": ("text", "losses"),
    "data": ("text", "metrics"),
    "methods": ("losses", "models", "text", "metrics"),
    "infer": ("models", "text", "metrics"),
    "engine": ("methods", "infer", "metrics", "data"),
}
# Parts of the library may use these packages; all other third-party ones are free.
ONLY = {"losses": {"torch", "numpy", "scipy"}}
NEVER = {"models": {"lightning"}, "infer": {"lightning"}, "text": {"lightning"}, "metrics": {"lightning"}}


def imports(path: Path) -> Iterator[str]:
    """Absolute names of all that a file imports, in functions too; imports for type checkers aside."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files(part: str) -> list[Path]:
    return sorted((PACKAGE / part).rglob("*.py"))


@pytest.mark.parametrize("part", ALLOWED)
def test_arrows(part: str) -> None:
    wrong = []
    for path in files(part):
        for name in imports(path):
            own = (f"vlkd.{part}", *(f"vlkd.{other}" for other in ALLOWED[part]), *COMMON)
            if name.split(".")[0] == "vlkd" and not _starts(name, own) and not _is_package_fact(name):
                wrong.append(f"{path.relative_to(PACKAGE.parent)} imports {name}")
    assert not wrong, "\n".join(wrong)


def _starts(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def _is_package_fact(name: str) -> bool:
    return name in ("vlkd", "vlkd.__version__")


@pytest.mark.parametrize("part", ONLY)
def test_losses_are_plain_mathematics(part: str) -> None:
    for path in files(part):
        outside = {name.split(".")[0] for name in imports(path)} - ONLY[part] - {"vlkd", "__future__"}
        foreign = outside - set(sys.stdlib_module_names)
        assert not foreign, f"{path.relative_to(PACKAGE.parent)} imports {foreign}"


@pytest.mark.parametrize("part", NEVER)
def test_use_needs_no_training_library(part: str) -> None:
    for path in files(part):
        found = {name.split(".")[0] for name in imports(path)} & NEVER[part]
        assert not found, f"{path.relative_to(PACKAGE.parent)} imports {found}"


def test_engine_and_infer_know_no_single_method() -> None:
    methods = {path.parent.name for path in (PACKAGE / "methods").glob("*/method.py")}
    for part in ("engine", "infer"):
        for path in files(part):
            for name in imports(path):
                words = name.split(".")
                assert not (words[:2] == ["vlkd", "methods"] and len(words) > 2 and words[2] in methods), (
                    f"{path.relative_to(PACKAGE.parent)} imports {name}"
                )


def test_modules_stay_short() -> None:
    long = {
        str(path.relative_to(PACKAGE.parent)): count
        for path in PACKAGE.rglob("*.py")
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > 400
    }
    assert not long


@pytest.mark.parametrize(
    "statement",
    [
        "import vlkd; vlkd.list_methods(); vlkd.list_models()",
        "import vlkd.engine.cli; vlkd.engine.cli.main(['--help'])",
        "import vlkd.engine.cli; vlkd.engine.cli.main(['zoo', 'list'])",
    ],
)
def test_nothing_heavy_is_imported_until_used(statement: str) -> None:
    heavy = ["torch", "lightning", "open_clip", "timm", "decord", "matplotlib", "scipy", "jsonargparse"]
    code = f"{statement}\nimport sys\nprint([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", ["train", "test", "infer", "features", "probe"])
def test_help_loads_no_network(command: str) -> None:
    code = (
        f"import sys, atexit; atexit.register(lambda: print('heavy', 'torch' in sys.modules))\n"
        f"from vlkd.engine.cli import main; main([{command!r}, '--help'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, timeout=60
    )
    assert "usage: " in done.stdout, done.stderr
    assert done.stdout.splitlines()[-1] == "heavy False"


def test_tools_are_thin() -> None:
    for path in (PACKAGE.parent / "tools").glob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) < 60, path
