"""Compiles the C++ loop of a `rezero.DeepStack` for this machine when it is first used, and calls it."""

import ctypes
import functools
import hashlib
import os
import shlex
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from torch import Tensor

from rezero.data.locate import cache_folder
from rezero.errors import UsageError

__all__ = ["Loops", "find"]

FOLDER = Path(__file__).parent
_NAMES = {torch.float32: "f32", torch.float64: "f64", torch.bfloat16: "bf16"}
_FLAGS = {
    "AVX2": ["-mavx2", "-mfma"],
    "AVX512": ["-mavx2", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"],
}
_CHUNK = 4 << 20  # bytes of gradients that wait in the cache for the products with the layers' inputs


class Loops:
    """The compiled loops, with the signatures of `rezero.kernels.reference_stack`. Tensors must be contiguous.

    Args:
        library: The shared library.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    @staticmethod
    def serves(*tensors: Tensor) -> bool:
        """Tell whether x, weight, bias and alpha are on the CPU, and of dtypes that there is a loop for."""
        dtypes = [each.dtype for each in tensors]
        half = torch.bfloat16
        asked = [half, half, half, torch.float32] if dtypes[0] == half else dtypes[:1] * 4
        ours = dtypes[0] in _NAMES and dtypes == asked and (dtypes[0] != half or multiplies_half())
        return ours and all(each.device.type == "cpu" for each in tensors)

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor, alpha: Tensor, kept: Tensor | None) -> Tensor:
        """Run the layers; see the twin."""
        y = torch.empty_like(x) if kept is not None else x.clone()
        inputs, branches = kept if kept is not None else (y, torch.empty_like(x))
        if kept is not None:
            inputs[0] = x
        step = 0 if kept is None else x.numel()
        self._call("forward", inputs, branches, y, weight, bias, alpha, len(weight), *x.shape, step)
        return y

    def backward(
        self, gradient: Tensor, kept: Tensor, weight: Tensor, alpha: Tensor, out: tuple[Tensor, Tensor, Tensor] | None
    ) -> Tensor:
        """Run the layers backwards; see the twin."""
        g, (depth, (rows, dim)) = gradient.clone(), (len(weight), gradient.shape)
        chunk = min(depth, max(torch.get_num_threads(), _CHUNK // max(1, g.numel() * g.element_size())))
        waiting = g.new_empty(chunk, rows, dim)
        parts = -(-dim // 256)  # of a layer's weights, by its width alone, so that no rounding depends on the depth
        self._call(
            "backward",
            g,
            kept[0],
            kept[1],
            waiting,
            weight,
            alpha,
            *(out or [None] * 3),
            depth,
            rows,
            dim,
            chunk,
            parts,
        )
        return g

    def _call(self, name: str, first: Tensor, *others: Tensor | int | None) -> None:
        function = getattr(self._library, f"{name}_{_NAMES[first.dtype]}")
        function(*map(_as_c, (first, *others, torch.get_num_threads())))


def _as_c(value: Tensor | int | None) -> ctypes.c_void_p | ctypes.c_int64:
    if isinstance(value, int):
        return ctypes.c_int64(value)
    return ctypes.c_void_p(None if value is None else value.data_ptr())


@functools.cache
def multiplies_half() -> bool:
    """Tell whether the processor multiplies matrices of bfloat16: AVX512-BF16, which every AMX comes with."""
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())


def find(dtype: torch.dtype = torch.float32) -> Loops | None:
    """Load the loops, after compiling them if this machine has not done so before.

    Args:
        dtype: Of the layers: float32, float64 or bfloat16.

    Returns:
        The loops; None, after one warning, if they can't be compiled or loaded.
    """
    return load("deep_stack_bf16" if dtype == torch.bfloat16 else "deep_stack")


@functools.cache
def load(name: str) -> Loops | None:
    """Load the loops of one source file; see `find`.

    Args:
        name: Of the file.

    Returns:
        The loops or None.
    """
    try:
        return Loops(ctypes.CDLL(str(_library(name))))
    except (OSError, RuntimeError, ValueError, UsageError, subprocess.SubprocessError) as error:
        reason = str(error)
        if isinstance(error, subprocess.CalledProcessError):
            reason = error.stderr.strip() or f"{error.cmd[0]} ended with exit status {error.returncode}"
        warnings.warn(
            f"DeepStack runs layer by layer in Python, which is slower, for want of its C++ loop: {reason}; install a "
            "C++ compiler with OpenMP (on Debian: apt install g++), or name yours in the environment variable CXX",
            stacklevel=2,
        )
        return None


def _library(name: str) -> Path:
    """Return the shared library's path; compile it if it is not there."""
    source = FOLDER / f"{name}.cpp"
    torch_home = Path(torch.__file__).parent
    command = shlex.split(os.environ.get("CXX") or "c++")
    command += ["-shared", "-fPIC", "-std=c++20", "-O3", "-fno-math-errno", "-fno-trapping-math"]
    command += _FLAGS.get(torch.backends.cpu.get_cpu_capability(), [])
    # Compiled with OpenMP but not linked to it: torch brings its own, and a second pool of threads would be in its way.
    command += ["-Xpreprocessor", "-fopenmp"] if sys.platform == "darwin" else ["-fopenmp"]
    command += [f"-I{torch_home / 'include'}", str(source), f"-L{torch_home / 'lib'}", "-ltorch_cpu", "-lc10"]
    decides = command, torch.__version__, source.read_bytes(), (FOLDER / "rows.h").read_bytes()
    key = hashlib.sha256(repr(decides).encode()).hexdigest()[:16]
    home = cache_folder()
    for path in home.glob(f"{name}-{key}-*.so"):
        if path.stem.endswith(_digest(path)):  # loading one of which a part is missing would end the process
            return path
    print(f"rezero: compiling the loop of DeepStack, once for this machine, into {home}", file=sys.stderr, flush=True)
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home) as folder:  # another process may do the same right now
        made = Path(folder) / name
        subprocess.run([*command, "-o", str(made)], check=True, capture_output=True, text=True)  # noqa: S603
        return made.replace(home / f"{name}-{key}-{_digest(made)}.so")


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]
