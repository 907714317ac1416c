"""What is forgotten: classes of tokens, shares by class, the page, and the command."""

import json
import re
from pathlib import Path

import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import namm
from namm.cli.inspect import inspect, read_budget, read_sources
from namm.policies import own_interval, resolve
from namm.report.figures import class_heatmap, save
from namm.report.forgetting import Forgetting, by_class, forgetting_of
from namm.report.recording import fitting_interval
from namm.report.samples import embedded_samples
from namm.report.token_classes import Classes, classify, detect
from namm.trace import unpacked
from tests.zoo import causal_model

TEXT = "It was the best of times, it was the worst of times; it was 1775. " * 2
PYTHON = '''"""Module."""
import os

def area(r):
    # a circle
    return 3.14 * r ** 2 + len("x")
'''


def character_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each ASCII character; 97 in all, as the random models have."""
    vocabulary = {chr(c): c - 31 for c in range(32, 127)} | {"\n": 96, "?\n": 0}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?\n"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def read(text: str = TEXT, memory: str = "streaming", **more: object) -> Forgetting:
    more = {"selection": namm.Budget(tokens=24), "update_interval": 32} | more
    return forgetting_of(causal_model("llama"), character_tokenizer(), text, memory, **more)


def made(kept: list[list[float]], names: list[str], judged: int, interval: int, text: str = "") -> Forgetting:
    """A result made by hand: one character is one token."""
    text = text or "x" * len(names)
    return Forgetting(
        text,
        tuple((i, i + 1) for i in range(len(names))),
        Classes(tuple(names), "prose", "prose rules"),
        tuple(range(len(kept))),
        2,
        torch.tensor(kept),
        torch.arange(len(names)) < judged,
        interval,
        [],
    )


# -- classes of tokens -------------------------------------------------------------------------------------------------


def classes_of(text: str, language: str | None = None) -> dict[str, str]:
    """Class of each piece of a text: words with the space before them, marks, space."""
    spans = [m.span() for m in re.finditer(r" ?[^\W_]+| ?(?:[^\w\s]|_)|\s+", text)]
    found = classify(text, spans, language)
    return {text[a:b]: name for (a, b), name in zip(spans, found.names, strict=True)}


def test_classes_of_prose() -> None:
    found = classes_of("Anne's sea, she isn\u2019t 1,817\n\n(_there_)")
    assert found["Anne"] == found["s"] == found[" sea"] == "content words"
    assert found[" she"] == found[" isn"] == found["t"] == found["there"] == "stop words"
    assert found[" 1"] == found["817"] == "numbers"
    assert found["("] == found[")"] == "punctuation"
    assert found["\n\n"] == "white space"


def test_a_part_of_a_word_has_the_class_of_the_word() -> None:
    assert classify("the theme", [(0, 3), (3, 7), (7, 9)]).names == ("stop words", "content words", "content words")
    assert classify("however", [(0, 3), (3, 7)], "prose").names == ("stop words",) * 2


def test_a_token_without_characters_is_special() -> None:
    assert classify("sea", [(0, 0), (0, 3)]).names == ("special tokens", "content words")


def test_classes_of_python() -> None:
    found = classes_of(PYTHON)
    assert found["Module"] == "docstrings"
    assert found["import"] == found["return"] == found["def"] == "keywords"
    assert found[" os"] == found[" area"] == found[" len"] == "identifiers"
    assert found[" circle"] == found["#"] == "comments"
    assert found[" 3"] == found["14"] == found[" 2"] == found["x"] == "literals"
    assert found[" *"] == found[":"] == "punctuation"
    assert classify(PYTHON, [(0, 1)]).method == "Pygments' Python lexer"


def test_indentation_is_white_space_that_starts_a_line_of_code() -> None:
    text = "if x:\n    y = 1\n\nz = 2\n"
    names = classify(text, [(5, 10), (15, 17), (18, 19)]).names
    assert names == ("indentation", "white space", "white space")
    assert classify("say:\n    yes no", [(4, 9)], "prose").names == ("white space",)


def test_positions_behind_other_alphabets() -> None:
    text = 'a = "naïve 😀"; lambda_ = 1  # ünï\n'
    start = text.index("lambda_")
    assert classify(text, [(start, start + 7)], "code").names == ("identifiers",)
    start = text.index("ünï")
    assert classify(text, [(start, start + 3)]).names == ("comments",)


def test_what_no_lexer_was_named_for_is_classed_as_its_relatives() -> None:
    text = 'int main(void) {\n  // say hello\n  return puts("hi") + 42; /* done\n */ }'
    spans = [m.span() for m in re.finditer(r"\w+", text)]
    found = classify(text, spans, "code")
    assert found.method == "Pygments' C lexer"
    named = {text[a:b]: name for (a, b), name in zip(spans, found.names, strict=True)}
    assert named["int"] == named["return"] == "keywords"
    assert named["main"] == named["puts"] == "identifiers"
    assert named["hello"] == named["done"] == "comments"
    assert named["hi"] == named["42"] == "literals"


def test_a_file_name_says_which_code_it_is() -> None:
    text = "fn main() { let x = 'a'; } // rust\n"
    found = classify(text, [(0, 2), (12, 15), (27, 29)], "code", "main.rs")
    assert (found.method, found.names) == ("Pygments' Rust lexer", ("keywords", "keywords", "comments"))
    assert classify("x = 1 # it\n", [(6, 10)], "code", "a.unknown").method == "Pygments' Python lexer"
    assert classify("def f(:\n", [(0, 3)], "code", "broken.py").names == ("keywords",)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        (PYTHON, "code"),
        ("x = 1", "code"),
        ("print(1)", "code"),
        ("hello", "prose"),
        ("yes, no", "prose"),
        ("wait not", "prose"),
        ("Note: yes", "prose"),
        ("# A heading\n", "prose"),
        ("a\0b", "prose"),
        ("42", "prose"),
    ],
)
def test_language(text: str, language: str) -> None:
    assert detect(text) == language


# -- what is forgotten -------------------------------------------------------------------------------------------------


def test_shares_are_what_the_memory_holds() -> None:
    found = read()
    tokens = len(TEXT)
    last = tokens // 32 * 32
    assert found.kept.shape == (2, tokens)
    assert int(found.judged.sum()) == last < tokens
    expected = torch.zeros(tokens)
    expected[:4] = expected[last - 20 :] = 1  # four sinks and a window of 20; what was read since is held
    assert torch.equal(found.share(), expected)
    assert found.mean() == pytest.approx(24 / last)


def test_heads_that_differ_give_shares_between() -> None:
    found = read(memory="h2o")
    assert found.heads == 2
    assert {round(x, 3) for x in found.kept.flatten().tolist()} == {0.0, 0.5, 1.0}
    model = causal_model("llama")
    with namm.attach(model, "h2o", namm.Budget(tokens=24), 32) as handle:  # all of it at once
        model(torch.tensor([character_tokenizer()(TEXT)["input_ids"]]))
        for layer in found.layers:
            heads = handle.kept_positions(layer)[0]
            counted = sum(torch.bincount(torch.tensor(head), minlength=len(TEXT)) for head in heads) / 2
            assert torch.equal(found.kept[layer], counted)
    assert torch.equal(found.share(1), found.kept[1])


def test_layers_with_another_cache_have_no_share() -> None:
    model = causal_model("gemma2")
    found = forgetting_of(model, character_tokenizer(), TEXT, "h2o", namm.Budget(tokens=24), 32)
    assert found.layers == (1,)
    with pytest.raises(namm.ConfigurationError, match=r"got 0\. Layers: 1\."):
        found.share(0)


def test_keeping_everything_keeps_everything() -> None:
    found = read(memory="full", selection=None, update_interval=None)
    assert bool(found.judged.all())
    assert {row.share for row in by_class(found)} == {1.0}


def test_a_network_at_its_own_threshold() -> None:
    found = read(memory=namm.NAMM.zeros(), selection=None, update_interval=None)
    assert found.update_interval == len(TEXT) // 16 * 16  # shorter than its 512
    assert found.mean() == 1.0  # zeros keep everything


def test_the_interval_fits_the_text() -> None:
    assert fitting_interval(resolve("h2o"), 2000) == 512
    assert fitting_interval(resolve("h2o"), 100) == 96
    assert own_interval(resolve("h2o")) == 512
    own = namm.NAMM.zeros(namm.NAMMConfig(update_interval=64))
    assert fitting_interval(resolve(own), 2000) == 64
    with pytest.raises(namm.ConfigurationError, match="at least 16 tokens"):
        fitting_interval(resolve("h2o"), 15)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a text to read; got an empty one"),
        (" \n", "got white space only"),
        ("a" * 513, "at most 512 tokens, the context of this model; got 513 tokens"),
        ("a" * 31, "at least 32 tokens, the update interval; got 31 tokens"),
    ],
)
def test_texts_that_cannot_be_inspected(text: str, message: str) -> None:
    with pytest.raises(namm.ConfigurationError, match=message):
        read(text)


def test_a_tokenizer_without_positions_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(namm.ModelError, match="fast tokenizer"):
        forgetting_of(causal_model("llama"), Slow(), TEXT, "h2o", namm.Budget(tokens=24))  # type: ignore[arg-type]


# -- shares by class ---------------------------------------------------------------------------------------------------


def test_shares_by_class() -> None:
    names = ["content words", "stop words", "content words", "stop words", "numbers"]
    run = made([[0.0, 0.0, 1.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0, 1.0]], names, judged=4, interval=2)
    content, stop = by_class(run)  # the number is not judged
    assert (content.name, content.tokens, content.share) == ("content words", 2, 0.625)
    assert (stop.name, stop.tokens, stop.share) == ("stop words", 2, 0.375)
    assert content.ratio == pytest.approx(0.625 / 0.5)
    neighbours = ((0.25 + 0) / 2 + (1 + 0.75) / 2) / 2
    assert content.ratio_among_neighbours == pytest.approx(0.625 / neighbours)
    assert by_class(run, layer=0)[1].share == 0.25


def test_age_alone_is_no_preference_among_neighbours() -> None:
    names = ["content words"] * 32 + ["stop words"] * 32
    run = made([[0.0] * 32 + [1.0] * 32], names, judged=64, interval=32)
    content, stop = by_class(run)
    assert stop.ratio == 2.0
    assert stop.ratio_among_neighbours == 1.0
    assert content.ratio == 0.0
    assert content.ratio_among_neighbours != content.ratio_among_neighbours  # nothing of its neighbours was kept


def test_texts_of_a_task_are_taken_together() -> None:
    one = made([[1.0, 0.0]], ["content words", "stop words"], 2, 2)
    two = made([[0.0, 0.0]], ["content words", "content words"], 2, 2)
    content, _ = by_class(one, two)
    assert content.tokens == 3
    assert content.share == pytest.approx(1 / 3)
    assert content.ratio == pytest.approx((1 / 3) / (1 / 4))


def test_what_is_kept_is_what_was_recorded() -> None:
    for memory in ("streaming", "h2o", "full"):
        found = read(memory=memory, selection=None if memory == "full" else namm.Budget(tokens=24))
        held = [event for event in found.events if event["type"] == "update"]
        seen = held[-1]["seen"] if held else 0
        assert seen == (0 if memory == "full" else len(TEXT) // 32 * 32)
        if held:
            last = torch.from_numpy(unpacked(held[-1]["held"], len(found.layers), found.heads, seen))
            assert torch.equal(found.kept[:, :seen], last.float().mean(1))
        assert bool((found.kept[:, seen:] == 1).all())


# -- the picture -------------------------------------------------------------------------------------------------------


def test_the_picture(tmp_path: Path) -> None:
    runs = {"prose": read(), "code $x^2$": read(PYTHON)}
    assert save(class_heatmap(runs), tmp_path / "kept.png").stat().st_size > 10_000


# -- the command -------------------------------------------------------------------------------------------------------


def test_texts_and_files(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text("not python")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.py").write_text(PYTHON)
    sources = list(read_sources([str(file), "Yes and/or no.", str(tmp_path / "sub" / "a.py")]))
    assert [source.title for source in sources] == ["a.py", "text 2", "a.py (3)"]
    assert [source.language for source in sources] == ["code", None, "code"]
    assert [source.file for source in sources] == ["a.py", None, "a.py"]
    assert sources[1].text == "Yes and/or no."
    assert next(read_sources(["a " * 5000])).text == "a " * 5000


@pytest.mark.parametrize("word", ["no/such/file", "missing.txt", "two words.py", "~/none.md"])
def test_a_path_that_is_not_there_is_no_text(word: str) -> None:
    with pytest.raises(namm.NotFoundError, match="a file to read; got no file"):
        list(read_sources([word]))


def test_files_that_hold_no_text(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(namm.ConfigurationError, match="UTF-8"):
        list(read_sources([str(tmp_path / "latin.txt")]))
    with pytest.raises(namm.NotFoundError, match="a folder"):
        list(read_sources([str(tmp_path)]))


def test_budgets() -> None:
    assert read_budget("own") is None
    assert read_budget("0.5") == namm.Budget(fraction=0.5)
    for wrong in ("1.5", "nan", "half", "0"):
        with pytest.raises(namm.ConfigurationError, match=r"\(0, 1\]"):
            read_budget(wrong)


def test_only_a_namm_has_a_threshold_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(namm.ConfigurationError, match=r"got --budget own\. Try --budget 0\.25"):
        inspect([TEXT], "h2o", "own", None, "smollm2-135m-instruct", None, None, tmp_path)


def test_the_memory_beside_it_needs_a_budget(tmp_path: Path) -> None:
    arguments = [TEXT], "builtin:universal", "own", None, "smollm2-135m-instruct", None, None, tmp_path
    with pytest.raises(namm.ConfigurationError, match="a budget for h2o"):
        inspect(*arguments, against="h2o")


def recordings_of(page: Path) -> list[dict]:
    return json.loads(re.findall(r'id="data">(.*?)</script>', page.read_text(), re.DOTALL)[0])["recordings"]


@pytest.mark.model
def test_the_command_records_two_memories(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "pages" / "memory.html"
    inspect([TEXT], "h2o", "0.5", 16, "smollm2-135m-instruct", None, None, tmp_path, file, "streaming")
    assert file.read_text() == (tmp_path / "inspect.html").read_text()
    (recording,) = recordings_of(file)
    assert (recording["title"], recording["language"]) == ("text 1", "prose")
    assert [trace[0]["memory"] for trace in recording["traces"]] == ["h2o", "streaming"]
    assert "".join(recording["traces"][0][0]["tokens"]) == TEXT
    assert str(file) in capsys.readouterr().out.replace("\n", "")


def test_embedded_texts() -> None:
    texts = embedded_samples()
    prose, code, dialogue = texts.values()
    assert detect(code) == "code"
    assert dialogue.count('"') > 10 * max(1, prose.count('"'))
    assert all(7000 < len(text) < 9000 for text in (prose, code, dialogue))


@pytest.mark.model
def test_the_command_writes_what_it_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "Call me Ishmael. Some years ago, never mind how long precisely, I thought I would sail about a little. " * 2
    inspect([text, PYTHON], "builtin:universal", "0.25", None, "smollm2-135m-instruct", "bfloat16", 3, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"inspect.html", "classes.md", "tokens.jsonl", "kept.png"}
    rows = [json.loads(line) for line in (tmp_path / "tokens.jsonl").read_text().splitlines()]
    first = [row for row in rows if row["text"] == "text 1"]
    assert "".join(row["token"] for row in first) == text
    judged = [row for row in first if row["judged"]]
    assert len(judged) % 16 == 0
    assert sum(row["kept"] for row in judged) == pytest.approx(len(judged) // 4, abs=0.05)
    assert {len(row["layers"]) for row in judged} == {30}
    assert all(row["kept"] is None for row in first if not row["judged"])
    assert "content words" in capsys.readouterr().out
    assert "## text 2" in (tmp_path / "classes.md").read_text()
    recordings = recordings_of(tmp_path / "inspect.html")
    assert ["".join(recording["traces"][0][0]["tokens"]) for recording in recordings] == [text, PYTHON]
    assert [recording["language"] for recording in recordings] == ["prose", "code"]
