"""The build matrix: every kernel source of pyx/, once for each instruction set and dtype.

Environment: CYCONV_DEBUG=1 builds with bounds checks and C assertions, CYCONV_OPENMP=0 builds without OpenMP.
"""

import os
import platform
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

DEBUG = os.environ.get("CYCONV_DEBUG", "0") not in ("", "0")
OPENMP = os.environ.get("CYCONV_OPENMP", "1") not in ("", "0")

FAMILIES = ["conv", "pool", "winograd"]
DTYPES = {"float32": "float", "float64": "double"}
# name -> flags; "baseline" is whatever the compiler takes for granted (SSE2 on x86-64, NEON on aarch64)
INSTRUCTION_SETS = {"baseline": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    INSTRUCTION_SETS |= {"avx2": ["-march=x86-64-v3"], "avx512": ["-march=x86-64-v4"]}

# No -march=native: the wheel travels. No -ffast-math: NaN, inf and the order of summation are part of the interface.
FLAGS = ["-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden"]
FLAGS += ["-g", "-UNDEBUG"] if DEBUG else ["-g0"]
# Loops that copy or clear a few vectors stay loops: calls of memcpy and memset would cost more.
OPTIONAL_FLAGS = [
    "-mtune=generic",
    "-mprefer-vector-width=512",
    "-fno-tree-loop-distribute-patterns",
    "-Wno-unused-function",
]
LINK_FLAGS = [] if DEBUG else ["-Wl,-s"]
OPENMP_FLAGS = ["-fopenmp"]
MACROS = [
    ("Py_LIMITED_API", "0x030B0000"),
    # The tile must be inlined for each constant row count; plain `inline` is only a hint.
    ("CYTHON_INLINE", "inline __attribute__((always_inline))"),
]
DIRECTIVES = {
    "language_level": 3,
    "boundscheck": DEBUG,
    "initializedcheck": DEBUG,
    "wraparound": False,
    "cdivision": True,
    "freethreading_compatible": True,
}

# What the compiler is asked before it is given the kernels.
VECTORS = "typedef float vec __attribute__((vector_size(16), may_alias)); vec f(vec a, float s) { return a * s; }"
OMP = "#include <omp.h>\nint f(void) { return omp_get_max_threads(); }"
CPU_LEVELS = '__attribute__((visibility("default"))) int f(void) { return __builtin_cpu_supports("x86-64-v3"); }'


def extensions():
    shared = [str(path) for suffix in ("pxd", "pxi", "h") for path in sorted(Path("pyx").rglob(f"*.{suffix}"))]
    found = [Extension("cyconv._runtime", ["pyx/runtime.pyx"])]
    for family in FAMILIES:
        for isa, flags in INSTRUCTION_SETS.items():
            for dtype, c_type in DTYPES.items():
                name = f"cyconv._kernels.{family}_{isa}_{dtype}"
                macros = [("REAL", c_type), ("REAL_BYTES", str(int(dtype[-2:]) // 8))]
                found.append(Extension(name, [f"pyx/{family}.pyx"], define_macros=macros, extra_compile_args=[*flags]))
    for extension in found:
        extension.py_limited_api = True
        extension.define_macros += MACROS
        extension.include_dirs.append("pyx")
        extension.depends += shared
    return found


class BuildVariants(build_ext):
    """Translates each source once, gives every variant a C file of its own, and compiles what the compiler can."""

    def build_extensions(self):
        if not self.compiles([], VECTORS):
            raise CompileError(f"cyconv needs gcc or clang (C with vector types), not {self.compiler_name()}")
        self.parallel = self.parallel or os.cpu_count()
        openmp = OPENMP_FLAGS if OPENMP and self.compiles(OPENMP_FLAGS, OMP) else []
        if OPENMP and not openmp:
            self.warn(f"{self.compiler_name()} has no OpenMP (omp.h and its library): cyconv is built for one thread")
        unsupported = {isa for isa, flags in INSTRUCTION_SETS.items() if not self.compiles(flags)}
        for isa in sorted(unsupported):
            self.warn(f"{self.compiler_name()} does not know {' '.join(INSTRUCTION_SETS[isa])}: no {isa} kernels")
        self.extensions[:] = [e for e in self.extensions if not any(f"_{isa}_" in e.name for isa in unsupported)]
        common = FLAGS + [flag for flag in OPTIONAL_FLAGS if self.compiles([flag])] + openmp
        link = [flag for flag in LINK_FLAGS if self.compiles([], link=[flag])] + openmp
        macros = [("CPU_LEVELS", "1")] if self.compiles([], CPU_LEVELS) else []
        macros.append(("BUILD_FLAGS", '"' + " ".join(common) + '"'))
        for extension in self.extensions:
            extension.extra_compile_args += common
            extension.extra_link_args += link
            extension.define_macros += macros
            self.translate(extension)
        super().build_extensions()

    def compiler_name(self):
        return " ".join(getattr(self.compiler, "compiler", [self.compiler.compiler_type])[:1])

    def compiles(self, flags, code="int f(void) { return 0; }", link=()):
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.c")
            source.write_text(code + "\n")
            try:
                objects = self.compiler.compile([str(source)], output_dir=folder, extra_postargs=["-Werror", *flags])
                self.compiler.link_shared_object(objects, str(Path(folder, "probe.so")), extra_postargs=[*flags, *link])
            except Exception:  # distutils raises several kinds; any of them means "no"
                return False
        return True

    def translate(self, extension):
        from Cython.Build import cythonize

        source = Path(extension.sources[0])
        name = extension.name.rpartition(".")[2]
        build = Path("build", "cython")
        generated = build / ("debug" if DEBUG else "release")
        cythonize(
            [Extension(source.stem if source.stem in FAMILIES else extension.name, [str(source)])],
            build_dir=str(generated),
            include_path=["pyx"],
            compiler_directives=DIRECTIVES,
            quiet=True,
        )
        if source.stem in FAMILIES:
            extension.define_macros.append((f"PyInit_{source.stem}", f"PyInit_{name}"))
        # A copy of its own, since object files are named after their source. It ends with its flags and is rewritten
        # only when it changes, so that it is compiled again when the source or a flag changed, and not otherwise.
        copy = build / f"{name}.c"
        flags = [self.compiler_name(), extension.define_macros, extension.extra_compile_args, extension.extra_link_args]
        code = (generated / source.with_suffix(".c")).read_text() + f"/* {flags} */\n"
        if not copy.exists() or copy.read_text() != code:
            copy.write_text(code)
        extension.sources = [str(copy)]


setup(
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildVariants},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
