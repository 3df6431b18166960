import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import vlkd
from vlkd.engine import hub
from vlkd.engine.bundle import save_bundle
from vlkd.engine.cli import main
from vlkd.engine.download import CHUNK, sha256
from vlkd.errors import UserError


class Server:
    """A file server on 127.0.0.1 that can break off, and that writes down the ranges asked for."""

    def __init__(self, content: bytes) -> None:
        self.content, self.ranges, self.break_after, self.knows_ranges = content, [], None, True  # type: ignore
        outer: Any = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path != "/toy.safetensors":
                    self.send_error(404)
                    return
                asked = self.headers.get("Range")
                outer.ranges.append(asked)
                first = int(asked.split("=")[1].rstrip("-")) if asked and outer.knows_ranges else 0
                body = outer.content[first:]
                if asked and outer.knows_ranges and not body:
                    self.send_error(416)
                    return
                self.send_response(206 if first else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: outer.break_after])

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    card = {"kind": "other", "name": "toy", "architecture": {}, "scores": {"miou": 0.5}}
    return save_bundle(tmp_path / "made" / "toy.safetensors", card, {"a": torch.randn(3 * CHUNK // 4)})


@pytest.fixture
def server(bundle: Path) -> Iterator[Server]:
    server = Server(bundle.read_bytes())
    yield server
    server.server.shutdown()
    server.server.server_close()


@pytest.fixture
def zoo(tmp_path: Path, bundle: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A zoo with one model at an address and one whose file lies in the zoo."""
    folder = tmp_path / "zoo"
    folder.mkdir()
    (folder / "near.safetensors").write_bytes(bundle.read_bytes())
    common = {"sha256": sha256(bundle), "licence": "Apache-2.0", "kind": "segmentor", "score": "0.5 mIoU"}
    models = [
        {"name": "far", "url": f"{server.address}/toy.safetensors", "size": bundle.stat().st_size, **common},
        {"name": "near", "file": "near.safetensors", **common},
    ]
    (folder / "manifest.yaml").write_text(yaml.safe_dump({"models": models}))
    monkeypatch.setenv("VLKD_ZOO", str(folder))
    monkeypatch.setenv("VLKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("VLKD_MIRROR", raising=False)
    monkeypatch.delenv("VLKD_OFFLINE", raising=False)
    return folder


def test_resolve_takes_files_and_names(zoo: Path, bundle: Path, server: Server) -> None:
    assert hub.resolve(bundle) == bundle
    assert hub.resolve("near") == zoo / "near.safetensors"
    far = hub.resolve("far")
    assert far.read_bytes() == bundle.read_bytes()
    assert hub.resolve("far") == far
    assert server.ranges == [None]  # fetched once
    assert vlkd.list_models() == ["far", "near"]


def test_unknown_names(zoo: Path) -> None:
    with pytest.raises(UserError, match="did you mean near"):
        hub.resolve("neer")
    with pytest.raises(UserError, match="no such file"):
        hub.resolve("some/where.safetensors")


def test_interrupted_download_goes_on_where_it_stopped(zoo: Path, bundle: Path, server: Server) -> None:
    server.break_after = 2 * CHUNK
    with pytest.raises(UserError, match="broke off"):
        hub.resolve("far")
    (part,) = (zoo.parent / "cache").rglob("*.part")
    assert part.stat().st_size == 2 * CHUNK
    server.break_after = None
    assert hub.resolve("far").read_bytes() == bundle.read_bytes()
    assert server.ranges == [None, f"bytes={2 * CHUNK}-"]
    assert not part.exists()


def test_server_without_ranges_starts_over(zoo: Path, bundle: Path, server: Server) -> None:
    server.break_after = CHUNK
    with pytest.raises(UserError, match="broke off"):
        hub.resolve("far")
    server.break_after, server.knows_ranges = None, False
    assert hub.resolve("far").read_bytes() == bundle.read_bytes()


def test_wrong_content_is_refused_and_not_kept(zoo: Path, bundle: Path, server: Server) -> None:
    server.content = bytes(len(server.content))
    with pytest.raises(UserError, match=r"expected .*; the file was refused"):
        hub.resolve("far")
    assert not [path for path in (zoo.parent / "cache").rglob("*") if path.is_file()]


def test_unreachable_address_is_one_line(zoo: Path, server: Server) -> None:
    server.server.shutdown()
    server.server.server_close()
    with pytest.raises(UserError, match=r"toy\.safetensors: download broke off") as problem:
        hub.resolve("far")
    assert "\n" not in str(problem.value)


@pytest.mark.parametrize("kind", ["folder", "address"])
def test_mirror_replaces_the_address(
    zoo: Path, bundle: Path, server: Server, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    manifest = (zoo / "manifest.yaml").read_text()
    (zoo / "manifest.yaml").write_text(manifest.replace(server.address, "http://127.0.0.1:9"))
    monkeypatch.setenv("VLKD_MIRROR", str(bundle.parent) if kind == "folder" else f"{server.address}/")
    assert hub.resolve("far").read_bytes() == bundle.read_bytes()


def test_mirror_without_the_file(zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLKD_MIRROR", str(tmp_path))
    with pytest.raises(UserError, match=r"toy\.safetensors: cannot be copied: No such file"):
        hub.resolve("far")


def test_offline_says_where_to_place_the_file(
    zoo: Path, bundle: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLKD_OFFLINE", "1")
    with pytest.raises(UserError, match="VLKD_OFFLINE is set; place the file at ") as problem:
        hub.resolve("far")
    place = Path(str(problem.value).rsplit(" ", 1)[-1])
    place.parent.mkdir(parents=True)
    place.write_bytes(bundle.read_bytes())
    assert hub.resolve("far") == place
    assert server.ranges == []


def test_damaged_zoo_file_is_refused(zoo: Path) -> None:
    damaged = bytearray((zoo / "near.safetensors").read_bytes())
    damaged[-1] ^= 1
    (zoo / "near.safetensors").write_bytes(damaged)
    with pytest.raises(UserError, match=r"near\.safetensors: sha256 is .* for near"):
        hub.resolve("near")


def test_manifest_errors(zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (zoo / "manifest.yaml").write_text("models: [{name: a, sha256: x, licence: l, kind: k, colour: red}]")
    with pytest.raises(UserError, match=r"manifest\.yaml: .*colour"):
        hub.list_models()
    (zoo / "manifest.yaml").write_text("models: [{name: a, sha256: x, licence: l, kind: k}]")
    with pytest.raises(UserError, match="neither file nor url"):
        hub.list_models()
    monkeypatch.setenv("VLKD_ZOO", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="set VLKD_ZOO"):
        hub.list_models()


def test_load_refuses_kinds_it_does_not_know(bundle: Path) -> None:
    with pytest.raises(UserError, match="kind 'other'"):
        vlkd.load(str(bundle))


def test_the_shipped_zoo_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLKD_ZOO", raising=False)
    shelf = hub.Zoo.open()
    for entry in shelf.entries.values():
        assert entry.licence and entry.score and entry.command, entry.name
        if entry.file:
            shelf.get(entry)


def test_zoo_commands(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zoo", "list"]) == 0
    assert "near" in capsys.readouterr().out
    assert main(["zoo", "show", "near"]) == 0
    shown = capsys.readouterr().out
    assert "Apache-2.0" in shown and "miou" in shown
    assert main(["zoo", "verify"]) == 0  # "far" need not be here yet
    assert "near: good" in capsys.readouterr().out
    assert main(["zoo", "download", "far"]) == 0
    assert "toy.safetensors" in capsys.readouterr().out
    (zoo / "near.safetensors").write_bytes(b"rubbish")
    assert main(["zoo", "verify"]) == 1
    out = capsys.readouterr().out
    assert "far: good" in out and "near.safetensors: sha256" in out
    assert main(["zoo", "show", "nothing-like-it"]) == 2
    assert "the zoo has: far, near" in capsys.readouterr().err
