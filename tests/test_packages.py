"""Both distributions, built and installed into empty environments."""

import email
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import tfrec
from tfrec_serving.server import Server

ROOT = Path(__file__).parent.parent
HEAVY = {"tensorflow", "scann", "tensorflow-recommenders", "keras", "tf-keras"}


def call(*command: object) -> str:
    """What a command prints; it runs outside the checkout, which Python would otherwise import from."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory) -> dict[str, Path]:
    """The wheels by the names of their distributions."""
    folder = tmp_path_factory.mktemp("wheels")
    for source in (ROOT, ROOT / "serving"):
        call(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, source)
    return {path.name.partition("-")[0].replace("_", "-"): path for path in folder.glob("*.whl")}


def metadata(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as files:
        (name,) = [n for n in files.namelist() if n.endswith(".dist-info/METADATA")]
        return email.message_from_bytes(files.read(name))


def required(wheel: Path) -> set[str]:
    """The distributions that a wheel needs, extras left out."""
    lines = [line for line in metadata(wheel).get_all("Requires-Dist", []) if "extra ==" not in line]
    return {line.split(";")[0].strip().split(" ")[0].rstrip("<>=~!.0123456789,") for line in lines}


def test_the_two_wheels_hold_what_they_should(wheels):
    assert set(wheels) == {"tfrec-towers", "tfrec-serving-client"}
    names = {name: set(zipfile.ZipFile(wheel).namelist()) for name, wheel in wheels.items()}
    assert {"tfrec/py.typed", "tfrec/cli/main.py", "tfrec_serving/py.typed", "tfrec_serving/server.py"} <= names[
        "tfrec-towers"
    ]
    client = {name for name in names["tfrec-serving-client"] if ".dist-info" not in name}
    assert client < names["tfrec-towers"]
    assert "tfrec_serving/client.py" in client
    assert "tfrec_serving/server.py" not in client
    assert required(wheels["tfrec-serving-client"]) == {"grpcio", "numpy", "protobuf"}
    assert required(wheels["tfrec-towers"]) >= HEAVY
    assert {metadata(wheel)["Version"] for wheel in wheels.values()} == {tfrec.__version__}


def new_environment(folder: Path) -> Path:
    call(sys.executable, "-m", "venv", folder)
    return folder / "bin" / "python"


@pytest.mark.slow
def test_a_service_installs_the_client_alone(wheels, exact_export, run, tmp_path):
    """Nothing but grpcio, protobuf and NumPy comes along, and the client queries a running server."""
    python = new_environment(tmp_path / "client")
    call(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheels["tfrec-serving-client"])
    installed = call(python, "-m", "pip", "list", "--format=freeze", "--disable-pip-version-check")
    assert not HEAVY & {line.partition("==")[0] for line in installed.splitlines()}
    code = """
import sys
from tfrec_serving import Client
with Client(sys.argv[1]) as client:
    print(*[r.item_id for r in client.recommend(["item-1", "item-2"], k=3)])
assert "tensorflow" not in sys.modules
"""
    with Server(exact_export, 0, 0) as server:
        for address in (f"127.0.0.1:{server.port}", f"http://127.0.0.1:{server.rest_api_port}"):
            found = call(python, "-c", code, address).split()
            assert found == run.recommend(["item-1", "item-2"], k=3).item_ids.tolist()


@pytest.mark.slow
def test_the_main_wheel_installs_into_an_empty_environment(wheels, tmp_path):
    """Without its requirements, which take gigabytes: it imports, and finds those of the tests when they are there."""
    python = new_environment(tmp_path / "main")
    call(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", wheels["tfrec-towers"])
    place = call(python, "-c", "import tfrec; print(tfrec.__file__, tfrec.__version__)").split()
    assert place == [str(next((tmp_path / "main").rglob("tfrec/__init__.py"))), tfrec.__version__]
    (site,) = (tmp_path / "main" / "lib").glob("python*/site-packages")
    (site / "tests.pth").write_text(str(Path(pytest.__file__).parents[1]))
    command = tmp_path / "main" / "bin" / "tfrec"
    assert call(command, "--version").strip() == tfrec.__version__
    assert "recommend" in call(command, "--help")
