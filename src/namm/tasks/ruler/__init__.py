"""RULER (Hsieh et al. 2024, arXiv 2404.06654): thirteen tasks of any length, after NVIDIA/RULER (Apache-2.0).

Templates, answer prefixes, needles, numbers of keys, values, queries, chains and hops, in-context examples, frequencies
and lengths of answers are those of its `scripts/synthetic.yaml` and `scripts/data/synthetic/*.py`.

| task | asks for |
| --- | --- |
| ruler/niah_single_1, _2, _3 | a number in repeated lines, a number in prose, a uuid in prose |
| ruler/niah_multikey_1, _2, _3 | one of four numbers in prose; one needle among needles, numbers and then uuids |
| ruler/niah_multivalue, niah_multiquery | four numbers of one key, the numbers of four keys |
| ruler/vt | the five variables that share a value, after an example |
| ruler/cwe, ruler/fwe | the ten most common words of a list, after an example; the three most frequent coded words |
| ruler/qa_1, ruler/qa_2 | a question of SQuAD, of HotpotQA, its documents among others |

kvpress's samples of it are `namm.tasks.kvpress`. What differs from NVIDIA/RULER, and why:

* Its prose is Paul Graham's essays, which may not be passed on: here it is the novels of the split, from a random
  sentence on, unless the folder `Request.data` holds its file `PaulGrahamEssays.json` and the split is "test"; the
  sample's id then ends in "-essays".
* Prose ends with a whole sentence, and starts anew where it runs out: half a sentence makes nothing harder.
* Its words are those of the package wonderwords; words that only have to differ are worth no package, so here they are
  of the shipped novels (`shared.vocabulary`), adjectives and nouns told by their endings.
* Keys and values of one sample are distinct; there they may collide, and a question then has two answers.
* `Request.tokens` bounds the prompt, as in every task here, so its 4096, which counts the answer, is 4096 less
  `max_new_tokens`. To about one piece (sentence, line, word, document) the prompt is as long as that, so that a length
  is what it says; there it falls short by up to 500 words. Special tokens count; a chat template, a model's own, does
  not.
* A sample has its own random numbers, of seed, split and index, so that no sample changes when more or longer ones are
  made; there, one order of needles, words and documents serves all.
* The example of vt never has the value of the question, which would have two answers; and below 4096 tokens, shorter
  than any official length, it has six lines of noise in place of ten, to leave room for the text.
* qa_1 and qa_2 may read any files in the layout of theirs (`benchmarks/passages.py` makes some that need no hub);
  results on such are not RULER's.
"""

from __future__ import annotations

from namm.tasks.base import Task
from namm.tasks.ruler import needles, questions, tracking, words

TASKS: dict[str, Task] = {
    task.name: task for task in (*needles.TASKS, tracking.TASK, words.COMMON, words.FREQUENT, *questions.TASKS)
}

__all__ = ["TASKS"]
