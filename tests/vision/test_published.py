"""LongVideoBench and MLVU in their own layouts, on made videos and a made processor."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from namm.errors import ArtefactError, ConfigurationError, ModelError, NotFoundError
from namm.models import load_vision_model
from namm.vision import VideoConfig
from namm.vision.evaluation import evaluate_video
from namm.vision.published import load_choices
from namm.vision.showing import choice_listings, read_frames
from tests.vision.families import VIDEO, family

av = pytest.importorskip("av")
QUESTION = {"question": "Which colour?", "candidates": ["red", "green", "blue"]}


def make_video(file: Path, frames: int = 12) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width = stream.height = 32
        for i in range(frames):
            picture = np.full((32, 32, 3), min(20 * i, 255), np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


@pytest.fixture
def longvideobench(tmp_path: Path) -> Path:
    records = [
        {**QUESTION, "id": f"v{i}_{j}", "video_path": f"v{i}.mp4", "correct_choice": j, "duration_group": 15 * (i + 1)}
        for i in range(2)
        for j in range(2)
    ]
    (tmp_path / "lvb_val.json").write_text(json.dumps(records))
    for i in range(2):
        make_video(tmp_path / "videos" / f"v{i}.mp4")
    return tmp_path


@pytest.fixture
def mlvu(tmp_path: Path) -> Path:
    names = ("1_plotQA", "2_needle", "3_ego", "4_count", "5_order", "6_anomaly_reco", "7_topic_reasoning")
    (tmp_path / "json").mkdir()
    for name in names:
        (tmp_path / "json" / f"{name}.json").write_text(json.dumps([{**QUESTION, "video": "a.mp4", "answer": "blue"}]))
        make_video(tmp_path / "video" / name / "a.mp4")
    return tmp_path


def test_longvideobench(longvideobench: Path) -> None:
    first, *_, last = load_choices("longvideobench", longvideobench)
    assert (first.task, first.name, first.answer, last.task) == ("15 s", "v0_0", 0, "30 s")
    assert first.prompt.splitlines() == [
        "Which colour?",
        "A. red",
        "B. green",
        "C. blue",
        "Answer with the option's letter from the given choices directly.",
    ]


def test_mlvu(mlvu: Path) -> None:
    choices = load_choices("mlvu", mlvu)
    assert [choice.task for choice in choices] == [
        "plotQA",
        "needle",
        "ego",
        "count",
        "order",
        "anomaly_reco",
        "topic_reasoning",
    ]
    assert {choice.answer for choice in choices} == {2}


def test_benchmarks_that_are_not_there(longvideobench: Path) -> None:
    with pytest.raises(NotFoundError, match="longvideobench, mlvu"):
        load_choices("videomme", longvideobench)
    with pytest.raises(NotFoundError, match=r"1_plotQA.json; got none in .* Download it from https"):
        load_choices("mlvu", longvideobench)
    (longvideobench / "videos" / "v1.mp4").unlink()
    with pytest.raises(NotFoundError, match=r"v1.mp4 \(2 are missing\)"):
        load_choices("longvideobench", longvideobench)


@pytest.mark.parametrize(
    "change", [{"correct_choice": 7}, {"candidates": "red"}, {"question": None}, {"candidates": []}]
)
def test_damaged_questions(longvideobench: Path, change: dict[str, Any]) -> None:
    file = longvideobench / "lvb_val.json"
    records = json.loads(file.read_text())
    file.write_text(json.dumps([{**records[0], **change}]))
    with pytest.raises(ArtefactError, match="a question with candidates"):
        load_choices("longvideobench", longvideobench)
    file.write_text("[1")
    with pytest.raises(ArtefactError, match=r"JSON in .*lvb_val.json"):
        load_choices("longvideobench", longvideobench)


def test_frames_are_spread_over_the_video(longvideobench: Path) -> None:
    frames = read_frames(longvideobench / "videos" / "v0.mp4", 4)
    assert frames.shape == (4, 32, 32, 3)
    assert frames.mean(axis=(1, 2, 3)) == pytest.approx([0, 80, 140, 220], abs=6)
    assert len(read_frames(longvideobench / "videos" / "v0.mp4", 40)) == 12  # there are no more


def test_files_that_are_no_videos(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="a video file"):
        read_frames(tmp_path / "none.mp4", 4)
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(ArtefactError, match="can be decoded"):
        read_frames(tmp_path / "text.mp4", 4)


class _Processor:
    """Does what a processor of LLaVA-NeXT-Video does, with a token for each frame and each letter."""

    def __init__(self) -> None:
        self.tokenizer = self

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [ord(letter) % 80 + 3 for letter in text]

    def apply_chat_template(self, turns: list[dict[str, Any]], add_generation_prompt: bool) -> str:
        (turn,) = turns
        assert add_generation_prompt
        assert turn["content"][0] == {"type": "video"}
        return "USER: <video>" + turn["content"][1]["text"] + " ASSISTANT:"

    def __call__(self, text: str, videos: list[list[np.ndarray]], return_tensors: str) -> dict[str, torch.Tensor]:
        before, after = text.split("<video>")
        ids = self.encode(before) + [VIDEO] * len(videos[0]) + self.encode(after)
        pixels = torch.from_numpy(np.stack(videos[0])).float().permute(0, 3, 1, 2)[None, :, :, :28, :28] / 255
        return {
            "input_ids": torch.tensor([ids]),
            "attention_mask": torch.ones(1, len(ids)),
            "pixel_values_videos": pixels,
        }


def test_a_benchmark_is_read_video_by_video(mlvu: Path, tmp_path: Path) -> None:
    model, _ = family("llava-next-video")
    choices = load_choices("mlvu", mlvu)
    config = VideoConfig(
        model="m", policies=("h2o",), budgets=(0.75,), tasks=("mlvu",), tokens=(40,), update_interval=16, data=str(mlvu)
    )
    for choice in choices:
        make_video(choice.video, 40)
    listings = list(choice_listings(choices[:2], model, _Processor(), 40))
    showings = [listing.load() for listing in listings]
    assert [showing.tokens for showing in showings] == [6 + 40] * 2
    assert showings[0].thinned(0.5)["pixel_values_videos"].shape[1] == 20
    text = evaluate_video(config, listings, model, tmp_path / "out")
    assert "### 2 clips of 40 frames (46 tokens), 75 % of the bytes" in text
    rows = [json.loads(line) for line in (tmp_path / "out" / "rows.jsonl").read_text().splitlines()]
    assert {row["task"] for row in rows} == {"plotQA", "needle"}
    assert all(row["nll"] >= 0 for row in rows)


def test_questions_about_a_video_share_its_reading(longvideobench: Path) -> None:
    model, _ = family("llava-next-video")
    choices = load_choices("longvideobench", longvideobench)
    listings = list(choice_listings(choices[::2] + choices[1::2], model, _Processor(), 8))  # not side by side
    assert [[name for _, name in listing.asked] for listing in listings] == [["v0_0", "v0_1"], ["v1_0", "v1_1"]]
    assert [query.name for query in listings[1].load().queries] == ["v1_0", "v1_1"]


def test_a_model_without_videos(longvideobench: Path) -> None:
    model, _ = family("llava")
    with pytest.raises(ModelError, match="has no place for one"):
        next(choice_listings(load_choices("longvideobench", longvideobench), model, _Processor(), 4)).load()
    with pytest.raises(ConfigurationError, match="at least 2 frames"):
        next(choice_listings([], model, _Processor(), 1))


def test_a_tokenizer_without_letters(longvideobench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = family("llava-next-video")
    monkeypatch.setattr(_Processor, "encode", lambda self, text, add_special_tokens=True: [7] * len(text))
    with pytest.raises(ModelError, match=r"tells letters apart; got ABC as \[7, 7, 7\]"):
        next(choice_listings(load_choices("longvideobench", longvideobench), model, _Processor(), 4)).load()


def test_no_such_model(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="a model that can be loaded"):
        load_vision_model(tmp_path)
