from typing import Any

openmp: bool
compiler: str
flags: str
__test__: dict[str, str]  # Cython's doctests

def supported_instruction_sets() -> tuple[str, ...]: ...
def max_threads() -> int: ...
def key(isa: str, kind: type, x: Any, weight: Any, parameters: tuple[Any, ...]) -> tuple[Any, ...] | None: ...

__pyx_capi__: dict[str, object]  # what the modules of kernels cimport
