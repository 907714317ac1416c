"""LongVideoBench and MLVU in their own layouts: multiple choice about long videos.

    LongVideoBench/lvb_val.json, LongVideoBench/videos/*.mp4       arXiv 2407.15754
    MLVU/json/1_plotQA.json ..., MLVU/video/1_plotQA/*.mp4 ...     arXiv 2406.04264

Subtitles of LongVideoBench are not shown to the model, which its leaderboard calls "without subtitles".
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from namm.errors import ArtefactError, ConfigurationError, NotFoundError, nearest
from namm.files import read
from namm.json_files import parsed_value

_MLVU = ("1_plotQA", "2_needle", "3_ego", "4_count", "5_order", "6_anomaly_reco", "7_topic_reasoning")
_LETTERS = "ABCDEFGH"


@dataclass(frozen=True)
class Choice:
    """A question about a video. `answer`: index of the right candidate."""

    task: str
    name: str
    video: Path
    question: str
    candidates: tuple[str, ...]
    answer: int

    @property
    def letters(self) -> str:
        return _LETTERS[: len(self.candidates)]

    @property
    def prompt(self) -> str:
        """Question and options, as the benchmarks' own evaluations put them."""
        options = "\n".join(f"{letter}. {text}" for letter, text in zip(self.letters, self.candidates, strict=True))
        return f"{self.question}\n{options}\nAnswer with the option's letter from the given choices directly."


def load_choices(benchmark: str, folder: str | Path) -> list[Choice]:
    """All questions of "longvideobench" (validation split) or "mlvu" (its multiple-choice tasks).

    Raises:
        NotFoundError: there is no such benchmark, or `folder` does not hold it.
        ArtefactError: a file cannot be read as that benchmark's.
    """
    loaders = {"longvideobench": _longvideobench, "mlvu": _mlvu}
    if benchmark not in loaders:
        raise NotFoundError("a video benchmark", repr(benchmark), nearest(benchmark, loaders))
    choices = list(loaders[benchmark](Path(folder)))
    if missing := [choice.video for choice in choices if not choice.video.is_file()]:
        raise NotFoundError(
            f"the videos of {benchmark}",
            f"no {missing[0]} ({len(missing)} are missing)",
            "Unpack its archives of videos into that folder.",
        )
    return choices


def _longvideobench(folder: Path) -> Iterator[Choice]:
    for record in _records(folder / "lvb_val.json", "https://huggingface.co/datasets/longvideobench/LongVideoBench"):
        video = folder / "videos" / str(record.get("video_path"))
        task = f"{record.get('duration_group')} s"
        yield _choice(record, task, record.get("id"), video, record.get("correct_choice"))


def _mlvu(folder: Path) -> Iterator[Choice]:
    for name in _MLVU:
        records = _records(folder / "json" / f"{name}.json", "https://huggingface.co/datasets/MLVU/MVLU")
        for number, record in enumerate(records):
            candidates, answer = record.get("candidates") or [], record.get("answer")
            place = candidates.index(answer) if answer in candidates else None
            video = folder / "video" / name / str(record.get("video"))
            yield _choice(record, name.partition("_")[2], f"{name}-{number}", video, place)


def _choice(record: dict[str, Any], task: str, name: Any, video: Path, answer: Any) -> Choice:
    candidates, question = record.get("candidates"), record.get("question")
    whole = isinstance(question, str) and isinstance(candidates, list) and 2 <= len(candidates) <= len(_LETTERS)
    if not whole or not isinstance(answer, int) or not 0 <= answer < len(candidates or ()):
        raise ArtefactError(
            "a question with candidates, one of which is the answer",
            json.dumps(record)[:200],
            "Take the benchmark's own files.",
        )
    assert isinstance(question, str)
    assert isinstance(candidates, list)
    return Choice(task, str(name), video, question, tuple(map(str, candidates)), answer)


def _records(file: Path, source: str) -> list[dict[str, Any]]:
    if not file.is_file():
        raise NotFoundError(f"the file {file.name}", f"none in {file.parent}", f"Download it from {source}.")
    records = parsed_value(read(file, "Download it again."), str(file), "Download it again.")
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise ArtefactError("a list of records", f"another content in {file}", "Download it again.")
    return records


def check_frames(frames: int) -> None:
    """Raise unless a video can be shown in that many frames."""
    if frames < 2:
        raise ConfigurationError("at least 2 frames of a video", frames, "32 is common.")
