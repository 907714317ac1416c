"""Layers on several devices, weights that are no plain tensors, and models that several processes share."""

from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

import namm
from benchmarks.launches import Told, pretended, put
from namm import spectrogram
from namm.calibration import Calibration
from namm.memory import updates
from namm.memory.cache import make_plan
from namm.memory.identity import fingerprint
from namm.memory.plan import Scaling
from namm.memory.rotation import Rotation
from namm.memory.sequence import Meter, Sequence
from namm.memory.steps import read
from namm.policies import NAMMPolicy, resolve
from tests.zoo import CAUSAL, VOCABULARY, causal_model

CARDS = (torch.device("cuda:0"), torch.device("cuda:1"))
HEADS, GROUP, DIM, TOKENS = 2, 2, 16, 64
QUARTER = namm.Budget(fraction=0.25)


def ids(tokens: int) -> Tensor:
    return torch.arange(1, tokens + 1)[None] % VOCABULARY


# -- device_map --------------------------------------------------------------------------------------------------------


def counted(numbers: Tensor) -> list[int]:
    """What the host would read of two layers: slots that stay of each head, then that all scores are numbers."""
    each = TOKENS // 4
    return ([each] * HEADS + [0] * (len(numbers) // 2 - HEADS)) * 2


@pytest.mark.parametrize("triton", [True, False])
@pytest.mark.parametrize("memory", ["builtin:universal", "requery", "h2o"])
def test_layers_on_two_cards_decide_together(memory: str, triton: bool) -> None:
    policy = resolve(memory)
    calibration = Calibration(dict.fromkeys(range(2), torch.arange(10.0).expand(2, HEADS, -1)), "print")
    if isinstance(policy, NAMMPolicy):
        _ = policy.network.mixes
        policy = policy.calibrated(calibration)
    plan, told = make_plan(policy, namm.Budget(fraction=0.25, per="model"), TOKENS), Told(True, lanes=HEADS)
    with pretended(told, triton), mock.patch.object(updates, "read_numbers", counted):
        for card in CARDS:
            calibration._at(card)
            if isinstance(policy, NAMMPolicy):
                put(policy.network, card)
        scaling, meter = Scaling(DIM**-0.5, rotation=Rotation(torch.empty(DIM // 2), interleaved=False)), Meter()
        layers = [[Sequence(plan, 0, index, meter)] for index in range(2)]
        for layer, card in zip(layers, CARDS, strict=True):  # tensors of two devices in one operation are refused
            query, key, value = (
                torch.empty(1, n, TOKENS, DIM, dtype=torch.bfloat16, device=card) for n in (HEADS * GROUP, HEADS, HEADS)
            )
            read(layer, query, key, value, scaling)
        updates.update_together(layers)
        assert [layer[0].store.keys.device for layer in layers] == list(CARDS)
        assert [layer[0].slots() for layer in layers] == [[TOKENS // 4] * HEADS] * 2
    if isinstance(policy, NAMMPolicy):
        policy.network._on_device.clear()


@torch.no_grad()
def test_a_saved_memory_comes_back_to_where_each_layer_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = causal_model("llama")
    with namm.attach(model, "h2o", QUARTER, update_interval=32) as held:
        model(ids(80))
        held.cache.save(tmp_path / "cache", model)
    # as accelerate does where it keeps the weights of a layer elsewhere than it computes
    monkeypatch.setattr(
        model.model.layers[1].self_attn, "_hf_hook", SimpleNamespace(execution_device="meta"), raising=False
    )
    cache = namm.MemoryCache.load(tmp_path / "cache", model, "h2o", QUARTER, 32)
    places = [layer.sequences[0].store.keys.device.type for layer in cache.layers]
    assert places == [layer.device.type for layer in cache.layers] == ["cpu", "meta"]


# -- quantised weights -------------------------------------------------------------------------------------------------


class Packed(Tensor):
    """As torchao's: numbers that are made of others, and no operation but a few."""

    codes: Tensor

    @staticmethod
    def __new__(cls, codes: Tensor) -> "Packed":
        packed: Packed = Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)
        packed.codes = codes
        return packed

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["codes"], None

    @classmethod
    def __tensor_unflatten__(cls, parts: dict[str, Tensor], *_: object) -> "Packed":
        return cls(parts["codes"])

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return cls(args[0].codes)
        raise NotImplementedError(func)


def test_weights_that_are_made_of_others_tell_models_apart() -> None:
    def prints(codes: Tensor) -> str:
        torch.manual_seed(0)
        model = type(causal_model("llama"))(CAUSAL["llama"]())
        model.lm_head.weight = nn.Parameter(Packed(codes), requires_grad=False)
        return fingerprint(model)

    codes = torch.arange(VOCABULARY * 32, dtype=torch.uint8).view(VOCABULARY, 32)
    assert prints(codes) == prints(codes.clone()) != prints(codes + 1)


@torch.no_grad()
def test_a_model_quantised_by_torchao_remembers(tmp_path: Path) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    model = type(causal_model("llama"))(CAUSAL["llama"]()).eval()
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    calibration = namm.calibrate(model, texts=[list(range(1, 90)) * 2, list(range(2, 91)) * 2])
    memory = resolve("builtin:universal").calibrated(calibration)
    with namm.attach(model, memory, QUARTER, update_interval=32) as held:
        model.generate(ids(96), max_new_tokens=4)
        held.cache.save(tmp_path / "cache", model)
        kept = held.kept_positions(1)
    assert namm.MemoryCache.load(tmp_path / "cache", model, memory, QUARTER, 32).kept_positions(1) == kept


# -- other devices, and several processes ------------------------------------------------------------------------------


def test_a_moving_average_asks_no_device_for_float64() -> None:
    """Apple's have none. Numbers on the device "meta" are none, but their types are."""
    made = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            made.extend([out] if isinstance(out, Tensor) and out.device.type == "meta" else [])
            return out

    with Watch():
        spectrogram.moving_average(torch.empty(17, 8, device="meta"), torch.empty(48, 8, device="meta"))
    assert made
    assert torch.float64 not in {tensor.dtype for tensor in made}


@pytest.mark.parametrize("sizes", [{"tp_size": 2}, {"pp_size": 4}])
def test_a_model_that_processes_share_is_refused(sizes: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    model = causal_model("llama")
    alone = SimpleNamespace(tp_size=1, pp_size=1)
    monkeypatch.setattr(model.config, "distributed_config", alone, raising=False)
    with namm.attach(model, "h2o", QUARTER):
        pass
    monkeypatch.setattr(model.config, "distributed_config", SimpleNamespace(**vars(alone) | sizes), raising=False)
    shared = max(sizes.values())
    expected = pytest.raises(namm.ModelError, match=f"one that {shared} processes share.*device_map")
    with expected, namm.attach(model, "h2o", QUARTER):
        pass
