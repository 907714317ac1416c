"""The Triton kernels compiled to machine code for cards that are not here: what they use, and that nothing spills."""

import re
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

POINTERS = {
    "QUERY": "half", "KEYS": "half", "VALUES": "half", "NEW_KEYS": "half", "NEW_VALUES": "half", "KEYS_OUT": "half",
    "VALUES_OUT": "half", "POSITIONS": "i32", "POSITIONS_OUT": "i32", "STARTS": "i32", "COUNTS": "i32", "TABLE": "i32",
    "MINE": "i32", "TALLY": "i32", "KEPT": "u8", "EMPTY": "u8", "LSE": "fp32", "RIVAL": "fp32", "SCORES": "fp32",
    "FREQUENCIES": "fp32", "STATE_OUT": "fp32",
}  # fmt: skip
FLOATS = ("scale", "softcap", "stored", "faint")


def tile(group: int, dim: int) -> dict[str, int]:
    padded = 1 << (group - 1).bit_length()
    wide = max(16, 1 << (dim - 1).bit_length())
    return {"GROUP": group, "PADDED": padded, "QUERIES": max(1, 64 // padded), "DIM": dim, "WIDE": wide,
            "SLOTS": 64 if wide <= 128 else 32}  # fmt: skip


def moves(dim: int) -> dict[str, int]:
    wide = max(16, 1 << (dim - 1).bit_length())
    return {"CHANNELS": 3, "DIM": dim, "WIDE": wide, "VALUE_DIM": dim, "VALUE_WIDE": wide, "SLOTS": 8192 // wide}


def cases() -> list[tuple[str, dict[str, object]]]:
    found: list[tuple[str, dict[str, object]]] = []
    for group, dim in ((1, 64), (3, 64), (4, 128), (7, 128), (4, 256), (4, 80)):
        for causal, capped in ((True, False), (False, True)):
            looks = {**tile(group, dim), "CAUSAL": causal, "CAPPED": capped}
            found.append(("sums", looks | {"COMPETES": not causal}))
            found.append(("reduce", looks | {"CHANNELS": 3, "SUMS": 1, "PEAKS": 2, "LOGS": 3}))
            found.append(("rows", looks))
    for dim in (64, 128, 256):
        wide = max(16, 1 << (dim - 1).bit_length())
        some = moves(dim)
        found.append(("compact", some | {"ALL": 128}))
        found.append(("grow", some))
        found.append(("gather", {k: some[k] for k in ("CHANNELS", "DIM", "WIDE", "SLOTS")} | {"COPIES": True}))
        found.append(("turn", {"PAIRS": dim // 2, "INTERLEAVED": dim == 64, "DIM": dim, "WIDE": wide, "ROWS": 32}))
    return [*found, ("tally", {"SLOTS": 1024})]


@pytest.mark.parametrize("card", [80, 90])
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_kernels_compile_without_spills(card: int, dtype: str, tmp_path: Path) -> None:
    from namm.kernels import triton_kernels

    assert not triton.knobs.runtime.interpret, "compiled, not interpreted"
    reader = next(Path(triton.__file__).parent.rglob("cuobjdump"))
    spills = []
    for name, constants in cases():
        kernel = getattr(triton_kernels, name)
        signature, pointers = {}, []
        for place, argument in enumerate(kernel.arg_names):
            if argument in constants:
                signature[argument] = "constexpr"
            elif argument.isupper():
                own = {"half": dtype}.get(kind := POINTERS.get(argument, "fp16"), kind)
                own = {"OUT": {"sums": "fp32", "rows": "fp32", "tally": "i32", "turn": dtype}.get(name)}.get(argument, own)
                signature[argument] = f"*{own}"
                pointers.append(place)
            else:
                signature[argument] = "fp32" if argument in FLOATS else "i32"
        source = ASTSource(
            fn=kernel, signature=signature, constexprs={(kernel.arg_names.index(k),): v for k, v in constants.items()},
            attrs={(place,): [["tt.divisibility", 16]] for place in pointers},
        )  # fmt: skip
        binary = triton.compile(source, target=GPUTarget("cuda", card, 32), options={"num_warps": 4}).asm["cubin"]
        written = tmp_path / "kernel.cubin"
        written.write_bytes(binary)
        command = [str(reader), "--dump-resource-usage", str(written)]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        spilled = [int(number) for number in re.findall(r"(?:STACK|LOCAL):(\d+)", told)]
        assert spilled, told
        if any(spilled):
            spills.append((name, constants, max(spilled)))
    assert not spills
