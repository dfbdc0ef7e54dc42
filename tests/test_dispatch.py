"""Choice of the instruction set, environment variables, show_config."""

import io
from pathlib import Path

import numpy as np
import pytest
from helpers import check_backward, check_forward, random, run_python

import cyconv
from cyconv import _dispatch, _runtime

RUN = """
import numpy, cyconv, sys
cyconv.conv2d(numpy.ones((1, 1, 4, 4), 'f'), numpy.ones((1, 1, 3, 3), 'f'))
print(cyconv._dispatch.isa(), [m for m in sys.modules if m.startswith('cyconv._kernels.conv_')])
"""


def test_the_best_instruction_set_of_the_machine_is_the_default():
    best = _runtime.supported_instruction_sets()[0]
    assert run_python(RUN) == f"{best} ['cyconv._kernels.conv_{best}_float32']"
    assert _dispatch._available[0] == best
    assert _dispatch._available[-1] == "baseline"


def test_every_instruction_set_can_be_forced(isa):
    assert run_python(RUN, CYCONV_ISA=isa) == f"{isa} ['cyconv._kernels.conv_{isa}_float32']"


@pytest.mark.parametrize("name", ["avx", "AVX2", "neon512", " "])
def test_an_unknown_instruction_set_is_an_error_that_names_those_available(name):
    code = "try:\n    import cyconv\nexcept ValueError as error:\n    print(error)"
    message = run_python(code, CYCONV_ISA=name)
    assert message.startswith(f"CYCONV_ISA={name!r} is not available here")
    assert message.endswith(", ".join(_dispatch._available))


def test_an_instruction_set_that_the_processor_lacks_is_an_error():
    code = """
import importlib.util, sys, types
package = types.ModuleType("cyconv")  # without running cyconv/__init__.py
package.__path__ = importlib.util.find_spec("cyconv").submodule_search_locations
sys.modules["cyconv"] = package
from cyconv import _runtime
stub = types.SimpleNamespace(
    supported_instruction_sets=lambda: ("baseline",), max_threads=_runtime.max_threads, openmp=_runtime.openmp)
sys.modules["cyconv._runtime"] = package._runtime = stub
try:
    import cyconv._dispatch
except ValueError as error:
    print(error)
"""
    assert run_python(code, CYCONV_ISA="avx512") == "CYCONV_ISA='avx512' is not available here, choose from baseline"


def test_the_isa_fixture_selects_the_kernels(isa, rng, dtype):
    module = _dispatch.kernels("conv", dtype)
    assert module.__name__ == f"cyconv._kernels.conv_{isa}_{dtype}"
    x, weight = random(rng, (1, 2, 5, 9), dtype), random(rng, (3, 2, 3, 3), dtype)
    check_backward(check_forward(x, weight), x, weight)


def test_the_isa_fixture_fails_if_a_required_instruction_set_is_absent(tmp_path):
    test = tmp_path / "test_it.py"
    test.write_text("def test_it(isa):\n    pass\n")
    conftest = __file__.replace("test_dispatch.py", "conftest.py")
    (tmp_path / "conftest.py").write_text(
        Path(conftest).read_text() + '\n_dispatch._available = tuple(set(_dispatch._available) - {"avx512"})\n'
    )
    code = f"import pytest; raise SystemExit(pytest.main(['-q', '-p', 'no:cacheprovider', {str(tmp_path)!r}]))"
    assert "2 passed, 1 skipped" in run_python(code).splitlines()[-1] or len(_dispatch._available) < 3
    with pytest.raises(AssertionError):
        run_python(code, CYCONV_REQUIRE_ISA="avx512")


def test_threads_come_from_the_environment():
    code = "import cyconv; print(cyconv.get_num_threads())"
    if not _runtime.openmp:
        assert run_python(code, CYCONV_NUM_THREADS="3") == "1"
        return
    assert run_python(code, CYCONV_NUM_THREADS="3") == "3"
    assert run_python(code, OMP_NUM_THREADS="5") == "5"
    assert run_python(code, OMP_NUM_THREADS="5", CYCONV_NUM_THREADS="7") == "7"
    assert run_python(code, OMP_NUM_THREADS="5", CYCONV_NUM_THREADS="") == "5"


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "1025", "²"])
def test_a_bad_number_of_threads_in_the_environment_is_an_error(value):
    code = "try:\n    import cyconv\nexcept ValueError as error:\n    print(ascii(str(error)))"
    assert "CYCONV_NUM_THREADS must be an integer of 1..1024, got" in run_python(code, CYCONV_NUM_THREADS=value)


def test_show_config_names_what_is_used():
    file = io.StringIO()
    assert cyconv.show_config(file) is None
    text = file.getvalue()
    for part in (cyconv.__version__, _dispatch.isa(), "threads:", "OpenMP:", "-O3", ", ".join(_dispatch._available)):
        assert part in text
    assert "instruction set: baseline" in run_python("import cyconv; cyconv.show_config()", CYCONV_ISA="baseline")


def test_import_needs_neither_scipy_nor_kernels_nor_layers():
    names = "('scipy', 'cyconv._kernels.', 'cyconv.nn')"
    code = f"import sys, cyconv; print([m for m in sys.modules if m.startswith({names})])"
    assert run_python(code) == "[]"
    assert run_python("import cyconv; print(cyconv.nn.__name__)") == "cyconv.nn"


def test_all_public_names_exist():
    for name in cyconv.__all__:
        assert getattr(cyconv, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'conv9d'"):
        _ = cyconv.conv9d


def test_scratch_memory_is_kept_and_released(rng):
    x, weight = random(rng, (1, 16, 30, 30), "f"), random(rng, (16, 16, 3, 3), "f")
    expected = cyconv.conv2d(x, weight, padding=1)
    cyconv.release_scratch()
    assert not _dispatch.scratch
    for _ in range(10):
        assert (cyconv.conv2d(x, weight, padding=1) == expected).all()
        cyconv.conv2d_backward(expected, x, weight, padding=1)
    assert len(_dispatch.scratch) <= 2  # a call holds its tables and its strips
    assert sum(map(len, _dispatch.scratch)) < 64 << 20
    cyconv.release_scratch()
    assert not _dispatch.scratch


def test_kernels_of_both_dtypes_are_told_apart():
    assert _dispatch.kernels("conv", np.dtype("f")) is not _dispatch.kernels("conv", np.dtype("d"))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs the size of the process")
def test_scratch_that_cannot_be_allocated_is_a_memory_error():
    code = """
import resource
import numpy as np
import cyconv
x, weight = np.ones((1, 64, 200, 200), "f"), np.ones((64, 64, 3, 3), "f")
expected = cyconv.conv2d(x, weight)
grad = cyconv.conv2d_backward(expected, x, weight, wrt=("weight",))
out = np.empty_like(expected)
cyconv.release_scratch()
limits = resource.getrlimit(resource.RLIMIT_AS)
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size, limits[1]))
for function in (
    lambda: cyconv.conv2d(x, weight, out=out),
    lambda: cyconv.conv2d_backward(expected, x, weight, wrt=("weight",)),
    lambda: cyconv.conv2d(x, weight),
):
    try:
        function()
    except MemoryError:
        print("MemoryError")
resource.setrlimit(resource.RLIMIT_AS, limits)
print((cyconv.conv2d(x, weight, out=out) == expected).all())
print((cyconv.conv2d_backward(expected, x, weight).weight == grad.weight).all())
"""
    assert run_python(code).split() == ["MemoryError"] * 3 + ["True"] * 2
