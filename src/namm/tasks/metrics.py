# ruff: noqa: RUF001  (full-width punctuation is meant)
"""Metrics of generated answers: each compares a prediction with all gold answers and gives 0 to 1.

With several answers the best one counts, unless a metric says otherwise. Sources:

* LongBench (MIT), `metrics.py` and `eval.py` of github.com/THUDM/LongBench at 2e00731: F1, ROUGE-L, _classification,
  retrieval, count and edit similarity, with their Chinese variants.
* InfiniteBench (MIT): see `namm.tasks.infinitebench_scores`.
* RULER (Apache-2.0), `scripts/eval/synthetic/constants.py` of github.com/NVIDIA/RULER: the string matches. Those that
  end in `_joined` are kvpress's (Apache-2.0), `evaluation/benchmarks/ruler/calculate_metrics.py` of
  github.com/NVIDIA/kvpress.
* The Japanese variants are the Chinese ones with words from fugashi (MeCab, UniDic).

LongBench scores only the first line of what was generated for trec, triviaqa, samsum and lsht; the metrics of these
do that themselves (`_classification`, and those that end in `_first_line`).
"""

from __future__ import annotations

import logging
import re
import string
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

from namm.errors import ConfigurationError, NotFoundError, nearest
from namm.packages import package
from namm.tasks import infinitebench_scores
from namm.tasks.rouge import summary_f

_Metric = Callable[[str, tuple[str, ...], tuple[str, ...]], float]
"""(prediction, answers, classes) -> score in [0, 1]."""

_FULL_WIDTH = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、"
    "〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏."
)
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_WIDE_PUNCTUATION = str.maketrans("", "", string.punctuation + _FULL_WIDTH)


def metric(name: str) -> _Metric:
    """The metric called `name`.

    Raises:
        NotFoundError: there is none.
    """
    if name not in METRICS:
        raise NotFoundError("a known metric", repr(name), nearest(name, METRICS))
    return METRICS[name]


def exact(prediction: str, answers: tuple[str, ...], classes: tuple[str, ...] = ()) -> float:
    """1 if the prediction is one of the answers, but for surrounding white space."""
    return float(any(prediction.strip() == answer.strip() for answer in answers))


def _string_match_all(prediction: str, answers: tuple[str, ...], classes: tuple[str, ...] = ()) -> float:
    """Share of the answers that stand in the prediction, whatever their case (RULER)."""
    return sum(answer.lower() in prediction.lower() for answer in answers) / len(answers)


def _string_match_part(prediction: str, answers: tuple[str, ...], classes: tuple[str, ...] = ()) -> float:
    """1 if any answer stands in the prediction, whatever their case (RULER)."""
    return float(any(answer.lower() in prediction.lower() for answer in answers))


def _joined(whole: _Metric) -> _Metric:
    """Control characters are taken out of the prediction, so that lines are joined (kvpress)."""

    def score(prediction: str, answers: tuple[str, ...], classes: tuple[str, ...] = ()) -> float:
        return whole(re.sub(r"[\x00-\x1f]", "", prediction), answers, classes)

    return score


def _classification(prediction: str, answers: tuple[str, ...], classes: tuple[str, ...] = ()) -> float:
    """1 over the number of classes named in the first line, if the answer is among them (LongBench).

    A class that is part of the answer's name does not count. LongBench takes these away while it goes through the
    list, so that the one after each is passed over; this is kept.
    """
    if not classes:
        raise ConfigurationError("the classes of a classification", "none", "Give them in the sample's `classes`.")
    line = _first_line(prediction)

    def one(answer: str) -> float:
        named = [name for name in classes if name in line]
        for name in named:
            if name in answer and name != answer:
                named.remove(name)
        return 1 / len(named) if answer in named else 0.0

    return max(map(one, answers))


def _retrieval(word: str) -> _Metric:
    """Share of the numbers in the prediction that are the number of the right paragraph (LongBench)."""

    def score(prediction: str, answers: tuple[str, ...], classes: tuple[str, ...] = ()) -> float:
        return max(_share_of_numbers(prediction, _numbered(word, answer)) for answer in answers)

    return score


def count(prediction: str, answers: tuple[str, ...], classes: tuple[str, ...] = ()) -> float:
    """Share of the numbers in the prediction that are the answer (LongBench)."""
    return max(_share_of_numbers(prediction, answer) for answer in answers)


def _edit_similarity(prediction: str, answers: tuple[str, ...], classes: tuple[str, ...] = ()) -> float:
    """Similarity of the first line of code with the answer, in hundredths (LongBench's `code_sim_score`).

    Lines with a back quote, `#` or `//` are no code. The similarity is one minus insertions and deletions over the
    length of both, as `fuzzywuzzy` computes it with python-Levenshtein.
    """
    ratio = package("rapidfuzz.fuzz").ratio
    lines = prediction.lstrip("\n").split("\n")
    line = next((line for line in lines if not any(mark in line for mark in ("`", "#", "//"))), "")
    return max(round(ratio(line, answer)) / 100 if line and answer else 0.0 for answer in answers)


def _rouge_lsum(prediction: str, answers: tuple[str, ...], classes: tuple[str, ...] = ()) -> float:
    """ROUGE-Lsum of the package `rouge-score`, without stemming; sentences stand on lines of their own."""
    scorer = package("rouge_score.rouge_scorer").RougeScorer(["rougeLsum"])
    return max(float(scorer.score(answer, prediction)["rougeLsum"].fmeasure) for answer in answers)


def normalised(text: str) -> str:
    """Lower case, without punctuation, the articles a, an and the, and superfluous white space (SQuAD)."""
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_PUNCTUATION)).split())


def _f1(words: Callable[[str], Iterable[str]]) -> _Metric:
    """F1 of two bags of words."""

    def score(prediction: str, answers: tuple[str, ...], classes: tuple[str, ...] = ()) -> float:
        predicted = Counter(words(prediction))
        return max(bags(predicted, Counter(words(answer))) for answer in answers)

    def bags(predicted: Counter[str], gold: Counter[str]) -> float:
        # 2pr / (p + r) with p = same / |predicted| and r = same / |gold|
        return 2 * same / (predicted.total() + gold.total()) if (same := (predicted & gold).total()) else 0.0

    return score


def _rouge_l(words: Callable[[str], Iterable[str]]) -> _Metric:
    """LongBench's ROUGE-L; see `namm.tasks.rouge`."""

    def score(prediction: str, answers: tuple[str, ...], classes: tuple[str, ...] = ()) -> float:
        predicted = " ".join(words(prediction))
        return max(summary_f(predicted, " ".join(words(answer))) for answer in answers)

    return score


def _on_first_line(whole: _Metric) -> _Metric:
    def score(prediction: str, answers: tuple[str, ...], classes: tuple[str, ...] = ()) -> float:
        return whole(_first_line(prediction), answers, classes)

    return score


def _first_line(text: str) -> str:
    return text.lstrip("\n").split("\n")[0]


def _numbered(word: str, answer: str) -> str:
    """The number after `word` in a gold answer."""
    found = re.search(rf"{word}(\d+)", answer)
    if found is None:
        way_out = "Use the metric count for bare numbers."
        raise ConfigurationError(f"an answer such as {word}7 for a retrieval metric", repr(answer), way_out)
    return found[1]


def _share_of_numbers(prediction: str, answer: str) -> float:
    numbers = re.findall(r"\d+", prediction)
    return numbers.count(answer) / len(numbers) if numbers else 0.0


def _words_en(text: str) -> list[str]:
    return normalised(text).split()


def _spoken(words: Callable[[str], Iterable[str]]) -> Callable[[str], list[str]]:
    """Words without punctuation and case; those of which nothing is left are dropped."""

    def cleaned(text: str) -> list[str]:
        bare = ("".join(word.lower().translate(_WIDE_PUNCTUATION).split()) for word in words(text))
        return [word for word in bare if word]

    return cleaned


def _words_zh(text: str) -> list[str]:
    jieba = package("jieba")
    jieba.setLogLevel(logging.WARNING)
    return list(jieba.cut(text, cut_all=False))


def _words_ja(text: str) -> list[str]:
    return [word.surface for word in _tagger()(text)]


@cache
def _tagger() -> Callable[[str], Iterable[Any]]:
    package("unidic_lite")  # the dictionary that fugashi looks for
    return package("fugashi").Tagger()


METRICS: dict[str, _Metric] = {
    "exact": exact,
    "string_match_all": _string_match_all,
    "string_match_part": _string_match_part,
    "string_match_all_joined": _joined(_string_match_all),
    "string_match_part_joined": _joined(_string_match_part),
    "qa_f1": _f1(_words_en),
    "qa_f1_first_line": _on_first_line(_f1(_words_en)),
    "qa_f1_zh": _f1(_spoken(_words_zh)),
    "qa_f1_ja": _f1(_spoken(_words_ja)),
    "qa_f1_characters": _f1(_spoken(list)),
    "rouge_l": _rouge_l(str.split),
    "rouge_l_first_line": _on_first_line(_rouge_l(str.split)),
    "rouge_l_zh": _rouge_l(_words_zh),
    "rouge_l_ja": _rouge_l(_words_ja),
    "rouge_lsum": _rouge_lsum,
    "classification": _classification,
    "retrieval": _retrieval("Paragraph "),
    "retrieval_zh": _retrieval("段落"),
    "count": count,
    "edit_similarity": _edit_similarity,
    **infinitebench_scores.SCORES,
}
"""All metrics by name."""
