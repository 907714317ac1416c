# ruff: noqa: RUF001  (full-width punctuation is meant)
"""ChouBun: four tasks on long Japanese texts (Cetin et al. 2024, arXiv:2410.13166).

The data set (SakanaAI/ChouBun, Apache-2.0) has the fields of LongBench and comes without prompts. The prompts and the
lengths of answers are this project's own, so scores compare policies with each other and not with the paper's. They
are those of LongBench in words of fugashi: F1, and ROUGE-L for the summaries, the best of five references.
"""

from __future__ import annotations

from namm.tasks.base import Sample
from namm.tasks.hub import Kind, Published, Row, tasks

PUBLISHED = Published("SakanaAI/ChouBun", "3378915723514cccd186ec05211478401f371226", ("{0}/test-*.parquet",))
"""The commit of huggingface.co/datasets/SakanaAI/ChouBun/tree/3378915723514cccd186ec05211478401f371226."""

_QUESTION = (
    "次の文書を読み、質問にできるだけ短く答えてください。説明は不要です。\n\n文書：\n{context}\n\n"
    "上の文書に基づいて、次の質問にできるだけ短く答えてください。説明は不要です。\n\n質問：{input}\n答え："
)
_SUMMARY = "次の文書を要約してください。\n\n文書：\n{context}\n\n上の文書の要点を日本語でまとめてください。\n\n要約："


KINDS = {
    "wiki_qa": Kind("qa_f1_ja", 64, "questions on an article of the Japanese Wikipedia", _QUESTION),
    "edinet_qa": Kind("qa_f1_ja", 64, "questions on a securities report in tables, Japanese", _QUESTION),
    "corp_sec_qa": Kind("qa_f1_ja", 64, "questions on a securities report, Japanese", _QUESTION),
    "corp_sec_sum": Kind("rouge_l_ja", 512, "summary of a securities report, Japanese", _SUMMARY),
}


def sample(name: str, row: Row) -> Sample:
    """The sample of a record with the fields context, input, answers and _id."""
    kind = KINDS[name]
    return row.sample(f"choubun/{name}", kind.prompt, kind.metric, kind.max_new_tokens)


TASKS = tasks("choubun", PUBLISHED, KINDS, sample)
