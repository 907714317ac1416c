"""Probabilities are the model's own, before anything else chooses; of the answer, and of a prompt that is echoed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

import namm
from namm.serving.vocabulary import Vocabulary
from tests.serving.conftest import Serve
from tests.serving.made import tokenizer
from tests.serving.test_answers import LONG, MEMORIES, OTHER, selection

SAID = [{"role": "user", "content": LONG}]


def by_hand(pair, memory: str, ids: list[int]) -> torch.Tensor:
    """Log-probabilities of what follows each of these tokens, as the model itself finds them with this memory."""
    model, calibrated = pair[0], namm.calibrated(memory, *pair)
    with torch.inference_mode(), namm.attach(model, calibrated, selection(memory), 32):
        return torch.log_softmax(model(torch.tensor([ids])).logits[0].float(), -1)


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("stream", [False, True])
def test_of_a_chat(serve: Serve, pair, memory, stream):
    words = pair[1]
    options = {"temperature": 0.5, "seed": 4, "presence_penalty": 1, "logit_bias": {"40": 3}}  # change no probability
    made = (
        serve((memory,))
        .client()
        .chat.completions.create(
            model="tiny", messages=SAID, max_tokens=30, logprobs=True, top_logprobs=3, stream=stream, **options
        )
    )
    chunks = list(made) if stream else [made]
    told = [one for chunk in chunks if chunk.choices[0].logprobs for one in chunk.choices[0].logprobs.content]
    prompt = words.apply_chat_template(SAID, tokenize=True, add_generation_prompt=True)["input_ids"]
    answer = [_token(words, one.bytes) for one in told]
    expected = by_hand(pair, memory, [*prompt, *answer])[len(prompt) - 1 :]
    assert len(told) == (30 if answer[-1] != words.eos_token_id else len(answer))
    for place, one in enumerate(told):
        assert one.logprob == pytest.approx(expected[place, answer[place]].item(), abs=1e-3)
        assert one.token == bytes(one.bytes).decode(errors="replace")
        best = expected[place].topk(3)
        assert [_token(words, other.bytes) for other in one.top_logprobs] == best.indices.tolist()
        assert [other.logprob for other in one.top_logprobs] == pytest.approx(best.values.tolist(), abs=1e-3)
    if not stream:
        text = b"".join(bytes(one.bytes) for one in told if not one.token.startswith("<|"))
        assert text.decode(errors="replace") == chunks[0].choices[0].message.content


def _token(words, written: list[int]) -> int:
    vocabulary = Vocabulary(words)
    return next(token for token in range(len(words)) if vocabulary.bytes_of(token) == bytes(written))


def test_only_if_asked_for(serve: Serve):
    client = serve().client()
    plain = client.chat.completions.create(model="tiny", messages=SAID, max_tokens=5)
    few = client.chat.completions.create(model="tiny", messages=SAID, max_tokens=5, logprobs=True)
    assert plain.choices[0].logprobs is None
    assert [one.top_logprobs for one in few.choices[0].logprobs.content] == [[]] * 5
    assert client.completions.create(model="tiny", prompt=LONG, max_tokens=5).choices[0].logprobs is None


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("most", [0, 1, 12])
@pytest.mark.parametrize("stream", [False, True])
def test_of_a_prompt_that_is_echoed(serve: Serve, pair, memory, most, stream):
    words, prompt = pair[1], LONG + "Crème brûlée."
    ids = words(prompt)["input_ids"]
    server = serve((memory,), limits={"chunk": 24})
    made = server.client().completions.create(
        model="tiny", prompt=ids, max_tokens=most, temperature=0, echo=True, logprobs=2, stream=stream
    )
    text, told = "", {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for chunk in made if stream else [made]:
        text += chunk.choices[0].text
        for name, values in told.items():
            values.extend(getattr(chunk.choices[0].logprobs, name) if chunk.choices[0].logprobs else [])
    assert text.startswith(prompt)
    assert (told["token_logprobs"][0], told["top_logprobs"][0]) == (None, None)
    assert len(told["tokens"]) == len(told["text_offset"]) == len(ids) + most
    expected, after = by_hand(pair, memory, ids), ids[1:]
    right = expected[:-1].gather(1, torch.tensor(after)[:, None])[:, 0].tolist()
    assert told["token_logprobs"][1 : len(ids)] == pytest.approx(right, abs=1e-3)
    for place in range(1, len(ids)):
        best = expected[place - 1].topk(2).values.tolist()
        named = told["top_logprobs"][place]
        assert sorted(named.values(), reverse=True)[:2] == pytest.approx(best, abs=1e-3)
        assert named[told["tokens"][place]] == told["token_logprobs"][place]
    for token, start in zip(told["tokens"][: len(ids)], told["text_offset"], strict=False):
        if not token.startswith("bytes:"):
            assert prompt[start : start + len(token)] == token
    assert "bytes:\\xc3" in told["tokens"]
    assert len(server.engine.conversations) == 0  # nothing to go on with: a text was evaluated


def test_nothing_but_the_prompt(serve: Serve):
    client = serve().client()
    made = client.completions.create(model="tiny", prompt=[LONG, OTHER], max_tokens=0, echo=True)
    assert [choice.text for choice in made.choices] == [LONG, OTHER]
    assert {choice.finish_reason for choice in made.choices} == {"length"}
    assert made.usage.completion_tokens == 0
    assert client.completions.create(model="tiny", prompt=LONG, max_tokens=0).choices[0].text == ""


def test_what_is_echoed_is_read_anew(serve: Serve):
    """Its probabilities are not remembered, only its keys and values."""
    client = serve().client()
    first = client.completions.create(model="tiny", prompt=LONG, max_tokens=8, temperature=0)
    longer = LONG + first.choices[0].text + " Yes."
    scored = client.completions.create(model="tiny", prompt=longer, max_tokens=0, echo=True, logprobs=0)
    assert scored.usage.prompt_tokens_details.cached_tokens == 0
    assert None not in scored.choices[0].logprobs.token_logprobs[1:]


@pytest.mark.parametrize("stop", [3, 9])
def test_tokens_of_a_stop_sequence_are_not_told(serve: Serve, stop):
    client = serve(("full",)).client()
    options = {"model": "tiny", "prompt": LONG, "max_tokens": 40, "temperature": 0, "logprobs": 0}
    letters = {str(token): 100 for token in tokenizer()("abcdefghijklmnopqrstuvwxyz")["input_ids"]}
    whole = client.completions.create(logit_bias=letters, **options).choices[0]
    cut = client.completions.create(logit_bias=letters, stop=whole.text[stop : stop + 4], **options).choices[0]
    assert cut.text == whole.text[: whole.text.index(whole.text[stop : stop + 4])]
    assert "".join(cut.logprobs.tokens) == cut.text
    assert cut.logprobs.token_logprobs == whole.logprobs.token_logprobs[: len(cut.text)]


# -- single tokens -----------------------------------------------------------------------------------------------------


def test_bytes_of_tokens(pair):
    words = Vocabulary(pair[1])
    for text in ("the man and a hero", "Crème brûlée ☕ 日本", "\x00\n\t \x7f", "<|im_start|>user"):
        ids = pair[1](text)["input_ids"]
        assert b"".join(words.bytes_of(token) for token in ids) == text.encode()
    assert words.is_special(pair[1].eos_token_id)


def test_bytes_of_tokens_that_are_characters():
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    names = ["<unk>", "<0xE2>", "\u2581an", "a", "\u2581"]
    made = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[], byte_fallback=True))
    made.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    words = Vocabulary(PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>"))
    assert [words.bytes_of(token) for token in range(6)] == [b"<unk>", b"\xe2", b" an", b"a", b" ", b""]


# -- lm-evaluation-harness ---------------------------------------------------------------------------------------------

TASK = """
task: letters
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
target_delimiter: " "
metric_list: [{metric: acc}]
"""


@pytest.mark.parametrize("batch", [1, 8])
def test_the_harness_finds_the_models_own_likelihoods(serve: Serve, pair, folder: Path, tmp_path: Path, batch):
    """`lm_eval --model local-completions` against the server, as its users type it."""
    choices = ["a letter", "another man", "Crème brûlée"]
    docs = [{"question": LONG[: 40 + 20 * n].rstrip(), "choices": choices, "answer": n % 3} for n in range(4)]
    data = tmp_path / "letters.jsonl"
    data.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    (tmp_path / "letters.yaml").write_text(TASK.replace("DATA", str(data)))
    url = serve(("full",)).url
    command = [
        sys.executable, "-m", "lm_eval", "--model", "local-completions", "--tasks", "letters", "--include_path",
        str(tmp_path), "--model_args",
        f"model=tiny,base_url={url}/v1/completions,tokenizer={folder},tokenizer_backend=huggingface,num_concurrent=2",
        "--batch_size", str(batch), "--log_samples", "--output_path", str(tmp_path / "out"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (samples,) = (tmp_path / "out").rglob("samples_letters_*.jsonl")
    words, told = AutoTokenizer.from_pretrained(folder), [json.loads(line) for line in samples.read_text().splitlines()]
    assert len(told) == len(docs)
    for sample in told:
        question = sample["doc"]["question"]
        for choice, response in zip(choices, sample["filtered_resps"], strict=True):
            context = words(question)["input_ids"]
            whole = words(f"{question} {choice}")["input_ids"]
            expected = by_hand(pair, "full", whole)[len(context) - 1 : -1]
            after = torch.tensor(whole[len(context) :])
            assert float(response[0]) == pytest.approx(expected.gather(1, after[:, None]).sum().item(), abs=1e-2)
            assert str(response[1]) == str(bool((expected.argmax(-1) == after).all()))
