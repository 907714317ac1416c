"""LongBench: 21 tasks in six kinds, English, Chinese and code (Bai et al. 2023, arXiv:2308.14508).

Prompts, lengths of answers, metrics and the six tasks without chat template are those of github.com/THUDM/LongBench
(MIT) at 2e00731. For samsum the authors also stop generating at a line break; here the metric takes the first line.
"""

from __future__ import annotations

from namm.tasks.base import Sample
from namm.tasks.hub import Kind, Published, Row, tasks
from namm.tasks.longbench_prompts import PROMPTS

PUBLISHED = Published("zai-org/LongBench", "5e628be450b7e67fb7ae6e201bd6d8f7056f7672", ("data.zip",))
"""Was THUDM/LongBench, under which name it is found too. The commit has data.zip of sha256 cb45b11a...857f7f64."""

_COMPLETIONS = frozenset({"trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p"})
"""Tasks whose prompt is never put into a chat template."""


KINDS = {
    "narrativeqa": Kind("qa_f1", 128, "questions on a novel or a film script"),
    "qasper": Kind("qa_f1", 128, "questions on a scientific article"),
    "multifieldqa_en": Kind("qa_f1", 64, "questions on a text of one of many fields"),
    "multifieldqa_zh": Kind("qa_f1_zh", 64, "questions on a text of one of many fields, Chinese"),
    "hotpotqa": Kind("qa_f1", 32, "questions that take two of the passages"),
    "2wikimqa": Kind("qa_f1", 32, "questions that take several of the passages"),
    "musique": Kind("qa_f1", 32, "questions that take two to four of the passages"),
    "dureader": Kind("rouge_l_zh", 128, "questions to a search engine with passages, Chinese"),
    "gov_report": Kind("rouge_l", 512, "summary of a government's report"),
    "qmsum": Kind("rouge_l", 512, "summary of a part of a meeting"),
    "multi_news": Kind("rouge_l", 512, "summary of several news articles"),
    "vcsum": Kind("rouge_l_zh", 512, "summary of a meeting, Chinese"),
    "trec": Kind("classification", 64, "kind of a question, with examples"),
    "triviaqa": Kind("qa_f1_first_line", 32, "trivia with passages, with examples"),
    "samsum": Kind("rouge_l_first_line", 128, "summary of a chat, with examples"),
    "lsht": Kind("classification", 64, "subject of a news article, with examples, Chinese"),
    "passage_count": Kind("count", 32, "number of different passages"),
    "passage_retrieval_en": Kind("retrieval", 32, "passage that a summary belongs to"),
    "passage_retrieval_zh": Kind("retrieval_zh", 32, "passage that a summary belongs to, Chinese"),
    "lcc": Kind("edit_similarity", 64, "next line of a program"),
    "repobench-p": Kind("edit_similarity", 64, "next line of a program, with other files of its repository"),
}


def sample(name: str, row: Row) -> Sample:
    """The sample of a record with the fields context, input, answers, all_classes and _id."""
    metric, max_new_tokens, *_ = KINDS[name]
    classes = row.texts("all_classes") if metric == "classification" else ()
    return row.sample(
        f"longbench/{name}", PROMPTS[name], metric, max_new_tokens, completion=name in _COMPLETIONS, classes=classes
    )


TASKS = tasks("longbench", PUBLISHED, KINDS, sample)
