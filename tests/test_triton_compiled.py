"""The Triton kernels compiled to machine code for cards that are not here: what they use, and that nothing spills."""

import re
import subprocess
from pathlib import Path

import pytest
import torch

from namm.kernels import fused

pytestmark = pytest.mark.slow
triton = pytest.importorskip("triton")

POINTERS = {
    "QUERY": "half", "KEYS": "half", "VALUES": "half", "NEW_KEYS": "half", "NEW_VALUES": "half", "KEYS_OUT": "half",
    "VALUES_OUT": "half", "POSITIONS": "i32", "POSITIONS_OUT": "i32", "STARTS": "i32", "COUNTS": "i32", "TABLE": "i32",
    "MINE": "i32", "TALLY": "i32", "KEPT": "u8", "EMPTY": "u8", "LSE": "fp32", "RIVAL": "fp32", "SCORES": "fp32",
    "FREQUENCIES": "fp32", "ATTENTION": "fp32", "PLACES": "fp32", "BENDS": "fp32", "LEVELS": "fp32",
    "STATE_OUT": "fp32",
}  # fmt: skip
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
FLOATS = ("scale", "softcap", "stored", "faint")


def moves(dim: int) -> dict[str, int]:
    return {"CHANNELS": 3, "DIM": dim, "WIDE": dim, "VALUE_DIM": dim, "VALUE_WIDE": dim, "SLOTS": 8192 // dim}


def cases(dtype: str) -> list[tuple[str, dict[str, object]]]:
    found: list[tuple[str, dict[str, object]]] = []
    for group, dim in ((1, 64), (3, 64), (4, 128), (7, 128), (4, 256), (4, 80)):
        if dim > fused.LARGEST[DTYPES[dtype]]:
            continue
        for causal, capped in ((True, False), (False, True)):
            looks = {**fused.tile(group, dim, DTYPES[dtype]), "CAUSAL": causal, "CAPPED": capped}
            found.append(("sums", looks | {"COMPETES": not causal}))
            found.append(("reduce", looks | {"CHANNELS": 3, "SUMS": 1, "PEAKS": 2, "LOGS": 3}))
            found.append(("rows", looks))
    for dim in (64, 128, 256):
        some = moves(dim)
        found.append(("compact", some | {"ALL": 128}))
        found.append(("grow", some))
        found.append(("gather", {k: some[k] for k in ("CHANNELS", "DIM", "WIDE", "SLOTS")} | {"COPIES": True}))
        turned = {"PAIRS": dim // 2, "INTERLEAVED": dim == 64, "ROWS": 4096 // dim}
        found.append(("turn", turned | {"DIM": dim, "WIDE": dim}))
    return [*found, ("tally", {"SLOTS": 1024}), ("bend", {"HINGES": 12, "SLOTS": 1024})]


@pytest.mark.parametrize("card", [80, 90])
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_kernels_compile_without_spills(card: int, dtype: str, tmp_path: Path) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from namm.kernels import triton_kernels

    assert not triton.knobs.runtime.interpret, "compiled, not interpreted"
    results = {"sums": "fp32", "rows": "fp32", "tally": "i32", "bend": "fp32", "turn": dtype}
    reader = next(Path(triton.__file__).parent.rglob("cuobjdump"))
    spills = []
    for name, constants in cases(dtype):
        kernel = getattr(triton_kernels, name)
        options = {one: constants.pop(one) for one in ("num_warps", "num_stages") if one in constants}
        signature, pointers = {}, []
        for place, argument in enumerate(kernel.arg_names):
            if argument in constants:
                signature[argument] = "constexpr"
            elif argument.isupper():
                kind = results.get(name, dtype) if argument == "OUT" else POINTERS.get(argument, "fp16")
                signature[argument] = f"*{dtype if kind == 'half' else kind}"
                pointers.append(place)
            else:
                signature[argument] = "fp32" if argument in FLOATS else "i32"
        source = ASTSource(
            fn=kernel, signature=signature, constexprs={(kernel.arg_names.index(k),): v for k, v in constants.items()},
            attrs={(place,): [["tt.divisibility", 16]] for place in pointers},
        )  # fmt: skip
        binary = triton.compile(source, target=GPUTarget("cuda", card, 32), options=options).asm["cubin"]
        written = tmp_path / "kernel.cubin"
        written.write_bytes(binary)
        command = [str(reader), "--dump-resource-usage", str(written)]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        spilled = [int(number) for number in re.findall(r"(?:STACK|LOCAL):(\d+)", told)]
        assert spilled, told
        if any(spilled):
            spills.append((name, constants, max(spilled)))
    assert not spills
