"""What is installed: the files, the metadata, and nothing that belongs to the source tree only."""

import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import distribution, files, metadata
from pathlib import Path, PurePosixPath

import pytest
from helpers import run_python

import cyconv
from cyconv import _dispatch, _runtime

PACKAGE = Path(cyconv.__file__).parent
SOURCE = Path(__file__).parents[1]
if PACKAGE == SOURCE / "cyconv" and not os.environ.get("CI"):
    pytest.skip("an editable install: there is no installed package to look at", allow_module_level=True)
INSTALLED = [PurePosixPath(path.as_posix()) for path in files("cyconv") or []]

release_build = pytest.mark.skipif("-UNDEBUG" in _runtime.flags, reason="a debug build carries its symbols")


def test_installed_package_is_tested_and_not_the_source_tree():
    assert not PACKAGE.is_relative_to(SOURCE / "cyconv")


def test_version_is_the_one_of_the_metadata():
    assert cyconv.__version__ == distribution("cyconv").version


def test_metadata():
    meta = metadata("cyconv")
    assert meta["License-Expression"] == "BSD-3-Clause"
    assert meta["Requires-Python"] == ">=3.11"
    assert [need for need in meta.get_all("Requires-Dist") if "extra" not in need] == ["numpy>=1.24"]


def test_wheel_is_abi3_for_python_3_11():
    assert re.search(r"^Tag: cp311-abi3-", distribution("cyconv").read_text("WHEEL"), re.MULTILINE)


def test_every_extension_module_is_abi3():
    assert {"".join(path.suffixes) for path in INSTALLED if path.suffix in {".so", ".pyd"}} == {".abi3.so"}


def test_nothing_else_is_installed():
    allowed = {".py", ".pyi", ".so", ".typed", ".npz", ".pyc", ".md"}
    for path in INSTALLED:
        assert path.parts[0] == "cyconv" or path.parts[0].endswith(".dist-info"), path
        assert path.parts[0] != "cyconv" or path.suffix in allowed or path.name == "py.typed", path


def test_what_must_be_installed_is():
    names = {str(path) for path in INSTALLED}
    assert {"cyconv/__init__.py", "cyconv/__main__.py", "cyconv/nn/__init__.py", "cyconv/py.typed"} <= names
    assert {"cyconv/_runtime.pyi", "cyconv/data/digits.npz"} <= names
    assert any(path.name == "LICENSE" for path in INSTALLED)


def test_every_kernel_is_installed_for_each_family_instruction_set_and_dtype():
    kernels = {path.name.partition(".")[0] for path in INSTALLED if path.match("_kernels/*.so")}
    families, isas, dtypes = (set(part) for part in zip(*(name.split("_") for name in kernels), strict=True))
    assert families >= {"conv", "pool"}
    assert isas >= set(_runtime.supported_instruction_sets())
    assert dtypes == {"float32", "float64"}
    assert len(kernels) == len(families) * len(isas) * len(dtypes)


@release_build
def test_installed_size_is_below_10_mb():
    assert sum(Path(path.locate()).stat().st_size for path in files("cyconv") if path.suffix != ".pyc") < 10e6


@release_build
def test_modules_do_not_name_the_directory_they_were_built_in():
    root = os.fsencode(SOURCE)
    for path in PACKAGE.rglob("*.so"):
        assert root not in path.read_bytes(), path


def test_import_needs_numpy_only():
    code = "import sys, cyconv; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "numpy" in loaded
    assert not {"scipy", "matplotlib", "tqdm", "threadpoolctl"} & set(loaded)


def test_main_prints_the_configuration():
    run = subprocess.run([sys.executable, "-m", "cyconv"], capture_output=True, text=True, check=True)
    assert cyconv.__version__ in run.stdout
    assert _runtime.flags in run.stdout


def test_sources_of_a_checkout_find_the_installed_kernels(tmp_path):
    ignored = shutil.ignore_patterns("*.so", "*.pyd", "__pycache__")
    shutil.copytree(PACKAGE, tmp_path / "cyconv", ignore=ignored)
    code = "import cyconv; print(cyconv.__file__); cyconv.show_config()"
    printed = run_python(f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}")
    assert printed.startswith(str(tmp_path))
    assert f"instruction set: {_dispatch.isa()}" in printed
