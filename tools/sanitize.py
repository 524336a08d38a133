"""Run the kernels' tests with AddressSanitizer and UndefinedBehaviorSanitizer in the C++ code.

The library that they check is built apart, under its own name in the cache.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -O1 -g1"
# what goes through the loops, most of it wrong; not the tests of the compiler and of the GPU
TESTS = ("wrong_calls", "fuzz", "cpu", "16_bit", "lens_loops")
# their bounds hold for sums in vectors, which this build has not
EXCEPT = (
    "test_an_outlier_in_front_cancels_nothing",
    "test_a_layers_moments_are_those_of_float64",
)
BUILD = """
from normscope.kernels.cpu import build
path = build.library()
if not build.is_sound(path):
    build.build(path)
print(path)
"""


def main(arguments: list[str]) -> int:
    """Build the library, then run pytest with the sanitizers' runtime before everything else."""
    compiler = os.environ.get("CXX") or "g++"
    if shutil.which(compiler) is None:
        sys.stderr.write(f"{compiler} was not found; install g++, or set CXX to it\n")
        return 2
    runtimes = [
        subprocess.run(
            [compiler, f"-print-file-name={name}"], check=True, capture_output=True, text=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    environment = os.environ | {"NORMSCOPE_CXXFLAGS": FLAGS, "OMP_NUM_THREADS": "2"}
    # loading it needs the runtimes, which the compiler should not run with
    subprocess.run([sys.executable, "-c", BUILD], check=True, env=environment)
    environment |= {
        "LD_PRELOAD": " ".join(runtimes),
        # Python keeps what it has until the end; torch's libraries define some things twice
        "ASAN_OPTIONS": "detect_leaks=0:detect_odr_violation=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "NORMSCOPE_FUZZ": os.environ.get("NORMSCOPE_FUZZ", "400"),
    }
    tests = [f"tests/kernels/test_{name}.py" for name in TESTS]
    # what a sanitizer says goes to the descriptor of stderr, which pytest must not hold
    options = ["-q", "--capture=sys", "-p", "no:cacheprovider"]
    options += [f"--deselect=tests/kernels/test_cpu.py::{name}" for name in EXCEPT]
    command = [sys.executable, "-m", "pytest", *options, *tests, *arguments]
    return subprocess.run(command, check=False, env=environment, cwd=HERE).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
