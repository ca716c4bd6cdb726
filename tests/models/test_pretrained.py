import http.server
import socket
import threading
import time

import pytest
import torch

from limbeck.core.errors import ModelError
from limbeck.models import pretrained
from limbeck.models.pretrained import (
    check_reachable,
    hub_offline,
    hub_snapshot_file,
    torch_hub_file,
)


@pytest.fixture(autouse=True)
def direct(monkeypatch):
    """No proxy between a test and its own server."""
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def serve():
    """A host that sends some bytes, or none, to whoever comes."""
    open_ones = []

    def start(answer):
        listening = socket.create_server(("127.0.0.1", 0))
        open_ones.append(listening)

        def work():
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            open_ones.append(connection)
            if answer is not None:
                connection.recv(4096)
                connection.sendall(answer)
                connection.close()

        threading.Thread(target=work, daemon=True).start()
        return f"http://127.0.0.1:{listening.getsockname()[1]}/weights.pth"

    yield start
    for each in open_ones:
        each.close()


def ask(address, **given):
    check_reachable(address, wanted="the weights of 'it'", remedy="Copy them.", **given)


@pytest.mark.parametrize("status", [200, 403, 404, 500])
def test_an_answer_of_any_kind_is_an_answer(serve, status):
    reason = http.HTTPStatus(status).phrase
    ask(serve(f"HTTP/1.1 {status} {reason}\r\nContent-Length: 0\r\n\r\n".encode()))


def refused():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}/weights.pth"


def test_nobody_there_is_told_with_what_to_do():
    with pytest.raises(ModelError) as caught:
        ask(refused())
    message = str(caught.value)
    assert "the cache of this machine lacks the weights of 'it', and 127.0.0.1:" in message
    assert message.endswith("refused). Copy them.")


def test_a_host_that_speaks_another_language_is_not_reached(serve):
    """An exception in the thread that asks would be pytest's warning, and so an error."""
    with pytest.raises(ModelError, match="cannot be asked"):
        ask(serve(b"SSH-2.0-OpenSSH_9.9\r\n"))


def test_an_address_that_is_none_is_not_reached():
    with pytest.raises(ModelError, match="cannot be asked"):
        ask("no address")


def test_a_host_that_says_nothing_is_waited_for_shortly(serve, monkeypatch):
    assert pretrained._SECONDS + 0.5 < 5
    monkeypatch.setattr(pretrained, "_SECONDS", 0.1)
    start = time.monotonic()
    with pytest.raises(ModelError, match=r"timed out|no answer"):
        ask(serve(None))
    assert time.monotonic() - start < 2


def test_a_name_that_is_looked_up_for_minutes_is_waited_for_shortly(monkeypatch):
    over = threading.Event()

    def slow(*args, **kwargs):
        over.wait(60)
        raise socket.gaierror("not found")

    monkeypatch.setattr(pretrained, "_SECONDS", 0.1)
    monkeypatch.setattr(socket, "getaddrinfo", slow)
    start = time.monotonic()
    with pytest.raises(ModelError, match="no answer"):
        ask("http://weights.example/it")
    over.set()
    assert time.monotonic() - start < 3


@pytest.mark.parametrize("value", ["1", "true", "YES", "on"])
def test_a_user_who_forbids_the_hub_is_obeyed(monkeypatch, value):
    monkeypatch.setattr(pretrained, "_unreachable", lambda address: pytest.fail("asked"))
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert hub_offline()
    with pytest.raises(ModelError, match="cannot be asked \\(HF_HUB_OFFLINE is set\\)"):
        ask("https://huggingface.co", forbidden=hub_offline())


@pytest.mark.parametrize("value", ["", "0", "no"])
def test_the_hub_is_allowed_unless_it_is_forbidden(monkeypatch, value):
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert not hub_offline()


def test_torchs_own_cache_is_looked_at_by_the_files_name(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    address = "https://download.example/models/net-0123abcd.pth?download=1"
    assert torch_hub_file(address) is None
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save({}, folder / "net-0123abcd.pth")
    assert torch_hub_file(address) == folder / "net-0123abcd.pth"


def test_the_hubs_cache_gives_the_best_file_of_the_revision_asked_for(monkeypatch, tmp_path):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    names = ("model.safetensors", "pytorch_model.bin")
    assert hub_snapshot_file("owner/net", names) is None
    home = tmp_path / "models--owner--net"
    for revision, commit, held in [("main", "a1", names[1]), ("v2", "b2", names[0])]:
        (home / "refs").mkdir(parents=True, exist_ok=True)
        (home / "refs" / revision).write_text(commit)
        (home / "snapshots" / commit).mkdir(parents=True)
        (home / "snapshots" / commit / held).write_bytes(b"")
    assert hub_snapshot_file("owner/net", names) == home / "snapshots" / "a1" / names[1]
    assert hub_snapshot_file("owner/net@v2", names) == home / "snapshots" / "b2" / names[0]
    assert hub_snapshot_file("owner/net@v3", names) is None
    (home / "snapshots" / "a1" / names[0]).write_bytes(b"")
    assert hub_snapshot_file("owner/net", names) == home / "snapshots" / "a1" / names[0]
