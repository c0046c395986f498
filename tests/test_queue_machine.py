"""Any order of adding, claiming, finishing, failing, cancelling, holding and crashing keeps the queue's promises."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from core import script as scripts
from core.edit.models import find_spec
from core.errors import UsageError
from core.jobs import claims, control, queue, review, turn_states
from core.jobs.database import connect
from core.jobs.queue import NewJob, NewTurn
from core.jobs.records import STATES, counts, get_job, get_turns
from core.jobs.results import Pick
from core.jobs.review import Change

SCRIPT = scripts.parse(
    "input: x\nmodel: kontext-tiny\nturns: [add fog, make it night]", file="x", folder=Path("/tmp")
)
FINAL = {"done", "dead", "cancelled"}


class QueueMachine(RuleBasedStateMachine):
    """Workers are claims in this process; one that crashes is made to look like a process that has ended."""

    held = Bundle("held")  # claims that workers believe to have

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "jobs.db"
        self.conn = connect(self.path)
        self.conn.execute("PRAGMA synchronous = OFF")  # the order of writes is tested here, not the disk
        self.added = 0
        self.valid: dict[int, str] = {}  # job -> the token that may write
        self.computed: dict[tuple[int, int], int] = {}

    def teardown(self) -> None:
        self.conn.close()
        self.folder.cleanup()

    def worker(self) -> int:
        return claims.register_worker(self.conn, "test", "0")

    @rule(number=st.integers(1, 3))
    def add(self, number):
        jobs = []
        for _ in range(number):
            self.added += 1
            turns = tuple(NewTurn(n, n - 1, "p", 1, 2, 2.5) for n in (1, 2))
            jobs.append(NewJob(f"key-{self.added}", f"{self.added}.png", f"/in/{self.added}.png", None, turns))
        queue.add(self.conn, SCRIPT, find_spec("kontext-tiny"), jobs)
        again = queue.add(self.conn, SCRIPT, find_spec("kontext-tiny"), jobs)
        assert set(again.jobs.values()) == {"waiting"}

    @rule(target=held)
    def claim(self):
        claim = claims.claim(self.conn, self.worker())
        if claim is None:
            assert control.paused(self.conn) or counts(self.conn)["queued"] == 0
            return multiple()
        assert claim.job.id not in self.valid, "held by two workers"
        self.valid[claim.job.id] = claim.token
        return claim

    @rule(claim=held)
    def work(self, claim):
        """Compute the next turn that is not done, and publish it."""
        todo = [t for t in get_turns(self.conn, claim.job.id) if t.state != "done"]
        if not todo:
            return
        turn = todo[0].turn
        with self.fenced(claim):
            turn_states.start_turn(self.conn, claim, turn, precision="fp32", runtime="test")
            turn_states.stage_turn(
                self.conn, claim, turn, output_path=f"/out/{claim.job.id}.{turn}.png", sha256="0", size=1,
                step_ms=[1.0], seconds=1.0, peak_bytes=1,
            )  # fmt: skip
            turn_states.finish_turn(self.conn, claim, turn)
            self.computed[claim.job.id, turn] = self.computed.get((claim.job.id, turn), 0) + 1

    @rule(claim=consumes(held))
    def finish(self, claim):
        if any(t.state != "done" for t in get_turns(self.conn, claim.job.id)):
            with self.fenced(claim, ends=True):
                claims.release(self.conn, claim)
        else:
            with self.fenced(claim, ends=True):
                claims.finish_job(self.conn, claim)

    @rule(claim=consumes(held), later=st.booleans())
    def fail(self, claim, later):
        with self.fenced(claim, ends=True):
            if later:
                claims.retry_later(self.conn, claim, "error", "e", None, 0)
            else:
                claims.fail_job(self.conn, claim, "input", "e")

    @rule(claim=held)
    def crash(self, claim):
        """The worker's process ends; whoever looks next puts its job back. Its claim is late from now on."""
        self.conn.execute("UPDATE workers SET start_ticks = -1 WHERE id = ?", (claim.worker_id,))
        claims.rescue(self.conn)
        if self.valid.get(claim.job.id) == claim.token:
            del self.valid[claim.job.id]

    @rule(number=st.integers(1, 40), what=st.sampled_from(["cancel", "hold", "unhold", "retry"]))
    def steer(self, number, what):
        if number > self.added:
            return
        before = get_job(self.conn, number).state
        getattr(control, what)(self.conn, [number])
        after = get_job(self.conn, number).state
        if before == "running" or (before == "done" and what != "retry"):
            assert after == before

    @rule(number=st.integers(1, 40), turn=st.integers(0, 6), what=st.sampled_from(["redo", "branch", "withdraw"]))
    def ask_again(self, number, turn, what):
        """Asked for while whoever holds the job; what is there stays, and no worker loses its claim to it."""
        before, turns = self.conn.execute("SELECT state FROM jobs WHERE id = ?", (number,)).fetchone(), []
        if before is not None:
            turns = get_turns(self.conn, number)
        pick = Pick(number, turn)
        try:
            if what == "redo":
                review.redo(self.conn, pick, with_later=turn % 2 == 0)
            elif what == "branch":
                review.branch(self.conn, pick, Change(prompt="q"))
            else:
                review.withdraw(self.conn, [pick])
        except UsageError:
            assert before is None or get_turns(self.conn, number) == turns
            return
        after = get_turns(self.conn, number)
        if what == "withdraw":
            assert [t for t in turns if t.turn != turn] == after
        else:
            assert get_job(self.conn, number).state not in FINAL
            assert after[: len(turns)] == turns

    @rule(number=st.integers(1, 40), turn=st.integers(1, 6), what=st.sampled_from(["accepted", "rejected", None]))
    def decide(self, number, turn, what):
        try:
            review.decide(self.conn, [Pick(number, turn)], what)
        except UsageError:
            return
        assert get_turns(self.conn, number)[turn - 1].review == what

    @rule()
    def pause(self):
        control.pause(self.conn, "a test")

    @rule()
    def resume(self):
        control.resume(self.conn)

    def fenced(self, claim, ends=False):
        """What a worker does goes through exactly where its claim is still the valid one."""
        machine = self

        class Fence:
            def __enter__(self):
                self.row = machine.conn.execute(
                    "SELECT cancel_requested FROM jobs WHERE id = ?", (claim.job.id,)
                ).fetchone()
                return self

            def __exit__(self, kind, error, trace):
                valid = machine.valid.get(claim.job.id) == claim.token
                if kind is claims.StaleClaim:
                    assert not valid
                    return True
                if kind is claims.Cancelled:
                    assert valid
                    assert self.row["cancel_requested"]
                    if ends:
                        claims.cancel_claimed(machine.conn, claim)
                        del machine.valid[claim.job.id]
                    return True
                assert valid, "a late worker wrote"
                if ends and kind is None:
                    del machine.valid[claim.job.id]
                return False

        return Fence()

    @invariant()
    def the_tables_agree(self):
        rows = self.conn.execute("SELECT state, count(*) AS n FROM jobs GROUP BY state").fetchall()
        assert counts(self.conn) == dict.fromkeys(STATES, 0) | {row["state"]: row["n"] for row in rows}
        running = self.conn.execute("SELECT id, claim_token FROM jobs WHERE state = 'running'").fetchall()
        assert {row["id"]: row["claim_token"] for row in running} == self.valid

    @invariant()
    def a_turn_is_computed_once(self):
        assert all(times == 1 for times in self.computed.values())

    @invariant()
    def a_job_is_done_only_with_all_its_turns(self):
        wrong = self.conn.execute(
            "SELECT 1 FROM jobs j JOIN turns t ON t.job_id = j.id WHERE j.state = 'done' AND t.state <> 'done'"
        ).fetchone()
        assert wrong is None

    @invariant()
    def only_results_are_decided_about(self):
        wrong = "SELECT 1 FROM turns WHERE review IS NOT NULL AND (state <> 'done' OR reviewed_at IS NULL)"
        assert self.conn.execute(wrong).fetchone() is None

    @invariant()
    def a_turn_starts_from_one_before_it(self):
        wrong = self.conn.execute(
            "SELECT 1 FROM turns t WHERE from_turn >= turn OR (from_turn > 0 AND NOT EXISTS"
            " (SELECT 1 FROM turns f WHERE f.job_id = t.job_id AND f.turn = t.from_turn))"
        ).fetchone()
        assert wrong is None


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")
