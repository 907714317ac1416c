"""ROUGE-L as LongBench computes it: that of the package `rouge` 1.0.1, over sets of words.

Both texts are cut into sentences at full stops. Of every pair of sentences one longest common subsequence is taken;
the words of all of them, each counted once, are the overlap. Precision and recall divide it by the number of different
words in the prediction and in the answer. This is the summary level of Lin (2004), with sets in the place of lists.

The package recurses once per word and fails on long sentences, which LongBench scores 0; this version does not recurse
and gives them their score. `rouge_lsum` in `namm.tasks.metrics` is the measure of the package `rouge-score`.
"""

from __future__ import annotations


def summary_f(prediction: str, answer: str) -> float:
    """F measure of two texts whose words stand between spaces; 0 if either is empty.

    >>> round(summary_f("the cat sat", "the cat slept well"), 4)  # 2 words in common, 2/3 and 2/4
    0.5714
    """
    predicted, gold = _sentences(prediction), _sentences(answer)
    if not predicted or not gold:
        return 0.0
    overlap = {word for g in gold for p in predicted for word in _common(g, p)}
    precision = len(overlap) / len({word for sentence in predicted for word in sentence})
    recall = len(overlap) / len({word for sentence in gold for word in sentence})
    return 2 * precision * recall / (precision + recall + 1e-8)  # 1e-8 as the package has it


def _sentences(text: str) -> list[list[str]]:
    """Words of each sentence. What is only white space between two full stops counts as one empty word, as there."""
    return [" ".join(part.split()).split(" ") for part in text.split(".") if part]


def _common(x: list[str], y: list[str]) -> list[str]:
    """A longest common subsequence; where there are several, that which the package finds."""
    lengths = [[0] * (len(y) + 1)]
    for a in x:
        above, row = lengths[-1], [0]
        for j, b in enumerate(y):
            row.append(above[j] + 1 if a == b else max(above[j + 1], row[j]))
        lengths.append(row)
    words, i, j = [], len(x), len(y)
    while i and j:
        if x[i - 1] == y[j - 1]:
            words.append(x[i - 1])
            i, j = i - 1, j - 1
        elif lengths[i - 1][j] > lengths[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return words[::-1]
