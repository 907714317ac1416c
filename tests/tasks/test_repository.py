"""Code across files: what is asked for is defined in the context, first used there, and no longer than asked."""

import ast

import pytest

import namm
from namm.tasks.registry import find_tasks
from namm.tasks.repository import SHORTEST, make_sample, uses
from namm.tasks.text import modules
from tests.letters import letters


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_use_is_the_first_of_a_definition_in_another_file(split: str) -> None:
    found = uses(split)
    assert len(found) > 100
    assert len(set(found)) == len(found)
    for use in found[::7]:
        path, start, stop = use.definition
        assert use.file in modules(split)
        assert path != use.file
        line = use.file.read_bytes().decode(errors="replace").splitlines()[use.line - 1].encode()
        name = line[use.column :].decode(errors="replace")
        definition = "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[start - 1 : stop - 1])
        (node,) = ast.parse(definition).body
        assert isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        assert name.startswith(node.name)
        assert line[: use.column].endswith(b".")


@pytest.mark.parametrize("tokens", [1024, 6000])
def test_the_context_defines_what_the_answer_uses(tokens: int) -> None:
    tokenizer = letters()
    for index in range(12):
        sample = make_sample("test", index, tokens, tokenizer)
        (answer,) = sample.answers
        name = "".join(letter if letter.isalnum() or letter == "_" else " " for letter in answer).split()[0]
        assert f"def {name}" in sample.context or f"class {name}" in sample.context
        assert tokens // 2 < len(tokenizer.encode(sample.context, add_special_tokens=False)) <= tokens
        assert sample.question.endswith(".")
        assert answer not in sample.question
        assert sample == make_sample("test", index, tokens, tokenizer)
    assert make_sample("test", 0, tokens, tokenizer, seed=1) != make_sample("test", 0, tokens, tokenizer)


def test_it_is_found_by_name_and_too_short_a_context_is_refused() -> None:
    assert [task.name for task in find_tasks(["repository"])] == ["repository/cross_file"]
    with pytest.raises(namm.ConfigurationError, match=f"at least {SHORTEST} tokens"):
        make_sample("test", 0, SHORTEST - 1, letters())
