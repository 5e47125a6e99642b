"""What is wrong with a file, or with what is written for it, is said with its place before anything is loaded."""

import os
from pathlib import Path
from random import Random

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from runner.errors import UserError
from runner.inputs.arguments import arguments_of
from runner.inputs.named import named
from runner.inputs.probe import Unreadable, probe
from runner.job.prompts import Prompt
from tests.runner.inputs.input_files import KINDS, Kind, draw, film, keep, read, sing, store

PICTURE = KINDS["picture"]
WRITERS = {"a.gif": draw, "a.tif": draw, "a.bmp": draw} | {kind.file: kind.write for kind in KINDS.values()}
# Of Kandinsky 3 and DiffusionGemma the last two, which have no transformer of diffusers.
UNANNOTATED = {"output_type", "do_patching", "latents", "image"}


def _folder(path: Path) -> None:
    path.mkdir()


def _huge(path: Path) -> None:
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (1 << 40,)})
        file.truncate((1 << 43) + 128)


def _bomb(path: Path) -> None:
    Image.new("1", (20_000, 20_000)).save(path)


def _objects(path: Path) -> None:
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)


@pytest.mark.parametrize(
    ("name", "write", "says"),
    [
        ("folder", _folder, "folder is a folder; name a file in it, or several as a list"),
        ("pipe.png", os.mkfifo, "pipe.png is a device or a pipe"),
        ("empty.png", Path.touch, "empty.png is empty"),
        (
            "page.png",
            lambda p: p.write_text("<!DOCTYPE html><p>404"),
            "begins with b'<!DOCTYPE ht', which is no picture",
        ),
        ("bomb.png", _bomb, "is too large"),
        ("weights.pt", lambda p: torch.save({}, p), "is a pickle or an archive, which is not read"),
        ("all.npz", lambda p: np.savez(p, a=np.zeros(3)), "is a pickle or an archive"),
        ("objects.npy", _objects, "is damaged (ValueError: Array can't be memory-mapped: Python objects in dtype"),
        ("huge.npy", _huge, "GiB when it is read, and this host has"),
        ("a.eps", lambda p: draw(p), "is a program (PostScript), which is not run"),
        ("a.wav", sing, "is sound, but image takes a picture or an array or a tensor"),
    ],
)
def test_what_is_no_picture(tmp_path: Path, name: str, write: object, says: str) -> None:
    write(tmp_path / name)  # type: ignore[operator]
    with pytest.raises(UserError) as refused:
        read(PICTURE, f"job.call.image={tmp_path / name}", "job.prompt=a fox")
    assert str(refused.value).startswith("job.call.image: ") and says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_unreadable_path_is_refused(tmp_path: Path) -> None:
    for path, says in (
        ("https://example.com/a.png", "is an address, and nothing is fetched"),
        ("x" * 300 + ".png", "File name too long"),
        (f"{draw(tmp_path / 'a.png')}/b.png", "no such file"),
        ('" "', "give the path of a file"),
        ("7", "is 7; give the path of a file, {file: '7'} where"),
        ("{path: a.png}", r"it takes a picture or an array or a tensor: write {file: PATH}"),
        ("{file: [a.png]}", r"is ['a.png']; give the path of a file"),
        ("{file: a.png, size: 3}", "takes tensor: NAME, mode: RGBA and batch: false beside it, not size: 3"),
        ("{file: a.png, mode: XYZ}", "mode is 'XYZ'; it must be one of RGB, RGBA"),
    ):
        with pytest.raises(UserError) as refused:
            read(PICTURE, f"job.call.image={path}", "job.prompt=a fox")
        assert says in str(refused.value) and str(refused.value).startswith("job.call.image")


@pytest.mark.parametrize(
    ("kind", "value", "says"),
    [
        ("video", "a.wav", "a.wav is sound, but video takes a list of pictures"),
        ("conditions", "[{image: clip.mp4}]", "conditions[0].image: clip.mp4 is a video, but image takes a picture"),
        ("conditions", "[{picture: a.png}]", "conditions[0].picture is no field of LTXVideoCondition"),
        ("conditions", "[{image: none.png}]", "conditions[0].image: none.png: no such file"),
        ("video condition", "{strength: 1}", "LTX2VideoCondition needs frames; it has frames, index, strength, crf"),
        ("array", "a.png", "c2w: a.png is a picture, but c2w takes an array"),
        ("sound", "clip.mp4", "is a video, but initial_audio_waveforms takes a tensor"),
        ("tensor", "a.png", "a.png is a picture, but prompt_embeds takes a tensor"),
        ("tensor", "a.wav", "a.wav is sound, but prompt_embeds takes a tensor"),
        ("tensor", "two.safetensors", "holds one, two; say which, {file: two.safetensors, tensor: one}"),
        ("tensor", "{file: two.safetensors, tensor: three}", "holds one, two; say which"),
        ("picture", "one.safetensors", None),
        ("picture", "{file: a.png, tensor: x}", "is a picture; tensor is for files of several tensors"),
    ],
)
def test_a_file_of_another_kind_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, value: str, says: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "a.png")
    sing(tmp_path / "a.wav")
    film(tmp_path / "clip.mp4")
    store(tmp_path / "one.safetensors")
    store(tmp_path / "two.safetensors", one=torch.zeros(1), two=torch.zeros(2))
    words = [f"job.call.{name}=a.png" for name in KINDS[kind].required]
    words += [f"job.call.{KINDS[kind].argument}={value}", "job.prompt=a fox"]
    if says is None:
        read(KINDS[kind], *words)
        return
    with pytest.raises(UserError) as refused:
        read(KINDS[kind], *words)
    assert says in str(refused.value)


def test_several_wrong_files_are_told_together(tmp_path: Path) -> None:
    prompts = tmp_path / "p.jsonl"
    prompts.write_text("".join(f'{{"prompt": "a", "image": "{number}.png"}}\n' for number in range(10)))
    with pytest.raises(UserError) as refused:
        read(PICTURE, f"job.prompts={prompts}")
    assert [f"p.jsonl:{line}: image: {line - 1}.png" in str(refused.value) for line in (1, 2, 3, 4)] == [True] * 3 + [
        False
    ]
    assert str(refused.value).endswith("(and 7 more)")


def test_a_choice_of_the_pipelines_own_is_a_word() -> None:
    kind = Kind("HunyuanVideoFramepackPipeline", "sampling_type", "", keep, np.load)
    base = Path(__file__).parents[3] / "models"
    pictures = sorted(base.rglob("*.png"))
    assert pictures, "the repository has no picture to take"
    with pytest.raises(
        UserError, match=r"sampling_type is 'neither'; it must be one of VANILLA, INVERTED_ANTI_DRIFTING"
    ):
        read(kind, "job.call.sampling_type=neither", f"job.call.image={pictures[0]}", "job.prompt=a")
    (prompt,) = read(kind, "job.call.sampling_type=vanilla", f"job.call.image={pictures[0]}", "job.prompt=a")
    assert prompt.call["sampling_type"].name == "VANILLA"


def test_a_pipeline_without_a_prompt_takes_its_own_texts_and_inputs(tmp_path: Path) -> None:
    cloze, larger = (Kind(f"{name}Pipeline", "", "", keep, np.load) for name in ("VisualCloze", "Kandinsky6SR"))
    with pytest.raises(
        UserError, match=r"prompt 1: .* takes no prompt; its arguments for text: job\.call\.task_prompt, "
    ):
        read(cloze, "job.prompt=a fox")
    with pytest.raises(UserError, match=r"Kandinsky6SRPipeline needs video; set job\.call\.video"):
        read(larger, "job.call.num_inference_steps=2")
    clip = film(tmp_path / "clip.mp4")
    (prompt,) = read(larger, f"job.call.video={clip}")
    assert prompt.text is None
    file = tmp_path / "p.csv"
    file.write_text("video,seed\nclip.mp4,3\nclip.mp4,4\n")
    assert [(one.text, one.seed) for one in read(larger, f"job.prompts={file}")] == [(None, 3), (None, 4)]
    with pytest.raises(UserError, match=r"prompt 1: no prompt; give 'prompt' a value, or FluxImg2ImgPipeline inputs"):
        read(PICTURE, "job.call.strength=0.5")
    (prompt,) = read(KINDS["tensor"], f"job.call.prompt_embeds={store(tmp_path / 'e.safetensors')}")
    assert prompt.text is None


def test_a_prompt_is_given_as_the_pipeline_takes_it() -> None:
    for name, prompt, given in (
        ("WanVACEPipeline", "a fox", {"prompt": "a fox"}),  # refuses a list
        ("FluxPipeline", "a fox", {"prompt": "a fox"}),
        ("DiTPipeline", 207, {"class_labels": [207]}),
        ("VisualClozePipeline", None, {}),
    ):
        assert arguments_of(getattr(diffusers, name)).of_prompt(prompt) == given


def test_text_stays_text(tmp_path: Path) -> None:
    """Where an argument takes text, also beside files of that name; in a table too."""
    draw(tmp_path / "a.png")
    file = tmp_path / "p.csv"
    file.write_text("prompt,prompt_2,image\na fox,[a.png],a.png\n")
    (prompt,) = read(PICTURE, f"job.prompts={file}")
    assert prompt.call["prompt_2"] == "[a.png]"
    assert prompt.call["image"].written == "a.png" and prompt == Prompt("a fox", call=prompt.call)


@pytest.mark.filterwarnings("ignore")  # of Pillow, over what is broken
def test_broken_bytes_are_read_or_refused(tmp_path: Path) -> None:
    """Bits turned over, bytes put in and left out: a file of another content, or one that says what is wrong."""
    random = Random(0)
    outcomes = set()
    for name, write in WRITERS.items():
        good = write(tmp_path / name).read_bytes()
        assert probe(tmp_path / name).shape or name.endswith(".safetensors")
        for _ in range(3 if name.endswith(".mp4") else 40):
            (tmp_path / name).write_bytes(_broken(good, random))
            try:
                probe(tmp_path / name)
                outcomes.add("read")
            except Unreadable:
                outcomes.add("refused")
    assert outcomes == {"read", "refused"}


def _broken(good: bytes, random: Random) -> bytes:
    content = bytearray(good)
    for _ in range(random.choice([1, 2, 8])):
        place = random.randrange(min(len(content), random.choice([64, 400, 1 << 30])))
        change = random.choice(["turn", "turn", "cut", "put in"])
        if change == "turn":
            content[place] ^= 1 << random.randrange(8)
        elif change == "cut":
            del content[max(place, 1) :]
        else:
            content[place:place] = random.randbytes(random.randrange(1, 9))
    return bytes(content)


def test_every_argument_of_every_pipeline_is_understood() -> None:
    """But for those that diffusers does not annotate: there, a text is a text."""
    unknown: set[str] = set()
    files = 0
    for one in (getattr(diffusers, name) for name in dir(diffusers) if "Pipeline" in name):
        if isinstance(one, type) and issubclass(one, diffusers.DiffusionPipeline):
            given = arguments_of(one)
            files += any(takes.is_file or takes.record for takes in given.takes.values())
            unknown |= {argument for argument, takes in given.takes.items() if not takes.is_known}
    assert files > 200
    assert unknown <= UNANNOTATED, unknown - UNANNOTATED


def test_a_tuple_is_given_where_only_that_is_taken() -> None:
    """Hunyuan-DiT compares its sizes with tuples of its own; Kandinsky's lists stay lists."""
    taken = arguments_of(diffusers.HunyuanDiTPipeline).takes
    assert named([512, 512], taken["original_size"], "x", Path(), "original_size") == (512, 512)
    assert named([1.0, 0.5], taken["prompt_embeds"], "x", Path(), "prompt_embeds") == [1.0, 0.5]


def test_an_argument_for_an_ip_adapter_is_refused() -> None:
    with pytest.raises(UserError, match=r"job\.call\.ip_adapter_image is for an IP adapter, and the runner loads none"):
        arguments_of(diffusers.FluxPipeline).check({"ip_adapter_image": "a.png"})
