"""Imports run one way, and `import tfrec` is quick."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import tfrec

PACKAGE = Path(tfrec.__file__).parent
# from the data and the layers up to the command line: a room may import from its own row and the rows above it
ROWS = [
    {"version", "vocabulary", "progress"},
    {"prepared", "layers"},
    {"interactions", "splits", "baselines", "cooccurrence", "losses", "towers", "tfrs_task"},
    {"datasets", "sequences", "two_tower", "index", "filters", "check"},
    {"evaluation", "lazy_table"},
    {"training"},
    {"catalogue"},
    {"export", "lite"},
    {"cli", "demo"},
]
DATA_ROOMS = {"vocabulary", "prepared", "interactions", "splits", "baselines", "cooccurrence", "datasets"}
KERAS_ONLY = {"layers", "towers", "losses"}


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports, at the top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = [p for p in sorted(PACKAGE.rglob("*.py")) if p.name != "__init__.py" or p.parent != PACKAGE]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    row = {room: number for number, rooms in enumerate(ROWS) for room in rooms}
    room = room_of(path)
    assert room in row, f"{room} has no row: where does it belong?"
    used = {name.split(".")[1] for name in imports_of(path) if name.startswith("tfrec.")} & set(row)
    too_high = {other for other in used if row[other] > row[room]}
    assert not too_high, f"{room} imports {too_high} from above"
    roots = {name.split(".")[0] for name in imports_of(path)}
    if room in DATA_ROOMS:
        assert not used & {"layers", "towers", "two_tower"}
        assert not roots & {"keras", "tensorflow"}
    if room in KERAS_ONLY:
        assert "tensorflow" not in roots
    if room not in ("cli", "demo"):
        assert "tfrec_serving" not in roots
    assert room == "tfrs_task" or "tensorflow_recommenders" not in roots


def test_serving_imports_nothing_of_tfrec():
    serving = PACKAGE.parent / "serving" / "tfrec_serving"
    for path in serving.glob("*.py"):
        assert "tfrec" not in {name.split(".")[0] for name in imports_of(path)}, path


def test_import_is_lazy():
    code = "import sys, tfrec; sys.exit(bool({'tensorflow', 'keras', 'duckdb', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_every_public_name_exists():
    assert sorted(tfrec._HOMES) == list(tfrec._HOMES)
    for name in tfrec.__all__:
        assert getattr(tfrec, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        tfrec.nothing  # noqa: B018
