"""InfiniteBench: 12 tasks of 100,000 tokens and more (Zhang et al. 2024, arXiv:2402.13718).

Prompts (those for models with open weights), lengths of answers and scores are from github.com/OpenBMB/InfiniteBench
(MIT). A prompt holds a whole book: give `encode` the model's length, so that the middle is removed as its authors do.

The infinitebench of lm-evaluation-harness asks otherwise, and both stay as they are: it takes the authors' prompts for
GPT-4, but the lengths of answers that go with those here (its code_debug asks to repeat functions within 5 tokens),
ends an answer at a line break, stems words for ROUGE and leaves out math_calc. `python -m namm.lm_eval` runs it with a
memory.
"""

from __future__ import annotations

import re

from namm.errors import ConfigurationError
from namm.tasks.base import Sample
from namm.tasks.hub import Kind, Published, Row, tasks
from namm.tasks.infinitebench_prompts import PROMPTS

PUBLISHED = Published(
    "xinrongzhang2022/InfiniteBench", "90f0394333616266d9fe85824ceaf505093cbaa5", ("{0}.jsonl",)
)  # fmt: skip
"""The commit that HELM pins (infinite_bench_en_qa_scenario.py of github.com/stanford-crfm/helm)."""

_LETTERS = "ABCD"


KINDS = {
    "passkey": Kind("first_number", 6, "number hidden in noise"),
    "number_string": Kind("first_number", 12, "number with repeated digits hidden in noise"),
    "kv_retrieval": Kind("word", 50, "value of a key in a JSON object"),
    "longdialogue_qa_eng": Kind("string_match_part", 40, "masked speaker of a film script"),
    "longbook_sum_eng": Kind("rouge_lsum", 1200, "summary of a novel"),
    "longbook_choice_eng": Kind("multiple_choice", 40, "multiple choice on a novel"),
    "longbook_qa_eng": Kind("qa_f1", 40, "questions on a novel"),
    "longbook_qa_chn": Kind("qa_f1_characters", 40, "questions on a novel, Chinese"),
    "math_find": Kind("number", 3, "largest, smallest or median number of a list"),
    "math_calc": Kind("leading_numbers", 30000, "intermediate values of a long sum"),
    "code_run": Kind("last_number", 5, "result of nested functions"),
    "code_debug": Kind("code_debug", 5, "function with an error, multiple choice"),
}


def sample(name: str, row: Row) -> Sample:
    """The sample of a record with the fields id, context, input, answer and, for multiple choice, options."""
    answers, target = row.texts("answer"), ""
    if name in {"longbook_choice_eng", "code_debug"}:
        answers = _choice(row, answers)
        target = answers[-1]
    elif name == "math_calc":
        target = f"[{', '.join(answers)}]"  # as in the examples of its prompt
    context, question = row.prompt(PROMPTS[name], **_fields(name, row))
    return Sample(
        task=f"infinitebench/{name}",
        id=str(row.fields.get("id", row.number)),
        context=context,
        question=question,
        answers=answers,
        target=target,
        metric=KINDS[name].metric,
        max_new_tokens=KINDS[name].max_new_tokens,
    )


def _fields(name: str, row: Row) -> dict[str, str]:
    """What the prompt of a task needs beside the context, taken from the field input."""
    if name in {"longbook_sum_eng", "longdialogue_qa_eng", "math_calc"}:
        return {}
    question = row.text("input")
    if name == "code_run":
        call = _found(r"func_[0-9]+\(-?[0-9]+\)", question, row)
        return {"func": call.partition("(")[0], "func_call": call}
    if name == "math_find":
        wanted = _found("The .+ of", question, row)
        return {"prefix": f"What is {wanted.lower()[:-3]} in the following list?", "input": question}
    options = row.texts("options") if name in {"longbook_choice_eng", "code_debug"} else ()
    return {"input": question, **dict(zip(_LETTERS, options, strict=False))}


def _found(pattern: str, text: str, row: Row) -> str:
    found = re.search(pattern, text)
    if found is None:
        raise ConfigurationError(f"an input that matches {pattern!r}", f"{text!r} in {row.place}", "Repair the record.")
    return found[0]


def _choice(row: Row, answers: tuple[str, ...]) -> tuple[str, str]:
    """Text and letter of the right option; the data set gives the text, or both."""
    options = row.texts("options")
    if len(options) != len(_LETTERS) or answers[0] not in options:
        got = f"options {options} and answer {answers} in {row.place}"
        raise ConfigurationError("four options, the answer among them", got, "Repair or drop this record.")
    if len(answers) == 2 and answers[1] in _LETTERS:
        return answers[0], answers[1]
    return answers[0], _LETTERS[options.index(answers[0])]


TASKS = tasks("infinitebench", PUBLISHED, KINDS, sample)
