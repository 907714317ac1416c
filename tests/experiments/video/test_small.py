"""The small model: training goes on where it stopped, and clips are read as they are meant."""

import json
from pathlib import Path

import pytest
import torch

import namm
from experiments.video.clips import choose, make_clip
from experiments.video.evaluate import ClipConfig, clip_listings
from experiments.video.show import film_strip
from experiments.video.small import clip_inputs, load_small, small_model, small_tokenizer, text_ids
from experiments.video.train import IGNORED, Stage, TrainingConfig, TrainingProgress, make_batch, train
from namm.errors import ArtefactError, ConfigurationError, NotFoundError
from namm.files import locked
from namm.vision import kept, layout
from namm.vision.evaluation import evaluate_video
from namm.vision.parts import FRAME
from namm.vision.reading import Showing, Watcher
from tests.experiments.video.made import images
from tests.harm import flipped

TINY = TrainingConfig(eyes=2, stages=(Stage(12, 2, 2), Stage(24, 1, 2)), polish=1, asked=6, width=32, layers=2)


def clip_showing(seconds: int, asked: int) -> Showing:
    (listing,) = clip_listings(images(), seconds, 1, asked)
    return listing.load()


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return small_model(32, 2).eval()


def test_each_question_sees_the_clip_and_itself_only(model) -> None:
    clips = [make_clip(images(), 12, (0, i)) for i in range(2)]
    asked = [choose(clip, 5, (1, i)) for i, clip in enumerate(clips)]
    batch = make_batch(clips, asked)
    with torch.no_grad():
        states = model.model(
            input_ids=batch.ids,
            pixel_values_videos=batch.pixels,
            position_ids=batch.positions,
            attention_mask=batch.mask,
            use_cache=False,
        ).last_hidden_state
        together = model.lm_head(states)
        for row, (clip, questions) in enumerate(zip(clips, asked, strict=True)):
            places = (batch.gold[row] != IGNORED).nonzero()[:, 0].tolist()
            for place, question in zip(places, questions, strict=True):
                inputs = clip_inputs(clip)
                ids = torch.cat([inputs["input_ids"], torch.tensor([text_ids(question.text)])], dim=1)
                alone = model(**{**inputs, "input_ids": ids}).logits[0, -1]
                torch.testing.assert_close(together[row, place], alone, atol=1e-4, rtol=1e-4)
                assert batch.gold[row, place] == text_ids(question.answer)[0]


def test_the_tokenizer_writes_what_the_model_reads() -> None:
    tokenizer = small_tokenizer()
    clip = make_clip(images(), 12, (0,))
    text = "<s> " + " ".join(f"{second} " + "<video> " * 5 for second in range(12))
    assert tokenizer(text).input_ids == clip_inputs(clip)["input_ids"][0].tolist()
    assert tokenizer("what is shown at second 7 ?").input_ids == text_ids("what is shown at second 7 ?")
    parts = [part for part in layout(small_model(32, 2).config, clip_inputs(clip)) if part.kind == FRAME]
    assert [(part.start, part.stop) for part in parts[:2]] == [(2, 7), (8, 13)]


def test_stopped_training_goes_on_as_if_it_had_not(tmp_path: Path) -> None:
    pictures = (images(), images(seed=1))
    whole = train(TINY, pictures, tmp_path / "whole", every=1)
    seen: list[TrainingProgress] = []

    def stop(progress: TrainingProgress) -> None:
        seen.append(progress)
        if progress.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(TINY, pictures, tmp_path / "parts", stop, every=1)
    resumed = train(TINY, pictures, tmp_path / "parts", seen.append, every=1)
    assert [p.step for p in seen] == [1, 2, 3, 4, 5, 6]
    assert [p.doing for p in seen[1:5]] == ["single frames", "clips of 12 s", "clips of 12 s", "clips of 24 s"]
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
    loaded = load_small(tmp_path / "parts")
    assert torch.equal(loaded.lm_head.weight, whole.lm_head.weight)


def test_training_refuses_another_run_and_a_damaged_one(tmp_path: Path) -> None:
    train(TINY, (images(), images()), tmp_path)
    with pytest.raises(ConfigurationError, match=r"the run in .*, with seed = 0; got 1\. Use another folder"):
        train(TrainingConfig(**{**TINY.__dict__, "seed": 1}), (images(), images()), tmp_path)
    with locked(tmp_path), pytest.raises(ConfigurationError, match="no other run in the folder"):
        train(TINY, (images(), images()), tmp_path)
    file = tmp_path / "checkpoint.pt"
    whole = file.read_bytes()
    for damaged in (whole[:100], flipped(whole, 8 * len(whole) // 2), b""):
        file.write_bytes(damaged)
        with pytest.raises(ArtefactError, match="a whole checkpoint"):
            train(TINY, (images(), images()), tmp_path)
        assert file.read_bytes() == damaged


def test_no_model_and_another_one(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"python experiments/video/train\.py --out"):
        load_small(tmp_path / "nothing")
    other = small_model(32, 2)
    other.resize_token_embeddings(300)
    other.save_pretrained(tmp_path)
    with pytest.raises(ArtefactError, match=r"a model of \d+ words; got 300"):
        load_small(tmp_path)
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).write_text('{"a": ')
        with pytest.raises(ArtefactError, match="a readable video model"):
            load_small(tmp_path)


def test_fewer_frames_are_evenly_chosen(model) -> None:
    showing = clip_showing(24, 2)
    few = showing.thinned(0.25)
    assert few["pixel_values_videos"].shape[0] == 6
    assert few["input_ids"][0, 1::6].tolist() == text_ids("0 5 9 14 18 23")
    watcher = Watcher(model, 64, 16)
    _, held = watcher.watch_thinned(showing, watcher.whole(showing), 0.25)
    assert held.bytes_held / held.bytes_full == pytest.approx(37 / 145, abs=1e-3)


def test_an_evaluation_goes_on_and_refuses_another(model, tmp_path: Path) -> None:
    config = ClipConfig(
        model="tiny",
        policies=("streaming", "h2o"),
        budgets=(0.5,),
        tokens=(24,),
        samples=2,
        asked=3,
        update_interval=64,
    )
    listings = list(clip_listings(images(), 24, 2, 3))
    seen: list[str] = []
    evaluate_video(config, listings[:1], model, tmp_path, lambda p: seen.append(p.reading))
    text = evaluate_video(config, listings, model, tmp_path, lambda p: seen.append(p.reading))
    assert [name for name in seen if name.startswith("clip 0")] == [
        f"clip 0: {name}" for name in ("full", "floor", "fewer-frames", "streaming", "h2o")
    ]
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * 3 * 5
    assert {row["clip"] for row in rows} == {"clip 0", "clip 1"}
    assert "### 2 clips of 24 seconds (145 tokens), 50 % of the bytes" in text
    assert (tmp_path / "summary.md").read_text() == text
    assert "Accuracy above each" not in text  # no learned memory is among them
    with pytest.raises(ConfigurationError, match="another images"):
        evaluate_video(config.replace(images="of other photographs"), listings, model, tmp_path)
    with pytest.raises(ConfigurationError, match="update_interval"):
        evaluate_video(config.replace(update_interval=128), listings, model, tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"samples": 0}, "samples: greater than or equal to 1; got 0"),
        ({"asked": 0}, "asked: greater than or equal to 1"),
        ({"split": "train"}, "got 'train'.*has not seen"),
    ],
)
def test_nothing_to_ask(change: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        ClipConfig(model="tiny", **change)


def test_the_picture_is_drawn(model, tmp_path: Path) -> None:
    clip = make_clip(images(), 24, (0,))
    with namm.attach(model, "h2o", namm.Budget(fraction=0.5), 64) as memory:
        model(**clip_inputs(clip))
        report = kept(memory.cache, layout(model.config, clip_inputs(clip)))
    assert film_strip(clip, {"h2o": report}, tmp_path / "film.png").stat().st_size > 1000
    with pytest.raises(ConfigurationError, match=r"a picture, .png, .svg, .pdf; got .*film.txt"):
        film_strip(clip, {"h2o": report}, tmp_path / "film.txt")
