"""What cannot be served is refused with what was expected, what came and the way out, and nothing stays attached."""

import pytest
import torch
import transformers as tf
from torch import nn

import namm
from namm import Budget, Threshold
from namm.compat import cache_argument
from tests.memory.test_interface import _unchanged
from tests.zoo import causal_model, ids

QUARTER = Budget(fraction=0.25)


def refused(error: type[namm.NammError], match: str):
    return pytest.raises(error, match=match)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({}, "exactly one"),
        ({"tokens": 3, "fraction": 0.5}, "exactly one"),
        ({"tokens": 0}, "at least 1 token"),
        ({"tokens": -4}, "at least 1 token"),
        ({"tokens": 2.5}, "at least 1 token"),
        ({"fraction": 0.0}, r"fraction in \(0, 1\]"),
        ({"fraction": -0.1}, r"fraction in \(0, 1\]"),
        ({"fraction": 1.5}, r"fraction in \(0, 1\]"),
        ({"fraction": float("nan")}, r"fraction in \(0, 1\]"),
        ({"fraction": 0.5, "per": "world"}, 'per="head"'),
        ({"fraction": 0.5, "sinks": -1}, "sinks"),
        ({"tokens": 8, "sinks": 4, "recent": 8}, "protected"),
    ],
)
def test_budgets(arguments: dict[str, object], match: str) -> None:
    from jaxtyping import TypeCheckError

    with pytest.raises((namm.ConfigurationError, TypeCheckError)) as caught:
        Budget(**arguments)
    if isinstance(caught.value, namm.ConfigurationError):
        assert caught.match(match)


def test_thresholds() -> None:
    with refused(namm.ConfigurationError, "finite threshold"):
        Threshold(float("nan"))


@pytest.mark.parametrize("interval", [500, 0, -512, 8])
def test_update_intervals(interval: int) -> None:
    model = causal_model("llama")
    with (
        _unchanged(model),
        refused(namm.ConfigurationError, "multiple of 16"),
        namm.attach(model, namm.NAMM.zeros(), update_interval=interval),
    ):
        pass


@pytest.mark.parametrize(
    ("memory", "selection", "match"),
    [
        ("h2o", None, "a budget for H2O"),
        ("streaming", Threshold(0.0), "whose scores have no zero"),
        ("h20", QUARTER, "Did you mean 'h2o'"),
        ("builtin:smolm2", QUARTER, "Known:"),
        ("/no/such/folder", QUARTER, "folder or hub id"),
        ("nobody/no-such-memory", None, "hub id that can be reached"),
    ],
)
def test_policies_and_names(memory: str, selection: object, match: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    model = causal_model("llama")
    with _unchanged(model), refused(namm.NammError, match), namm.attach(model, memory, selection):
        pass


def test_models_without_the_attention_interface() -> None:
    falcon = tf.FalconForCausalLM(
        tf.FalconConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    )
    with refused(namm.ModelError, "attention interface"), namm.attach(falcon, "h2o", QUARTER):
        pass
    with refused(namm.ModelError, "that take a cache"), namm.attach(nn.Linear(2, 2), "h2o", QUARTER):
        pass


def test_models_without_full_attention() -> None:
    config = causal_model("mistral").config.to_dict() | {"sliding_window": 16, "layer_types": None}
    model = tf.MistralForCausalLM(tf.MistralConfig(**config))
    with refused(namm.ModelError, "full-attention layers"), namm.attach(model, "h2o", QUARTER):
        pass


def test_attaching_twice() -> None:
    model = causal_model("llama")
    with _unchanged(model), namm.attach(model, "h2o", QUARTER):
        with refused(namm.ModelError, "Leave the other block"), namm.attach(model, "knorm", QUARTER):
            pass
        model.generate(ids(1, 20), max_new_tokens=2)  # the first still works


@pytest.mark.parametrize("kind", ["static", "offloaded"])
def test_other_caches(kind: str) -> None:
    if kind == "offloaded" and torch.version.cuda and not torch.cuda.is_available():
        pytest.skip("a CUDA build of torch makes no offloaded cache without a GPU")
    model = causal_model("llama")
    with namm.attach(model, "h2o", QUARTER), refused(namm.ModelError, "cache_implementation"):
        model.generate(ids(1, 20), max_new_tokens=2, cache_implementation=kind)


def test_quantised_caches() -> None:
    model = causal_model("llama")

    class Quantised(tf.DynamicCache):
        """Stands for QuantizedCache, whose back ends are not installed."""

    with namm.attach(model, "h2o", QUARTER), refused(namm.ModelError, "a Quantised"):
        model(ids(1, 20), past_key_values=Quantised(config=model.config))


def test_caches_that_were_filled_elsewhere() -> None:
    model = causal_model("llama")
    full = model(ids(1, 20)).past_key_values
    with namm.attach(model, "h2o", QUARTER), refused(namm.ModelError, "holds 20 tokens"):
        model(ids(1, 5), past_key_values=full)
    with torch.no_grad(), namm.attach(model, "h2o", QUARTER):
        left = model(ids(1, 20)).past_key_values
    with refused(namm.ModelError, "after the block was left"):
        model(ids(1, 5), past_key_values=left)


@pytest.mark.parametrize(
    ("mask", "match"),
    [
        (torch.ones(2, 1, 20, 20), "2-D mask"),
        (torch.full((2, 20), 0.5), "values other than 0 and 1"),
        (torch.full((2, 20), 2), "values other than 0 and 1"),
        (torch.tensor([[1] * 20, [0] * 20]), "row 1 of padding only"),
        (torch.ones(2, 12, dtype=torch.long), "all 20 tokens seen"),
    ],
)
def test_masks(mask: torch.Tensor, match: str) -> None:
    model = causal_model("llama")
    with torch.no_grad(), _unchanged(model), namm.attach(model, "h2o", QUARTER):
        with refused(namm.ModelError, match):
            model(ids(2, 20), attention_mask=mask)
        model(ids(2, 20))


def test_4d_masks_with_a_cache_by_hand() -> None:
    model = causal_model("llama")
    cache = namm.MemoryCache(model.config, "h2o", QUARTER)
    with torch.no_grad(), refused(namm.ModelError, "2-D mask"):
        model(ids(1, 20), attention_mask=torch.ones(1, 1, 20, 20, dtype=torch.bool), past_key_values=cache)


def test_training_and_dropout() -> None:
    model = tf.AutoModelForCausalLM.from_config(causal_model("gpt2").config).train()
    with namm.attach(model, "h2o", QUARTER), refused(namm.ModelError, r"model.eval\(\)"):
        model(ids(1, 20))


def test_a_batch_of_another_size() -> None:
    model = causal_model("llama")
    cache = namm.MemoryCache(model.config, "h2o", QUARTER)
    with torch.no_grad():
        model(ids(2, 20), past_key_values=cache)
        with refused(namm.ModelError, "2 rows"):
            model(ids(3, 20), past_key_values=cache)


def test_rolling_back() -> None:
    model = causal_model("llama")
    with namm.attach(model, "h2o", QUARTER), refused(namm.NammError, "only grows|rolled back"):
        model(ids(1, 20)).past_key_values.crop(-3)
    with namm.attach(model, "h2o", QUARTER), pytest.raises((namm.NammError, ValueError)):
        model.generate(ids(1, 20), max_new_tokens=4, prompt_lookup_num_tokens=3)


def test_attention_that_goes_another_way_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The self-check: keys were cached, but nothing could ever be forgotten."""
    model = tf.AutoModelForCausalLM.from_config(causal_model("llama").config).eval()
    original, name = type(model.model.layers[0].self_attn).forward, cache_argument(model.model.layers[0].self_attn)

    def bypass(self, *args, **kwargs):
        self.config._attn_implementation_internal, routed = "sdpa", self.config._attn_implementation
        cache = kwargs[name]
        update = cache.layers[self.layer_idx].update
        monkeypatch.setattr(
            cache.layers[self.layer_idx], "update", lambda k, v, **_: tuple(t.clone() for t in update(k, v))
        )
        self.config._attn_implementation_internal = routed
        return original(self, *args, **kwargs)

    monkeypatch.setattr(type(model.model.layers[0].self_attn), "forward", bypass)
    with torch.no_grad(), namm.attach(model, "h2o", QUARTER), refused(namm.ModelError, "never asked the memory"):
        model(ids(1, 20))


def test_scores_that_are_not_numbers() -> None:
    model = tf.AutoModelForCausalLM.from_config(causal_model("llama").config).eval()
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(float("nan"))
        with namm.attach(model, namm.NAMM.zeros(), update_interval=16), refused(namm.ConfigurationError, "NaN from"):
            model(ids(1, 20))


def test_a_row_of_padding_only_in_generate() -> None:
    model, mask = causal_model("llama"), torch.tensor([[1] * 20, [0] * 20])
    with _unchanged(model), namm.attach(model, "h2o", QUARTER), refused(namm.ModelError, "row 1 of padding only"):
        model.generate(ids(2, 20), attention_mask=mask, max_new_tokens=4)


def test_attention_that_is_not_causal() -> None:
    bart = tf.BartForConditionalGeneration(
        tf.BartConfig(vocab_size=97, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
                      decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=64)
    )  # fmt: skip
    with refused(namm.ModelError, "decoder-only"), namm.attach(bart, "full"):
        pass
    bert = tf.BertModel(
        tf.BertConfig(vocab_size=97, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    ).eval()
    with torch.no_grad(), namm.attach(bert, "full"), refused(namm.ModelError, "causal self-attention"):
        bert(ids(1, 20))


def test_gradients_and_attention_matrices() -> None:
    model = causal_model("llama")
    with namm.attach(model, "full"):
        loss = model(ids(1, 20)).logits.sum()
        with refused(namm.ModelError, "backward pass"):
            loss.backward()
    eager = tf.AutoModelForCausalLM.from_config(causal_model("llama").config, attn_implementation="eager").eval()
    with torch.no_grad(), namm.attach(eager, "full"), refused(namm.ModelError, "output_attentions"):
        eager(ids(1, 20), output_attentions=True)


@pytest.mark.parametrize("selection", [0.25, "25 %", Budget])
def test_what_is_no_selection(selection: object) -> None:
    from namm.memory.cache import make_plan

    check = getattr(make_plan, "__wrapped__", make_plan)
    with pytest.raises((namm.ConfigurationError, TypeError)) as caught:
        check("h2o", selection, 512)
    assert "Budget" in str(caught.value) or "selection" in str(caught.value)
