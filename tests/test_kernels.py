"""Every back end against the formula it computes, written the slow and plain way."""

import pytest
import torch

from namm import kernels, spectrogram
from namm.kernels import Lanes, blockwise, native


@pytest.fixture(params=["torch", "native"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "torch":
        monkeypatch.setattr(native, "serves", lambda tensor, *more: False)
    else:
        assert native.library() is not None, "no C compiler: the native back end is part of what we test"
    return request.param


def plain_attention(query, key, value, scale, softcap=None, visible=None):
    """Probabilities and output, one dense softmax."""
    slots, queries = key.shape[1], query.shape[2]
    logits = torch.einsum("hgqd,hsd->hgqs", query, key) * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if visible is None:
        visible = torch.ones(queries, slots, dtype=torch.bool).tril(slots - queries).expand(len(key), -1, -1)
    logits = logits.masked_fill(~visible[:, None], -torch.inf)
    probabilities = logits.softmax(-1)
    return probabilities, probabilities @ value[:, None], logits.logsumexp(-1)


def example(heads=2, group=3, queries=200, slots=260, dim=16, seed=0):
    g = torch.Generator().manual_seed(seed)
    shapes = (heads, group, queries, dim), (heads, slots, dim), (heads, slots, 12)
    return tuple(torch.randn(*shape, generator=g) for shape in shapes)


@pytest.mark.parametrize(("queries", "slots"), [(1, 1), (1, 70), (5, 5), (16, 90), (200, 260), (333, 333)])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_attention_and_its_sums(backend: str, queries: int, slots: int, softcap: float | None) -> None:
    q, k, v = example(queries=queries, slots=slots)
    probabilities, expected, sums = plain_attention(q, k, v, 0.3, softcap)
    seen: list[torch.Tensor] = []
    out, lse = kernels.attend_and_observe(q, k, v, 0.3, softcap=softcap, observe=lambda a: seen.append(a.sum(1)))
    torch.testing.assert_close(out, expected, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(lse, sums, atol=2e-6, rtol=1e-5)
    total = sum(torch.nn.functional.pad(s, (0, slots - s.shape[-1])) for s in seen)
    torch.testing.assert_close(total, probabilities.mean(1).sum(1), atol=2e-5, rtol=1e-4)
    if softcap is None:
        torch.testing.assert_close(kernels.attend(q, k, v, 0.3), expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(("queries", "slots"), [(1, 1), (7, 70), (128, 128), (200, 333), (130, 45)])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_queries_that_ask_again_see_everything(backend: str, queries: int, slots: int, softcap: float | None) -> None:
    q, k, v = example(queries=queries, slots=slots)
    everything = torch.ones(2, queries, slots, dtype=torch.bool)
    probabilities, _, sums = plain_attention(q, k, v, 0.3, softcap, everything)
    seen: list[torch.Tensor] = []
    kernels.ask(q, k, 0.3, softcap, lambda attention: seen.append(attention.clone()))
    torch.testing.assert_close(torch.cat(seen, dim=1), probabilities.mean(1), atol=2e-6, rtol=1e-5)
    rival = torch.randn(sums.shape) + sums
    left: list[torch.Tensor] = []
    kernels.ask(q, k, 0.3, softcap, lambda attention: left.append(attention.clone()), rival)
    part = sums.exp() / (sums.exp() + rival.exp())
    torch.testing.assert_close(torch.cat(left, dim=1), (probabilities * part[..., None]).mean(1), atol=2e-6, rtol=1e-5)


def pool(lengths, dim, value_dim, dtype, generator):
    """Lanes with three free slots after each."""
    starts = [sum(lengths[:i]) + 3 * i for i in range(len(lengths))]
    keys, values = (
        torch.randn(sum(lengths) + 3 * len(lengths), d, generator=generator).to(dtype) for d in (dim, value_dim)
    )
    return keys, values, starts, list(lengths)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("dim", "value_dim"), [(64, 64), (16, 12), (10, 37)])
def test_one_query_attends_to_heads_of_unequal_length(
    backend: str, dtype: torch.dtype, dim: int, value_dim: int
) -> None:
    g = torch.Generator().manual_seed(2)
    lengths = (1, 7, 130, 700)
    pools = [Lanes(*pool(lengths[:2], dim, value_dim, dtype, g)), Lanes(*pool(lengths[2:], dim, value_dim, dtype, g))]
    query = torch.randn(4, 3, dim, generator=g).to(dtype)
    out = kernels.attend_one(query, pools, 0.3)
    assert out.dtype == dtype
    places = [(lanes, *place) for lanes in pools for place in zip(lanes.starts, lanes.counts, strict=True)]
    for mixed, one, (lanes, start, n) in zip(out, query, places, strict=True):
        key, value = (t[start : start + n].float()[None] for t in (lanes.keys, lanes.values))
        _, expected, _ = plain_attention(one[None, :, None].float(), key, value, 0.3)
        tolerance = {"atol": 2e-6, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 2e-2, "rtol": 2e-2}
        torch.testing.assert_close(mixed.float(), expected[0].squeeze(1), **tolerance)


def test_a_cache_of_another_precision_is_not_misread(backend: str) -> None:
    keys = torch.randn(10, 8)
    with pytest.raises(RuntimeError, match="dtype"):
        kernels.attend_one(torch.randn(2, 3, 8).bfloat16(), [Lanes(keys, keys, [0, 5], [5, 5])], 0.3)


def test_queries_looked_at_later_saw_what_they_saw(backend: str) -> None:
    q, k, v = example(queries=20, slots=60)
    probabilities, _, sums = plain_attention(q, k, v, 0.3)
    attention, lse = kernels.look_back(q, k, 0.3, None)
    torch.testing.assert_close(attention, probabilities.mean(1), atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(lse, sums, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("fast", [True, False])
def test_in_bfloat16_logits_are_as_exact_as_bfloat16(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where such products are fast they are taken, as eager attention takes them."""
    monkeypatch.setattr(native, "multiplies_half", lambda: fast)
    q, k, v = (t.bfloat16() for t in example(queries=200, slots=260))
    probabilities, expected, sums = plain_attention(q.float(), k.float(), v.float(), 0.3)
    seen: list[torch.Tensor] = []
    out, lse = kernels.attend_and_observe(q, k, v, 0.3, observe=lambda a: seen.append(a.sum(1)))
    torch.testing.assert_close(out.float(), expected, atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(lse, sums, atol=2e-2, rtol=1e-2)
    total = sum(torch.nn.functional.pad(s, (0, 260 - s.shape[-1])) for s in seen)
    torch.testing.assert_close(total, probabilities.mean(1).sum(1), atol=1e-2, rtol=1e-2)
    asked: list[torch.Tensor] = []
    kernels.ask(q, k, 0.3, None, lambda attention: asked.append(attention.clone()))
    everything = torch.ones(2, 200, 260, dtype=torch.bool)
    probabilities, _, sums = plain_attention(q.float(), k.float(), v.float(), 0.3, None, everything)
    torch.testing.assert_close(torch.cat(asked, dim=1), probabilities.mean(1), atol=1e-3, rtol=3e-2)
    left: list[torch.Tensor] = []
    kernels.ask(q, k, 0.3, None, lambda attention: left.append(attention.clone()), sums + 1)
    part = 1 / (1 + torch.tensor(1.0).exp())
    torch.testing.assert_close(torch.cat(left, dim=1), probabilities.mean(1) * part, atol=1e-3, rtol=3e-2)


def test_attention_with_more_than_causality(backend: str) -> None:
    q, k, v = example(queries=40, slots=60)
    g = torch.Generator().manual_seed(1)
    visible = torch.rand(2, 40, 60, generator=g) < 0.5
    visible[:, :, 0] = True
    _, expected, _ = plain_attention(q, k, v, 0.3, visible=visible)
    out, _ = kernels.attend_and_observe(q, k, v, 0.3, visible=visible)
    torch.testing.assert_close(out, expected, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(kernels.attend(q, k, v, 0.3, visible), expected, atol=2e-6, rtol=1e-5)


def test_observers_get_whole_hops_with_their_overlap(backend: str) -> None:
    q, k, v = example(queries=150, slots=170)
    probabilities, _, _ = plain_attention(q, k, v, 0.3)
    carried = torch.rand(2, 16 + 5, 20)
    rows: list[torch.Tensor] = []
    kernels.attend_and_observe(
        q, k, v, 0.3, carried=carried, hop=16, overlap=16, observe=lambda a: rows.append(a.clone())
    )
    everything = torch.cat([torch.nn.functional.pad(carried, (0, 150)), probabilities.mean(1)], dim=1)
    start = 0
    for block in rows:
        new = block.shape[1] - 16
        assert new % 16 == 0
        expected = everything[:, start : start + 16 + new, : block.shape[2]]
        torch.testing.assert_close(block, expected, atol=2e-6, rtol=1e-5)
        start += new
    assert start == (150 + 5) // 16 * 16


@pytest.mark.parametrize("slots", [1, 7, 8, 65])
def test_spectrogram_is_the_fourier_transform(backend: str, slots: int) -> None:
    attention = torch.rand(3, 16 + 48, slots)
    state = torch.rand(3, 17, slots)
    window = torch.hann_window(32, periodic=True)
    expected = state.clone()
    for frame in range(3):
        x = attention[:, 16 * frame : 16 * frame + 32] * window[:, None]
        magnitude = torch.fft.rfft(x, dim=1).abs()
        expected = expected * 0.99**16 + (1 - 0.99**16) * magnitude
    torch.testing.assert_close(kernels.observe_spectrogram(state, attention), expected, atol=2e-6, rtol=1e-5)


def test_a_constant_signal_has_the_spectrum_of_its_window() -> None:
    magnitude = spectrogram.magnitudes(torch.full((32, 1), 0.5))
    expected = torch.zeros(17)
    expected[:2] = torch.tensor([8.0, 4.0])  # 16 c, 8 c (spec 3)
    torch.testing.assert_close(magnitude[0, :, 0], expected, atol=1e-5, rtol=0)


def test_replayed_attention_is_what_was_seen() -> None:
    q, k, v = example(queries=30, slots=50)
    probabilities, _, lse = plain_attention(q, k, v, 0.3)
    visible = torch.ones(30, 50, dtype=torch.bool).tril(20).expand(2, -1, -1)
    torch.testing.assert_close(
        blockwise.replay(q, lse, k, 0.3, None, visible), probabilities.mean(1), atol=2e-6, rtol=1e-5
    )
    kept = torch.tensor([[0, 3, 9, 21], [1, 2, 30, 49]])
    left = k.gather(1, kept[..., None].expand(-1, -1, 16))
    seen = probabilities.mean(1).gather(2, kept[:, None].expand(-1, 30, -1))
    rows = blockwise.replay(q, lse, left, 0.3, None, kept[:, None] <= torch.arange(20, 50)[:, None])
    torch.testing.assert_close(rows, seen, atol=2e-6, rtol=1e-5)


def test_extreme_logits_stay_finite(backend: str) -> None:
    q, k, v = example(queries=20, slots=40)
    out, lse = kernels.attend_and_observe(q * 100, k * 100, v, 1.0)
    assert bool(torch.isfinite(out).all())
    assert bool(torch.isfinite(lse).all())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [3, 38])
def test_what_is_not_a_number_stays_visible(backend: str, bad: float, place: int) -> None:
    logits = torch.randn(1, 1, 2, 40)
    logits[0, 0, 1, place] = bad
    mean, lse = torch.empty(1, 2, 40), torch.empty(1, 1, 2)
    blockwise.softmax_and_mean(logits, 40, mean, lse)
    assert bool(torch.isfinite(mean[0, 0]).all())
    assert bool(torch.isnan(mean[0, 1]).all())


def test_recency_counts_from_the_newest_token() -> None:
    features = spectrogram.recency(torch.tensor([0, 1, 40_000]))
    assert features.shape == (3, 8)
    torch.testing.assert_close(features[0], torch.tensor([0.0] * 4 + [1.0] * 4))
    frequency = 50_000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    expected = torch.cat([(40_000 * frequency).sin(), (40_000 * frequency).cos()]).float()
    torch.testing.assert_close(features[2], expected)


def test_statistics_of_parts_merge_to_those_of_the_whole() -> None:
    values = torch.randn(300, 17) * 3 + 1
    of = spectrogram.Statistics.of
    merged = spectrogram.Statistics.empty().merge(of(values[:7])).merge(of(values[7:200])).merge(of(values[200:]))
    whole = of(values)
    assert merged.count == whole.count == 300
    torch.testing.assert_close(merged.mean, whole.mean)
    torch.testing.assert_close(merged.var, whole.var)
    torch.testing.assert_close(merged.normalise(values).mean(0), torch.zeros(17), atol=1e-5, rtol=0)


def test_an_unknown_back_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from namm import ConfigurationError

    native.library.cache_clear()
    monkeypatch.setenv("NAMM_KERNELS", "cuda")
    with pytest.raises(ConfigurationError, match="auto, torch or native"):
        native.library()
    monkeypatch.setenv("NAMM_KERNELS", "native")
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(ConfigurationError, match="Install a C compiler"):
        native.library()
    monkeypatch.setenv("NAMM_KERNELS", "torch")
    assert native.library() is None
    native.library.cache_clear()
    monkeypatch.undo()
    assert native.library() is not None
