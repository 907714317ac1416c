"""Replay of the reference's inputs and outputs: features, scores, and every retained index exactly (spec 13)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from namm import NAMM, Threshold, kernels, spectrogram
from namm.kernels import native


def close(ours: torch.Tensor, theirs: np.ndarray, scale: float, what: str) -> None:
    error = float((ours - torch.from_numpy(theirs)).abs().max())
    assert error <= 1e-5 * scale, f"{what}: error {error:.2e}, allowed {1e-5 * scale:.2e}"


@pytest.mark.parametrize("backend", ["torch", "native"])
def test_reference_is_reproduced(vectors: Path, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if backend == "torch":
        monkeypatch.setattr(native, "serves", lambda tensor: False)
    elif native.library() is None:
        pytest.fail("the native back end could not be compiled; NAMM_KERNELS=torch or a C compiler is needed")
    with np.load(vectors) as file:
        replay(dict(file))


def replay(data: dict[str, Any]) -> None:
    meta = json.loads(str(data["meta_json"]))
    heads = int(data["num_kv_heads"])
    online = meta["norm_mode"] == "online"
    network = NAMM.from_vector(*(torch.from_numpy(data[k]) for k in ("params", "norm_mean", "norm_var")))
    statistics = spectrogram.Statistics.empty()
    selection = Threshold(0.0, fill_heads=True)  # the reference fills heads up (spec 8.3)
    state = torch.zeros(heads, spectrogram.BINS, 0)
    carried = torch.zeros(heads, spectrogram.HOP, 0)
    positions = torch.zeros(heads, 0, dtype=torch.long)
    for update in range(int(meta["n_updates"])):
        u = {k.removeprefix(f"u{update}_"): v for k, v in data.items() if k.startswith(f"u{update}_")}
        attention = torch.from_numpy(u["attn"])[0].unflatten(0, (heads, -1))
        attention = attention.mean(1)  # spec 2; in the dtype of the vectors
        new, slots = attention.shape[1:]
        old = slots - new

        rows = torch.cat([torch.nn.functional.pad(carried, (0, new)), attention], dim=1)
        state = torch.nn.functional.pad(state, (0, new))
        born = torch.zeros(slots, dtype=torch.long)
        born[old:] = torch.arange(new) // spectrogram.HOP  # spec 4: the causal frame mask
        if "stft_mag" in u:
            close(spectrogram.magnitudes(rows).transpose(-1, -2), u["stft_mag"][0], u["stft_mag"].max(), "magnitudes")
        following = spectrogram.moving_average(state, rows, born)
        if not meta.get("left_pad"):  # attention that is causal everywhere needs no frame mask
            close(kernels.observe_spectrogram(state, rows), following.numpy(), float(following.max()), "observe")
        state = following
        close(state.transpose(-1, -2), u["ema_features"][0], u["ema_features"].max(), f"update {update}: averages")

        positions = torch.cat([positions, torch.from_numpy(u["new_position_ids"]).expand(heads, -1)], dim=1)
        np.testing.assert_array_equal(positions, u["cached_position_ids"][0])
        valid = torch.from_numpy(u["attention_mask"])[0, -slots:].bool().expand(heads, -1)
        if online:  # spec 5: the accumulator, this update included, normalises
            seen = spectrogram.Statistics.of(state.transpose(-1, -2)[valid])
            statistics = statistics.merge(seen)
            network = network.with_statistics(statistics.mean, statistics.var)
            close(statistics.mean, u["online_new_mean"], u["online_new_mean"].max(), "mean")
            close(statistics.var, u["online_new_var"], u["online_new_var"].max(), "variance")
            assert statistics.count == int(np.ravel(u["online_new_num"])[0])
        features = network.features(state, positions[:, -1:] - positions)
        close(features, u["token_features"][0], np.abs(u["token_features"]).max(), f"update {update}: features")
        scores = network.scores(features[None], valid[None])
        close(scores, u["scores"], max(1.0, np.abs(u["scores"]).max()), f"update {update}: scores")
        if bool(valid.all()):
            close(network.scores(features[None]), u["scores"], max(1.0, np.abs(u["scores"]).max()), "unmasked scores")

        masked = scores.masked_fill(~valid[None], torch.finfo(torch.float32).min)
        kept = selection.select(masked, positions[None].clamp(min=0), int(u["rotary_offset"]))[0]
        index = kept.nonzero()[:, 1].view(heads, -1)
        np.testing.assert_array_equal(index, u["retained_idxs"][0], f"first difference at update {update}")
        positions = positions.gather(1, index)
        np.testing.assert_array_equal(positions, u["retained_position_ids"][0])
        state = state.gather(2, index[:, None].expand(-1, spectrogram.BINS, -1))
        close(state.transpose(-1, -2), u["ema_features_after"][0], u["ema_features"].max(), "averages kept")
        carried = attention[:, -spectrogram.HOP :].gather(2, index[:, None].expand(-1, spectrogram.HOP, -1))
