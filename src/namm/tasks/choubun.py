# ruff: noqa: RUF001  (full-width punctuation is meant)
"""ChouBun: four tasks on long Japanese texts (Cetin et al. 2024, arXiv:2410.13166).

The data set (SakanaAI/ChouBun, Apache-2.0) has the fields of LongBench and comes without prompts. The prompts and the
lengths of answers are this project's own, so scores compare policies with each other and not with the paper's. They
are those of LongBench in words of fugashi: F1, and ROUGE-L for the summaries, the best of five references.
"""

from __future__ import annotations

from typing import NamedTuple

from namm.tasks.base import Sample
from namm.tasks.hub import Published, Row, tasks

PUBLISHED = Published("SakanaAI/ChouBun", "3378915723514cccd186ec05211478401f371226", ("{0}/test-*.parquet",))
"""The commit of huggingface.co/datasets/SakanaAI/ChouBun/tree/3378915723514cccd186ec05211478401f371226."""

_QUESTION = (
    "次の文書を読み、質問にできるだけ短く答えてください。説明は不要です。\n\n文書：\n{context}\n\n"
    "上の文書に基づいて、次の質問にできるだけ短く答えてください。説明は不要です。\n\n質問：{input}\n答え："
)
_SUMMARY = "次の文書を要約してください。\n\n文書：\n{context}\n\n上の文書の要点を日本語でまとめてください。\n\n要約："


class _Kind(NamedTuple):
    """How a task is asked and scored."""

    prompt: str
    metric: str
    max_new_tokens: int
    description: str


KINDS = {
    "wiki_qa": _Kind(_QUESTION, "qa_f1_ja", 64, "questions on an article of the Japanese Wikipedia"),
    "edinet_qa": _Kind(_QUESTION, "qa_f1_ja", 64, "questions on a securities report in tables, Japanese"),
    "corp_sec_qa": _Kind(_QUESTION, "qa_f1_ja", 64, "questions on a securities report, Japanese"),
    "corp_sec_sum": _Kind(_SUMMARY, "rouge_l_ja", 512, "summary of a securities report, Japanese"),
}


def sample(name: str, row: Row) -> Sample:
    """The sample of a record with the fields context, input, answers and _id."""
    prompt, metric, max_new_tokens, _ = KINDS[name]
    return row.sample(f"choubun/{name}", prompt, metric, max_new_tokens)


TASKS = tasks("choubun", PUBLISHED, {name: kind.description for name, kind in KINDS.items()}, sample)
