"""Review: decisions are about the bytes that were seen, a redo changes nothing that is there, exports are exact."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from conftest import make_pictures, rows
from PIL import Image, ImageDraw
from test_queue import enqueue
from test_worker import Place

from core.edit import difference
from core.edit.images import sha256
from core.edit.outputs import read_metadata
from core.errors import UsageError
from core.jobs import claims, control, results, review
from core.jobs.exports import RECORD, export
from core.jobs.records import counts, get_job, get_turns, story
from core.jobs.results import Pick, Scope
from core.jobs.review import Change
from kontext_tui.__main__ import main

TURNS = ["make it night", "add fog", {"prompt": "make it warmer", "from": 1}]


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


@pytest.fixture
def done(place):
    """Two jobs of three turns, the third a branch from the first, edited by a real worker."""
    make_pictures(place.folder / "photos", 2)
    enqueue(place.conn, place.folder, turns=TURNS, seed=3)
    assert place.start().wait(60) == 0
    assert counts(place.conn)["done"] == 2
    return place


@pytest.fixture
def cli(done, monkeypatch, capsys):
    monkeypatch.chdir(done.folder)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["kontext-tui", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
        out, err = capsys.readouterr()
        return int(exit_.value.code or 0), out, err

    return run


def decisions(place: Place) -> dict[tuple[int, int], str | None]:
    return {
        (j, t): r for j, t, r in rows(place.database, "SELECT job_id, turn, review FROM turns WHERE state = 'done'")
    }


def files(folder: Path) -> dict[str, str | None]:
    return {str(path.relative_to(folder)): sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}


# ---------------------------------------------------------------- decisions


def test_decisions_survive_with_their_time_and_can_be_undone(done):
    before = review.decide(done.conn, [Pick(1, 1), Pick(1, 2)], "accepted")
    assert before == {Pick(1, 1): None, Pick(1, 2): None}
    again = review.decide(done.conn, [Pick(1, 2), Pick(2, 3)], "rejected")
    assert again == {Pick(1, 2): "accepted", Pick(2, 3): None}
    stored = rows(done.database, "SELECT review, reviewed_at > finished_at - 1, reviewed_sha256 = output_sha256"
                  " FROM turns WHERE review IS NOT NULL")  # fmt: skip
    assert stored == [("accepted", 1, 1), ("rejected", 1, 1), ("rejected", 1, 1)]
    assert review.restore(done.conn, again) == 2
    assert decisions(done) == dict.fromkeys(decisions(done)) | {(1, 1): "accepted", (1, 2): "accepted"}
    words = [(e["what"], e["turn"]) for e in story(done.conn, 1)][-4:]
    assert words == [("accepted", 1), ("accepted", 2), ("rejected", 2), ("accepted", 2)]


def test_one_result_that_cannot_be_decided_about_leaves_all_as_they_are(done):
    review.branch(done.conn, Pick(1, 1), Change(prompt="add snow"))
    for bad in (Pick(9, 1), Pick(1, 9), Pick(1, 4)):
        with pytest.raises(UsageError):
            review.decide(done.conn, [Pick(1, 1), bad], "accepted")
    with pytest.raises(UsageError, match="made again since"):
        review.decide(done.conn, [Pick(1, 1)], "accepted", seen={Pick(1, 1): "0" * 64})
    assert set(decisions(done).values()) == {None}


def test_the_next_undecided_result_goes_round_and_the_rest_is_decided_at_once(done):
    assert results.next_undecided(done.conn) == Pick(1, 1)
    review.decide(done.conn, [Pick(1, 1), Pick(2, 3)], "accepted")
    assert results.next_undecided(done.conn, Pick(1, 3)) == Pick(2, 1)
    assert results.next_undecided(done.conn, Pick(2, 2)) == Pick(1, 2)
    before = review.decide_rest(done.conn, "accepted", job_id=2)
    assert list(before) == [Pick(2, 1), Pick(2, 2)]
    assert results.tally(done.conn) == results.Tally(undecided=2, accepted=4, rejected=0)
    review.decide_rest(done.conn, "rejected")
    assert results.next_undecided(done.conn) is None
    assert review.restore(done.conn, before) == 2
    assert results.next_undecided(done.conn) == Pick(2, 1)


def test_a_scope_narrows_what_is_counted_walked_and_decided(done):
    review.decide(done.conn, [Pick(1, 1)], "accepted")
    review.decide(done.conn, [Pick(2, 1)], "rejected")
    found = {which: results.results(done.conn, Scope(which)) for which in ("accepted", "rejected", "undecided")}
    assert (found["accepted"], found["rejected"], len(found["undecided"])) == ([Pick(1, 1)], [Pick(2, 1)], 4)
    assert results.position(done.conn, 2) == (2, 2)
    assert results.position(done.conn, 2, Scope("rejected")) == (1, 1)
    assert results.neighbour(done.conn, 1, 1) == 2
    assert results.neighbour(done.conn, 2, -1, Scope("rejected")) is None
    one = Scope(name="TURE-1.")
    assert results.tally(done.conn, one) == results.Tally(undecided=2, accepted=0, rejected=1)
    assert results.next_undecided(done.conn, Pick(2, 3), name="picture-1") == Pick(2, 2)
    assert list(review.decide_rest(done.conn, "accepted", name="picture-1")) == [Pick(2, 2), Pick(2, 3)]
    assert results.tally(done.conn) == results.Tally(undecided=2, accepted=3, rejected=1)
    assert review.decide_rest(done.conn, "accepted", name="nothing of the kind") == {}
    done.conn.execute("UPDATE jobs SET name = ? WHERE id = 1", (b"caf\xe9.png",))
    assert results.next_undecided(done.conn, name="CAF") == Pick(1, 2)


def test_a_decision_ends_with_the_bytes_it_was_about(done):
    """The file is lost; made again it is the same to the byte, or it is not: then nobody has seen it."""
    for seed, standing in ((None, "accepted"), (4, None)):
        review.decide(done.conn, [Pick(1, 2)], "accepted")
        Path(get_turns(done.conn, 1)[1].output_path).unlink()
        if seed:
            done.conn.execute("UPDATE turns SET seed = ? WHERE job_id = 1 AND turn = 2", (seed,))
        done.conn.execute("UPDATE jobs SET state = 'queued' WHERE id = 1")
        assert done.start().wait(60) == 0
        assert decisions(done)[1, 2] == standing
    assert story(done.conn, 1)[-2]["what"] == "unreviewed"


# ---------------------------------------------------------------- redo, branch, withdraw


def test_a_redo_is_a_turn_of_its_own_and_touches_nothing_that_is_there(done):
    before, records = files(done.folder / "edited"), rows(done.database, "SELECT * FROM turns ORDER BY job_id, turn")
    output = get_job(done.conn, 1).output_path
    assert review.redo(done.conn, Pick(1, 1)) == [Pick(1, 4)]
    assert get_job(done.conn, 1).state == "queued"
    assert done.start().wait(60) == 0
    job, turn = get_job(done.conn, 1), get_turns(done.conn, 1)[3]
    assert (job.state, job.output_path) == ("done", output)
    assert Path(turn.output_path).name == "picture-0.turn-4.png"
    assert (turn.redo_of, turn.from_turn, turn.prompt) == (1, 0, "make it night")
    assert turn.seed != get_turns(done.conn, 1)[0].seed
    after = files(done.folder / "edited")
    assert after.items() > before.items()
    assert set(after) - set(before) == {"picture-0.turn-4.png"}
    kept = rows(done.database, "SELECT * FROM turns WHERE NOT (job_id = 1 AND turn = 4) ORDER BY job_id, turn")
    assert kept == records
    record = read_metadata(Path(turn.output_path))
    assert (record["seed"], [t["prompt"] for t in record["turns"]]) == (turn.seed, ["make it night"])
    told = next(e for e in story(done.conn, 1) if e["what"] == "redo")
    assert (told["turn"], told["data"]["of"], told["data"]["seed"]) == (4, 1, turn.seed)
    assert len(done.computed()) == 7, "only the redo was computed"


def test_a_redo_with_another_prompt_keeps_its_seed_and_may_take_later_turns_with_it(done):
    made = review.redo(done.conn, Pick(1, 1), Change(prompt=" make it noon "), with_later=True)
    assert made == [Pick(1, 4), Pick(1, 5), Pick(1, 6)]
    assert done.start().wait(60) == 0
    old, new = get_turns(done.conn, 1)[:3], get_turns(done.conn, 1)[3:]
    assert [(t.prompt, t.from_turn, t.redo_of) for t in new] == [
        ("make it noon", 0, 1), ("add fog", 4, 2), ("make it warmer", 4, 3)
    ]  # fmt: skip
    assert [t.seed for t in new] == [t.seed for t in old]
    # Once more: the turns and not their redos are taken along.
    assert len(review.redo(done.conn, Pick(1, 1), with_later=True)) == 3
    assert review.redo(done.conn, Pick(1, 4), Change(seed=9)) == [Pick(1, 10)]


def test_a_branch_goes_on_from_any_result_or_the_input(done):
    picks = [
        review.branch(done.conn, Pick(1, 2), Change(prompt="add snow", steps=3)),
        review.branch(done.conn, Pick(1, 0), Change(prompt="add rain", seed=5)),
    ]
    assert done.start().wait(60) == 0
    turns = {Pick(1, t.turn): t for t in get_turns(done.conn, 1)}
    assert [(turns[p].from_turn, turns[p].prompt, turns[p].steps) for p in picks] == [
        (2, "add snow", 3), (0, "add rain", 2)
    ]  # fmt: skip
    record = read_metadata(Path(turns[picks[0]].output_path))
    assert [t["prompt"] for t in record["turns"]] == ["make it night", "add fog", "add snow"]
    with pytest.raises(UsageError, match="prompt"):
        review.branch(done.conn, Pick(1, 1), Change(prompt=" "))
    with pytest.raises(UsageError, match="seed"):
        review.redo(done.conn, Pick(1, 1), Change(seed=-1))


def test_a_draft_is_made_again_exactly_with_its_seed(done):
    before = get_turns(done.conn, 1)[2]
    done.conn.execute("UPDATE turns SET context_refresh = 4 WHERE job_id = 1")
    like, exact = (review.redo(done.conn, Pick(1, 3), change)[0] for change in (None, Change(context_refresh=1)))
    turns = {turn.turn: turn for turn in get_turns(done.conn, 1)}
    assert (turns[like.turn].context_refresh, turns[exact.turn].context_refresh) == (4, 1)
    assert turns[like.turn].seed != before.seed
    assert turns[exact.turn].seed == before.seed
    with pytest.raises(UsageError, match="context_refresh must be"):
        Change(context_refresh=0)


def test_a_redo_does_not_bring_back_what_was_thrown_away_since(done):
    thrown = Path(get_turns(done.conn, 1)[1].output_path)
    thrown.unlink()
    review.redo(done.conn, Pick(1, 3))
    assert done.start().wait(60) == 0
    assert not thrown.exists()
    assert get_job(done.conn, 1).state == "done"
    # What it starts from comes back, to the byte.
    source = Path(get_turns(done.conn, 1)[0].output_path)
    digest = sha256(source)
    source.unlink()
    review.redo(done.conn, Pick(1, 3))
    assert done.start().wait(60) == 0
    assert sha256(source) == digest


def test_a_redo_of_a_running_job_is_made_by_the_worker_that_has_it(place):
    make_pictures(place.folder / "photos", 1)
    enqueue(place.conn, place.folder, turns=["make it night", "add fog"], seed=3)
    worker = place.start(step_ms=150)
    place.wait_for(lambda: [t.state for t in get_turns(place.conn, 1)] == ["done", "running"])
    review.decide(place.conn, [Pick(1, 1)], "accepted")
    with pytest.raises(UsageError, match="not done yet"):
        review.redo(place.conn, Pick(1, 2))
    assert review.redo(place.conn, Pick(1, 1)) == [Pick(1, 3)]
    assert worker.wait(60) == 0
    assert [t.state for t in get_turns(place.conn, 1)] == ["done"] * 3
    assert rows(place.database, "SELECT count(*) FROM attempts") == [(1,)]
    assert Path(get_job(place.conn, 1).output_path).name == "picture-0.png"


def test_a_job_that_is_being_cancelled_takes_no_redo_and_one_that_was_goes_on(place):
    make_pictures(place.folder / "photos", 1)
    enqueue(place.conn, place.folder, turns=["make it night", "add fog"], seed=3)
    claim = claims.claim(place.conn, claims.register_worker(place.conn, "test", "0"))
    place.conn.execute("UPDATE turns SET state = 'done', output_sha256 = '0' WHERE turn = 1")
    control.cancel(place.conn, [1])
    with pytest.raises(UsageError, match="being cancelled"):
        review.redo(place.conn, Pick(1, 1))
    claims.cancel_claimed(place.conn, claim)
    review.redo(place.conn, Pick(1, 1))
    assert place.start().wait(60) == 0
    assert [t.state for t in get_turns(place.conn, 1)] == ["done"] * 3


def test_a_redo_that_has_not_begun_can_be_withdrawn(done):
    ended = get_job(done.conn, 1).finished_at
    made = review.redo(done.conn, Pick(1, 1), with_later=True)
    with pytest.raises(UsageError, match="withdraw that first"):
        review.withdraw(done.conn, [made[0]])
    with pytest.raises(UsageError, match="no redo"):
        review.withdraw(done.conn, [Pick(1, 1)])
    review.withdraw(done.conn, made[2:])
    assert get_job(done.conn, 1).state == "queued"
    review.withdraw(done.conn, made[:2])
    job = get_job(done.conn, 1)
    assert (job.state, len(get_turns(done.conn, 1))) == ("done", 3)
    assert abs(job.finished_at - ended) < 1000
    assert len(done.computed()) == 6
    pick = review.redo(done.conn, Pick(1, 1))[0]
    claims.claim(done.conn, claims.register_worker(done.conn, "test", "0"))
    with pytest.raises(UsageError, match="at work"):
        review.withdraw(done.conn, [pick])


def test_a_redo_that_fails_leaves_the_old_results_and_says_why(done):
    (done.folder / "photos" / "picture-0.png").unlink()
    pick = review.redo(done.conn, Pick(1, 1))[0]
    assert done.start().wait(60) == 0
    job = get_job(done.conn, 1)
    assert (job.state, job.error_kind) == ("dead", "input")
    review.decide(done.conn, [Pick(1, 1)], "accepted")
    review.withdraw(done.conn, [pick])
    assert (get_job(done.conn, 1).state, get_job(done.conn, 1).error) == ("done", None)


def test_a_script_asked_for_again_is_done_whatever_was_redone_or_thrown_away(done):
    review.redo(done.conn, Pick(1, 1))
    assert done.start().wait(60) == 0
    Path(get_turns(done.conn, 1)[3].output_path).unlink()
    again = enqueue(done.conn, done.folder, turns=TURNS, seed=3)
    assert set(again.jobs.values()) == {"done"}


# ---------------------------------------------------------------- export


def test_accepted_results_are_exported_whole_with_their_record(done, tmp_path):
    review.decide(done.conn, [Pick(1, 1), Pick(1, 2), Pick(2, 1)], "accepted")
    review.decide(done.conn, [Pick(1, 3), Pick(2, 2)], "rejected")
    target = tmp_path / "chosen"
    assert [(str(e.pick), e.outcome) for e in export(done.conn, target)] == [("1.2", "copied"), ("2.1", "copied")]
    copied = {name: digest for name, digest in files(target).items() if name != RECORD}
    turns = {pick: get_turns(done.conn, pick.job_id)[pick.turn - 1] for pick in (Pick(1, 2), Pick(2, 1))}
    assert copied == {Path(t.output_path).name: t.output_sha256 for t in turns.values()}
    records = [json.loads(line) for line in (target / RECORD).read_text().splitlines()]
    assert [(r["file"], r["sha256"], r["review"]) for r in records] == [
        (name, digest, "accepted") for name, digest in copied.items()
    ]
    assert [t["prompt"] for t in records[0]["turns"]] == ["make it night", "add fog"]
    assert [e.outcome for e in export(done.conn, target)] == ["there", "there"]
    assert [e.outcome for e in export(done.conn, target, every_turn=True)] == ["copied", "there", "there"]
    assert story(done.conn, 1)[-1]["what"] == "exported"


def test_an_export_replaces_nothing_and_refuses_what_is_not_what_was_accepted(done, tmp_path):
    review.decide_rest(done.conn, "accepted")
    paths = [Path(turn.output_path) for turn in get_turns(done.conn, 1)]
    Image.new("RGB", (24, 16), "red").save(paths[1])
    paths[2].unlink()
    target = tmp_path / "chosen"
    target.mkdir()
    (target / "picture-1.png").write_bytes(b"somebody's own")
    outcomes = {str(e.pick): (e.outcome, e.path) for e in export(done.conn, target)}
    assert outcomes["1.2"][0] == "changed"
    assert outcomes["1.3"][0] == "missing"
    assert outcomes["2.3"] == ("copied", str(target / "picture-1-2.png"))
    assert (target / "picture-1.png").read_bytes() == b"somebody's own"
    assert [e.outcome for e in export(done.conn, target)][-1] == "there"
    assert not any(path.name.startswith(".") for path in target.iterdir())


# ---------------------------------------------------------------- commands


def test_the_commands_do_a_mornings_work(cli, done, tmp_path):
    assert cli("accept", "1", "2.1")[:2] == (0, "1.1: accepted\n1.2: accepted\n1.3: accepted\n2.1: accepted\n")
    assert cli("reject", "1.3")[1] == "1.3: rejected (was accepted)\n"
    assert cli("review", "clear", "2.1")[1] == "2.1: undecided (was accepted)\n"
    code, out, err = cli("review", "list", "--only", "undecided", "--changed")
    assert (code, out.split()[0], len(out.splitlines())) == (0, "result", 4)
    assert "3 undecided, 2 accepted, 1 rejected" in err
    listed = [json.loads(line) for line in cli("review", "list", "--json", "--changed")[1].splitlines()]
    assert [(r["job"], r["turn"], r["review"]) for r in listed[:3]] == [
        (1, 1, "accepted"), (1, 2, "accepted"), (1, 3, "rejected")
    ]  # fmt: skip
    assert all(0 <= r["changed"]["share"] <= 1 for r in listed)
    code, out, _ = cli("redo", "2.1", "--seed", 12, "--json")
    made = json.loads(out)
    assert (code, made["job"], made["turn"], made["redo_of"], made["seed"]) == (0, 2, 4, 1, 12)
    assert "2.5: queued" in cli("branch", "2.2", "add snow")[1]
    assert cli("review", "withdraw", "2.5")[:2] == (0, "2.5: withdrawn\n")
    assert cli("accept", "--rest", "--name", "nothing")[2] == "no such results\n"
    assert [len(cli("review", "list", "--name", name)[1].splitlines()) for name in ("nothing", "-1.")] == [1, 4]
    assert cli("accept", "--rest", "--json")[1].count('"before": null') == 3
    code, out, err = cli("review", "export", "chosen")
    copied = sorted(str(path) for path in (tmp_path / "chosen").iterdir() if path.name != RECORD)
    assert (code, sorted(out.splitlines())) == (0, copied)
    assert "3 copied" in err
    (done.folder / "edited" / "picture-1.png").unlink()
    code, _, err = cli("review", "export", "elsewhere")
    assert (code, "is gone" in err) == (1, True)
    assert "turn 1 again" in cli("show", 2)[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["accept"], "name results"),
        (["accept", "1.1", "--name", "cat"], "goes with --rest"),
        (["accept", "9"], "no job 9"),
        (["accept", "1.9"], "no turn 9"),
        (["accept", "one"], "names no result"),
        (["accept", "1.2.3"], "names no result"),
        (["accept", "1." + "9" * 40], "names no result"),
        (["redo", "1"], "JOB.TURN"),
        (["redo", "1.1", "--prompt", " "], "prompt must"),
        (["redo", "1.1", "--steps", "0"], "steps must"),
        (["branch", "1.1", ""], "prompt must"),
        (["review", "withdraw", "1.1"], "no redo"),
        (["review", "list", "--only", "maybe"], "no decision"),
    ],
)
def test_a_wrong_word_is_a_line_and_exit_code_2(cli, arguments, words):
    code, out, err = cli(*arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert "Traceback" not in err


def test_commands_of_two_shells_and_a_worker_meet_in_one_queue(cli, done):
    """Redos asked for while a worker runs are all made, once each."""
    worker = done.start(step_ms=20)
    for seed in range(5):
        assert cli("redo", "1.1", "--seed", seed)[0] == 0
        assert cli("accept", "2.1")[0] == 0
    worker.wait(60)
    done.start().wait(60)  # the first may have ended before the last redo came
    turns = get_turns(done.conn, 1)
    assert [t.state for t in turns] == ["done"] * 8
    assert len({t.output_path for t in turns}) == 8
    assert len(done.computed()) == 11


# ---------------------------------------------------------------- how much changed


def test_how_much_changed_is_what_the_drawing_says():
    before = Image.new("RGB", (400, 300), (100, 110, 120))
    after = before.copy()
    ImageDraw.Draw(after).rectangle((0, 0, 199, 149), fill=(220, 110, 120))  # a quarter, one channel by 120
    found = difference.measure(before, after)
    assert found.share == pytest.approx(0.25)
    assert found.mean == pytest.approx(0.25 * 120 / 255 / 3)
    assert difference.measure(before, before) == difference.Difference(0, 0)
    white, black = (Image.new("RGB", (3000, 2000), colour) for colour in ("white", "black"))
    assert difference.measure(white, black.resize((30, 20))) == difference.Difference(1, 1)
    shown = difference.picture(before, after)
    assert shown.getpixel((10, 10))[0] > 200
    assert len(set(shown.getpixel((390, 290)))) == 1, "grey where nothing changed"
