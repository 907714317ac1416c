"""A memory on this machine's GPU, as ratios to what the card itself can do: one command, one page.

    python benchmarks/gpu.py [--layers 4] [--tokens 32768] [--quick]

First the card's own copy bandwidth and matrix speed in bfloat16; then whether the kernels agree with the plain formula here,
which they have never been asked on a card before the first run of this; then the gates, each met or missed. The model is of
Llama 3 8B's shapes with random weights and few layers. Rows go to `results/gpu.jsonl`, the page to the terminal, and by
`python benchmarks/tables.py` into docs/results.md. Without a GPU, `benchmarks/launches.py` counts launches and waits.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.markdown import Markdown

import namm
from namm import kernels
from namm.kernels import Lanes, Reduction, cuda, fused
from namm.report import table

KV_HEADS, GROUP, DIM, PIECE = 8, 4, 128, 512
LIMITS: dict[str, tuple[str, float, str]] = {  # gate: better, limit, what the value is
    "agreement": ("<=", 0.02, "largest error over the largest value"),
    "decode attention": (">=", 0.7, "bytes read a second, of the copy bandwidth"),
    "observe": ("<=", 1.5, "time of attention to the same"),
    "ask in place": ("<=", 3.0, "time of attention to the same; two passes"),
    "prefill": ("<=", 1.0, "time of a full cache"),
    "decode, 1 row": ("<=", 1.1, "time of a full cache"),
    "decode, 16 rows": ("<=", 0.5, "time of a full cache"),
    "waits while decoding": ("<=", 0, "calls that waited for the device"),
    "graph": (">=", 1, "1 if attention was captured in a graph and replayed"),
    "bytes": ("<=", 1.1, "allocated over reported"),
}


def gate(name: str, case: str, value: float, **more: Any) -> dict[str, Any]:
    """A row: a value against its limit."""
    better, limit, unit = LIMITS[name]
    met = value <= limit if better == "<=" else value >= limit  # NaN meets nothing
    return {
        "gate": name,
        "case": case,
        "value": round(value, 6),
        "better": better,
        "limit": limit,
        "met": met,
        "unit": unit,
    } | more


def page(rows: Sequence[dict[str, Any]]) -> str:
    """The page of these rows."""
    card, gates = rows[0], [row for row in rows if "gate" in row]
    met = sum(row["met"] for row in gates)
    lines = [
        [
            r["gate"],
            r["case"],
            f"{r['value']:.3g}",
            f"{r['better']} {r['limit']:g}",
            "met" if r["met"] else "**missed**",
            r["unit"],
        ]
        for r in gates
    ]
    return (
        f"## {card['card']}\n\nCopy bandwidth {card['bandwidth'] / 1e9:,.0f} GB/s, bfloat16 matrices {card['flops'] / 1e12:,.0f} "
        f"TFLOP/s; capability {card['capability']}, CUDA {card['cuda']}, driver {card['driver']}, Triton {card['triton']}. "
        f"{met} of {len(gates)} gates met.\n\n" + table(["gate", "case", "value", "limit", "", "the value is"], lines)
    )


def counts_of(lanes: int, kept: int, skewed: bool) -> list[int]:
    """Slots of each lane, `kept` in the mean; skewed: the largest four times the smallest."""
    parts = (0.4, 0.8, 1.2, 1.6) if skewed else (1.0,)
    return [round(kept * parts[lane % len(parts)]) for lane in range(lanes)]


def pool_of(
    counts: Sequence[int], dtype: torch.dtype, device: torch.device, dim: int = DIM, channels: int = 3
) -> Lanes:
    """Lanes of random keys, one after another, whose newest token is the last of each."""
    starts = [sum(counts[:lane]) for lane in range(len(counts) + 1)]
    keys, values = (torch.randn(starts[-1] + 1, dim, device=device).to(dtype) for _ in range(2))
    seen = max(counts)
    positions = (
        torch.cat([*(torch.arange(seen - count, seen) for count in counts), torch.tensor([-1])]).int().to(device)
    )
    numbers = torch.tensor([starts, [*counts, 0]], dtype=torch.int32, device=device)
    state = torch.zeros(channels, len(positions), device=device)
    return Lanes(keys, values, starts[:-1], list(counts), (numbers[0], numbers[1, :-1]), positions, state)


def expected(query: torch.Tensor, lanes: Lanes, scale: float, softcap: float | None) -> torch.Tensor:
    """Sum and largest of the group-mean causal attention that each slot receives, by the plain formula."""
    out = torch.zeros(2, len(lanes.keys), device=query.device)
    tokens = query.shape[2]
    for lane, (start, count) in enumerate(zip(lanes.starts, lanes.counts, strict=True)):
        logits = torch.einsum("gqd,sd->gqs", query[lane].double(), lanes.keys[start : start + count].double()) * scale
        logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
        seen = torch.ones(tokens, count, dtype=torch.bool, device=query.device).tril(count - tokens)
        mean = logits.masked_fill(~seen, -torch.inf).softmax(-1).mean(0)
        out[:, start : start + count] = torch.stack([mean.sum(0), mean.amax(0)]).float()
    return out


def agreement(device: torch.device) -> list[dict[str, Any]]:
    """Whether the kernels compute here what they compute under an interpreter."""
    rows = []
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        for group in (1, 3, 4, 7):
            for softcap in (None, 2.0):
                dim = 64 if dtype == torch.float32 else DIM
                lanes = pool_of([300, 64, 129, 1000], dtype, device, dim, channels=2)
                query = torch.randn(4, group, 64, dim, device=device).to(dtype)
                first, scale = max(lanes.counts) - 64, dim**-0.5
                lse = fused.sums(query, lanes, scale, softcap, first=first)
                kinds = [Reduction("sum"), Reduction("max")]
                fused.reduce(query, lse, lanes, scale, softcap, first=first, reductions=kinds)
                right = expected(query, lanes, scale, softcap)
                assert lanes.state is not None
                error = float(((lanes.state - right).abs().amax(1) / right.amax(1)).max())
                case = f"{str(dtype).removeprefix('torch.')}, group {group}{'' if softcap is None else ', soft cap'}"
                rows.append(gate("agreement", case, error))
    return rows


def moves(device: torch.device, dtype: torch.dtype = torch.bfloat16) -> list[dict[str, Any]]:
    """Whether slots arrive where they belong: the share of numbers that are others."""
    lanes, new = pool_of([300, 64, 129, 1000], dtype, device), 40
    counts, width = torch.tensor(lanes.counts, device=device), max(lanes.counts)
    assert lanes.positions is not None
    assert lanes.state is not None
    lanes.state.normal_()
    slots = (torch.tensor(lanes.starts, device=device) + counts)[:, None] + torch.arange(-width, 0, device=device)
    held = torch.arange(width, device=device) >= (width - counts)[:, None]
    keys, positions, state, empty = fused.gather(lanes)
    gathered = [
        (keys[held], lanes.keys[slots[held]]), (positions[held], lanes.positions[slots[held]]), (empty, ~held),
        (state.transpose(0, 1)[:, held], lanes.state[:, slots[held]]),
    ]  # fmt: skip
    kept = (torch.rand(4, width, device=device) < 0.3) & held
    stay, strange = fused.tally(kept, torch.rand(4, width, device=device), lanes)
    chosen, each = slots[kept], torch.arange(4, dtype=torch.int32, device=device)
    compact = fused.compact(lanes, kept, stay, each, len(chosen) + 1)
    pools = lanes.keys, lanes.values, lanes.positions, lanes.state
    compacted = [(mine[:-1], pool[chosen]) for mine, pool in zip(compact[:3], pools, strict=False)]
    compacted += [(compact[3][:, :-1], lanes.state[:, chosen])]
    compacted += [(stay, kept.sum(1).int()), (strange, torch.zeros_like(strange))]
    fresh = torch.randn(2, 1, 4, new, DIM, device=device).to(dtype)
    room = [count + new for count in lanes.counts]
    begin = [sum(room[:lane]) for lane in range(5)]
    end, seen = len(lanes.keys) - 1, max(lanes.counts)
    lines = [[*lanes.starts, end], [*lanes.counts, 0], begin, [*room, 1], [0, 0, 0, 0, -1], [seen] * 5]
    grown = fused.grow(
        lanes, fresh[0], fresh[1], torch.tensor(lines, dtype=torch.int32, device=device), max(room), begin[-1] + 1
    )
    grew = []
    for lane, (start, count) in enumerate(zip(lanes.starts, lanes.counts, strict=True)):
        now = slice(begin[lane], begin[lane] + room[lane])
        for mine, pool, came in zip(grown[:2], pools, fresh, strict=False):
            grew.append((mine[now], torch.cat([pool[start : start + count], came[0, lane]])))
        coming = torch.arange(seen, seen + new, device=device)
        grew.append((grown[2][now], torch.cat([lanes.positions[start : start + count], coming]).int()))
    found = {"gather": gathered, "tally and compact": compacted, "grow": grew}
    return [
        gate("agreement", case, max(float((mine != right).double().mean()) for mine, right in pairs))
        for case, pairs in found.items()
    ]


def seconds(call: Callable[[], Any], repeats: int = 20) -> float:
    """Median time on the device."""
    for _ in range(3):
        call()
    taken = []
    for _ in range(repeats):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        stop.record()
        stop.synchronize()
        taken.append(start.elapsed_time(stop) / 1000)
    return statistics.median(taken)


def card(device: torch.device) -> dict[str, Any]:
    """What this card can do, and what runs it."""
    import triton

    source = torch.empty(2**29, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    a, b = (torch.randn(8192, 8192, dtype=torch.bfloat16, device=device) for _ in range(2))
    return {
        "card": torch.cuda.get_device_name(device),
        "capability": "{}.{}".format(*torch.cuda.get_device_capability(device)),
        "cuda": torch.version.cuda, "driver": torch.cuda.driver_version() if hasattr(torch.cuda, "driver_version") else "?",
        "triton": triton.__version__,
        "bandwidth": 2 * source.nbytes / seconds(lambda: target.copy_(source)), "flops": 2 * 8192**3 / seconds(lambda: a @ b),
    }  # fmt: skip


def operations(device: torch.device, bandwidth: float, quick: bool) -> list[dict[str, Any]]:
    """Attention of a token, and looking at pieces."""
    rows, scale = [], DIM**-0.5
    for batch in (1, 16):
        for kept in (2048, 8192) if quick else (2048, 8192, 32768):
            for skewed in (False, True):
                lanes = pool_of(counts_of(batch * KV_HEADS, kept, skewed), torch.bfloat16, device)
                case = f"{batch} row{'s' * (batch > 1)}, {kept:,} kept, {'skewed' if skewed else 'equal'}"
                query = torch.randn(batch * KV_HEADS, GROUP, DIM, device=device).bfloat16()
                taken = seconds(partial(kernels.attend_one, query, [lanes], scale))
                read = sum(lanes.counts) * (lanes.keys.shape[1] + lanes.values.shape[1]) * lanes.keys.element_size()
                rows.append(gate("decode attention", case, read / taken / bandwidth, seconds=taken))
                piece = torch.randn(batch * KV_HEADS, GROUP, PIECE, DIM, device=device).bfloat16()
                rows += _looks(piece, lanes, scale, case)
    graph, query = torch.cuda.CUDAGraph(), torch.randn(KV_HEADS, GROUP, DIM, device=device).bfloat16()
    lanes = pool_of(counts_of(KV_HEADS, 2048, True), torch.bfloat16, device)
    right = kernels.attend_one(query, [lanes], scale)
    with torch.cuda.graph(graph):
        out = kernels.attend_one(query, [lanes], scale)
    graph.replay()
    return [*rows, gate("graph", "attention of a token, skewed", float(torch.allclose(out, right, atol=1e-2)))]


def _looks(query: torch.Tensor, lanes: Lanes, scale: float, case: str) -> list[dict[str, Any]]:
    attended = cuda.attend(query, lanes, scale)[1]
    attend = seconds(lambda: cuda.attend(query, lanes, scale))
    first, kinds = max(lanes.counts) - PIECE, [Reduction("sum"), Reduction("max"), None]

    def observe(lse: torch.Tensor, first: int | None) -> None:
        fused.reduce(query, lse, lanes, scale, None, first=first, reductions=kinds)

    look = seconds(lambda: observe(attended, first))
    ask = seconds(lambda: observe(fused.sums(query, lanes, scale, None, first=None), None))
    return [gate("observe", case, look / attend, seconds=look), gate("ask in place", case, ask / attend, seconds=ask)]


def whole_model(device: torch.device, layers: int, tokens: int) -> list[dict[str, Any]]:
    """Reading and answering, against a full cache."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32_000, hidden_size=4096, intermediate_size=14336, num_hidden_layers=layers, num_attention_heads=32,
        num_key_value_heads=8, max_position_embeddings=2 * tokens,
    )  # fmt: skip
    with torch.device(device):
        model = LlamaForCausalLM(config).bfloat16().eval()
    memory = ("builtin:universal", namm.Budget(fraction=0.25, per="layer"), PIECE)
    rows = []
    for batch, length in ((1, tokens), (16, tokens // 4)):
        text = torch.randint(32_000, (batch, length), device=device)
        case = f"{batch} row{'s' * (batch > 1)} of {length:,} tokens, {layers} layers"
        full, ours = (_model_times(model, text, attached) for attached in (None, memory))
        if batch == 1:
            rows.append(gate("prefill", case, ours["prefill"] / full["prefill"], seconds=ours["prefill"]))
        name = f"decode, {batch} row{'s' * (batch > 1)}"
        rows.append(gate(name, case, ours["decode"] / full["decode"], seconds=ours["decode"]))
        rows.append(gate("waits while decoding", case, ours["waits"]))
        rows.append(gate("bytes", case, ours["allocated"] / ours["reported"]))
    return rows


@torch.inference_mode()
def _model_times(model: Any, text: torch.Tensor, attached: tuple[Any, ...] | None) -> dict[str, float]:
    token, steps = text[:, :1].clone(), 32
    with namm.attach(model, *attached) if attached else nullcontext() as handle:
        before = torch.cuda.memory_allocated()
        cache = model(text, logits_to_keep=1).past_key_values
        held = torch.cuda.memory_allocated() - before
        reported = handle.memory().bytes_held if handle else held

        def step() -> None:
            model(token, past_key_values=cache)

        decode = seconds(step, steps)
        waits = 0
        torch.cuda.set_sync_debug_mode("error")
        try:
            step()
        except RuntimeError as error:  # what torch raises where a call waits
            if "synchroniz" not in str(error):
                raise
            waits = 1
        finally:
            torch.cuda.set_sync_debug_mode("default")
        del cache
    with namm.attach(model, *attached) if attached else nullcontext():
        prefill = seconds(lambda: model(text, logits_to_keep=1), 3)
    return {"prefill": prefill, "decode": decode, "waits": waits, "allocated": held, "reported": reported}


def device_here() -> torch.device:
    """The card that is measured.

    Raises:
        SystemExit: there is none, or nothing to measure on it.
    """
    if not torch.cuda.is_available():
        raise SystemExit(
            f"benchmarks/gpu.py measures a CUDA device, and torch {torch.__version__} sees none here. What a memory "
            "launches on one is counted without it: python benchmarks/launches.py"
        )
    device = torch.device("cuda", torch.cuda.current_device())
    if not fused.capable(device):
        raise SystemExit(
            "benchmarks/gpu.py measures Triton's kernels, which do not serve here: the line above says why."
        )
    return device


def options_of(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4, help="of the model, whose weights are random")
    parser.add_argument("--tokens", type=int, default=32768, help="that it reads, a quarter of that in sixteen rows")
    parser.add_argument("--quick", action="store_true", help="without the longest lanes")
    options = parser.parse_args(arguments)
    if options.layers < 1 or options.tokens < 4 * PIECE:
        parser.error(f"at least one layer and {4 * PIECE} tokens")
    return options


def main() -> None:
    import rows as files

    options, device = options_of(), device_here()
    torch.manual_seed(0)
    here = card(device)
    measured = agreement(device) + moves(device)
    if all(row["met"] for row in measured):
        measured += operations(device, here["bandwidth"], options.quick)
        measured += whole_model(device, options.layers, options.tokens)
    found = [here, *measured]
    files.write("gpu", found)
    Console().print(Markdown(page(found)))
    if not all(row["met"] for row in measured if row["gate"] == "agreement"):
        raise SystemExit("The kernels do not agree with the formula on this card; nothing else was measured.")


if __name__ == "__main__":
    main()
