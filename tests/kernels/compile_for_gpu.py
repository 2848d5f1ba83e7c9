"""Compiles every Triton kernel for a GPU, in each form that it is called in; no GPU is needed for that.

The interpreter runs what a compiler would refuse, such as a branch that is never taken and reads from nothing.
"""

import itertools
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from rezero.kernels import triton_gate, triton_stack

TYPES = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
}
TARGET = GPUTarget("cuda", 90, 32)
FORMS: set[str] = set()
OPTIONS = {"num_warps", "num_stages"}
F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16


class Compiling:
    """Stands for a kernel, and compiles it where it would be launched."""

    def __init__(self, kernel: JITFunction[Any]) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return self.compile

    def compile(self, *args: Any, **more: Any) -> None:
        options = {name: more.pop(name) for name in OPTIONS & more.keys()}
        given = dict(zip(self.kernel.arg_names, args, strict=False)) | more
        constants = {name: value for name, value in given.items() if name in more or value is None}
        signature = {name: "constexpr" if name in constants else kind(given[name]) for name in self.kernel.arg_names}
        form = f"{self.kernel.fn.__qualname__}{signature}{constants}"
        if form not in FORMS:
            FORMS.add(form)
            source = ASTSource(
                self.kernel, signature, {(self.kernel.arg_names.index(k),): v for k, v in constants.items()}
            )
            triton.compile(source, target=TARGET, options=options)


def kind(value: Any) -> str:
    return TYPES[value.dtype] if isinstance(value, Tensor) else "fp32" if isinstance(value, float) else "i32"


def main() -> None:
    """Call everything as it is called, with the kernels replaced."""
    for module in (triton_gate, triton_stack):
        for name, value in list(vars(module).items()):
            if name in {"_forward", "_backward", "_settle", "_finish", "_kept"}:
                setattr(module, name, Compiling(value))

    seed = torch.zeros(1, dtype=torch.int64)
    every = itertools.product([BF16], [False, True], [False, True], [False, True])
    for dtype, by_feature, bias, dropout in (*every, (F64, False, True, True)):
        x, alpha = (
            torch.zeros(4, 8, dtype=dtype),
            torch.zeros(8 if by_feature else 1, dtype=F64 if dtype == F64 else F32),
        )
        b, s = torch.zeros(8, dtype=dtype) if bias else None, seed if dropout else None
        triton_gate.forward(x, x, alpha, b, s, 0.1)
        triton_gate.backward(x, x, alpha, b, s, 0.1, (True, True, bias))
        if not by_feature:
            parts = triton_gate.enter(x, alpha, b, s, 0.1, dtype, (True, True, bias))[1:]
            for second in (x, None):
                triton_gate.leave(x, second, x, alpha, b, *parts)
    for needs in itertools.product([False, True], repeat=3):
        triton_gate.backward(x, x, alpha, b, None, 0.0, needs)
    triton_gate.kept(x, seed, 0.1)
    for dtype in (F32, BF16):
        x, w, a = torch.zeros(4, 150, dtype=dtype), torch.zeros(3, 150, 150, dtype=dtype), torch.zeros(3, 1)
        kept = torch.zeros(2, 3, 4, 150, dtype=dtype)
        for each in (kept, None):
            triton_stack.forward(x, w, w[:, 0], a, each)
        triton_stack.backward(x, kept, w, a, None)
    print(len(FORMS), "forms compiled")


if __name__ == "__main__":
    main()
