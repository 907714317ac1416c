"""How good a memory is: the likelihood of the right answer after the memory has read the text.

For each sample the negative log-likelihood of the answer (teacher-forced, per token) is put between two references:

    fitness = (floor - nll) / (floor - full)

`full` is the untouched model, `floor` a memory of the first tokens only; 1 is as good as forgetting nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from namm.memory import attach
from namm.network import NAMM
from namm.policies import MemoryPolicy
from namm.selection import Budget, Selection
from namm.tasks import Encoded


@dataclass(frozen=True)
class Referenced:
    """A sample with the likelihoods that its fitness is measured between."""

    sample: Encoded
    full: float
    floor: float


@torch.no_grad()
def answer_scores(model: PreTrainedModel, sample: Encoded) -> tuple[float, bool]:
    """Negative log-likelihood per token of the answer after the prompt, nats; and whether greedy decoding gives it.

    Teacher-forced: the answer is greedy exactly if each of its tokens is the most likely after the ones before.
    """
    ids = torch.tensor([[*sample.prompt, *sample.answer]], device=model.device)
    count = len(sample.answer)
    logits = model(ids, logits_to_keep=count + 1).logits[0, :-1].float()
    gold = ids[0, -count:]
    return float(torch.nn.functional.cross_entropy(logits, gold)), bool((logits.argmax(-1) == gold).all())


def answer_nll(model: PreTrainedModel, sample: Encoded) -> float:
    """Negative log-likelihood per token of the answer, see `answer_scores`."""
    return answer_scores(model, sample)[0]


def memory_nll(
    model: PreTrainedModel,
    sample: Encoded,
    memory: NAMM | MemoryPolicy | str,
    selection: Selection | None,
    update_interval: int,
) -> float:
    """`answer_nll` of the model under a memory."""
    with attach(model, memory, selection, update_interval):
        return answer_nll(model, sample)


def reference(model: PreTrainedModel, sample: Encoded, update_interval: int) -> Referenced:
    """Measure a sample's references."""
    floor = memory_nll(model, sample, "streaming", Budget(tokens=4), update_interval)
    return Referenced(sample, answer_nll(model, sample), floor)


def normalised(nll: float, sample: Referenced) -> float:
    """Fitness of one sample, see above. A sample on which forgetting costs nothing counts 1 whatever happens."""
    span = sample.floor - sample.full
    return (sample.floor - nll) / span if span > 0.05 else 1.0
