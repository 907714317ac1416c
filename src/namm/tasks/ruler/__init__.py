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

What differs from NVIDIA/RULER:

* Its prose is Paul Graham's essays, which may not be passed on. They are read for the split "test" if the folder
  `Request.data` holds its file `PaulGrahamEssays.json`; the sample's id then ends in "-essays". Otherwise, and always
  for training, prose is the novels of the split, from a random sentence on. Prose ends with a whole sentence and starts
  anew where it runs out.
* Its words are those of the package wonderwords. Here they are words of the shipped novels (`shared.vocabulary`);
  adjectives and nouns of the keys are told by their endings. Keys and values of one sample are all distinct; there
  they may collide.
* Its length counts the answer: its 4096 is 4096 tokens less `max_new_tokens` here. `Request.tokens` bounds the prompt,
  which is filled to about one piece (sentence, line, word, document), there to one step of up to 500 words. Special
  tokens count; a chat template does not.
* A sample has its own random numbers, of seed, split and index; there, one order of needles, words and documents serves
  all samples.
* The example of vt has ten lines of noise, there as many fives as 500 tokens hold; below 4096 tokens, shorter than any
  official length, six. Its value is never that of the question.
* qa_1 and qa_2 have a "test" split only, which is the development set, as there. Repeated answers are dropped.
* Without a count, there are 500 samples of a task, as there.
"""

from __future__ import annotations

from namm.tasks.base import Task
from namm.tasks.ruler import needles, questions, tracking, words

TASKS: dict[str, Task] = {
    task.name: task for task in (*needles.TASKS, tracking.TASK, words.COMMON, words.FREQUENT, *questions.TASKS)
}

__all__ = ["TASKS"]
