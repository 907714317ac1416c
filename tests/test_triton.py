"""The Triton kernels against the formulas they compute, under Triton's interpreter: `make test-triton`.

They have never run on a card: what an interpreter cannot show (races, alignment, speed) is not shown here.
"""

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("set TRITON_INTERPRET=1 before Triton is imported: make test-triton", allow_module_level=True)
pytest.importorskip("triton")

import namm
from namm.errors import ScoreError
from namm.kernels import Lanes, Reduction, fused
from namm.memory import store as storage
from namm.memory import updates
from namm.memory.later import Later
from namm.policies import H2O, View
from tests.memory.test_trouble import Event
from tests.zoo import causal_model, ids

COUNTS = [70, 0, 1, 33, 129]  # slots held before the new tokens: an empty head, and one of a single slot
GROUPS = [1, 3, 4, 7]
DTYPES = [torch.float32, torch.float16]
SCALE, FAINT = 0.3, 1e-4


@pytest.fixture(autouse=True)
def _strange_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel does not write is no number."""
    empty = torch.empty  # `new_empty` is left alone: what it gives is compared slot by slot

    def filled(*size, **kwargs):
        out = empty(*size, **kwargs)
        return out.fill_(torch.nan) if out.is_floating_point() else out.fill_(1)

    monkeypatch.setattr(torch, "empty", filled)


def lanes_of(counts, dim=24, value_dim=20, dtype=torch.float32, channels=2, slack=3, seen=200, seed=0):
    """Lanes with free slots after each and a spare slot, holding the newest positions and some of those before."""
    g = torch.Generator().manual_seed(seed)
    starts = [sum(counts[:i]) + slack * i for i in range(len(counts) + 1)]
    total = starts[-1] + 1
    positions = torch.full((total,), seen, dtype=torch.int32)
    positions[-1] = -1
    for start, count in zip(starts, counts, strict=False):
        new = min(count, 40)
        old = torch.randperm(seen - new, generator=g)[: count - new].sort().values
        positions[start : start + count] = torch.cat([old, torch.arange(seen - new, seen)]).int()
    table = torch.tensor(starts, dtype=torch.int32), torch.tensor(counts, dtype=torch.int32)
    keys, values = (torch.randn(total, n, generator=g).to(dtype) for n in (dim, value_dim))
    state = torch.rand(channels, total, generator=g)
    return Lanes(keys, values, starts[:-1], list(counts), table, positions, state)


def asked(lanes, group, tokens, dtype=torch.float32, dim=24, seed=1):
    """Queries as a model hands them over: heads of one row between tokens."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(len(lanes.counts), tokens, group, dim, generator=g).to(dtype).transpose(1, 2)


def part_of(lane, lanes, newest, later):
    """Where the slots of one lane are that are asked."""
    end = lanes.starts[lane] + lanes.counts[lane]
    return slice(max(lanes.starts[lane], end - (newest or end)), max(lanes.starts[lane], end - later))


def logits_of(lane, query, lanes, softcap, first, held):
    """`[group, query, slot]` of one lane."""
    logits = torch.einsum("gqd,sd->gqs", query[lane].float(), lanes.keys[held].float()) * SCALE
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    if first is not None:
        position = first + torch.arange(query.shape[2])
        logits = logits.masked_fill(lanes.positions[held][None] > position[:, None], -torch.inf)
    return logits


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize(("causal", "newest"), [(True, None), (False, None), (False, 50)])
def test_sums_and_rows_and_what_they_are_reduced_to(dtype, group, softcap, causal, newest) -> None:
    tokens, later = 40, 0 if causal else 2
    part = {"newest": newest, "later": later}
    lanes = lanes_of([n + tokens for n in COUNTS] if causal else [*COUNTS[:1], 2, 3, *COUNTS[3:]], dtype=dtype)
    query, first = asked(lanes, group, tokens, dtype), 200 - tokens if causal else None
    lse = fused.sums(query, lanes, SCALE, softcap, first=first, **part)
    attention = fused.rows(query, lse, lanes, SCALE, softcap, first=first, **part, lead=3)
    before, width = lanes.state.clone(), min(max(lanes.counts), newest or 10**6) - later
    assert attention.shape == (len(lanes.counts), 3 + tokens, width)
    reductions = [Reduction("sum"), Reduction("max")]
    fused.reduce(query, lse, lanes, SCALE, softcap, first=first, **part, reductions=reductions)
    touched = torch.zeros(len(lanes.positions), dtype=torch.bool)
    close = {"atol": 2e-6, "rtol": 2e-5} if dtype == torch.float32 else {"atol": 2e-4, "rtol": 2e-3}
    for lane in range(len(lanes.counts)):
        held = part_of(lane, lanes, newest, later)
        logits, count = logits_of(lane, query, lanes, softcap, first, held), held.stop - held.start
        touched[held] = True
        torch.testing.assert_close(lse[lane], logits.logsumexp(-1), **close)
        if not count:
            continue
        mean = logits.softmax(-1).mean(0)
        assert not attention[lane, :3].any()
        assert not attention[lane, :, : width - count].any()
        torch.testing.assert_close(attention[lane, 3:, width - count :], mean, **close)
        total, peak = lanes.state[:, held]
        torch.testing.assert_close(total, before[0, held] + mean.sum(0), atol=5 * close["atol"], rtol=close["rtol"])
        torch.testing.assert_close(peak, torch.maximum(before[1, held], mean.amax(0)), **close)
    assert torch.equal(lanes.state[:, ~touched], before[:, ~touched])


@pytest.mark.parametrize("group", [1, 4])
def test_a_rival_takes_its_share(group) -> None:
    lanes = lanes_of([30, 1, 100])
    query = asked(lanes, group, 20)
    own = fused.sums(query, lanes, SCALE, None, first=None)
    rival = own + torch.randn(own.shape)
    both = fused.sums(query, lanes, SCALE, None, first=None, rival=rival.transpose(1, 2).contiguous().transpose(1, 2))
    torch.testing.assert_close(both, torch.logaddexp(own, rival))


def test_state_is_held_as_a_multiple_and_as_a_logarithm() -> None:
    lanes = lanes_of([90, 41], channels=3)
    stored = 2.0**11
    lanes.state.mul_(4)
    lanes = Lanes(lanes.keys, lanes.values, lanes.starts, lanes.counts, lanes.table, lanes.positions,
                  (lanes.state * stored).half())  # fmt: skip
    query = asked(lanes, 3, 40)
    lse = fused.sums(query, lanes, SCALE, None, first=160)
    before = lanes.state.clone()
    kinds = [Reduction("sum", FAINT), None, Reduction("max", FAINT)]
    fused.reduce(query, lse, lanes, SCALE, None, first=160, reductions=kinds, stored=stored)
    for lane, (start, count) in enumerate(zip(lanes.starts, lanes.counts, strict=True)):
        held = slice(start, start + count)
        mean = logits_of(lane, query, lanes, None, 160, held).softmax(-1).mean(0)
        old = before[:, held].float() / stored
        mass = torch.log1p((old[0].expm1() * FAINT + mean.sum(0)) / FAINT)
        peak = torch.maximum(old[2], torch.log1p(mean.amax(0) / FAINT))
        torch.testing.assert_close(lanes.state[0, held], (mass * stored).half(), atol=1, rtol=2e-3)
        torch.testing.assert_close(lanes.state[2, held], (peak * stored).half(), atol=1, rtol=2e-3)
    assert torch.equal(lanes.state[1], before[1])


def test_what_is_not_a_number_stays_visible() -> None:
    lanes = lanes_of([50, 60])
    lanes.keys[lanes.starts[1] + 7] = torch.nan
    query = asked(lanes, 3, 40)
    lse = fused.sums(query, lanes, SCALE, None, first=160)
    assert torch.isfinite(lse[0]).all()
    assert torch.isnan(lse[1]).all()
    fused.reduce(query, lse, lanes, SCALE, None, first=160, reductions=[Reduction("sum"), Reduction("max")])
    assert torch.isfinite(lanes.state[:, :50]).all()
    assert torch.isnan(lanes.state[:, lanes.starts[1] + 7]).all()


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("pairs", [4, 12])
def test_queries_are_turned_as_the_model_turns_them(interleaved, pairs) -> None:
    from namm.memory.rotation import Rotation

    query = asked(lanes_of([3, 4, 5]), 3, 37)
    frequencies = 10_000.0 ** (-torch.arange(pairs) / pairs)
    expected = Rotation(frequencies, interleaved).move(query, 512)
    torch.testing.assert_close(fused.turn(query, frequencies, 512, interleaved), expected, atol=1e-5, rtol=1e-4)


def test_attention_is_read_through_the_curve_of_its_head() -> None:
    from namm.calibration import Calibration

    g = torch.Generator().manual_seed(0)
    asked, read = torch.rand(2, 3, 400, generator=g) ** 4
    calibration = Calibration.fitted({0: asked}, {0: read}, "print")
    given = (torch.rand(2, 3, 2, 1500, generator=g) ** 6)[:, :, 1]  # of a state with other channels
    given[0, 0, :2], given[1, 2, 7] = torch.tensor([0.0, 1.5]), torch.nan
    found = fused.bend(given, *calibration._at(given.device)[0])
    expected = calibration.expected(given, 0, torch.arange(3))
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=1e-5, equal_nan=True)


@pytest.mark.parametrize("counts", [[70, 0, 1, 33, 129], [40, 40], [1]])
def test_gathered_slots_are_right_aligned(counts) -> None:
    lanes = lanes_of(counts)
    keys, positions, state, empty = fused.gather(lanes, 4.0)
    width = max(counts)
    for lane, (start, count) in enumerate(zip(lanes.starts, counts, strict=True)):
        held, missing = slice(start, start + count), width - count
        assert empty[lane].tolist() == [True] * missing + [False] * count
        assert torch.equal(keys[lane, missing:], lanes.keys[held])
        assert torch.equal(positions[lane], torch.cat([torch.full((missing,), -1), lanes.positions[held]]))
        assert torch.equal(state[lane], torch.nn.functional.pad(lanes.state[:, held] / 4, (missing, 0)))


@pytest.mark.parametrize("counts", [[70, 0, 1, 33, 129], [40, 40], [1, 150]])
@pytest.mark.parametrize("some", [True, False])
def test_what_stays_is_compacted(counts, some) -> None:
    """Of all lanes, or of all but the first."""
    lanes = lanes_of(counts, dim=20, value_dim=40)
    forget = [i for i in range(len(counts)) if i or not some]
    width = max(counts)
    held = torch.arange(width) >= width - torch.tensor([counts[i] for i in forget])[:, None]
    kept = (torch.rand(len(forget), width) < 0.4) & held
    scores = torch.randn(len(forget), width).masked_fill(~held, torch.nan)
    part = Lanes(lanes.keys, lanes.values, [], [], (lanes.table[0][forget], lanes.table[1][forget]))
    stays, strange = fused.tally(kept, scores, part)
    assert stays.tolist() == kept.sum(1).tolist()
    assert not strange.any()
    if held[-1].any():
        scores[-1, -1] = torch.nan
        assert fused.tally(kept, scores, part)[1].tolist() == [0] * (len(forget) - 1) + [1]
    mine = torch.tensor([forget.index(i) if i in forget else -1 for i in range(len(counts))], dtype=torch.int32)
    index = []
    for lane, (start, count) in enumerate(zip(lanes.starts, counts, strict=True)):
        slots = torch.arange(start, start + count)
        index.append(slots[kept[forget.index(lane), width - count :]] if lane in forget else slots)
    index = torch.cat(index)
    keys, values, positions, state = fused.compact(lanes, kept, stays, mine, len(index) + 3)
    assert torch.equal(keys[:-3], lanes.keys[index])
    assert torch.equal(values[:-3], lanes.values[index])
    assert torch.equal(positions[:-3], lanes.positions[index])
    assert torch.equal(state[:, :-3], lanes.state[:, index])
    assert positions[-3:].tolist() == [-1] * 3
    assert not any(t.any() for t in (keys[-3:], values[-3:], state[:, -3:]))


def test_pools_grow_and_take_tokens() -> None:
    counts, heads, new = [3, 5, 40, 0], 2, 7
    lanes = lanes_of(counts, slack=2)
    keys, values = (torch.randn(1, new, heads, n).transpose(1, 2) for n in (24, 20))
    row = [-1, -1, 0, 0]  # the second row reads, the first keeps what it has, its free slots too
    room = [5, 7, 50, 9]
    begin = [sum(room[:i]) for i in range(5)]
    held = [n if r >= 0 else n + 2 for n, r in zip(counts, row, strict=True)]
    spare = [lanes.starts[-1] + counts[-1] + 2, 0, begin[-1], 1, -1, 0]
    lines = [lanes.starts, held, begin[:-1], room, row, [0, 0, 200, 200]]
    table = torch.tensor([[*line, last] for line, last in zip(lines, spare, strict=True)], dtype=torch.int32)
    k, v, positions, state = fused.grow(lanes, keys, values, table, max(room), begin[-1] + 1)
    for lane, count in enumerate(counts):
        now, old = (slice(s[lane], s[lane] + held[lane]) for s in (begin, lanes.starts))
        assert torch.equal(k[now], lanes.keys[old])
        assert torch.equal(v[now], lanes.values[old])
        assert torch.equal(positions[now], lanes.positions[old])
        assert torch.equal(state[:, now], lanes.state[:, old])
        if row[lane] >= 0:
            free = slice(begin[lane] + count, begin[lane] + room[lane])
            assert positions[free].tolist() == [*range(200, 200 + room[lane] - count)]
            assert not state[:, free].any()
            fresh = slice(begin[lane] + count, begin[lane] + count + new)
            assert torch.equal(k[fresh], keys[0, lane % heads])
            assert torch.equal(v[fresh], values[0, lane % heads])
    assert positions[-1] == -1


LAYER = namm.Budget(fraction=0.4, per="layer")
MEMORIES = {
    "reduced": ("h2o", namm.Budget(fraction=0.4)), "together": ("h2o", namm.Budget(fraction=0.4, per="model")),
    "asked": ("requery", LAYER), "both": ("builtin:universal", LAYER), "rows": ("tova", LAYER),
    "spectrogram": (namm.NAMM.from_vector(torch.linspace(-1, 1, namm.NAMMConfig().size).sin()), LAYER),
    "threshold": (namm.NAMM.from_vector(torch.linspace(-1, 1, namm.NAMMConfig().size).sin()), None),
}  # fmt: skip


@pytest.mark.parametrize("model", ["llama", "gemma2"])
@pytest.mark.parametrize("memory", MEMORIES)
@torch.no_grad()
def test_a_memory_by_these_kernels_is_that_memory(monkeypatch: pytest.MonkeyPatch, model: str, memory: str) -> None:
    """A padded batch, read at once and then token by token, as on a card and as on this machine."""
    policy, selection = MEMORIES[memory]
    network, text = causal_model(model), ids(2, 100)
    mask = torch.ones_like(text)
    mask[1, :21] = 0
    read, run = [], set()
    launch = fused.launch

    def noted(kernel, *arguments, **constants):
        run.add(kernel)
        launch(kernel, *arguments, **constants)

    monkeypatch.setattr(fused, "launch", noted)
    for there in (False, True):
        monkeypatch.setattr(storage, "pads", lambda device, there=there: there)
        monkeypatch.setattr(fused, "capable", lambda device, there=there: there)
        with namm.attach(network, policy, selection, 32) as handle:
            logits = [network(text[:, :70], attention_mask=mask[:, :70]).logits[:, 21:]]
            for t in range(70, 100):
                step = text[:, t : t + 1], mask[:, : t + 1]
                logits.append(network(step[0], attention_mask=step[1], past_key_values=handle.cache).logits)
            kept = handle.memory().kept
            read.append((torch.cat(logits, 1), [handle.kept_positions(i) for i, held in enumerate(kept) if held]))
    assert read[0][1] == read[1][1]
    torch.testing.assert_close(read[0][0], read[1][0], atol=1e-4, rtol=1e-4)
    assert run >= {"grow", "compact", "gather", "tally"}
    assert run & {"reduce", "rows"}


@torch.no_grad()
def test_scores_that_are_not_numbers_are_told_of_late_but_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Strange(H2O):
        def score(self, view: View) -> torch.Tensor:
            return super().score(view) * torch.nan

    monkeypatch.setattr(storage, "pads", lambda device: True)
    monkeypatch.setattr(fused, "capable", lambda device: True)
    monkeypatch.setattr(updates, "sent", lambda numbers: Later(numbers, Event()))
    network, text = causal_model("llama"), ids(1, 40)
    with namm.attach(network, Strange(), LAYER, 32):
        cache = network(text[:, :32]).past_key_values  # nobody waits for the update at the end of it
        with pytest.raises(ScoreError, match=r"NaN from .* in layer 0 after 32 tokens"):
            network(text[:, 32:], past_key_values=cache)  # where its counts are needed
    with namm.attach(network, Strange(), namm.Budget(fraction=0.4), 32) as handle:
        cache = network(text[:, :32]).past_key_values
        network(text[:, 32:], past_key_values=cache)  # its counts were known
        with pytest.raises(ScoreError, match="after 32 tokens"):
            handle.memory()
