"""Tests of scripts/setup: uv uses the configuration of pip, pip is the fallback, nothing is installed twice."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import zipfile
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
INSTALLER = ROOT / "scripts" / "maintenance" / "install_with_uv.py"


def test_the_folder_scripts_has_the_expected_entries() -> None:
    top = {path.name for path in (ROOT / "scripts").iterdir()} - {"__pycache__"}
    expected = {
        "setup",
        "demo",
        "test",
        "check",
        "docs",
        "bench",
        "benchmarks",
        "validation",
        "maintenance",
        "gpu_check",
    }
    assert top == expected


def test_no_script_has_the_name_of_a_library() -> None:
    """Python searches the folder of a script first."""
    names = {path.stem for path in (ROOT / "scripts").rglob("*.py")}
    assert names.isdisjoint(sys.stdlib_module_names)
    installed = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]  # not sys.path, which other tests change
    assert not [name for name in names if PathFinder.find_spec(name, installed)]


@pytest.fixture(scope="module")
def installer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("install_with_uv", INSTALLER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- translating the configuration of pip for uv


def listed(config: Path | str, **variables: str) -> str:
    """Return the output of `pip config list` with this configuration file and these variables."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    return subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"],
        env=inherited | {"PIP_CONFIG_FILE": str(config)} | variables,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


CONFIG = """
[global]
index-url = https://us:pass%2Fword@pip.example.com/simple
extra-index-url =
    https://one.example.com/simple
    file:///two/simple
find_links = /wheels https://three.example.com/
trusted-host = pip.example.com
    one.example.com:8443
timeout = 7.5
constraint = /etc/old.txt
[install]
constraint = /etc/a.txt /etc/b.txt
no-index = false
[wheel]
no-index = true
"""


def test_files_and_variables_of_pip(installer: ModuleType, tmp_path: Path) -> None:
    config = tmp_path / "pip.conf"
    config.write_text(CONFIG)
    text = listed(config, PIP_CERT="/ca.pem", PIP_TIMEOUT="", PIP_TRUSTED_HOST="pip.example.com", PIP_NO_COLOR="1")
    variables, options = installer.translate(installer.settings(text), {})
    assert options == []
    assert {name: value for name, value in variables.items() if name != "UV_NATIVE_TLS"} == {
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_DEFAULT_INDEX": "https://us:pass%2Fword@pip.example.com/simple",
        "UV_INDEX": "https://one.example.com/simple file:///two/simple",
        "UV_FIND_LINKS": "/wheels,https://three.example.com/",
        "UV_INSECURE_HOST": "pip.example.com",
        "UV_HTTP_TIMEOUT": "7",
        "UV_CONSTRAINT": "/etc/a.txt /etc/b.txt",
        "SSL_CERT_FILE": "/ca.pem",
    }


def test_pip_without_configuration(installer: ModuleType) -> None:
    settings = installer.settings(listed(os.devnull))
    assert set(settings) <= {"config-file"}
    expected = {"UV_INDEX_STRATEGY": "unsafe-best-match", "UV_NATIVE_TLS": "true"}
    assert installer.translate(settings, {}) == (expected, [])


@pytest.mark.parametrize(("value", "options"), [("1", ["--no-index"]), ("true", ["--no-index"]), ("no", [])])
def test_no_index(installer: ModuleType, value: str, options: list[str]) -> None:
    assert installer.translate(installer.settings(listed(os.devnull, PIP_NO_INDEX=value)), {})[1] == options


def test_variables_of_uv_take_precedence(installer: ModuleType) -> None:
    """Except for proxies and certificates, for which pip's settings take precedence over the general variables."""
    pip = {"index-url": "https://pip", "proxy": "http://pip:1", "cert": "/pip.pem"}
    environment = {"UV_DEFAULT_INDEX": "https://uv", "https_proxy": "http://all:1", "SSL_CERT_FILE": "/all.pem"}
    variables, _ = installer.translate(pip, environment)
    assert variables["UV_DEFAULT_INDEX"] == "https://uv"
    assert variables["https_proxy"] == variables["HTTPS_PROXY"] == "http://pip:1"
    assert variables["SSL_CERT_FILE"] == "/pip.pem"


def test_certificates_that_pip_finds_through_requests(installer: ModuleType, tmp_path: Path) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.touch()
    variables, _ = installer.translate({}, {"REQUESTS_CA_BUNDLE": str(bundle)})
    assert variables["SSL_CERT_FILE"] == str(bundle)


def test_bytecode_is_compiled_if_python_may_not_save_it(installer: ModuleType) -> None:
    assert "UV_COMPILE_BYTECODE" not in installer.translate({}, {"PYTHONDONTWRITEBYTECODE": ""})[0]
    assert installer.translate({}, {"PYTHONDONTWRITEBYTECODE": "1"})[0]["UV_COMPILE_BYTECODE"] == "true"


@pytest.mark.parametrize("name", ["target", "prefer-binary", "no-binary", "an-unknown-setting"])
def test_a_setting_that_uv_would_ignore_is_left_to_pip(installer: ModuleType, name: str) -> None:
    with pytest.raises(installer.NotPossibleError, match=f"no counterpart of pip's setting `{name}`"):
        installer.translate({"index-url": "https://pip", name: "1"}, {})


# --- scripts/setup on a project that needs one wheel, and one more for its tests

BACKEND = '''
"""A build backend without dependencies that makes an editable wheel without code."""

from pathlib import Path
import zipfile

INFO = "project-1.dist-info"
METADATA = """Metadata-Version: 2.1
Name: project
Version: 1
Provides-Extra: dev
Provides-Extra: docs
Requires-Dist: needed
Requires-Dist: tested; extra == "dev"
"""

def build_editable(folder, config_settings=None, metadata_directory=None):
    with zipfile.ZipFile(Path(folder) / "project-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{INFO}/METADATA", METADATA)
        wheel.writestr(f"{INFO}/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(f"{INFO}/RECORD", "")
    return "project-1-py3-none-any.whl"
'''
PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "project"
version = "1"
"""


def make_wheel(folder: Path, name: str) -> None:
    with zipfile.ZipFile(folder / f"{name}-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", "")
        wheel.writestr(f"{name}-1.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        wheel.writestr(f"{name}-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{name}-1.dist-info/RECORD", "")


START = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)  # background processes ignore it
os.execv(sys.argv[1], sys.argv[1:])
"""


class Project:
    """A checkout with scripts/setup, a local package index, and a fake uv on the PATH."""

    def __init__(self, folder: Path) -> None:
        self.root, self.bin, self.wheels = folder / "checkout", folder / "bin", folder / "wheels"
        for path in (self.root / "scripts" / "maintenance", self.bin, self.wheels):
            path.mkdir(parents=True)
        for script in (ROOT / "scripts" / "setup", INSTALLER):
            copy = self.root / script.relative_to(ROOT)
            copy.write_bytes(script.read_bytes())
            copy.chmod(0o755)
        (self.root / "pyproject.toml").write_text(PYPROJECT)
        (self.root / "backend.py").write_text(BACKEND)
        for name in ("needed", "tested"):
            make_wheel(self.wheels, name)

    def uv(self, version: str, body: str) -> None:
        """Put a fake uv of this version on the PATH; ``body`` is the shell code of `uv pip install`."""
        uv = self.bin / "uv"
        uv.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo "uv {version}" && exit\n{body}\n')
        uv.chmod(0o755)

    def setup(self, *arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_"))}
        variables = {
            "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}",
            "PYTHON": sys.executable,
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.wheels),
        }
        script = str(self.root / "scripts" / "setup")
        return subprocess.run(
            [sys.executable, "-c", START, script, *arguments],
            env=inherited | variables,
            cwd=folder or self.root,
            capture_output=True,
            text=True,
            check=False,
            start_new_session=True,
        )

    def has(self, module: str) -> bool:
        """Return whether .venv has the module."""
        command = [str(self.root / ".venv" / "bin" / "python"), "-c", f"import {module}"]
        return subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Project for all tests, because creating a virtual environment takes seconds."""
    return Project(tmp_path_factory.mktemp("setup"))


@pytest.fixture
def fresh(project: Project) -> Project:
    """Project in which nothing is installed."""
    venv = project.root / ".venv"
    (venv / ".repsim-setup").unlink(missing_ok=True)
    for name in ("needed", "tested", "project"):
        for path in venv.glob(f"lib/python*/site-packages/{name}*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return project


@pytest.mark.slow
def test_uv_installs_each_level_once(fresh: Project, tmp_path: Path) -> None:
    log = tmp_path / "log"
    fresh.uv("0.9.1", f'echo "$UV_FIND_LINKS: $*" >> {log}')
    python = fresh.root / ".venv" / "bin" / "python"
    command = f"{fresh.wheels}: pip install --quiet --python {python} --no-index -e ."
    calls = [
        (["base"], 1),
        (["base"], 0),  # already installed
        ([], 1),  # the extras are missing
        (["base"], 0),
        ([], 0),
    ]
    for arguments, times in calls:
        log.write_text("")
        done = fresh.setup(*arguments, folder=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert log.read_text() == f"{command}{'' if arguments else '[dev,docs]'}\n" * times
    assert not fresh.has("needed")  # the fake uv installs nothing, and pip was not called


@pytest.mark.slow
def test_a_changed_pyproject_is_installed_again(fresh: Project, tmp_path: Path) -> None:
    log = tmp_path / "log"
    fresh.uv("0.9.1", f"echo called >> {log}")
    assert fresh.setup().returncode == 0
    (fresh.root / "pyproject.toml").write_text(f"{PYPROJECT}# changed\n")
    assert fresh.setup().returncode == fresh.setup().returncode == 0
    assert log.read_text() == "called\n" * 2


@pytest.mark.slow
def test_pip_installs_if_uv_fails(fresh: Project) -> None:
    fresh.uv("0.9.1", "echo '  × No solution found:' >&2; echo '  more' >&2; exit 1")
    done = fresh.setup("base")
    reason = (
        "scripts/setup: uv could not install (No solution found:); pip installs instead, which takes some minutes\n"
    )
    assert (done.returncode, done.stderr) == (0, reason)
    assert fresh.has("needed")
    assert not fresh.has("tested")
    assert fresh.setup().returncode == 0
    assert fresh.has("tested")


@pytest.mark.slow
def test_pip_installs_if_uv_is_not_available(fresh: Project) -> None:
    fresh.uv("0.4.22", "exit 3")  # too old
    done = fresh.setup("base")
    assert done.returncode == 0
    assert done.stderr.startswith(
        "scripts/setup: uv is not available here (ERROR: No matching distribution found for uv"
    )
    assert done.stderr.count("\n") == 1
    assert fresh.has("needed")


@pytest.mark.slow
def test_an_interrupted_installation_starts_again(fresh: Project) -> None:
    fresh.uv("0.9.1", "kill -INT 0")  # like Ctrl-C: to all processes of scripts/setup
    assert fresh.setup("base").returncode == -signal.SIGINT
    left = fresh.root / ".venv" / "left"
    left.touch()
    assert not fresh.has("needed")  # pip was not called
    fresh.uv("0.9.1", "")
    assert fresh.setup("base").returncode == 0
    assert not left.exists()


@pytest.mark.slow
def test_an_incomplete_virtual_environment_is_created_again(fresh: Project) -> None:
    fresh.uv("0.9.1", "")
    assert fresh.setup("base").returncode == 0
    for path in fresh.root.glob(".venv/lib/python*/site-packages/pip"):
        shutil.rmtree(path)
    (fresh.root / ".venv" / ".repsim-setup").unlink()
    assert fresh.setup("base").returncode == 0
    assert fresh.has("pip")


@pytest.mark.slow
def test_a_failed_installation_does_not_count_as_done(fresh: Project) -> None:
    fresh.uv("0.9.1", "exit 1")
    hidden = fresh.wheels.rename(fresh.wheels.with_name("hidden"))
    try:
        assert fresh.setup("base").returncode == 1
    finally:
        hidden.rename(fresh.wheels)
    assert fresh.setup("base").returncode == 0
    assert fresh.has("needed")


def test_an_unknown_level_is_an_error(fresh: Project) -> None:
    done = fresh.setup("everything")
    assert (done.returncode, done.stderr) == (2, "scripts/setup: expected base, all or nothing, got everything\n")
