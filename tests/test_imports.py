"""Imports run one way and in no circle, names do not clash, files stay short, and `import tfrec` is quick."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import tfrec

PACKAGE = Path(tfrec.__file__).parent
SERVING = PACKAGE.parent / "serving" / "tfrec_serving"
LEAVES = {"version", "progress", "files", "formats", "exceptions"}
ROOMS = ("data", "layers", "models", "evaluation", "index", "training", "report", "deploy", "cli")
"""Folders in the order in which data flows: a folder imports leaves, itself, and folders before it."""
LONGEST_FILE = 450


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports, at the top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def modules_of(package: Path) -> dict[str, Path]:
    """The files of a package by the names of their modules."""
    names = {path: path.relative_to(package.parent).with_suffix("").parts for path in sorted(package.rglob("*.py"))}
    return {".".join(parts).removesuffix(".__init__"): path for path, parts in names.items()}


def find_circle(package: Path) -> list[str]:
    """The modules of a circle of imports, or an empty list."""
    modules = modules_of(package)
    graph = {}
    for name, path in modules.items():
        used = imports_of(path) & set(modules)
        # importing a module runs the packages around it, unless the importer is inside them and they run already
        around = {p for p in modules for other in used if other.startswith(f"{p}.") and not name.startswith(f"{p}.")}
        # `from package import module` inside that package names the module alone
        parents = {p for p in used if name.startswith(f"{p}.") and any(o.startswith(f"{p}.") for o in used)}
        graph[name] = (used | around) - parents - {name}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def clashes_of(package: Path, public: list[str]) -> set[str]:
    """Public names that are submodules too, and names that a folder's `__init__` gives to two things."""
    found = set(public) & {
        path.stem for path in package.iterdir() if path.suffix in (".py", "") and path.stem[0] != "_"
    }
    for init in package.glob("*/**/__init__.py"):
        here = ".".join(init.parent.relative_to(package.parent).parts)
        body = ast.parse(init.read_text()).body
        imports = [node for node in body if isinstance(node, ast.ImportFrom) and node.module != here]
        given = {alias.asname or alias.name for node in imports for alias in node.names}
        given |= {node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        found |= given & {path.stem for path in init.parent.glob("[!_]*.py")}
    return found


MODULES = {name: path for name, path in modules_of(PACKAGE).items() if name != "tfrec"}


@pytest.mark.parametrize("name", MODULES)
def test_imports_run_one_way(name):
    room = name.split(".")[1]
    assert room in (*LEAVES, *ROOMS), f"{room} is no room: where does it belong?"
    imported = imports_of(MODULES[name])
    used = {other.split(".")[1] for other in imported if other.startswith("tfrec.")} & {*LEAVES, *ROOMS}
    allowed = LEAVES | set(ROOMS[: ROOMS.index(room) + 1] if room in ROOMS else ())
    assert used <= allowed, f"{name} imports from {used - allowed}"
    roots = {other.split(".")[0] for other in imported}
    if room in ("layers", "models") and name not in ("tfrec.models.lazy_table", "tfrec.models.tfrs_task"):
        assert "tensorflow" not in roots
    if room == "data" and name not in ("tfrec.data.batches", "tfrec.data.encoding", "tfrec.data.text"):
        assert not roots & {"keras", "tensorflow"}
    if room != "cli":
        assert "tfrec_serving" not in roots
    assert name == "tfrec.models.tfrs_task" or "tensorflow_recommenders" not in roots


@pytest.mark.parametrize("package", [PACKAGE, SERVING], ids=["tfrec", "tfrec_serving"])
def test_no_circle_no_clash_and_no_long_file(package):
    assert find_circle(package) == []
    assert clashes_of(package, tfrec.__all__ if package is PACKAGE else []) == set()
    lengths = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in package.rglob("*.py")}
    assert {name: n for name, n in lengths.items() if n > LONGEST_FILE} == {}


def planted(folder: Path, files: dict[str, str]) -> Path:
    """A package `tfrec` of the given files."""
    for name, text in {"__init__.py": "", "room/__init__.py": "", **files}.items():
        path = folder / "tfrec" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / "tfrec"


def test_a_planted_circle_is_found(tmp_path):
    inside = {"room/one.py": "import tfrec.room.two", "room/two.py": "def f():\n    from tfrec.room import one"}
    assert set(find_circle(planted(tmp_path / "a", inside))) == {"tfrec.room.one", "tfrec.room.two"}
    between = {"room/one.py": "import tfrec.other", "other.py": "from tfrec.room.one import x"}
    assert set(find_circle(planted(tmp_path / "b", between))) == {"tfrec.room.one", "tfrec.other"}
    one_way = {"room/__init__.py": "from tfrec.room import one", "room/one.py": "import tfrec.other", "other.py": ""}
    assert find_circle(planted(tmp_path / "c", one_way)) == []


def test_a_planted_clash_of_names_is_found(tmp_path):
    """`tfrec.export` was a function until somebody imported the module of that name."""
    files = {"export.py": "", "room/__init__.py": "from tfrec.room.check import check", "room/check.py": ""}
    assert clashes_of(planted(tmp_path, files), ["export", "train"]) == {"export", "check"}


def test_serving_imports_nothing_of_tfrec():
    for path in SERVING.glob("*.py"):
        assert "tfrec" not in {name.split(".")[0] for name in imports_of(path)}, path


def test_import_is_lazy():
    code = "import sys, tfrec; sys.exit(bool({'tensorflow', 'keras', 'duckdb', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_every_public_name_exists_and_stays_what_it_is():
    assert sorted(tfrec._HOMES) == list(tfrec._HOMES)
    for name in MODULES:  # importing a module binds it in its package
        __import__(name)
    for name in tfrec.__all__:
        assert getattr(tfrec, name) is not None
        assert name == "__version__" or getattr(tfrec, name).__module__.startswith("tfrec.")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        tfrec.nothing  # noqa: B018
