"""Models that look: with everything kept they are untouched, and what is kept is told apart by frame."""

from itertools import pairwise

import pytest
import torch

import namm
from namm.errors import ConfigurationError
from namm.policies import H2O, MemoryPolicy
from namm.vision.parts import FRAME, IMAGE, TEXT, kept, layout
from tests.vision.families import FAMILIES, family

GREEDY = {"do_sample": False, "max_new_tokens": 12, "pad_token_id": 0}


@pytest.mark.parametrize("name", FAMILIES)
def test_keep_all_is_the_untouched_model(name: str) -> None:
    model, inputs = family(name)
    plain = model.generate(**inputs, **GREEDY)
    with namm.attach(model, "full", update_interval=16) as memory:
        assert torch.equal(model.generate(**inputs, **GREEDY), plain)
        assert {n for layer in memory.memory().kept for row in layer for n in row} == {plain.shape[1] - 1}
    assert torch.equal(model.generate(**inputs, **GREEDY), plain)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("policy", ["h2o", namm.NAMM.zeros(namm.NAMMConfig(features="compact-rehearsed"))])
def test_forgets_and_goes_on(name: str, policy: str | namm.NAMM) -> None:
    model, inputs = family(name)
    length = inputs["input_ids"].shape[1]
    with namm.attach(model, policy, namm.Budget(tokens=24), update_interval=32) as memory:
        out = model.generate(**inputs, **GREEDY)
        parts = layout(model.config, inputs)
        report = kept(memory.cache, parts)
        held = memory.memory()
    assert out.shape[1] == length + GREEDY["max_new_tokens"]
    assert held.updates == [length // 32 + (length + 11) // 32 - length // 32] * 2
    assert max(count for layer in held.kept for row in layer for count in row) <= 24 + 32
    total = sum(share * (part.stop - part.start) for share, part in zip(report.share, parts, strict=True))
    in_prompt = [sum(position < length for position in head) for i in range(2) for head in memory.kept_positions(i)[0]]
    assert total == pytest.approx(sum(in_prompt) / len(in_prompt))


@pytest.mark.parametrize(
    ("name", "kind", "count", "tokens"),
    [
        ("llava", IMAGE, 1, 4),
        ("llava-next-video", FRAME, 6, 6),
        ("llava-onevision-video", FRAME, 6, 7),
        ("qwen2.5-vl-image", IMAGE, 1, 4),
        ("qwen2.5-vl-video", FRAME, 3, 12),
    ],
)
def test_layout_tells_pictures_from_text(name: str, kind: str, count: int, tokens: int) -> None:
    model, inputs = family(name)
    parts = layout(model.config, inputs)
    pictures = [part for part in parts if part.kind == kind]
    assert [part.number for part in pictures] == list(range(count))
    assert sum(part.stop - part.start for part in pictures) == tokens
    assert [part.kind for part in parts if part.kind != kind] == [TEXT, TEXT]
    assert (parts[0].start, parts[-1].stop) == (0, inputs["input_ids"].shape[1])
    assert all(a.stop == b.start for a, b in pairwise(parts))


class _First(MemoryPolicy):
    """Keeps the first tokens."""

    name = "first"

    def score(self, view: namm.policies.View) -> torch.Tensor:
        return -view.positions.float()


def test_report_counts_what_is_held_of_each_frame() -> None:
    model, inputs = family("llava-next-video")  # 4 words, 6 frames of a token, 100 words
    with namm.attach(model, _First(), namm.Budget(tokens=8), update_interval=96) as memory:
        model(**inputs)
        report = kept(memory.cache, layout(model.config, inputs))
    assert report.of(FRAME).tolist() == [1, 1, 1, 0, 0, 0]  # the newest token always stays
    assert report.overall(FRAME) == 0.5
    assert report.overall(IMAGE) is None
    assert str(report).splitlines()[1] == "frame: 50% of 6 tokens kept; each: 100% 100% 100% 0% 0% 0%"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"pixel_values_videos": None}, "6 places in the prompt|1 places in the prompt, and no pixel values"),
        ({"input_ids": torch.tensor([[5, 6, 7, 8]])}, "0 places in the prompt, and pixel values"),
        ({"input_ids": torch.zeros(2, 9, dtype=torch.long)}, r"one prompt.*got \[2, 9\]"),
        ({"input_ids": torch.tensor([[96, 5, 96, 6, 96]])}, "a place in the prompt for each of 1 videos; got 3"),
    ],
)
def test_layout_refuses_what_does_not_fit(change: dict[str, torch.Tensor | None], told: str) -> None:
    model, inputs = family("llava-next-video")
    with pytest.raises(ConfigurationError, match=told):
        layout(model.config, {k: v for k, v in {**inputs, **change}.items() if v is not None})


def test_wrong_pictures_leave_the_model_as_it_was() -> None:
    model, inputs = family("llava-next-video")
    plain = model.generate(**inputs, **GREEDY)
    with namm.attach(model, H2O(), namm.Budget(tokens=24), update_interval=32):
        with pytest.raises(ValueError, match="do not match"):
            model.generate(**{**inputs, "pixel_values_videos": inputs["pixel_values_videos"][:, :4]}, **GREEDY)
        forgetful = model.generate(**inputs, **GREEDY)
    assert forgetful.shape == plain.shape
    assert torch.equal(model.generate(**inputs, **GREEDY), plain)
