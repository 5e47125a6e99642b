"""report.html in a browser: what the job made, what failed, and nothing of what users wrote becomes markup."""

import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from playwright.sync_api import Browser, Page

from runner.config import load_config
from runner.errors import ExitCode
from runner.output.folder import Folder
from runner.output.journal import Journal
from runner.run import run
from runner.trace.interval import Head, Interval, Lane
from runner.world import World
from scripts.report import main
from tests import tiny
from tests.browser import Watched, browser
from tests.outcomes import why
from tests.tiny.family import TinyPipeline
from tests.tiny.sound import STABLE_AUDIO
from tests.tiny.wan import WAN

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[3]
NASTY = "a fox </script><script>alert(1)</script><img src=x onerror=alert(2)> {{ 7 * 7 }} <!-- & \u2028 '\""
SIZE = {"num_inference_steps": 1}
PROMPTS = [
    {"prompt": "a rocket", **SIZE},
    {"prompt": NASTY, "seed": 3, **SIZE},
    {"prompt": "a panda", "guidance_scale": 5.0, "num_inference_steps": 2},
    {"prompt": "<b>too large</b>", "guidance_scale": 1e38, **SIZE},  # more than fp32 can add up
]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a job of which one request fails."""
    folder = tmp_path_factory.mktemp("job")
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))
    words = [f"model.path={ROOT}/models/emoji-dit", f"job.output={folder}/out", f"job.prompts={folder}/prompts.jsonl"]
    config = load_config(
        None, [*words, "job.call.height=64", "job.call.width=64", "job.call.use_resolution_binning=false"]
    )
    assert run(config, World(0, 1, torch.device("cpu"))) == ExitCode.FAILED, why(folder / "out")
    return folder / "out"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as started:
        yield started


@pytest.fixture
def watched(chromium: Browser) -> Iterator[Watched]:
    """A page that must have nothing to complain of when the test is over."""
    page = chromium.new_page(viewport={"width": 1280, "height": 800})
    page.set_default_timeout(20_000)
    watched = Watched(page)
    yield watched
    page.close()
    assert watched.complaints == []


def _cells(page: Page) -> list[str]:
    return page.locator("#grid .cell").evaluate_all("cells => cells.map(cell => cell.title)")


def test_the_job_leaves_a_page_that_shows_its_pictures(job: Path, watched: Watched) -> None:
    page = watched.open(job / "report.html", "#results")
    assert _cells(page) == ["a rocket", NASTY, "a panda"]
    watched.until("[...document.querySelectorAll('#grid img')].every(i => i.complete && i.naturalWidth > 0)")
    assert page.locator("#grid img").count() == 3
    assert "failed" in page.locator("header .badge").inner_text()


def test_what_users_wrote_stays_text(job: Path, watched: Watched) -> None:
    page = watched.open(job / "report.html", "#results")
    page.get_by_title(NASTY).click()
    assert page.locator("dialog .prompt").inner_text() == NASTY
    page.keyboard.press("Escape")
    page.locator("nav a", has_text="Failures").click()
    page.locator("#failures summary").click()
    assert page.locator("#failures td.wide").inner_text() == "<b>too large</b>"
    assert page.locator("img[src=x]").count() == 0 and page.locator("#failures td b").count() == 0


def test_a_search_leaves_what_it_asks_for(job: Path, watched: Watched) -> None:
    page = watched.open(job / "report.html", "#results")
    query = page.locator("#query")
    for text, left in {
        "PANDA": ["a panda"],
        "seed:3": [NASTY],
        "steps:1 rocket": ["a rocket"],
        "guidance_scale:5": ["a panda"],
        "-panda -rocket": [NASTY],
        '"</script>"': [NASTY],
        "nothing such": [],
    }.items():
        query.fill(text)
        assert _cells(page) == left, text
        assert page.locator("#none").is_visible() == (not left)
    query.fill("panda")
    page.reload()
    assert _cells(page) == ["a panda"], "the address keeps the search"


def test_it_is_worked_by_the_keyboard(job: Path, watched: Watched) -> None:
    page = watched.open(job / "report.html")
    assert page.locator("#overview").is_visible()
    page.keyboard.press("/")
    page.keyboard.type("a ")
    assert page.locator("#query").input_value() == "a "
    page.keyboard.press("Escape")
    page.locator("#grid .cell").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert page.locator("dialog .prompt").inner_text().startswith("a fox")
    page.keyboard.press("ArrowRight")
    assert page.locator("dialog .prompt").inner_text() == "a panda"
    page.keyboard.press("Escape")
    watched.until("document.activeElement.title === 'a panda'")  # where the detail was left
    page.keyboard.press("5")
    page.locator("#failures").wait_for()  # the page turns when the browser tells it of its new address


def test_a_failure_opens_its_traceback(job: Path, watched: Watched) -> None:
    page = watched.open(job / "report.html", "#failures")
    assert not page.locator("#failures pre").is_visible()
    page.locator("#failures summary").focus()
    page.keyboard.press("Enter")
    assert re.search(r"Traceback .*NotFinite", page.locator("#failures pre").inner_text(), re.DOTALL)


INKED = """id => {
    const canvas = document.getElementById(id), pen = canvas.getContext("2d");
    const pixels = pen.getImageData(0, 0, canvas.width, canvas.height);
    return new Set(new Uint32Array(pixels.data.buffer)).size;
}"""  # how many colours are on it


def test_the_timeline_shows_what_each_rank_made_and_is_zoomed_by_the_keyboard(job: Path, watched: Watched) -> None:
    page = watched.open(job / "report.html", "#timeline")
    assert page.evaluate(INKED, "lanes") > 5
    span = page.locator("#span")
    whole = span.inner_text()
    page.locator("#lanes").focus()
    page.keyboard.press("+")
    assert span.inner_text() != whole
    page.keyboard.press("0")
    assert span.inner_text() == whole


def test_the_timeline_shows_a_trace(job: Path, tmp_path: Path, watched: Watched) -> None:
    out = tmp_path / "out"
    shutil.copytree(job, out)
    Folder(out).profile.mkdir(exist_ok=True)
    head = Head(rank=0, world_size=1, device="cpu", began=1.0)
    blocks = [("block", Lane.compute, 0.0, 6.0), ("wait", Lane.wait, 6.0, 9.0), ("prefetch", Lane.prefetch, 0.0, 8.0)]
    intervals = [
        Interval(name=name, lane=lane, begin=begin, end=end, component="transformer", block="blocks.7", step=3)
        for name, lane, begin, end in [*blocks, ("exchange", Lane.exchange, 9.0, 10.0)]
    ]
    Journal(Folder(out).intervals(0)).append([head.to_json(), *(one.to_json() for one in intervals)])
    assert main([str(out)]) == ExitCode.DONE
    page = watched.open(out / "report.html", "#timeline")
    watched.until("document.getElementById('legend').innerText.includes('%')")
    legend = " ".join(page.locator("#legend").inner_text().split())
    assert legend == "compute of blocks 60 % wait 30 % prefetch 80 % exchange 10 %"
    page.locator("#lanes").hover(position={"x": 400, "y": 30})
    assert "blocks.7 · step 3" in page.locator("#tip").inner_text() and "6.00 s" in page.locator("#tip").inner_text()


def test_memory_and_requests_are_drawn_over_time(job: Path, watched: Watched) -> None:
    page = watched.open(job / "report.html")
    for name in ("pace", "host-memory"):
        canvas = page.locator(f"#{name} canvas")
        canvas.hover(position={"x": 200, "y": 80})
        assert page.evaluate(INKED.replace("getElementById(id)", "querySelector(id)"), f"#{name} canvas") > 5
    assert not page.locator("#device-memory").is_visible(), "there is no device beside the host"


IN_COLOUR = """name => {
    const pen = document.createElement("canvas").getContext("2d");
    pen.fillStyle = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
    pen.fillRect(0, 0, 1, 1);
    const wanted = new Uint32Array(pen.getImageData(0, 0, 1, 1).data.buffer)[0];
    const canvas = document.querySelector("#host-memory canvas");
    const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.buffer;
    return new Uint32Array(pixels).filter((pixel) => pixel === wanted).length;
}"""  # how many pixels of the chart


def test_what_was_planned_is_a_line_in_the_chart_of_memory(job: Path, tmp_path: Path, watched: Watched) -> None:
    out, lines = tmp_path / "out", []
    shutil.copytree(job, out)
    for plan in (None, {"host_bytes": 300 << 20, "counts": "weights"}):
        told = json.loads(Folder(out).run_json.read_text())
        Folder(out).run_json.write_text(json.dumps(told | {"plan": plan}))
        assert main([str(out)]) == ExitCode.DONE
        page = watched.open(out / "report.html")
        watched.until("document.querySelector('#host-memory canvas').style.height")
        lines.append(page.evaluate(IN_COLOUR, "--bad"))
    assert lines[0] == 0 and lines[1] > 100


def test_placement_says_mode_and_reason(job: Path, watched: Watched) -> None:
    page = watched.open(job / "report.html", "#placement")
    rows = page.locator("#placement table").first.locator("tbody tr").all_inner_texts()
    assert len(rows) == 3 and all("resident: its weights do not move" in row and "replicate" in row for row in rows)


def _made(family: TinyPipeline, model: Path, folder: Path) -> Path:
    """The report of a job of one request."""
    prompt = family.prompts[0][0] if isinstance(family.prompts[0], list) else family.prompts[0]
    (folder / "p.jsonl").write_text(json.dumps({family.prompt_argument: prompt, **family.call}) + "\n")
    words = [f"model.path={model}", f"job.prompts={folder}/p.jsonl", f"job.output={folder}/out"]
    assert run(load_config(None, words), World(0, 1, torch.device("cpu"))) == ExitCode.DONE, why(folder / "out")
    return folder / "out" / "report.html"


def test_a_clip_plays(tiny_root: Path, tmp_path: Path, watched: Watched) -> None:
    page = watched.open(_made(WAN, tiny.build("wan", tiny_root), tmp_path), "#results")
    watched.until("document.querySelector('#grid img')?.naturalWidth === 32")
    assert "▶ 313 ms" in page.locator("#grid .mark").inner_text()
    page.locator("#grid .cell").click()
    watched.until("document.querySelector('dialog video')?.duration > 0.3")


def test_a_sound_plays_below_its_waveform(tmp_path: Path, watched: Watched) -> None:
    STABLE_AUDIO.build(tmp_path / "model")
    page = watched.open(_made(STABLE_AUDIO, tmp_path / "model", tmp_path), "#results")
    assert "♪ 500 ms" in page.locator("#grid .mark").inner_text()
    page.locator("#grid .cell").click()
    watched.until("Math.abs(document.querySelector('dialog audio')?.duration - 0.5) < 0.01")
    watched.until("document.querySelector('dialog img')?.naturalWidth === 256")


def test_ten_thousand_pictures_are_few_elements(job: Path, tmp_path: Path, watched: Watched) -> None:
    """The real lines of a job, multiplied: what is asked is whether the page bears them."""
    out = tmp_path / "out"
    out.mkdir()
    for name in ("run.json", "job.lock"):
        (out / name).write_bytes((job / name).read_bytes())
    (out / "images").symlink_to(job / "images")
    line = json.loads((job / "manifest.jsonl").read_text().splitlines()[0])
    with (out / "manifest.jsonl").open("w") as stream:
        for number in range(10_000):
            stream.write(json.dumps({**line, "id": f"{number:016x}", "prompt": f"rocket {number}"}) + "\n")
    start = time.perf_counter()
    assert main([str(out)]) == ExitCode.DONE
    print(f"\n{time.perf_counter() - start:.2f} s, {Folder(out).report.stat().st_size / 1e6:.1f} MB")
    page = watched.open(out / "report.html", "#results")
    assert page.locator("#shown").inner_text() == "10,000"
    assert 10 < page.locator("#grid .cell").count() < 200
    page.keyboard.press("End")
    page.locator("#grid .cell").first.focus()
    page.keyboard.press("End")
    watched.until("document.activeElement.title === 'rocket 9999'")
    assert page.locator("#grid .cell").count() < 200
    page.locator("#query").fill("rocket 9999")
    assert _cells(page) == ["rocket 9999"]


def test_it_is_written_also_of_a_job_that_left_next_to_nothing(tmp_path: Path, watched: Watched) -> None:
    (tmp_path / "job.lock").write_text('{"run": "x", "host": "h", "pid": 1, "since": "then"}\n')
    (tmp_path / "manifest.jsonl").write_text('{"id": "torn')
    assert main([str(tmp_path)]) == ExitCode.DONE
    page = watched.open(tmp_path / "report.html")
    assert "unknown" in page.locator("header .badge").inner_text()


def test_a_folder_without_a_job_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == ExitCode.WRONG
    assert "no output folder of a job" in capsys.readouterr().err
