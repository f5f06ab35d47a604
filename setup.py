"""Builds the worker's Cython extensions; everything else about the package is in ``pyproject.toml``.

``MOORAGE_BUILD=trace`` compiles in line tracing (coverage of .pyx files) and leaves the C files beside the sources,
where the tools look for them. ``MOORAGE_BUILD=asan`` compiles in AddressSanitizer; ``make asan`` uses it.
"""

import os
from pathlib import Path

from Cython.Build import cythonize
from Cython.Compiler import Options
from setuptools import Extension, setup

VARIANT = os.environ.get("MOORAGE_BUILD", "")
COMPILE_ARGS = {
    "": ["-O3"],
    "trace": ["-O1"],
    "asan": ["-O1", "-g", "-fsanitize=address", "-fno-omit-frame-pointer"],
}
if VARIANT not in COMPILE_ARGS:
    raise SystemExit(f"MOORAGE_BUILD={VARIANT}: expected nothing, trace or asan")

Options.warning_errors = True


def extensions() -> list[Extension]:
    """One extension for each .pyx under ``worker/``."""
    sources = sorted(str(path) for path in Path("worker").rglob("*.pyx"))
    tracing = VARIANT == "trace"
    return cythonize(
        [
            Extension(
                source.removesuffix(".pyx").replace(os.sep, "."),
                [source],
                define_macros=[("CYTHON_TRACE_NOGIL", "1")] if tracing else [],
                extra_compile_args=COMPILE_ARGS[VARIANT],
                extra_link_args=["-fsanitize=address"] if VARIANT == "asan" else [],
            )
            for source in sources
        ],
        include_path=["."],
        compiler_directives={"language_level": 3, "linetrace": tracing},
        build_dir=None if tracing else f"build/cython{VARIANT}",
        annotate=tracing,
        nthreads=os.cpu_count() or 1,
    )


setup(ext_modules=extensions())
