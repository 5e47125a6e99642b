"""What a folder remembers, and how it is mended."""

import os
import shutil
import time
from pathlib import Path

from runner.output.call_log import CallLog
from runner.output.folder import Folder
from runner.output.journal import Journal
from runner.output.lines import Failure, ManifestLine, OutputFile
from runner.output.manifest import Manifest, file_facts, free_stems

IMAGES = "images"


def picture(root: Path, id: str, content: bytes = b"pixels") -> ManifestLine:
    file = f"{IMAGES}/{id}.png"
    (root / IMAGES).mkdir(exist_ok=True)
    (root / file).write_bytes(content)
    return ManifestLine(id=id, file=file, **file_facts(root / file))


def finished(manifest: Manifest, id: str) -> ManifestLine:
    """A picture with its line."""
    line = picture(manifest.folder.path, id)
    manifest.record([line], [], {})
    return line


def test_finished_requests_are_found_again(tmp_path: Path) -> None:
    manifest = Manifest(Folder(tmp_path))
    lines = {id: finished(manifest, id) for id in "abc"}
    state = manifest.recover()
    assert state.finished == lines and not state.notes


def test_what_is_missing_cut_short_or_altered_loses_its_line(tmp_path: Path) -> None:
    manifest = Manifest(Folder(tmp_path))
    for id in "abcde":
        finished(manifest, id)
    (tmp_path / IMAGES / "a.png").unlink()
    os.truncate(tmp_path / IMAGES / "b.png", 3)
    (tmp_path / IMAGES / "c.png").write_bytes(b"pixelS")
    os.utime(tmp_path / IMAGES / "d.png")  # touched, as a copy is: the content decides
    state = manifest.recover()
    assert sorted(state.finished) == ["d", "e"]
    assert state.notes == ["3 finished request(s) with files missing or damaged; made again"]
    assert sorted(Manifest(Folder(tmp_path)).recover().finished) == ["d", "e"]


def test_a_request_is_whole_when_all_of_its_files_are(tmp_path: Path) -> None:
    manifest = Manifest(Folder(tmp_path))
    (tmp_path / IMAGES).mkdir()
    for id in "abcd":
        files = []
        for ending in (".1.png", ".2.png", ".audio.wav"):
            (tmp_path / IMAGES / (id + ending)).write_bytes(b"pixels")
            file = f"{IMAGES}/{id}{ending}"
            files.append(OutputFile(file=file, shape=[1, 2], fps=7.5, **file_facts(tmp_path / file)))
        first = {name: getattr(files[0], name) for name in ("file", "bytes", "mtime_ns", "file_sha256")}
        values, left_out = {"nsfw": [False]}, {"odd": "no file format"}
        line = ManifestLine(id=id, **first, files=tuple(files), values=values, left_out=left_out)
        manifest.record([line], [], {})
    assert manifest.recover().finished["d"] == line, "all of it comes back"
    (tmp_path / IMAGES / "a.2.png").unlink()
    (tmp_path / IMAGES / "b.audio.wav").write_bytes(b"pixelS")
    os.truncate(tmp_path / IMAGES / "c.1.png", 3)
    state = manifest.recover()
    assert list(state.finished) == ["d"]
    assert state.notes == ["3 finished request(s) with files missing or damaged; made again"]
    assert free_stems([("x", "d"), ("x", "a")], state.finished) == ["d-x", "a"]


def test_a_line_whose_files_are_no_files_of_ours_is_none(tmp_path: Path) -> None:
    line = finished(Manifest(Folder(tmp_path)), "a").to_json()
    for files in ("text", 7, [1], [{"file": "a.png"}], [{**line, "file": "../a.png"}], [{**line, "file": 7}]):
        assert ManifestLine.from_json({**line, "files": files}) is None, files
    assert ManifestLine.from_json({**line, "files": [{**line, "of a later version": 1}]}) is not None


def test_a_copied_folder_is_as_good(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    manifest = Manifest(Folder(tmp_path / "one"))
    finished(manifest, "a")
    shutil.copytree(tmp_path / "one", tmp_path / "two", copy_function=shutil.copyfile)
    assert list(Manifest(Folder(tmp_path / "two")).recover().finished) == ["a"]


def test_torn_lines_and_stale_temporary_files_go(tmp_path: Path) -> None:
    manifest = Manifest(Folder(tmp_path))
    finished(manifest, "a")
    with manifest.folder.manifest.open("ab") as stream:
        stream.write(b'{"id": "b", "fi')
    (tmp_path / IMAGES / ".b.png.12ab.tmp.png").write_bytes(b"half")
    state = manifest.recover()
    assert list(state.finished) == ["a"]
    assert state.notes == ["1 temporary file(s) of a dead run removed", "1 torn line(s) in manifest.jsonl removed"]
    assert [file.name for file in (tmp_path / IMAGES).iterdir()] == ["a.png"]


def test_a_request_that_was_made_twice_has_one_line(tmp_path: Path) -> None:
    manifest = Manifest(Folder(tmp_path))
    for _ in range(2):
        finished(manifest, "a")
    assert len(manifest.recover().finished) == 1
    assert len(manifest.folder.manifest.read_text().splitlines()) == 1


def test_tries_are_counted_but_for_those_taken_back(tmp_path: Path) -> None:
    manifest = Manifest(Folder(tmp_path))
    manifest.begin(["a", "b"])
    manifest.begin(["a", "c"])
    manifest.withdraw(["c"])
    manifest.record([], [Failure(id="b", error="E", message=text) for text in ("first", "last")], {"b": 1})
    state = manifest.recover()
    assert state.attempts == {"a": 2, "b": 1, "c": 0}
    assert (state.failures["b"].message, state.failures["b"].attempts) == ("last", 2)


def test_a_stem_that_another_request_has_is_left_alone() -> None:
    line = ManifestLine(id="aaaaaaaaaaaa", file=f"{IMAGES}/0000-x-0.png", bytes=1, mtime_ns=1, file_sha256="")
    wanted = [("aaaaaaaaaaaa", "0000-x-0"), ("bbbbbbbbbbbb", "0000-x-0"), ("bbbbbbbbbbbb", "0001-y-0")]
    assert free_stems(wanted, {"aaaaaaaaaaaa": line}) == ["0000-x-0", "0000-x-0-bbbbbbbb", "0001-y-0"]


def test_ten_thousand_finished_requests_are_found_in_a_second(tmp_path: Path) -> None:
    """Loose: it fails when each is compared with each, or read."""
    manifest = Manifest(Folder(tmp_path))
    (tmp_path / IMAGES).mkdir()
    lines = []
    for number in range(10_000):
        path = tmp_path / IMAGES / f"{number}.png"
        path.write_bytes(b"x")
        lines.append(ManifestLine(id=str(number), file=f"{IMAGES}/{number}.png", **file_facts(path)))
    manifest.record(lines, [], {})
    start = time.perf_counter()
    state = manifest.recover()
    free_stems([(id, id) for id in state.finished], state.finished)
    assert len(state.finished) == 10_000
    assert time.perf_counter() - start < 5


def test_a_try_that_got_on_inside_its_request_does_not_count(tmp_path: Path) -> None:
    """As its log tells: a clip whose node dies again and again is made in the end."""
    folder = Folder(tmp_path)
    manifest = Manifest(folder)

    def logged(id: str, calls: int) -> None:
        log = CallLog(folder.call_log(id), {}, writes=True, say=print)
        while log.next() is not None:
            continue
        for _ in range(calls):
            log.append({}, [b"x"])
        log.close()

    for calls in (2, 1, 0, 0, 3):
        manifest.begin(["a", "b"])
        logged("a", calls)
    manifest.begin(["a"])
    logged("a", 1)
    manifest.withdraw(["a"])
    manifest.withdraw(["a"])  # by another rank
    assert manifest.recover().attempts == {"a": 2, "b": 5}


def test_what_another_rank_finished_is_taken_over_once(tmp_path: Path) -> None:
    """As soon as it is there; what a network file system does not show yet, when the wave ends and that rank tells."""
    folder = Folder(tmp_path)
    first, second = Manifest(folder), Manifest(folder, rank=1)
    made = [finished(second, id) for id in "ab"]
    assert first.collect() == 2 and first.collect() == 0 and second.collect() == 0
    second.record([], [Failure(id="c", error="E", message="text")], {"c": 1})
    late = picture(tmp_path, "late")
    first.settle([*made, late], [Failure(id="c", error="E", message="text")], {"c": 1})
    second.record([late], [], {})
    assert first.collect() == 0
    written = [line["id"] for line in Journal(folder.manifest).lines()[0]]
    assert written == ["a", "b", "late"]
    (failure,) = Journal(folder.failures).lines()[0]
    assert failure["attempts"] == 2 and failure["time"]
    second.close()
    assert folder.results_of_ranks() == [folder.results_of(1)], "only rank 0 removes it"
    first.close()
    assert not folder.results_of_ranks()


def test_what_other_ranks_of_a_dead_run_finished_comes_into_the_journals(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    finished(Manifest(folder), "a")
    second, third = Manifest(folder, rank=1), Manifest(folder, rank=2)
    finished(second, "b")
    finished(third, "c")
    (tmp_path / IMAGES / "c.png").unlink()
    third.record([], [Failure(id="d", error="E", message="text")], {})
    with folder.results_of(2).open("ab") as stream:
        stream.write(b'{"made": {"id": "e", "fi')
    for _ in range(2):
        shutil.copytree(tmp_path, tmp_path / "before", dirs_exist_ok=True)
        state = Manifest(folder).recover()
        assert sorted(state.finished) == ["a", "b"] and list(state.failures) == ["d"]
        assert not folder.results_of_ranks()
        for name in ("results-of-rank-1.jsonl", "results-of-rank-2.jsonl"):
            if (
                tmp_path / "before" / name
            ).exists():  # as where the run that took them over died before it removed them
                shutil.copy(tmp_path / "before" / name, tmp_path / name)
    state = Manifest(folder).recover()
    assert len(folder.manifest.read_text().splitlines()) == 2 and len(folder.failures.read_text().splitlines()) == 1


def test_no_file_of_ours_is_taken_for_a_ranks_results(tmp_path: Path) -> None:
    """Lines of another kind, and a line of half a kind, are left out."""
    folder = Folder(tmp_path)
    folder.results_of(1).write_text(
        '7\n{"made": 7}\n{"made": {"id": "x"}}\n{"failed": {}}\n{"made": {}, "failed": []}\n'
    )
    assert Manifest(folder).collect() == 0
    assert not Manifest(folder).recover().finished
