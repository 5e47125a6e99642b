"""One recipe a folder, one job a folder, and parts of a job."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from runner.config import OnChange, RunConfig, load_config
from runner.errors import UserError
from runner.output.folder import Folder, folders_for
from runner.output.job_folder import taken
from runner.output.lock import Holder, LockLost, held
from runner.output.recipe import choose_folder, differences, keep_recipe, recipe_of
from runner.request import Part, parse_part
from runner.world import World

PREAMBLE = """
import os, signal
from pathlib import Path
from runner.output.folder import Folder
from runner.output.lock import Holder, held
"""


def recipe(*overrides: str) -> dict[str, object]:
    return recipe_of(load_config(None, overrides), {"weights": "f00", "dtype": "float32"})


def test_placement_and_world_are_no_part_of_a_recipe() -> None:
    same = ["placement.default.share=shard", "mesh.shard=2", "job.output=x", "job.part=1/2", "job.images_per_prompt=3"]
    assert recipe(*same) == recipe()
    assert differences(recipe("job.seed=1"), recipe("job.call.height=64")) == [
        "job.seed: 1 -> 0",
        "job.call.height: unset -> 64",
    ]


def test_another_recipe_is_refused_and_the_difference_shown(tmp_path: Path) -> None:
    folders = list(zip(range(4), folders_for(tmp_path / "out", Part()), strict=False))
    first = folders[0][1]
    keep_recipe(first, recipe())
    assert choose_folder(iter([first]), recipe(), OnChange.refuse) == first
    with pytest.raises(UserError, match=r"job.seed: 0 -> 1; job.call.steps: unset -> 4.*job.on_change=new_folder"):
        choose_folder(iter([first]), recipe("job.seed=1", "job.call.steps=4"), OnChange.refuse)


def test_a_new_folder_is_found_again(tmp_path: Path) -> None:
    keep_recipe(Folder(tmp_path / "out"), recipe())
    keep_recipe(Folder(tmp_path / "out-2"), recipe("job.seed=1"))

    def chosen(*overrides: str) -> str:
        return choose_folder(folders_for(tmp_path / "out", Part()), recipe(*overrides), OnChange.new_folder).path.name

    assert [chosen(), chosen("job.seed=1"), chosen("job.seed=2")] == ["out", "out-2", "out-3"]


def test_a_recipe_that_cannot_be_read_is_no_reason_to_forget_it(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text("{")
    with pytest.raises(UserError, match=r"recipe.json is damaged"):
        choose_folder(iter([Folder(tmp_path)]), recipe(), OnChange.refuse)


def test_the_second_job_is_refused_and_told_who_is_first(tmp_path: Path) -> None:
    holder = Holder.this_run()
    with held(Folder(tmp_path), holder):
        code = f"{PREAMBLE}\nwith held(Folder(Path({str(tmp_path)!r})), Holder.this_run()): pass"
        second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert f"is in use by process {holder.pid} on {holder.host}" in second.stderr
    with held(Folder(tmp_path), Holder.this_run()):
        assert json.loads((tmp_path / "job.lock").read_text())["run"] != holder.run


def test_a_dead_job_holds_no_lock(tmp_path: Path) -> None:
    dies = f"with held(Folder(Path({str(tmp_path)!r})), Holder.this_run()): os.kill(os.getpid(), signal.SIGKILL)"
    code = f"{PREAMBLE}\n{dies}"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    with held(Folder(tmp_path), Holder.this_run()):
        pass


def test_parts_share_out_everything_without_overlap() -> None:
    items = list(range(10))
    parts = [Part(i, 4).of(items) for i in range(1, 5)]
    assert sorted(item for part in parts for item in part) == items
    assert parse_part("2/4") == Part(2, 4) and parse_part(None) == Part()
    for wrong in ("0/4", "5/4", "1", "a/b", "1/0", "-1/2"):
        with pytest.raises(UserError, match=r"write i/n"):
            parse_part(wrong)


def test_a_job_that_was_split_is_not_split_otherwise(tmp_path: Path) -> None:
    (tmp_path / "part-1-of-4").mkdir()
    assert next(folders_for(tmp_path, Part(2, 4))) == Folder(tmp_path / "part-2-of-4")
    with pytest.raises(UserError, match=r"in 4 part"):
        next(folders_for(tmp_path, Part(1, 3)))
    with pytest.raises(UserError, match=r"in 4 part"):
        next(folders_for(tmp_path, Part()))
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / "manifest.jsonl").touch()
    with pytest.raises(UserError, match=r"in 1 part"):
        next(folders_for(tmp_path / "whole", Part(1, 2)))


def test_wrong_job_settings_are_refused() -> None:
    assert RunConfig().job.max_attempts == 3
    for override in ("job.max_attempts=0", "job.timeout_seconds=0", "job.grace_seconds=-1", "job.part=3/2"):
        with pytest.raises(UserError, match=override.split("=")[0]):
            load_config(None, [override])


def test_a_lock_that_was_removed_is_noticed_by_who_held_it(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    with held(folder, Holder.this_run()) as lock:
        lock.check()
        folder.lock.unlink()
        with pytest.raises(LockLost, match=r"job\.lock was removed or replaced"):
            lock.check()
        with held(folder, Holder.this_run()) as second, pytest.raises(LockLost):
            second.check()
            lock.check()


@pytest.mark.parametrize("name", ["job.lock", "manifest.jsonl", "attempts.jsonl", "run.json", "recipe.json"])
def test_a_link_in_a_files_place_is_refused_and_its_target_stays(name: str, tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("text")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).symlink_to(target)
    config = load_config(None, [f"job.output={tmp_path / 'out'}"])
    alone = World(0, 1, torch.device("cpu"))
    with pytest.raises(UserError, match=f"{name} is a link to"), taken(config.job, recipe(), alone):
        pass
    assert target.read_text() == "text"


@pytest.mark.parametrize("state_file", ["nowhere/state", ""])
def test_a_state_file_that_cannot_be_written_is_refused_at_the_start(state_file: str, tmp_path: Path) -> None:
    job = load_config(None, [f"job.output={tmp_path / 'out'}", f"job.state_file={tmp_path / state_file}"]).job
    with pytest.raises(UserError, match=r"job\.state_file: "), taken(job, recipe(), World(0, 1, torch.device("cpu"))):
        pass
