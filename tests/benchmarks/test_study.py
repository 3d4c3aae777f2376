"""The study's rules, on runs that are made up: fronts, equal CPU time, verdicts, the next run."""

import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "study"))
import study
import study_report
from study_arms import planned
from study_claims import CLAIMS, refuted, sets_of
from study_decisions import Check, interval, judged, limits_of, missing, next_run, pace
from study_fronts import (
    Limits,
    chosen,
    end_gain,
    end_recognition,
    gain_at_recognition,
    gain_within_kl,
    unseen_gain,
)
from study_measure import Watched, text


def made(points, seconds=10.0, task="compress", arm="ddpo", seed=0):
    """A run with a checkpoint after every fifth iteration: (gain, recognized, kl) of each."""
    sets = ("animals", "animals_heldout", "activities_heldout")
    looks = [
        {
            "iteration": 5 * number,
            "images_seen": 160 * number,
            "train_cpu_s": 5 * number * seconds,
            "kl": kl,
            "means": {
                name: {
                    "jpeg_compressibility": gain / (1 + i) - 2.0,
                    "emoji_recognition": recognized,
                }
                for i, name in enumerate(sets)
            },
        }
        for number, (gain, recognized, kl) in enumerate([(0, 1.0, 0), *points])
    ]
    result = {"task": task, "arm": arm, "seed": seed, "checkpoints": looks, "cpu_s": 60.0}
    return result | {"dtype": "fp32", "commit": "abc", "name": f"{task}.{arm}.{seed}"}


def pool_of(**arms):
    """Of gains at the end of runs of one checkpoint each: arm=[seed 0, seed 1, ...]."""
    return {
        ("compress", arm): {
            seed: made([(gain, 0.95, 1.0)], arm=arm, seed=seed) for seed, gain in enumerate(gains)
        }
        for arm, gains in arms.items()
    }


OVER = made([(0.2, 0.95, 0.1), (0.4, 0.9, 0.5), (0.3, 0.93, 0.6), (0.8, 0.3, 4.0)])
CHECK = Check("a above b", "compress", "a", "b")


def test_gain_counts_where_enough_animals_are_recognized():
    assert gain_at_recognition(OVER, Limits()) == pytest.approx(0.4)
    assert chosen(OVER, Limits())["iteration"] == 10
    assert end_gain(OVER, Limits()) == pytest.approx(0.8)
    assert end_recognition(OVER, Limits()) == pytest.approx(0.3)
    assert unseen_gain("activities_heldout")(OVER, Limits()) == pytest.approx(0.4 / 3)


def test_the_start_counts_with_a_gain_of_0():
    lost = made([(0.5, 0.89, 1.0), (-0.5, 0.99, 2.0)])
    assert gain_at_recognition(lost, Limits()) == 0.0
    assert chosen(lost, Limits())["iteration"] == 0


def test_limits_leave_out_later_and_farther_checkpoints():
    assert gain_at_recognition(OVER, Limits(last=9.9)) == pytest.approx(0.2)
    assert end_gain(OVER, Limits(last=15)) == pytest.approx(0.3)
    assert gain_within_kl(OVER, Limits(kl=0.55)) == pytest.approx(0.4)
    assert gain_within_kl(OVER, Limits(kl=0.05)) == 0.0


def test_equal_cpu_time_is_that_of_the_faster_arm():
    points = [(0.1, 1.0, 0.5), (0.2, 1.0, 1.0)]
    fast, slow = ({0: made(points, seconds)} for seconds in (10.0, 20.0))
    assert pace(fast) == pytest.approx(10.0)
    one, other = limits_of([fast, slow], "CPU")
    assert one.last >= 10 and 5 <= other.last < 10
    assert all(each.last == math.inf for each in limits_of([fast, slow], "queries"))


def test_arms_of_nearly_equal_pace_keep_all_checkpoints():
    points = [(0.1, 1.0, 0.5), (0.2, 1.0, 1.0)]
    sides = [{0: made(points, seconds)} for seconds in (10.0, 10.4)]
    assert all(each.last >= 10 for each in limits_of(sides, "CPU"))


def test_the_largest_kl_is_that_of_the_arm_that_stays_closer():
    near = {0: made([(0.1, 1.0, 0.5)]), 1: made([(0.1, 1.0, 0.7)])}
    far = {0: made([(0.1, 1.0, 5.0)])}
    assert {each.kl for each in limits_of([near, far], "queries")} == {0.7}


def test_interval_is_student_t():
    mean, half = interval([1.0, 2.0, 3.0])
    assert (mean, half) == (pytest.approx(2.0), pytest.approx(4.30265 / math.sqrt(3), rel=1e-4))
    assert interval([1.0]) == (1.0, math.inf)


@pytest.mark.parametrize(
    ("differences", "word", "open_"),
    [
        ([], "not run", True),
        ([1.0, 1.1], "undecided", True),
        ([1.0, 1.1, 1.05], "held", False),
        ([-1.0, -1.1, -1.05], "not held", False),
        ([1.0, -1.1, 0.3], "undecided", True),
        ([0.0] * 8, "undecided", False),
        ([0.0] * 7, "undecided", True),
    ],
)
def test_verdicts(differences, word, open_):
    verdict = judged(differences)
    assert (verdict.word, verdict.open) == (word, open_)


def test_only_common_seeds_are_compared():
    pool = pool_of(a=[0.5, 0.6, 0.55, 0.1], b=[0.1, 0.1, 0.12])
    assert CHECK.verdict(pool).seeds == 3
    assert CHECK.verdict(pool).word == "held"
    del pool["compress", "b"][1]
    assert CHECK.verdict(pool).seeds == 2


def test_factor_scales_the_right_side():
    pool = pool_of(a=[0.5] * 3, b=[0.6, 0.6001, 0.6])
    assert CHECK.verdict(pool).word == "not held"
    loose = Check("a above 80 % of b", "compress", "a", "b", factor=0.8)
    assert loose.verdict(pool).word == "held"


def test_missing_are_the_first_three_seeds_and_then_one_more():
    assert missing(CHECK, {}, "queries") == [
        ("compress", arm, seed) for seed in range(3) for arm in "ab"
    ]
    pool = pool_of(a=[0.1, 0.2, 0.3], b=[0.3, 0.1, 0.2])
    assert missing(CHECK, pool, "queries") == [("compress", "a", 3), ("compress", "b", 3)]
    assert missing(CHECK, pool_of(a=[0.5, 0.6, 0.55], b=[0.1, 0.1, 0.1]), "queries") == []


def test_the_next_run_is_the_first_of_the_cheapest_check():
    dear = Check("prdp above b", "compress", "prdp", "b")
    assert next_run([[dear, CHECK]], {}) == ("compress", "a", 0)
    assert next_run([[dear, CHECK]], {}, busy={("compress", "a", 0)}) == ("compress", "b", 0)


def test_first_seeds_of_later_rounds_come_before_added_ones():
    other = Check("prdp above c", "compress", "prdp", "c")
    pool = pool_of(a=[0.1, 0.2, 0.3], b=[0.3, 0.1, 0.2])
    assert next_run([[CHECK], [other]], pool) == ("compress", "prdp", 0)
    pool |= pool_of(prdp=[0.5, 0.6, 0.55], c=[0.1, 0.1, 0.1])
    assert next_run([[CHECK], [other]], pool) == ("compress", "a", 3)


def test_further_seeds_go_to_claims_that_are_not_refuted_first():
    other = Check("prdp above c", "compress", "prdp", "c")
    tied = {"a": [0.1, 0.2, 0.3], "b": [0.3, 0.1, 0.2]}
    pool = pool_of(**tied, prdp=tied["a"], c=tied["b"])
    assert next_run([[CHECK, other]], pool) == ("compress", "a", 3)
    assert next_run([[CHECK, other]], pool, late=[CHECK]) == ("compress", "prdp", 3)


def test_a_claim_is_refuted_by_one_check_that_is_not_held():
    worse, better = [0.1, 0.12, 0.11], [0.5, 0.52, 0.51]
    pool = pool_of(ddpo_sf=worse, rwr=better, ddpo=worse)
    assert {check.words for check in refuted(pool)} == {c.words for c in CLAIMS[0].checks}
    assert refuted(pool_of(ddpo_sf=better, rwr=worse, ddpo=better)) == []


def test_a_claim_is_not_refuted_by_one_budget_alone():
    """At equal queries ddpo_sf is above rwr; it is slow, and has nothing yet when rwr ends."""
    late, early = [(0.0, 0.95, 1.0), (0.5, 0.95, 1.0)], [(0.2, 0.95, 1.0), (0.2, 0.95, 1.0)]
    sides = {"ddpo_sf": (late, 100.0), "rwr": (early, 10.0)}
    pool = {
        ("compress", arm): {seed: made(looks, pace, arm=arm, seed=seed) for seed in range(3)}
        for arm, (looks, pace) in sides.items()
    }
    found = [CLAIMS[0].checks[1].verdict(pool, budget).word for budget in ("queries", "CPU")]
    assert found == ["held", "not held"]
    assert refuted(pool) == []


def test_no_run_is_next_where_all_is_decided_or_has_eight_seeds():
    assert next_run([[CHECK]], pool_of(a=[0.5, 0.6, 0.55], b=[0.1, 0.1, 0.1])) is None
    tied = [0.1, 0.3, 0.2, 0.25, 0.15, 0.22, 0.18, 0.2]
    pool = pool_of(a=tied, b=tied[::-1])
    assert CHECK.verdict(pool).word == "undecided"
    assert next_run([[CHECK]], pool) is None


def test_every_arm_of_every_check_can_be_planned_and_is_among_its_claims_arms():
    for claim in CLAIMS:
        for check in claim.checks:
            for task, arm in check.arms:
                assert (task, arm) in claim.arms
                assert planned(task, arm, 0).name == f"{task}.{arm}.0"
                assert sets_of(task, arm)[0] == "animals"


def test_other_sets_are_looked_at_where_a_checkpoint_can_be_chosen():
    """Which is one that is the best so far; at the end everything is."""
    gains = {0: 0.0, 2: 0.1, 3: 0.05, 4: 0.2, 30: 0.1}
    run = object.__new__(Watched)
    run.task, run.asked, run.looks, run.train_cpu_s = "compress", ["animals", "more"], [], 0.0
    judges = ("jpeg_compressibility", "emoji_recognition")
    run.judges = [SimpleNamespace(name=name) for name in judges]
    for iteration, gain in gains.items():
        run.trainer = SimpleNamespace(iteration=iteration, images_seen=32 * iteration)
        shot = SimpleNamespace(scores=dict(zip(judges, (gain, 1.0), strict=True)), kl=2.0)
        run.shots = lambda name, shot=shot: [shot, shot]
        run.look()
    run.look(ends=True)
    everything = ["animals", "animals_heldout", "activities_heldout"]
    seen = {look["iteration"]: [*look["means"]] for look in run.looks}
    best = ["animals", "more"]
    assert seen == {0: everything, 2: best, 3: ["animals"], 4: best, 30: everything}
    assert run.looks[1]["kl"] == 2.0 and run.looks[1]["samples"][judges[0]] == [0.1, 0.1]


def test_a_finished_run_is_read_back(tmp_path):
    run = made([(0.1, 1.0, 0.5)])
    (tmp_path / "compress.ddpo.0.json").write_text(text(run))
    (tmp_path / ".compress.prdp.0.writing.json").write_text("{")
    assert study.load(tmp_path) == {("compress", "ddpo"): {0: run}}


def test_a_claimed_run_is_left_to_its_process(tmp_path):
    with study.claimed(tmp_path / "x.running") as mine, study.claimed(tmp_path / "x.running") as no:
        assert mine and not no
    with study.claimed(tmp_path / "x.running") as again:
        assert again


def test_the_report_says_what_has_not_run_and_what_was_said_before(tmp_path, monkeypatch):
    monkeypatch.setattr(study_report, "DOCS", tmp_path)
    folder = Path(study.RESULTS)
    study_report.write(pool_of(ddpo=[0.4, 0.5, 0.45], ddpo_sf=[0.2, 0.2, 0.21]), folder)
    words = (tmp_path / "results.md").read_text()
    assert "Not run at all: " in words and "compress.prdp" in words
    assert "| compress: ddpo above 90 % of ddpo_sf | +0.267 " in words
    assert "+0.128 ± 0.111 over 3 seeds" in words  # the older difference of this check
    assert "| compress.prdp | 0.811 ± 0.087 |" in words  # the older arm, which has no new run
    assert (tmp_path / "results_1.png").exists() and not (tmp_path / "results_3.png").exists()
