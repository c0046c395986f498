"""The review's keys, and the help that explains them."""

from __future__ import annotations

from textual.binding import Binding, BindingType

HELP = (
    "Every finished turn, before and after. What you decide is kept at once, with its time; undo takes it back.\n\n"
    "A redo or a branch is a turn of its own: the old picture stays, and the new one comes into the strip when a "
    "worker has made it.\n\n"
    "Arrows walk, and move the picture while it is zoomed; so do the wheel and dragging. Escape leaves the zoom, the "
    "A/B or the difference, then the filter.\n\n"
    "The strip: ✔ accepted  ✘ rejected  • undecided  ▸ at work  … waiting  ← 1 from turn 1  ↻ 1 redo of turn 1"
)

BINDINGS: list[BindingType] = [
    Binding("a", "decide('accepted')", "Accept", id="review.accept", tooltip="Accept this result"),
    Binding("x", "decide('rejected')", "Reject", id="review.reject", tooltip="Reject this result"),
    Binding("n", "next_undecided", "Next", id="review.next", tooltip="The next result nobody has decided about"),
    Binding("space", "flip", "A/B", id="review.flip", tooltip="Before and after in the same place"),
    Binding("d", "difference", "Diff", id="review.difference", tooltip="Where before and after differ"),
    Binding("r", "redo", "Redo", id="review.redo", tooltip="Make it again with a new seed"),
    Binding("e", "redo_prompt", "Prompt", id="review.prompt", tooltip="Make it again with another prompt"),
    Binding("b", "branch", "Branch", id="review.branch", tooltip="Go on from here with a prompt of your own"),
    Binding("u", "undo", "Undo", id="review.undo", tooltip="Take the last decision, redo or branch back"),
    Binding("c", "decide('')", "Undecided again", id="review.clear", show=False),
    Binding("A", "rest('accepted')", "Accept the rest of the job", id="review.accept_job", show=False),
    Binding("X", "rest('rejected')", "Reject the rest of the job", id="review.reject_job", show=False),
    Binding("S", "accept_shown", "Accept all that is shown", id="review.accept_shown", show=False),
    Binding("f", "filter", "Show only …", id="review.filter", show=False),
    Binding("slash", "name", "Show pictures by name", id="review.name", show=False),
    Binding("E", "export", "Export accepted results", id="review.export", show=False),
    Binding("o", "open", "Open in the desktop's viewer", id="review.open", show=False),
    Binding("i", "base", "Compare with the input or the old result", id="review.base", show=False),
    Binding("h", "turn(-1)", "Previous turn", id="review.turn_previous", show=False),
    Binding("l", "turn(1)", "Next turn", id="review.turn_next", show=False),
    Binding("k", "job(-1)", "Previous job", id="review.job_previous", show=False),
    Binding("j", "job(1)", "Next job", id="review.job_next", show=False),
    Binding("g,home", "end(-1)", "First job", id="review.job_first", show=False),
    Binding("G,end", "end(1)", "Last job", id="review.job_last", show=False),
    Binding("left", "arrow(-1, 0)", "Left", id="review.left", show=False),
    Binding("right", "arrow(1, 0)", "Right", id="review.right", show=False),
    Binding("up", "arrow(0, -1)", "Up", id="review.up", show=False),
    Binding("down", "arrow(0, 1)", "Down", id="review.down", show=False),
    Binding("plus,equals_sign", "zoom(1.5)", "Zoom in", id="review.zoom_in", show=False),
    Binding("minus,underscore", "zoom(0.6667)", "Zoom out", id="review.zoom_out", show=False),
    Binding("0", "zoom(0)", "All of the picture", id="review.zoom_off", show=False),
    Binding("escape", "back", "Back", id="review.back", show=False),
]
