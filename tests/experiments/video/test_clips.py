import gzip
from pathlib import Path

import numpy as np
import pytest

from experiments.video.clips import KINDS, Question, Scene, choose, make_clip, questions
from experiments.video.images import CLASSES, load_images
from namm.errors import ArtefactError, ConfigurationError, NotFoundError
from tests.experiments.video.made import images, write_idx


def test_the_same_seed_gives_the_same_clip() -> None:
    one, same, other = (make_clip(images(), 24, (0, number)) for number in (1, 1, 2))
    assert (one.frames == same.frames).all()
    assert one.questions == same.questions
    assert (one.frames != other.frames).any()


@pytest.mark.parametrize("seconds", [12, 96, 192])
def test_scenes_show_what_they_say_and_pauses_nothing(seconds: int) -> None:
    for seed in range(20):
        clip = make_clip(images(), seconds, (seed,))
        assert clip.frames.shape == (seconds, 1, 28, 28)
        for scene in clip.scenes:
            assert scene.stop - scene.start >= 2
            bright = clip.frames[scene.start : scene.stop].mean(axis=(1, 2, 3))
            label = CLASSES.index(scene.shows)
            assert (abs(bright - 0.9 * (35 * label + 10)) < 25).all()  # a light between .8 and 1
        assert all(a.stop <= b.start and a.shows != b.shows for a, b in zip(clip.scenes, clip.scenes[1:], strict=False))


def test_questions_are_answered_by_the_scenes() -> None:
    scenes = [Scene("bag", 1, 3), Scene("boot", 4, 8), Scene("bag", 8, 10), Scene("top", 11, 13)]
    found = {(q.kind, q.text): q.answer for q in questions(scenes)}
    assert found["at", "what is shown at second 2 ?"] == "bag"
    assert {found["at", f"what is shown at second {second} ?"] for second in (5, 6)} == {"boot"}
    assert ("at", "what is shown at second 3 ?") not in found
    assert found["first", "which came first , boot or bag ?"] == "bag"
    assert found["first", "which came first , top or boot ?"] == "boot"
    assert found["last", "what is shown last ?"] == "top"
    assert found["count", "how many scenes show a bag ?"] == "2"
    assert found["count", "how many scenes show a sandal ?"] == "0"
    assert found["after", "what follows the boot ?"] == "bag"
    assert not [text for kind, text in found if kind == "after" and "bag" in text]  # which of the two?


def test_questions_take_turns_and_do_not_repeat() -> None:
    clip = make_clip(images(), 96, (3,))
    chosen = choose(clip, 10, (3, 1))
    assert len(set(chosen)) == 10
    assert {q.kind for q in chosen} == {q.kind for q in clip.questions}
    assert set(choose(clip, 1000, (1,))) == set(clip.questions)
    assert isinstance(chosen[0], Question)
    assert {q.kind for q in clip.questions} <= set(KINDS)


@pytest.mark.parametrize("seconds", [0, 11, 193])
def test_lengths_that_cannot_be(seconds: int) -> None:
    with pytest.raises(ConfigurationError, match=f"12 to 192 seconds; got {seconds}"):
        make_clip(images(), seconds, (0,))


def test_images_come_from_their_files(tmp_path: Path) -> None:
    write_idx(tmp_path)
    train, held, test = (load_images(split, tmp_path) for split in ("train", "validation", "test"))
    assert len(train.labels) + len(held.labels) == len(test.labels) == 36  # dresses are left out
    assert set(test.labels) == set(range(len(CLASSES)))
    assert test.labels[:4].tolist() == [0, 1, 0, 0]  # t-shirt, trouser, pullover, coat
    assert (train.pixels[0] == test.pixels[0]).all()


def test_images_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="apt install dataset-fashion-mnist"):
        load_images("test", tmp_path)
    write_idx(tmp_path)
    with pytest.raises(ConfigurationError, match="train, validation, test; got 'dev'"):
        load_images("dev", tmp_path)


@pytest.mark.parametrize("damage", ["cut", "other"])
def test_damaged_files(tmp_path: Path, damage: str) -> None:
    write_idx(tmp_path)
    file = tmp_path / "t10k-labels-idx1-ubyte.gz"
    data = file.read_bytes()
    file.write_bytes(
        data[:20] if damage == "cut" else gzip.compress(b"\0\0\x08\x01" + np.array(9, ">u4").tobytes() + b"123")
    )
    with pytest.raises(ArtefactError, match="t10k-labels"):
        load_images("test", tmp_path)
