"""The artifact store: whole or not there, built once, and never trusted further than its owner and hashes go."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from core import paths
from core.edit import artifacts, store
from core.errors import OutputError, UnavailableError

PARTS = {"model": "m" * 64, "precision": "fp8", "rank": 32}


def write(folder: Path) -> dict[str, object]:
    (folder / "deep").mkdir()
    (folder / "model.engine").write_bytes(b"plan" * 1000)
    (folder / "deep" / "notes.json").write_text("{}")
    return {"layers": 3}


def left_behind() -> list[str]:
    """Temporary folders and locks in the store."""
    root = paths.artifacts()
    return [str(p.relative_to(root)) for p in [*root.glob("*/.*"), *root.glob("locks/*")]]


def python(code: str, **options) -> subprocess.Popen[str]:
    """A process of its own that imports the store and runs `code`."""
    prelude = "import os, sys, time\nfrom pathlib import Path\nfrom core.edit import artifacts\n"
    return subprocess.Popen(
        [sys.executable, "-c", prelude + code], cwd=ROOT, text=True, stdout=subprocess.PIPE, **options
    )


# Says that it has begun, then waits for a line on stdin.
SLOW = """
def build(folder):
    (folder / "half.bin").write_bytes(b"x" * 4096)
    print("building", flush=True)
    sys.stdin.readline()
    return {"by": os.getpid()}
"""


class TestMake:
    def test_what_is_made_is_found_by_its_parts(self):
        made = artifacts.make("engine", PARTS, write)
        artifacts.check(made, deep=True)
        assert made.facts == {"layers": 3}
        assert made.file(".engine").read_bytes() == b"plan" * 1000
        assert made.size == 4002
        assert artifacts.find("engine", precision="fp8", rank=32) == [made]
        assert artifacts.find("engine", precision="fp4") == artifacts.find("onnx", precision="fp8") == []
        assert left_behind() == []

    def test_the_manifest_says_what_and_by_what(self):
        manifest = json.loads((artifacts.make("engine", PARTS, write).folder / "manifest.json").read_text())
        assert manifest["parts"] == PARTS
        assert manifest["files"]["deep/notes.json"]["size"] == 2
        assert {"torch", "python", "kontext-tui"} <= set(manifest["versions"])

    def test_the_same_parts_are_built_once_in_any_order(self):
        first = artifacts.make("engine", PARTS, write)
        again = artifacts.make("engine", dict(reversed(PARTS.items())), lambda folder: pytest.fail("built again"))
        assert again == first
        assert artifacts.make("engine", {**PARTS, "rank": 16}, write).key != first.key

    def test_the_newest_comes_first(self):
        ranks = [artifacts.make("engine", {**PARTS, "rank": rank}, write).parts["rank"] for rank in (1, 3, 2)]
        assert [a.parts["rank"] for a in artifacts.find("engine")] == ranks[::-1]

    def test_a_failed_build_leaves_nothing(self):
        def fail(folder: Path) -> dict[str, object]:
            write(folder)
            raise RuntimeError("no")

        with pytest.raises(RuntimeError, match="no"):
            artifacts.make("engine", PARTS, fail)
        assert artifacts.list_all() == left_behind() == []

    def test_a_full_disk_is_one_line_and_leaves_nothing(self):
        code = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    artifacts.make("engine", {}, lambda folder: (folder / "x").write_bytes(bytes(100_000)))
except artifacts.OutputError as error:
    print(error)
"""
        out, _ = python(code).communicate(timeout=30)
        assert out == f"{paths.artifacts()}: file too large; free some (nothing half is kept)\n"
        assert artifacts.list_all() == left_behind() == []
        assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 20_000

    def test_a_library_that_words_a_full_disk_in_its_own_way(self):
        def fail(folder: Path) -> dict[str, object]:
            raise RuntimeError("I/O error: No space left on device (os error 28)")

        with pytest.raises(OutputError, match="no space left on the disk"):
            artifacts.make("checkpoint", PARTS, fail)

    def test_links_do_not_belong_in_an_artifact(self):
        with pytest.raises(OutputError, match="plain files only"):
            artifacts.make("engine", PARTS, lambda folder: (folder / "x").symlink_to("/etc/passwd") or {})
        assert artifacts.list_all() == left_behind() == []

    def test_a_loose_umask_makes_no_artifact_that_is_then_refused(self):
        before = os.umask(0o002)
        try:
            artifacts.check(artifacts.make("engine", PARTS, write), deep=True)
        finally:
            os.umask(before)


class TestProcesses:
    def test_killed_while_building_leaves_nothing(self):
        builder = python(SLOW + 'artifacts.make("engine", {"a": 1}, build)', stdin=subprocess.PIPE)
        assert builder.stdout.readline() == "building\n"
        assert len(list(paths.artifacts().glob("engine/.*.part/half.bin"))) == 1
        builder.kill()
        builder.wait(30)
        assert artifacts.list_all() == []
        artifacts.make("engine", {"a": 2}, write)  # another key
        assert left_behind() == []
        assert len(artifacts.make("engine", {"a": 1}, write).manifest["files"]) == 2  # and half.bin is not in it

    def test_of_two_one_builds_and_one_waits(self):
        code = SLOW + 'print(artifacts.make("engine", {"a": 1}, build, on_wait=lambda s: print(s, flush=True)).facts)'
        first = python(code, stdin=subprocess.PIPE)
        assert first.stdout.readline() == "building\n"
        second = python(code, stdin=subprocess.PIPE)
        assert second.stdout.readline() == "another process is making this; waiting for it\n"
        first.stdin.write("\n")
        first.stdin.close()
        said = {"by": first.pid}
        assert first.stdout.read() == second.stdout.read() == f"{said}\n"
        assert first.wait(30) == second.wait(30) == 0
        assert left_behind() == []

    def test_the_one_that_waits_takes_over_from_a_killed_one(self):
        code = (
            SLOW
            + 'print(artifacts.make("engine", {"a": 1}, build, on_wait=lambda s: print("waits", flush=True)).facts)'
        )
        first, second = (python(code, stdin=subprocess.PIPE) for _ in range(2))
        lines = {first: first.stdout.readline(), second: second.stdout.readline()}
        assert sorted(lines.values()) == ["building\n", "waits\n"]
        builder, waiter = sorted((first, second), key=lambda process: lines[process])
        builder.kill()
        assert waiter.stdout.readline() == "building\n"
        waiter.stdin.write("\n")
        waiter.stdin.close()
        assert waiter.stdout.read() == f"{ {'by': waiter.pid} }\n"
        assert builder.wait(30) == -signal.SIGKILL
        assert waiter.wait(30) == 0
        assert list(artifacts.list_all()[0].manifest["files"]) == ["half.bin"]

    def test_many_at_once_build_once(self):
        code = """
def build(folder):
    (folder / "x").write_bytes(b"x")
    print("built")
    return {}
for n in range(20):
    artifacts.make("engine", {"n": n}, build)
"""
        outs = [process.communicate(timeout=60)[0] for process in [python(code) for _ in range(3)]]
        assert sum(out.count("built") for out in outs) == 20
        assert len(artifacts.find("engine")) == 20
        assert left_behind() == []

    def test_a_forked_child_does_not_keep_its_dead_parents_lock(self):
        code = """
def build(folder):
    child = os.fork()
    if child == 0:
        print(os.getpid(), flush=True)
        os.close(1)
    time.sleep(60)
artifacts.make("engine", {"a": 1}, build)
"""
        builder = python(code)
        child = int(builder.stdout.readline())
        try:
            builder.kill()
            builder.wait(30)
            waited: list[str] = []
            artifacts.make("engine", {"a": 1}, write, on_wait=waited.append)
            assert waited == []
        finally:
            os.kill(child, signal.SIGKILL)


class TestCheck:
    def test_a_half_artifact_is_named_and_not_found(self):
        made = artifacts.make("engine", PARTS, write)
        made.file(".engine").write_bytes(b"plan")
        with pytest.raises(UnavailableError, match=r"model\.engine is 4 bytes long and not the recorded 4,000"):
            artifacts.check(made, deep=False)
        assert artifacts.find("engine") == []
        assert [artifacts.problem(a) is None for a in artifacts.list_all()] == [False]
        made.file(".engine").unlink()
        assert "model.engine is missing" in str(artifacts.problem(made))

    def test_one_changed_bit_is_corrupt(self):
        made = artifacts.make("engine", PARTS, write)
        data = bytearray(made.file(".engine").read_bytes())
        data[2000] ^= 1
        made.file(".engine").write_bytes(data)
        artifacts.check(made, deep=False)
        with pytest.raises(UnavailableError, match=r"model\.engine is corrupt"):
            artifacts.check(made, deep=True)

    def test_before_loading_files_are_read_once_and_after_any_change(self, monkeypatch):
        made = artifacts.make("engine", PARTS, write)
        path = made.file(".engine")
        for each in made.folder.rglob("*"):
            os.utime(each, (1_000_000, 1_000_000))  # long ago: what is younger is not remembered
        artifacts.check_once(made)
        with monkeypatch.context() as quick:
            quick.setattr(store, "sha256", lambda path: pytest.fail(f"{path} is read again"))
            artifacts.check_once(made)
        path.write_bytes(b"PLAN" * 1000)
        with pytest.raises(UnavailableError, match=r"model\.engine is corrupt"):
            artifacts.check_once(made)

    @pytest.mark.parametrize("what", ["model.engine", "manifest.json", "."])
    def test_what_others_may_write_is_refused(self, what):
        made = artifacts.make("engine", PARTS, write)
        (made.folder / what).chmod(0o720 if what == "." else 0o622)
        with pytest.raises(UnavailableError, match=f"{Path(what).name or made.key}.* may be written by others"):
            artifacts.check(made, deep=False)
        assert artifacts.find("engine") == []

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
    @pytest.mark.parametrize("what", ["model.engine", "manifest.json", "."])
    def test_another_users_is_refused(self, what):
        made = artifacts.make("engine", PARTS, write)
        os.chown(made.folder / what, 1234, -1)
        with pytest.raises(UnavailableError, match="belongs to user 1234, not to you"):
            artifacts.check(made, deep=False)
        if what == ".":
            with pytest.raises(UnavailableError, match="belongs to user 1234"):  # nor is it replaced
                artifacts.make("engine", PARTS, write)

    def test_a_link_in_the_place_of_a_file(self, tmp_path):
        made = artifacts.make("engine", PARTS, write)
        made.file(".engine").rename(tmp_path / "elsewhere")
        made.file(".engine").symlink_to(tmp_path / "elsewhere")
        assert "is a symbolic link" in str(artifacts.problem(made))

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            (lambda m: m["parts"].update(precision="fp4"), "the manifest of another artifact"),
            (lambda m: m["files"].update({"../x": {"size": 1, "sha256": ""}}), "is not a manifest"),
            (lambda m: m.pop("files"), "is not a manifest"),
            (lambda m: m.update(files=[1]), "is not a manifest"),
        ],
    )
    def test_a_changed_manifest(self, change, reason):
        made = artifacts.make("engine", PARTS, write)
        manifest = json.loads((made.folder / "manifest.json").read_text())
        change(manifest)
        (made.folder / "manifest.json").write_text(json.dumps(manifest))
        (found,) = artifacts.list_all()
        assert reason in str(artifacts.problem(found))

    def test_a_copy_elsewhere_is_not_the_stores(self, tmp_path):
        made = artifacts.make("engine", PARTS, write)
        copy = artifacts.Artifact(made.kind, made.key, tmp_path, made.manifest)
        assert "lies outside the store" in str(artifacts.problem(copy))

    @pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"null"])
    def test_a_broken_one_gives_way_to_a_new_one(self, damage):
        made = artifacts.make("engine", PARTS, write)
        (made.folder / "manifest.json").write_bytes(damage)
        artifacts.check(artifacts.make("engine", PARTS, write), deep=True)
        assert left_behind() == []

    def test_removed_is_gone(self):
        made = artifacts.make("engine", PARTS, write)
        artifacts.remove(made)
        artifacts.remove(made)
        assert artifacts.list_all() == left_behind() == []


class TestHashes:
    @pytest.fixture
    def model(self, tmp_path) -> Path:
        (tmp_path / "config.json").write_text("{}")
        for part in (1, 2):
            (tmp_path / f"part-{part}.safetensors").write_bytes(bytes(100_000))
        for path in tmp_path.iterdir():
            os.utime(path, (10, 10))
        return tmp_path

    def test_a_models_hash_is_its_content(self, model):
        before = artifacts.model_hash(model)
        data = bytearray(100_000)
        data[50_000] = 1
        (model / "part-2.safetensors").write_bytes(data)
        assert artifacts.model_hash(model) != before
        (model / "part-2.safetensors").write_bytes(bytes(100_000))
        assert artifacts.model_hash(model) == before
        (model / "config.json").write_text("[]")
        assert artifacts.model_hash(model) != before

    def test_the_scales_of_a_checkpoint_count(self, model):
        before = artifacts.model_hash(model)
        (model / "kontext-tui-quant.json").write_text("{}")
        assert artifacts.model_hash(model) != before

    def test_unchanged_files_are_not_read_again(self, model, monkeypatch):
        before = artifacts.model_hash(model)
        monkeypatch.setattr(store, "sha256", lambda path: pytest.fail(f"{path} read again"))
        assert artifacts.model_hash(model) == before

    def test_a_file_written_a_moment_ago_is_read_again(self, model):
        path = model / "part-1.safetensors"
        path.write_bytes(b"a" * 1000)
        first, state = artifacts.file_hash(path), path.stat()
        with path.open("r+b") as file:
            file.write(b"b" * 1000)
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))  # as within one tick of the clock
        assert artifacts.file_hash(path) != first

    def test_a_folder_without_weights(self, tmp_path):
        with pytest.raises(UnavailableError, match=r"holds no config\.json and safetensors"):
            artifacts.model_hash(tmp_path)


class TestSmallFiles:
    def test_written_whole_and_read_back(self):
        path = artifacts.write_small("proofs/a.json", b"1")
        artifacts.write_small("proofs/a.json", b"2")
        assert artifacts.read_small("proofs/a.json") == b"2"
        assert [p.name for p in path.parent.iterdir()] == ["a.json"]
        assert artifacts.list_all() == []

    def test_not_ours_is_not_read(self):
        artifacts.write_small("kernels", b"code").chmod(0o666)
        assert artifacts.read_small("kernels") is None
        assert artifacts.read_small("nothing") is None


def test_it_is_light():
    code = "import sys, core.edit.artifacts; print({'torch', 'numpy', 'PIL', 'onnx'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
