"""The tiny model of tests/golden/chat with room for long prompts, and chat templates that write calls of tools."""
import json
import pathlib
import tempfile

from openai_client_test import ROOT, Served

TEMPLATES = ROOT / "tests" / "chat" / "templates"


class TinyModel:
    """A folder with the tiny model whose context is 4,096 tokens; deleted with close()."""

    def __init__(self):
        self.folder = tempfile.TemporaryDirectory()
        self.path = pathlib.Path(self.folder.name) / "tiny"
        self.path.mkdir()
        source = ROOT / "tests" / "golden" / "chat"
        for file in source.iterdir():
            if file.name != "config.json":
                (self.path / file.name).symlink_to(file)
        config = json.loads((source / "config.json").read_text())
        config["max_position_embeddings"] = 4096
        (self.path / "config.json").write_text(json.dumps(config))

    def serve(self, *flags, template=None):
        if template:
            flags = (*flags, "--chat-template-file", str(TEMPLATES / f"{template}.jinja"))
        return Served("-np", "8", *flags, model=str(self.path), context=4096)

    def close(self):
        self.folder.cleanup()
