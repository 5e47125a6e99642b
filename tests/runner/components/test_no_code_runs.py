"""Code from a model directory never runs, and nothing is asked for: what needs it is refused by name."""

import builtins
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import pytest
import torch
from transformers import CLIPImageProcessor, CLIPProcessor, PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM

from runner.components.directory import read_directory
from runner.components.skeleton import skeleton
from runner.components.source import Source
from runner.components.whole import from_pretrained, load_whole
from runner.errors import UserError
from tests import tiny
from tests.tiny.tokenizers import clip_tokenizer, qwen2_tokenizer


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], bool]:
    """Whether code of a model was run; any question is answered with yes, as `yes |` does."""
    monkeypatch.setattr(builtins, "input", lambda *_: "y")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    return lambda: (tmp_path / "ran").exists()


def code(root: Path, body: str = "class Mine: pass") -> str:
    return f"from pathlib import Path\nPath({str(root / 'ran')!r}).touch()\n{body}\n"


def a_processor(folder: Path, marker: Path) -> None:
    """Whose tokenizer is of a class of its own."""
    CLIPProcessor(CLIPImageProcessor(), clip_tokenizer()).save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text()) | {
        "tokenizer_class": "Mine",
        "auto_map": {"AutoTokenizer": ["mine.Mine", None]},
    }
    file.write_text(json.dumps(config))
    body = "from transformers import CLIPTokenizer\nclass Mine(CLIPTokenizer): pass"
    (folder / "mine.py").write_text(code(marker, body))


def test_a_class_that_the_directory_brings_is_refused_without_a_question(
    tmp_path: Path, ran: Callable[[], bool]
) -> None:
    a_processor(tmp_path / "processor", tmp_path)
    with pytest.raises(UserError, match=r"processor cannot be loaded.*custom code.*is never run here") as raised:
        from_pretrained(Source("processor", CLIPProcessor, tmp_path / "processor"))
    assert "trust_remote_code" not in str(raised.value) and "\n" not in str(raised.value)
    assert not ran()
    CLIPProcessor.from_pretrained(tmp_path / "processor")
    assert ran(), "the library alone runs it when asked like that"


def test_a_class_of_the_library_needs_no_code_and_gets_none(tmp_path: Path, ran: Callable[[], bool]) -> None:
    """transformers loads it as it is, whatever the config says of other classes; so do we."""
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    Qwen2ForCausalLM(Qwen2Config(**sizes, num_key_value_heads=1, vocab_size=11)).save_pretrained(tmp_path / "encoder")
    file = tmp_path / "encoder" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"auto_map": {"AutoModel": "mine.Mine"}}))
    (tmp_path / "encoder" / "mine.py").write_text(code(tmp_path))
    (tmp_path / "encoder" / "custom_generate").mkdir()
    (tmp_path / "encoder" / "custom_generate" / "generate.py").write_text(code(tmp_path, "def generate(): pass"))
    source = Source("encoder", Qwen2ForCausalLM, tmp_path / "encoder")
    load_whole(source, torch.float32)
    skeleton(source, torch.float32)
    assert not ran()


@pytest.mark.parametrize(
    ("entries", "file", "message"),
    [
        ({"_class_name": ["pipeline", "Mine"]}, "pipeline.py", r"is a pipeline of the directory's own.*never run"),
        ({"_class_name": "pipeline"}, "pipeline.py", r"'pipeline' is no pipeline of diffusers"),
        (
            {"vae": ["mine", "Mine"]},
            "vae/mine.py",
            r"vae is a mine Mine, .*vae/mine\.py, and code of a model is never run",
        ),
        ({"vae": ["tests.tiny", "Mine"]}, "vae/mine.py", r"vae is a tests\.tiny Mine, which no library here provides"),
    ],
)
def test_pipelines_and_components_of_its_own_are_refused(
    tiny_root: Path, tmp_path: Path, ran: Callable[[], bool], entries: dict[str, Any], file: str, message: str
) -> None:
    root = Path(shutil.copytree(tiny.build("pixart", tiny_root), tmp_path / "m"))
    listed = json.loads((root / "model_index.json").read_text())
    (root / "model_index.json").write_text(json.dumps(listed | entries))
    (root / file).write_text(code(tmp_path))
    with pytest.raises(UserError, match=message):
        read_directory(root)
    assert not ran()


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ messages.__init__.__globals__ }}",
        "{% include '/etc/passwd' %}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    ],
)
def test_chat_templates_run_in_the_librarys_sandbox(tmp_path: Path, template: str) -> None:
    qwen2_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(template)
    tokenizer: PreTrainedTokenizerBase = from_pretrained(Source("tokenizer", type(qwen2_tokenizer()), tmp_path))
    assert tokenizer.chat_template == template
    with pytest.raises((jinja2.exceptions.TemplateError, TypeError)) as raised:
        tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    assert isinstance(raised.value, jinja2.exceptions.SecurityError) or "loader" in str(raised.value)
