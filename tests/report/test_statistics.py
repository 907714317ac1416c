"""From rows to a summary: means and gaps by hand, intervals by theory, refusals by name."""

import json
import math

import numpy as np
import pytest

import namm
from namm.report.bootstrap import interval, pool, resample
from namm.report.markdown import to_markdown
from namm.report.statistics import summarise
from namm.report.summary import Group, Line, Scores, to_json
from tests.report.made import NAMM, row, samples


def only(rows: list[dict]) -> Group:
    (group,) = summarise(rows).groups
    return group


def line(group: Group, policy: str) -> Line:
    return next(line for line in group.lines if line.policy == policy)


def overall(group: Group, policy: str) -> Scores:
    return line(group, policy).overall


FOUR = {
    "full": [1.0, 1.0, 1.0, 1.0],
    "floor": [3.0, 5.0, 3.0, 5.0],
    "oracle": [1.2, 1.0, 1.2, 1.0],
    "h2o": [2.0, 2.0, 2.0, 2.0],
    "tova": [2.0, 3.0, 2.0, 3.0],
    NAMM: [1.5, 2.0, 1.5, 2.0],
}


# -- the bootstrap ---------------------------------------------------------------------------------------------------


def width(values: np.ndarray, clusters: list[str] | None = None) -> float:
    low, high = interval(resample(values[:, None], clusters or [str(i) for i in range(len(values))]))[:, 0]
    return high - low


def test_intervals_are_those_of_normal_theory() -> None:
    values = np.random.default_rng(1).normal(2.0, 3.0, 200)
    low, high = interval(resample(values[:, None], [str(i) for i in range(200)]))[:, 0]
    error = values.std() / math.sqrt(200)
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.12 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.12 * error)


def test_intervals_cover_the_mean_as_often_as_they_say() -> None:
    rng, covered = np.random.default_rng(2), 0
    for trial in range(300):
        drawn = resample(rng.normal(1.0, 1.0, (40, 1)), [str(i) for i in range(40)], draws=1000, seed=trial)
        low, high = interval(drawn)[:, 0]
        covered += low <= 1.0 <= high
    assert 0.90 <= covered / 300 <= 0.98


def test_samples_of_one_context_are_drawn_together() -> None:
    values = np.repeat(np.random.default_rng(3).normal(size=20), 4)
    together = [str(i // 4) for i in range(80)]
    assert width(values, together) == pytest.approx(2 * width(values), rel=0.1)
    one_each = resample(values[::4, None], [str(i) for i in range(20)])
    assert np.isclose(resample(values[:, None], sorted(together)).mean, one_each.mean)


def test_strata_are_pooled_with_equal_weight() -> None:
    rng = np.random.default_rng(4)
    many, few = rng.normal(0, 1, (400, 1)), rng.normal(10, 1, (25, 1))
    parts = [resample(v, [str(i) for i in range(len(v))], seed=s) for s, v in enumerate((many, few))]
    whole = pool(parts)
    assert whole.mean[0] == pytest.approx((many.mean() + few.mean()) / 2)
    error = math.hypot(many.std() / 20, few.std() / 5) / 2
    low, high = interval(whole)[:, 0]
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_draws_do_not_depend_on_the_size_of_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    values, clusters = np.random.default_rng(5).normal(size=(30, 3)), [str(i) for i in range(30)]
    whole = resample(values, clusters)
    monkeypatch.setattr("namm.report.bootstrap._WEIGHTS_AT_ONCE", 1000)
    np.testing.assert_allclose(whole.draws, resample(values, clusters).draws)


def test_values_that_are_not_there_are_left_out() -> None:
    values = np.array([[1.0, np.nan], [3.0, 5.0], [np.nan, 7.0], [np.nan, 6.0]])
    drawn = resample(values, ["a", "b", "c", "d"])
    assert drawn.mean.tolist() == [2.0, 6.0]
    low, high = interval(drawn)
    assert low[0] >= 1.0
    assert high[0] <= 3.0
    assert np.isnan(drawn.draws[:, 0]).any()  # draws without "a" and "b"
    alone = resample(np.array([[1.0], [np.nan]]), ["a", "b"])
    assert alone.mean[0] == 1.0
    assert np.isnan(interval(alone)).all()


# -- means, differences, the gap -------------------------------------------------------------------------------------


def test_means_and_differences_by_hand() -> None:
    group = only(samples(FOUR))
    scores = overall(group, NAMM)
    assert scores.nll == pytest.approx(1.75)
    assert scores.to_full is not None
    assert scores.to_full.mean == pytest.approx(0.75)
    assert scores.normalised is not None
    assert scores.normalised.mean == pytest.approx((0.75 + 0.75 + 0.75 + 0.75) / 4)
    assert overall(group, "tova").normalised.mean == pytest.approx(0.5)
    difference = scores.against["tova"].estimate
    assert difference.mean == pytest.approx(-0.75)
    assert difference.low == pytest.approx(-1.0)
    assert difference.high == pytest.approx(-0.5)
    assert overall(group, "full").normalised.mean == pytest.approx(1.0)
    assert overall(group, "floor").normalised.mean == pytest.approx(0.0)
    assert (scores.n, scores.missing) == (4, 0)
    assert (scores.bytes_share, scores.slots_share, scores.seconds) == (0.25, 0.25, 1.5)


def test_the_gap_between_the_best_heuristic_and_the_oracle() -> None:
    group = only(samples(FOUR))
    assert group.best_heuristic == "h2o"
    closed = overall(group, NAMM).gap_closed
    assert closed.mean == pytest.approx((2.0 - 1.75) / (2.0 - 1.1))
    assert closed.low < closed.mean < closed.high
    assert overall(group, "h2o").gap_closed.mean == 0
    assert overall(group, "oracle").gap_closed.mean == pytest.approx(1)
    assert overall(group, "tova").gap_closed.mean == pytest.approx(-0.5 / 0.9)
    assert overall(group, "full").gap_closed is None
    assert any("h2o is the best heuristic" in note and "favours" in note for note in group.notes)


def test_no_share_of_a_gap_that_may_not_be_there() -> None:
    group = only(samples(FOUR | {"oracle": [1.0, 3.1, 1.0, 3.1]}))
    assert overall(group, NAMM).gap_closed is None
    assert overall(group, NAMM).gap_refused == "gap uncertain"
    assert any("not clearly better than the best heuristic" in note for note in group.notes)


def test_identical_policies_differ_by_nothing() -> None:
    group = only(samples(FOUR | {"tova": FOUR["h2o"]}))
    found = overall(group, "tova").against["h2o"].estimate
    assert (found.mean, found.low, found.high) == (0, 0, 0)
    assert not found.sure
    assert "+0.00 [+0.00, +0.00]" in to_markdown(summarise(samples(FOUR | {"tova": FOUR["h2o"]})))


def test_overall_is_the_mean_of_task_means() -> None:
    short = samples({"full": [1.0], "floor": [3.0], "h2o": [2.0]}, task="needle")
    long = samples({"full": [1.0] * 3, "floor": [2.0] * 3, "h2o": [1.0] * 3}, task="passkey")
    group = only(short + long)
    assert line(group, "h2o").tasks["needle"].normalised.mean == pytest.approx(0.5)
    assert overall(group, "h2o").normalised.mean == pytest.approx(0.75)
    assert overall(group, "h2o").nll == pytest.approx(1.5)


def test_a_policy_without_some_task_has_no_overall_figures() -> None:
    """Or it would look good for having been measured on the easy tasks only."""
    rows = samples({"full": [0.1, 0.1], "floor": [3.0, 3.0], "h2o": [0.5, 0.7], "tova": [0.2, 0.2]}, task="easy")
    rows += samples({"full": [1.0, 1.0], "floor": [9.0, 9.0], "h2o": [5.0, 7.0]}, task="hard")
    (group,) = summarise(rows).groups
    lines = {line.policy: line for line in group.lines}
    assert lines["tova"].overall.nll is lines["tova"].overall.normalised is lines["tova"].overall.to_full is None
    assert (lines["tova"].overall.n, lines["tova"].overall.missing) == (2, 2)
    assert lines["tova"].tasks["easy"].nll == pytest.approx(0.2)
    assert lines["h2o"].overall.nll == pytest.approx((0.6 + 6.0) / 2)
    assert group.best_heuristic == "h2o"


def test_samples_that_tell_nothing_are_left_out_of_normalised_means() -> None:
    group = only(samples({"full": [1.0, 1.0, 1.0], "floor": [3.0, 1.05, 0.9], "h2o": [2.0, 9.0, 9.0]}))
    assert (group.short_spans, group.spans) == (2, 3)
    assert overall(group, "h2o").normalised.mean == pytest.approx(0.5)
    assert any("2 of 3 samples are left out" in note for note in group.notes)


def test_a_score_of_another_metric_stands_under_its_name() -> None:
    rows = samples({"full": [1.0, 1.0], "h2o": [2.0, 2.0]}, metric="f1", score=0.5)
    group = only(rows)
    assert group.metric == "f1"
    assert overall(group, "h2o").score == 0.5
    assert overall(group, "h2o").score_to_full.mean == 0
    assert "| f1 |" in to_markdown(summarise(rows))
    mixed = only(rows + samples({"full": [1.0], "h2o": [2.0]}, task="other"))
    assert mixed.metric == "score"


def test_constant_values_have_no_width() -> None:
    scores = overall(only(samples({"full": [0.3] * 5, "floor": [1.7] * 5, "h2o": [0.7] * 5})), "h2o")
    assert scores.to_full.low == pytest.approx(0.4)
    assert scores.to_full.high == pytest.approx(0.4)


def test_a_single_sample_has_no_interval() -> None:
    group = only(samples({"full": [1.0], "floor": [3.0], "h2o": [2.0], "oracle": [1.5]}))
    scores = overall(group, "h2o")
    assert scores.to_full.mean == 1.0
    assert scores.to_full.low is None
    assert not scores.to_full.sure
    assert overall(group, "oracle").gap_closed is None
    assert any("Fewer than 10 different contexts" in note for note in group.notes)


def test_samples_that_share_a_context_widen_the_interval() -> None:
    values = np.random.default_rng(6).normal(2, 1, 40)
    nlls = {"full": [1.0] * 40, "h2o": list(np.repeat(values[:10], 4))}
    apart = samples(nlls)
    together = [r | {"context_hash": str(int(r["sample"].split("/")[-1]) // 4)} for r in apart]
    a, b = (overall(only(rows), "h2o").to_full for rows in (apart, together))
    assert a.mean == pytest.approx(b.mean)
    assert b.high - b.low > 1.5 * (a.high - a.low)


# -- equal bytes -----------------------------------------------------------------------------------------------------


def test_policies_of_different_bytes_are_not_compared() -> None:
    rows = samples({p: v for p, v in FOUR.items() if p != "tova"})
    rows += samples({"tova": FOUR["tova"]}, bytes_held=31.0)
    group = only(rows)
    found = overall(group, NAMM).against["tova"]
    assert (found.estimate, found.refused) == (None, "bytes differ")
    assert overall(group, "tova").gap_refused == "bytes differ"
    assert overall(group, NAMM).against["h2o"].estimate
    (note,) = [note for note in group.notes if note.startswith("Bytes differ")]
    assert "tova (31 % of the full cache)" in note
    assert "NAMM universal (25 %)" in note
    assert "bytes differ" in to_markdown(summarise(rows))


@pytest.mark.parametrize(("held", "compared"), [(26.0, True), (26.1, False), (24.0, True), (23.9, False)])
def test_a_slot_of_difference_is_allowed(held: float, compared: bool) -> None:
    rows = samples(FOUR | {"tova": FOUR["tova"][:3]})
    rows.append(row("tova", 3.0, sample="test/0/3", bytes_held=held))
    assert bool(overall(only(rows), NAMM).against["tova"].estimate) is compared


@pytest.mark.parametrize(("held", "compared", "told"), [(20.0, True, True), (25.5, True, False), (27.0, False, False)])
def test_a_truncated_prompt_may_hold_less_but_not_silently(held: float, compared: bool, told: bool) -> None:
    group = only(samples(FOUR) + samples({"truncated": [2.5] * 4}, bytes_held=held))
    assert bool(overall(group, NAMM).against["truncated"].estimate) is compared
    assert bool(overall(group, "truncated").against["h2o"].estimate) is compared
    assert any("The truncated prompt holds fewer bytes (20 %)" in note for note in group.notes) is told
    assert any(note.startswith("Bytes differ") for note in group.notes) is not compared


def test_own_thresholds_have_a_table_of_their_own() -> None:
    rows = samples(FOUR)
    rows += [row(NAMM, 1.4, budget="own", sample=f"test/0/{i}", bytes_held=20.0 + 5 * i) for i in range(4)]
    budget, own = summarise(rows).groups
    assert (budget.budget, own.budget) == (0.25, "own")
    assert [line.policy for line in own.lines] == ["full", NAMM, "floor"]
    assert overall(own, NAMM).bytes_range == (0.2, 0.35)
    assert overall(own, NAMM).bytes_share == pytest.approx(0.275)
    assert overall(own, NAMM).against == {}
    assert any("their own threshold" in note for note in own.notes)


# -- rows that are not there -----------------------------------------------------------------------------------------


def test_bytes_that_no_policy_changes_are_told() -> None:
    rows = [*samples({"full": [1.0, 1.2]}, bytes_elsewhere=300.0), *samples({"h2o": [1.5, 1.6]}, bytes_elsewhere=300.0)]
    (group,) = summarise(rows).groups
    assert any("75 % of the bytes of the untouched cache" in note for note in group.notes)
    assert not any("of their own kind" in note for note in summarise(samples({"full": [1.0]})).groups[0].notes)


def test_an_unfinished_run_compares_common_samples_and_says_so() -> None:
    gone = {(NAMM, "test/0/2"), (NAMM, "test/0/3"), ("tova", "test/0/0")}
    group = only([r for r in samples(FOUR) if (r["policy"], r["sample"]) not in gone])
    scores = overall(group, NAMM)
    assert (scores.n, scores.missing) == (2, 2)
    assert scores.against["tova"].estimate.mean == pytest.approx(-1.0)  # the second sample alone
    assert scores.to_full.mean == pytest.approx(0.75)
    assert any("2 of 4 samples are missing" in note for note in group.notes)
    assert any("Not considered as best heuristic" in note and "tova" in note for note in group.notes)
    apart = [row("full", 1.0), row(NAMM, 1.0), row("full", 1.0, sample="b"), row("tova", 2.0, sample="b")]
    nothing = only(apart)
    assert overall(nothing, NAMM).against["tova"].refused == "no common samples"


@pytest.mark.parametrize("gone", ["full", "floor", "oracle", "h2o"])
def test_a_table_without_some_row(gone: str) -> None:
    rows = samples({policy: values for policy, values in FOUR.items() if policy not in (gone, "tova")})
    group = only(rows)
    scores = overall(group, NAMM)
    assert (scores.to_full is None) is (gone == "full")
    assert (scores.normalised is None) is (gone in ("full", "floor"))
    assert (scores.gap_closed is None) is (gone in ("oracle", "h2o"))
    assert (group.best_heuristic is None) is (gone == "h2o")
    if gone != "h2o":
        assert any(f"no {gone} rows" in note for note in group.notes)
    assert any("Sanity rows that were not run" in note for note in group.notes)
    assert "nan" not in to_markdown(summarise(rows))


def test_only_the_full_cache() -> None:
    group = only(samples({"full": [1.0, 2.0]}))
    assert group.budget is None
    assert "no budget" in to_markdown(summarise(samples({"full": [1.0, 2.0]})))


def test_groups_by_protocol_template_length_and_budget() -> None:
    rows = [
        row(policy, 1.0, budget=budget, tokens=tokens, protocol=protocol)
        for protocol in ("whole", "context-first")
        for tokens in (2048, None)
        for policy, budget in (("full", None), ("h2o", 0.5), ("h2o", 0.25))
    ]
    found = [(g.protocol, g.tokens, g.budget) for g in summarise(rows).groups]
    assert found == [(p, t, b) for p in ("context-first", "whole") for t in (0, 2048) for b in (0.25, 0.5)]
    assert "texts as they come" in to_markdown(summarise(rows))


# -- rows that are refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nll": math.nan}, "a finite number for nll; got nan in sample 'test/0/0' of passkey, policy h2o"),
        ({"nll": math.inf}, "a finite number for nll"),
        ({"nll": None}, "a finite number for nll"),
        ({"bytes_held": "many"}, "a finite number for bytes_held"),
        ({"bytes_held": {}}, "a finite number for bytes_held"),
        ({"bytes_held": -1}, "a finite number for bytes_held"),
        ({"slots_full": 10**400}, "a finite number for slots_full"),
        ({"policy": 7}, "a text for policy; got 7"),
        ({"context_hash": None}, "a text for context_hash; got None"),
        ({"bytes_full": 0}, "a full cache of at least one slot"),
        ({"budget": None}, 'a budget that is a share of the full cache\'s bytes or "own"'),
    ],
)
def test_rows_without_meaning_are_refused(change: dict, message: str) -> None:
    with pytest.raises(namm.ConfigurationError) as error:
        summarise([row("full", 1.0), row("h2o", 2.0) | change])
    assert message in str(error.value)


def test_no_rows_and_rows_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(namm.ConfigurationError, match="at least one row"):
        summarise([])
    with pytest.raises(namm.ConfigurationError, match="two of sample 'test/0/0'"):
        summarise([row("full", 1.0), row("full", 1.0)])
    with pytest.raises(namm.ConfigurationError, match="another prompt_sha256"):
        summarise([row("full", 1.0), row("h2o", 1.0, prompt_sha256="other")])
    summarise([row("full", 1.0), row("truncated", 1.0, prompt_sha256="other")])
    lacking = row("full", 1.0)
    del lacking["slots"]
    with pytest.raises(namm.ConfigurationError, match="rows with slots"):
        summarise([lacking])


# -- as text ---------------------------------------------------------------------------------------------------------


def test_json_is_the_whole_summary() -> None:
    read = json.loads(to_json(summarise(samples(FOUR), {"model": "m"})))
    assert read["config"] == {"model": "m"}
    (group,) = read["groups"]
    assert group["lines"][0]["policy"] == "full"
    assert group["lines"][2]["overall"]["against"]["h2o"]["estimate"]["mean"] == pytest.approx(-0.25)
    assert read["provenance"]["commit"] == ["abc1234"]


def test_markdown_tables_are_whole() -> None:
    text = to_markdown(summarise(samples(FOUR)))
    tables = [part for part in text.split("\n\n") if part.startswith("|")]
    for lines in (part.splitlines() for part in tables):
        assert len({line.count("|") for line in lines}) == 1
    assert "### context-first, 1,024 tokens, chat template, 25 % of the bytes" in text
    assert "| NAMM universal | 4 | 1.75 | +0.75" in text
    assert "| h2o | -0.25 [" in text
    assert "commit abc1234" in text


def test_the_same_rows_in_any_order_give_the_same_figures() -> None:
    rows = samples(FOUR) + samples(FOUR | {NAMM: [1.7, 2.5, 1.1, 3.0]}, task="needle")
    shuffled = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    a, b = (overall(summarise(r).groups[0], NAMM).to_full for r in (rows, shuffled))
    assert [a.mean, a.low, a.high] == pytest.approx([b.mean, b.low, b.high])
