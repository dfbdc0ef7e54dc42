"""Which kernels run and on how many threads: instruction set, number of threads, scratch memory, fork.

The environment is read once, at import: CYCONV_ISA (baseline, avx2, avx512) and CYCONV_NUM_THREADS.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TextIO

from . import _check

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    import numpy as np

# How long threads of gcc's OpenMP spin before they sleep: 3000 rounds are about 0.3 ms, more than it takes to wake one.
# By default they spin for milliseconds, which on a processor that others use too makes two threads far slower than one.
# libgomp reads this when it is loaded, here or earlier by somebody else; what the user has set is left alone.
_spin = not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys()
if _spin:
    os.environ["GOMP_SPINCOUNT"] = "3000"
from . import _runtime  # noqa: E402

if _spin:
    del os.environ["GOMP_SPINCOUNT"]

MAX_THREADS = 1024

#: Memory that kernels reuse: a kernel pops an arena, replaces it if it is too small, and appends it when it is done.
scratch: list[bytearray] = []


def _choose_isa() -> str:
    asked = os.environ.get("CYCONV_ISA")
    if asked and asked not in _available:
        raise ValueError(f"CYCONV_ISA={asked!r} is not available here, choose from {', '.join(_available)}")
    return asked or _available[0]


def _threads_from_environment() -> int | None:
    asked = os.environ.get("CYCONV_NUM_THREADS")
    if not asked:
        return None
    if not asked.isdecimal() or not 1 <= int(asked) <= MAX_THREADS:
        raise ValueError(f"CYCONV_NUM_THREADS must be an integer of 1..{MAX_THREADS}, got {asked!r}")
    return int(asked)


def _after_fork_in_child() -> None:
    global _forked
    _forked = True


# Supported by this machine and built; best first.
_available = tuple(
    name for name in _runtime.supported_instruction_sets() if find_spec(f"cyconv._kernels.conv_{name}_float32")
)
if not _available:
    raise ImportError("cyconv has no kernels for this processor: it was not built completely")
_isa = _choose_isa()
_modules: dict[tuple[str, str], ModuleType] = {}
_threads = _threads_from_environment()
_context: ContextVar[int | None] = ContextVar("cyconv.num_threads", default=None)
_openmp_limit = _runtime.max_threads()
# libgomp hangs in a forked child whose parent has used it, so a child runs on one thread.
_forked = False
os.register_at_fork(after_in_child=_after_fork_in_child)


def isa() -> str:
    """Return the instruction set of the kernels in use."""
    return _isa


def kernels(family: str, dtype: np.dtype[Any]) -> ModuleType:
    """Return the module of a kernel family ("conv", "pool") for the dtype and the chosen instruction set."""
    try:
        return _modules[family, dtype.char]
    except KeyError:
        module = _modules[family, dtype.char] = import_module(f"cyconv._kernels.{family}_{_isa}_{dtype.name}")
        return module


def threads() -> int:
    """Return the number of threads that a call may use now."""
    if _forked or not _runtime.openmp:
        return 1
    limit = _runtime.max_threads()
    asked = _context.get() or _threads or limit
    # Below its value at import, OpenMP's limit is one that threadpoolctl has set, which wins.
    return limit if limit < asked and limit < _openmp_limit else asked


def set_num_threads(n: int) -> None:
    """Set the number of threads that each call may use, for the whole process.

    It takes precedence over CYCONV_NUM_THREADS and OMP_NUM_THREADS; an enclosing `num_threads` and a limit of
    threadpoolctl take precedence over it. Results are the same, bit for bit, for any number of threads.

    Parameters
    ----------
    n : int
        1 to 1024.

    Raises
    ------
    TypeError, ValueError
        If `n` is not an integer, or out of range.
    """
    global _threads
    _threads = _check.integer("n", n, 1, MAX_THREADS)


def get_num_threads() -> int:
    """Return the number of threads that a call may use here and now: 1 without OpenMP and in a forked process."""
    return threads()


@contextmanager
def _limited(n: int) -> Iterator[None]:
    token = _context.set(n)
    try:
        yield
    finally:
        _context.reset(token)


def num_threads(n: int) -> Any:
    """Return a context manager in which calls use `n` threads, in this Python thread (or asynchronous task) only.

    Parameters
    ----------
    n : int
        1 to 1024.

    Raises
    ------
    TypeError, ValueError
        If `n` is not an integer, or out of range.

    Examples
    --------
    >>> import cyconv
    >>> with cyconv.num_threads(1):
    ...     cyconv.get_num_threads()
    1
    """
    return _limited(_check.integer("n", n, 1, MAX_THREADS))


def release_scratch() -> None:
    """Free the memory that kernels keep for the next call (a few MB per thread)."""
    scratch.clear()


def config() -> dict[str, Any]:
    """Return what `show_config` prints."""
    from . import __version__

    return {
        "version": __version__,
        "instruction set": _isa,
        "available": ", ".join(_available),
        "OpenMP": _runtime.openmp,
        "threads": threads(),
        "compiler": _runtime.compiler,
        "flags": _runtime.flags,
    }


def show_config(file: TextIO | None = None) -> None:
    """Print the version, the instruction set in use and those available, OpenMP, threads and build flags.

    Parameters
    ----------
    file : text file, optional
        Where to print, by default sys.stdout.
    """
    for name, value in config().items():
        print(f"{name + ':':17}{value}", file=file or sys.stdout)
