# ruff: noqa: RUF001  (full-width punctuation is meant)
"""Metrics give the values that were worked out by hand, or that their authors publish."""

import sys

import pytest

import namm
from namm.tasks.metrics import METRICS, metric
from namm.tasks.rouge import summary_f


def score(name: str, prediction: str, *answers: str, classes: tuple[str, ...] = ()) -> float:
    return METRICS[name](prediction, answers, classes)


@pytest.mark.parametrize(
    ("name", "prediction", "answers", "value"),
    [
        ("exact", " Rome\n", ("Paris", "Rome"), 1),
        ("exact", "Rome.", ("Rome",), 0),
        ("string_match_all", "they are 7 and ALPHA", ("7", "alpha", "9", "beta"), 1 / 2),
        ("string_match_part", "they are 7 and ALPHA", ("9", "alpha"), 1),
        ("string_match_part", "they are 7", ("9", "alpha"), 0),
        # words: prediction in, city, of, rome; answer rome: p = 1/4, r = 1
        ("qa_f1", "In the city of Rome!", ("Rome",), 2 * (1 / 4) / (1 + 1 / 4)),
        ("qa_f1", "A Rome.", ("the  rome",), 1),
        ("qa_f1", "Oslo", ("Rome", "Oslo, Norway"), 2 / 3),
        ("qa_f1", "", ("Rome",), 0),
        ("qa_f1", "rome rome", ("rome",), 2 / 3),
        ("qa_f1_first_line", "\n\nOslo\nQuestion: what else?", ("Oslo",), 1),
        ("qa_f1_first_line", "Question:\nOslo", ("Oslo",), 0),
        # 北京 是 中国 的 首都 and 中国 的 首都
        ("qa_f1_zh", "北京是中国的首都。", ("中国的首都",), 2 * 3 / (5 + 3)),
        # 東京 は 日本 の 首都 です and 日本 の 首都
        ("qa_f1_ja", "東京は日本の首都です。", ("日本の首都",), 2 * 3 / (6 + 3)),
        ("qa_f1_ja", "大阪", ("東京",), 0),
        # characters 白 色 的 马 and 白 马
        ("qa_f1_characters", "白色的马！", ("白马",), 2 * 2 / (4 + 2)),
        ("rouge_l", "the cat sat", ("dogs bark", "the cat slept well"), 2 * 2 / (3 + 4)),
        ("rouge_l", "", ("the cat",), 0),
        ("rouge_l_first_line", "\nthe cat\nsat", ("the cat",), 1),
        # the full stop counts as a word: 6 words, 3 of them common
        ("rouge_l_zh", "北京是中国的首都。", ("中国的首都",), 2 * 3 / (6 + 3)),
        ("rouge_l_ja", "東京は日本の首都です。", ("日本の首都",), 2 * 3 / (7 + 3)),
        ("rouge_lsum", "the cat sat on it", ("the cat",), 2 * 2 / (5 + 2)),
        ("retrieval", "Paragraph 3 or Paragraph 13", ("Paragraph 3",), 1 / 2),
        ("retrieval", "I cannot say", ("Paragraph 3",), 0),
        ("retrieval_zh", "段落12", ("段落12",), 1),
        ("count", "7 of them, not 8 and not 17", ("7",), 1 / 3),
        ("count", "seven", ("7",), 0),
        # published by fuzzywuzzy: ratio("this is a test", "this is a test!") is 97
        ("edit_similarity", "\nthis is a test\nmore", ("this is a test!",), 0.97),
        ("edit_similarity", "# a remark\n```\nx = f(1)", ("x = f(1)",), 1),
        ("edit_similarity", "// only a remark", ("x = f(1)",), 0),
        # one letter of four is another: 1 - 2 / 8
        ("edit_similarity", "abcd", ("abce",), 0.75),
        ("first_number", "The key is 71432, not 5", ("71432",), 1),
        ("first_number", "5 or 71432", ("71432",), 0),
        ("first_number", "0071", ("71",), 0),
        ("word", 'It is "ab-12".', ("ab-12",), 1),
        ("word", "It is ab-123", ("ab-12",), 0),
        ("last_number", "The value is: -6.", ("-6",), 1),
        ("last_number", "-6 it is", ("-6",), 0),
        ("last_number", "", ("-6",), 0),
        ("number", "about 7.5, or 8", ("7.5",), 1),
        ("number", "7.0", ("7",), 1),
        ("number", "3.5", ("3",), 0),
        ("number", "none", ("3",), 0),
        ("leading_numbers", "[1, 4, 9, 7]", ("1", "4", "8", "7"), 2 / 4),
        ("leading_numbers", "1 4", ("1", "4", "8", "7"), 2 / 4),
        ("multiple_choice", "B", ("in Rome", "B"), 1),
        ("multiple_choice", "Between A and B I take\nB.", ("in Rome", "B"), 1),
        ("multiple_choice", "A", ("in Rome", "B"), 0),
        ("multiple_choice", "in Rome", ("in Rome", "B"), 1),
        ("multiple_choice", "the answer is: in Rome, I think", ("in Rome", "B"), 1),
        ("multiple_choice", "the answer is: in Oslo, I think", ("in Rome", "B"), 0),
        ("multiple_choice", "", ("in Rome", "B"), 0),
        ("code_debug", "B. pack", ("pack", "B"), 1),
        ("code_debug", "pack, I think", ("pack", "B"), 1),
        ("code_debug", "`pack`", ("pack", "B"), 0),  # as published: the mark leaves a space behind
        ("code_debug", "the error is: pack", ("pack", "B"), 1),
        ("code_debug", "C", ("pack", "B"), 0),
        ("code_debug", "the error is: load", ("pack", "B"), 0),
    ],
)
def test_values(name: str, prediction: str, answers: tuple[str, ...], value: float) -> None:
    assert score(name, prediction, *answers) == pytest.approx(value, abs=1e-7)


def test_rouge_of_its_authors() -> None:
    """Lin (2004), and the README of the package `rouge`, with its breaks inside of words."""
    assert summary_f("police kill the gunman", "police killed the gunman") == pytest.approx(3 / 4)
    assert summary_f("the gunman kill police", "police killed the gunman") == pytest.approx(2 / 4)
    # union of the subsequences w1 w2 and w1 w3 w5: 4 words, of 5 in the reference and 8 different ones in the candidate
    union = summary_f("w1 w2 w6 w7 w8.w1 w3 w8 w9 w5", "w1 w2 w3 w4 w5")
    assert union == pytest.approx(2 * (4 / 8) * (4 / 5) / (4 / 8 + 4 / 5))
    hypothesis = (
        "the #### transcript is a written version of each day 's cnn student news program use this transcript to "
        "he    lp students with reading comprehension and vocabulary use the weekly newsquiz to test your knowledge "
        "of storie s you     saw on cnn student news"
    )
    reference = (
        "this page includes the show transcript use the transcript to help students with reading comprehension and "
        "    vocabulary at the bottom of the page , comment for a chance to be mentioned on cnn student news . you "
        "must be a teac    her or a student age # # or older to request a mention on the cnn student news roll call "
        ". the weekly newsquiz tests     students ' knowledge of even ts in the news"
    )
    assert summary_f(hypothesis, reference) == pytest.approx(0.44705881864636676, abs=1e-12)


def test_rouge_of_long_sentences() -> None:
    """Where the package `rouge` recurses too deeply and LongBench scores 0."""
    text = " ".join(f"w{i}" for i in range(1500))
    assert summary_f(text, text) == pytest.approx(1)


def test_classification_counts_the_classes_named() -> None:
    classes = ("individual", "Location", "Human individual")
    assert score("classification", "\nHuman individual\nLocation", "Human individual", classes=classes) == 1
    assert score("classification", "Location or Human individual", "Human individual", classes=classes) == 1 / 2
    assert score("classification", "Location", "Human individual", classes=classes) == 0
    assert score("classification", "", "Location", classes=classes) == 0
    # as published: "b" follows "a", which is taken away, and is passed over
    assert score("classification", "ab", "ab", classes=("a", "b", "ab")) == 1 / 2


def test_what_a_metric_needs() -> None:
    with pytest.raises(namm.ConfigurationError, match="classes of a classification; got none"):
        score("classification", "x", "x")
    with pytest.raises(namm.ConfigurationError, match="Paragraph 7 for a retrieval metric; got '12'"):
        score("retrieval", "12", "12")
    with pytest.raises(namm.NotFoundError, match=r"got 'rouge_L'. Did you mean 'rouge_l'"):
        metric("rouge_L")
    assert metric("count") is METRICS["count"]


@pytest.mark.parametrize(
    ("name", "missing"),
    [("edit_similarity", "rapidfuzz.fuzz"), ("rouge_lsum", "rouge_score.rouge_scorer"), ("qa_f1_zh", "jieba")],
)
def test_a_missing_package_is_named(name: str, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(namm.NotFoundError, match=rf"{missing}.*pip install 'namm\[eval\]'"):
        score(name, "a b", "a b")


def test_all_metrics_stay_between_zero_and_one() -> None:
    for name, scored in METRICS.items():
        for prediction in ("", "\n", "A", "7 and 8", "Paragraph 7", "段落7。", ". . .", "`", "the"):
            answers = {"retrieval": ("Paragraph 7",), "retrieval_zh": ("段落7",)}.get(name, ("7", "8"))
            assert 0 <= scored(prediction, answers, ("7", "8")) <= 1, (name, prediction)
