import os

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from cyconv import _dispatch

settings.register_profile(
    "cyconv",
    deadline=None,
    max_examples=int(os.environ.get("CYCONV_TEST_EXAMPLES", "60")),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("cyconv")

# Instruction sets whose absence is a failure, not a reason to skip: "avx512,avx2,baseline".
REQUIRED = [name for name in os.environ.get("CYCONV_REQUIRE_ISA", "").split(",") if name]


@pytest.fixture(params=["avx512", "avx2", "baseline"])
def isa(request, monkeypatch):
    """The name of an instruction set whose kernels this test uses."""
    name = request.param
    if name not in _dispatch._available:
        reason = f"{name} kernels are not available, only {', '.join(_dispatch._available)}"
        (pytest.fail if name in REQUIRED else pytest.skip)(reason)
    monkeypatch.setattr(_dispatch, "_isa", name)
    monkeypatch.setattr(_dispatch, "_modules", {})
    return name


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    """Fill new arrays and kept scratch memory with NaN, so that what a kernel forgets to write is seen."""
    numpy_empty = np.empty

    def empty(*args, **kwargs):
        a = numpy_empty(*args, **kwargs)
        if a.dtype.kind == "f":
            a.fill(np.nan)
        return a

    monkeypatch.setattr(np, "empty", empty)
    for block in _dispatch.scratch:
        block[:] = b"\xff" * len(block)


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    return np.dtype(request.param)


@pytest.fixture
def rng():
    return np.random.default_rng(20260921)
