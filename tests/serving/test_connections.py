"""Clients outside of a test bench: proxies, certificates, tokens, IPv6, servers that move, event loops, forks."""

import asyncio
import contextlib
import pickle
import socket
import ssl
import subprocess
import sys
import textwrap
import threading
import time

import grpc
import numpy as np
import pytest
from serving_stubs import (
    LOGIN,
    answer_of,
    make_certificate,
    name_server,
    recommender,
    rest_answer,
    web_server,
)

from tfrec_serving import AsyncClient, Client, ServingError, channels, messages, rest_transport
from tfrec_serving.load import ServerProcess, load_test, recommend_requests

CODES = grpc.StatusCode
JSON = "application/json"


def ask(address, **options):
    """The one item that a `Client` is recommended."""
    with Client(address, **options) as client:
        return client.recommend(["x"])[0].item_id


async def ask_async(address, **options):
    async with AsyncClient(address, **options) as client:
        return (await client.recommend(["x"]))[0].item_id


def refused(address, **options):
    """The `ServingError` that both clients raise."""
    options = {"timeout": 5} | options
    errors = []
    for call in (lambda: ask(address, **options), lambda: asyncio.run(ask_async(address, **options))):
        with pytest.raises(ServingError) as error:
            call()
        errors.append(error.value)
    assert errors[0].code is errors[1].code
    return errors[0]


@pytest.fixture
def proxy(monkeypatch):
    """A proxy that the environment names, and which refuses everything."""
    with web_server() as server:
        for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
            monkeypatch.delenv(name, raising=False)
        for name in ("http_proxy", "https_proxy", "grpc_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{server.server_port}")
        yield server


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="module")
def stub():
    with recommender() as stub:
        yield stub


# proxies


def test_no_proxy_stands_before_this_machine(proxy, stub, tmp_path):
    for host in ("127.0.0.1", "localhost", "ipv4:127.0.0.1", "dns:///localhost", "grpc://localhost"):
        assert ask(f"{host}:{stub.port}") == asyncio.run(ask_async(f"{host}:{stub.port}")) == "a"
    assert ask(f"localhost:{stub.port},127.0.0.1:{stub.port}") == "a"
    with recommender("unix", f"unix:{tmp_path}/s") as _:
        assert ask(f"unix:{tmp_path}/s") == "unix"
    with web_server(200, rest_answer(), JSON) as rest:
        assert ask(f"http://localhost:{rest.server_port}") == "a"
        assert asyncio.run(ask_async(f"http://127.0.0.1:{rest.server_port}")) == "a"
    requests = recommend_requests(["x"], 1, number=1)
    assert load_test(f"localhost:{stub.port}", requests, clients=1, seconds=0.05).rate > 0
    assert refused("no-such-host-here:1").code is CODES.UNAVAILABLE
    assert proxy.seen == []


def test_the_metrics_of_a_load_test_are_read_without_a_proxy(proxy):
    text = b'runtime_latency_count{model="m"} 4\nruntime_latency_sum{model="m"} 8000\n'
    with web_server(200, text, "text/plain") as server:
        address = f"127.0.0.1:{server.server_port}"
        assert ServerProcess(None, "", address)._totals() == (4, 8)
    assert proxy.seen == []


def test_other_hosts_are_reached_through_the_proxy_as_grpc_does(proxy, stub, monkeypatch):
    error = refused("model.example.com:8500")
    assert error.code is CODES.UNAVAILABLE
    assert "HTTP proxy returned response code 403 A proxy of the environment answered: `no_proxy`" in str(error)
    assert proxy.seen[0][0] == "CONNECT model.example.com:8500"
    proxy.seen.clear()
    proxy.tunnel = stub.port
    assert ask("model.example.com:8500") == "a"
    assert {line for line, _ in proxy.seen} == {"CONNECT model.example.com:8500"}
    proxy.seen.clear()
    monkeypatch.setenv("no_proxy", "example.com,localhost")
    assert "proxy" not in str(refused("model.example.com:8500"))
    assert proxy.seen == []


def test_a_proxy_that_answers_for_the_server_is_named(proxy):
    error = refused("http://model.example.com:8501")
    assert error.code is CODES.PERMISSION_DENIED
    assert "http://model.example.com:8501/v1/models/default:predict did not answer as a model server" in str(error)
    assert "HTTP 403, text/html: 'Login Please sign in'. Is the address right, or does a proxy" in str(error)
    assert proxy.seen[0][0] == "POST http://model.example.com:8501/v1/models/default:predict"


# foreign answers


@pytest.mark.parametrize(
    ("answer", "code", "message"),
    [
        ((200, LOGIN, "text/html"), CODES.UNKNOWN, "HTTP 200, text/html: 'Login Please sign in'"),
        ((302, b"", "text/html", "https://login.example.com/"), CODES.UNKNOWN, "sends to https://login.example.com/"),
        ((502, LOGIN, "text/html"), CODES.UNAVAILABLE, "HTTP 502, text/html"),
        ((401, b'{"message": "No token"}', JSON), CODES.UNAUTHENTICATED, "HTTP 401, application/json: '{\"message\""),
        ((407, b"", "text/plain"), CODES.UNAUTHENTICATED, "HTTP 407"),
        ((404, LOGIN, "text/html"), CODES.NOT_FOUND, "HTTP 404"),
        ((500, b"\xff", "text/plain"), CODES.INTERNAL, "HTTP 500"),
        ((200, b"[1]", JSON), CODES.UNKNOWN, "did not answer as a model server"),
        ((200, b"", JSON), CODES.UNKNOWN, "did not answer as a model server"),
        ((200, b'{"outputs": {"item_ids": [[null]], "scores": [[1]]}}', JSON), CODES.UNKNOWN, "The answer cannot be read"),
        ((200, b'{"outputs": {"scores": [["x"]]}}', JSON), CODES.UNKNOWN, "The answer cannot be read"),
        ((200, b'{"outputs": {"other": [[1]]}}', JSON), CODES.UNKNOWN, "`recommend` of this model does not answer as a rec"),
        ((200, b'{"outputs": {"item_ids": [["a"]], "scores": [[1, 2]]}}', JSON), CODES.UNKNOWN, "does not answer as a rec"),
        ((400, b'{"error": "Bad id"}', JSON), CODES.INVALID_ARGUMENT, "INVALID_ARGUMENT: Bad id"),
    ],
)  # fmt: skip
def test_every_answer_over_rest_is_an_answer_or_a_serving_error(answer, code, message):
    with web_server(*answer) as server:
        error = refused(f"http://127.0.0.1:{server.server_port}")
        assert error.code is code
        assert message in str(error)
        assert len(server.seen) == (8 if code is CODES.UNAVAILABLE else 2)  # both clients
        if b"outputs" not in answer[1]:
            with Client(f"http://127.0.0.1:{server.server_port}") as client, pytest.raises(ServingError):
                client.wait_until_ready(0.1)


def test_a_redirect_is_not_followed_with_the_token():
    with web_server(200, rest_answer(), JSON) as other, web_server(307, b"", "text/html", "") as server:
        server.place = f"http://127.0.0.1:{other.server_port}/"
        refused(f"http://127.0.0.1:{server.server_port}", metadata={"authorization": "Bearer secret"})
        assert other.seen == []


@pytest.mark.parametrize("said", [b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{"])
def test_garbage_and_hanging_up_are_serving_errors(said):
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    client, _ = listening.accept()
                    with client:
                        client.recv(1 << 16)
                        client.sendall(said)

        threading.Thread(target=serve, daemon=True).start()
        for scheme in ("http://", "grpc://"):
            error = refused(f"{scheme}127.0.0.1:{listening.getsockname()[1]}", timeout=2)
            assert error.code in (CODES.UNAVAILABLE, CODES.UNKNOWN, CODES.DEADLINE_EXCEEDED)


def test_an_answer_that_is_too_large_or_never_ends_is_a_serving_error(monkeypatch):
    with web_server(200, rest_answer(), JSON) as server:
        monkeypatch.setattr(rest_transport, "MAX_BYTES", 20)
        assert "UNKNOWN: The answer has more than 20 bytes" in str(refused(f"http://127.0.0.1:{server.server_port}"))
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def drip():
            with contextlib.suppress(OSError), listening.accept()[0] as client:
                client.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n")
                for _ in range(60):
                    client.sendall(b" ")
                    time.sleep(0.05)

        threading.Thread(target=drip, daemon=True).start()
        begin = time.monotonic()
        with pytest.raises(ServingError, match="DEADLINE_EXCEEDED: The deadline was over before an answer came"):
            ask(f"http://127.0.0.1:{listening.getsockname()[1]}", timeout=0.3)
        assert time.monotonic() - begin < 2


def test_grpc_at_a_rest_port_says_what_to_write():
    with web_server() as server:
        error = refused(f"127.0.0.1:{server.server_port}")
    assert error.code is CODES.UNAVAILABLE
    assert "No gRPC is spoken there: write http:// for REST, grpcs:// for gRPC with TLS." in str(error)


@pytest.mark.parametrize("answer", [b"\xff\xff", b"", answer_of("a")[:-3]])
def test_foreign_answers_over_grpc_are_serving_errors(answer):
    with recommender(answer=answer) as stub:
        error = refused(f"127.0.0.1:{stub.port}")
        assert error.code in (CODES.UNKNOWN, CODES.INTERNAL)
        asked = pytest.raises(ServingError, match="The answer is no message of TensorFlow Serving|does not answer as a")
        with asked:
            asyncio.run(ask_async(f"127.0.0.1:{stub.port}"))
    half = messages.PredictResponse()
    half.outputs.add(key="item_ids").value.dtype = 19  # half
    with recommender(answer=half.SerializeToString()) as stub:
        assert "The answer cannot be read" in str(refused(f"127.0.0.1:{stub.port}"))


def test_a_closed_client_says_so(stub):
    for address in (f"127.0.0.1:{stub.port}", "http://127.0.0.1:9"):
        client = Client(address)
        client.close()
        client.close()
        with pytest.raises(ServingError, match="FAILED_PRECONDITION: The client is closed: make another one"):
            client.recommend(["x"])
        with pytest.raises(ServingError, match="The client is closed"):
            client.wait_until_ready()

        async def later(address=address):
            other = AsyncClient(address)
            await other.close()
            with pytest.raises(ServingError, match="The client is closed"):
                await other.recommend(["x"])
            with pytest.raises(ServingError, match="The client is closed"):
                await other.wait_until_ready()

        asyncio.run(later())


def test_a_channel_that_is_closed_during_a_call_is_a_serving_error(stub):
    client = Client(f"127.0.0.1:{stub.port}")
    client.recommend(["x"])
    client._places[0].channel.close()
    for call in (lambda: client.recommend(["x"]), lambda: client.wait_until_ready(1)):
        with pytest.raises(ServingError, match="FAILED_PRECONDITION: Cannot invoke RPC on closed channel"):
            call()

    async def later():
        async with AsyncClient(f"127.0.0.1:{stub.port}") as other:
            await other.recommend(["x"])
            await other._connected()[0].channel.close()
            for call in (other.recommend(["x"]), other.wait_until_ready(1)):
                with pytest.raises(ServingError, match="FAILED_PRECONDITION: Channel is closed"):
                    await call

    asyncio.run(later())


# TLS


def test_tls_over_grpc(certificate, stub):
    cert, key = certificate
    own = [(key.read_bytes(), cert.read_bytes())]
    with recommender("tls", credentials=grpc.ssl_server_credentials(own)) as server:
        for ca in (cert, str(cert), cert.read_bytes(), cert.read_text()):
            assert ask(f"grpcs://localhost:{server.port}", ca=ca) == "tls"
        assert ask(f"127.0.0.1:{server.port}", ca=cert) == "tls"  # naming the authorities turns it on
        assert ask(f"grpcs://127.0.0.1:9,grpcs://127.0.0.1:{server.port}", ca=cert) == "tls"
        assert asyncio.run(ask_async(f"grpcs://localhost:{server.port}", ca=cert)) == "tls"
        requests = recommend_requests(["x"], 1, number=1)
        assert load_test(f"grpcs://localhost:{server.port}", requests, clients=1, seconds=0.05, ca=cert).rate > 0
        error = refused(f"grpcs://127.0.0.1:{server.port}")  # signed by nobody whom the usual authorities know
        assert error.code is CODES.UNAVAILABLE
        assert "CERTIFICATE_VERIFY_FAILED" in str(error)
        assert refused(f"127.0.0.1:{server.port}").code is CODES.UNAVAILABLE  # without TLS
    assert "write grpc:// for gRPC without it" in str(refused(f"grpcs://127.0.0.1:{stub.port}", ca=cert))


def test_a_client_certificate(certificate):
    cert, key = certificate
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), cert.read_bytes())], cert.read_bytes(), True)
    with recommender("mutual", credentials=credentials) as server:
        address = f"grpcs://localhost:{server.port}"
        assert ask(address, ca=cert, certificate=cert, key=key) == "mutual"
        assert refused(address, ca=cert).code is CODES.UNAVAILABLE


def test_tls_over_rest(certificate):
    cert, key = certificate
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    context.load_verify_locations(cert)
    context.verify_mode = ssl.CERT_REQUIRED
    with web_server(200, rest_answer("tls"), JSON, context=context) as server:
        address = f"https://localhost:{server.server_port}"
        own = {"certificate": cert.read_bytes(), "key": key.read_text()}
        assert ask(address, ca=cert, **own) == "tls"
        assert ask(f"https://127.0.0.1:9,{address}", ca=cert, **own) == "tls"
        assert asyncio.run(ask_async(address, ca=cert, **own)) == "tls"
        error = refused(address)
        assert error.code is CODES.UNAVAILABLE
        assert "CERTIFICATE_VERIFY_FAILED" in str(error)


def test_wrong_certificates_are_refused_where_the_client_is_made(certificate, tmp_path):
    cert, key = certificate
    other = make_certificate(tmp_path)[1]
    locked = "-----BEGIN ENCRYPTED PRIVATE KEY-----\n"
    for options, message in (
        ({"ca": tmp_path / "none.pem"}, "`ca` cannot be read: .*none.pem"),
        ({"ca": b"no PEM"}, "`ca` cannot be used: .*PEM is expected"),
        ({"ca": b"\xff"}, "`ca` cannot be used: .*codec"),
        ({"certificate": cert}, "`certificate` and `key` go together. Received only `certificate`"),
        ({"key": key}, "Received only `key`"),
        ({"certificate": cert, "key": other}, "`certificate` and `key` cannot be used: .*(?i:mismatch)"),
        ({"certificate": cert, "key": locked}, "the key has a password; give one without"),
        ({"certificate": b"", "key": key}, "`certificate` and `key` cannot be used"),
    ):
        for kind in (Client, AsyncClient):
            with pytest.raises(ValueError, match=message):
                kind("localhost:1", **options)
    with pytest.raises(TypeError, match="`ca` is the path of a PEM file, or its contents. Received: 5"):
        Client("localhost:1", ca=5)
    for scheme in ("grpc", "http"):
        with pytest.raises(ValueError, match=f"{scheme}:// has no certificates. .* write {scheme}s://"):
            Client(f"{scheme}://localhost:1", ca=cert)


# metadata


def test_metadata_goes_with_every_call(stub):
    token = {"Authorization": "Bearer abc", "x-trace-bin": b"\0\xff"}
    stub.metadata.clear()
    assert ask(f"127.0.0.1:{stub.port}", metadata=token) == "a"
    with Client(f"127.0.0.1:{stub.port},localhost:{stub.port}", metadata=token) as client:
        client.wait_until_ready()
        client.recommend(["x"])
    assert asyncio.run(ask_async(f"127.0.0.1:{stub.port}", metadata=token)) == "a"
    load_test(f"127.0.0.1:{stub.port}", [b""], clients=1, seconds=0.02, metadata=token)
    load_test(f"127.0.0.1:{stub.port}", [b""], rate=100, seconds=0.05, metadata=token)
    assert len(stub.metadata) >= 6
    assert all(m["authorization"] == "Bearer abc" and m["x-trace-bin"] == b"\0\xff" for m in stub.metadata)
    with web_server(200, rest_answer(), JSON) as server:
        assert ask(f"http://127.0.0.1:{server.server_port}", metadata=token) == "a"
        (_, headers) = server.seen[0]
    headers = {name.lower(): value for name, value in headers.items()}
    assert (headers["authorization"], headers["content-type"]) == ("Bearer abc", JSON)


def test_a_token_that_changes(stub):
    tokens = iter("abcdef")

    def fresh():
        return {"authorization": f"Bearer {next(tokens)}"}

    async def later():
        return fresh()

    stub.metadata.clear()
    with Client(f"127.0.0.1:{stub.port}", metadata=fresh) as client:
        client.recommend(["x"])
        client.recommend(["x"])
    asyncio.run(ask_async(f"127.0.0.1:{stub.port}", metadata=fresh))
    asyncio.run(ask_async(f"127.0.0.1:{stub.port}", metadata=later))
    assert [m["authorization"] for m in stub.metadata] == ["Bearer a", "Bearer b", "Bearer c", "Bearer d"]


@pytest.mark.parametrize(
    ("metadata", "error", "message"),
    [
        ({"a b": "c"}, ValueError, "A name in `metadata` has letters, digits, - _ and . only. Received: 'a b'"),
        ({5: "c"}, ValueError, "Received: 5"),
        ({"grpc-timeout": "1"}, ValueError, "Received: 'grpc-timeout'"),
        ({"a": "b\r\nc: d"}, ValueError, "has a character that is not printable ASCII"),
        ({"a": "é"}, ValueError, "has a character that is not printable ASCII"),
        ({"a": b"c"}, TypeError, r"`metadata\['a'\]` must be text. Received: bytes"),
        ({"a-bin": "c"}, TypeError, "must be bytes. Received: str"),
        ({"a": None}, TypeError, "must be text. Received: NoneType"),
        (5, TypeError, "`metadata` is a dict, or a function that returns one. Received: int"),
    ],
)
def test_wrong_metadata_is_refused_without_its_value(metadata, error, message):
    with pytest.raises(error, match=message):
        Client("localhost:1", metadata=metadata)
    if not callable(metadata):
        with pytest.raises(error, match=message):
            ask("localhost:1", metadata=lambda: metadata)


# IPv6, several addresses, servers that move


def test_ipv6(proxy):
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            pass
    except OSError:
        pytest.skip("no IPv6 here")
    with recommender("six", "[::1]:0") as server, recommender("four") as other:
        assert ask(f"[::1]:{server.port}") == asyncio.run(ask_async(f"[::1]:{server.port}")) == "six"
        with Client(f"[::1]:{server.port},127.0.0.1:{other.port}") as client:
            assert {client.recommend(["x"])[0].item_id for _ in range(4)} == {"six", "four"}
    with web_server(200, rest_answer("rest"), JSON, host="::1") as server:
        assert ask(f"http://[::1]:{server.server_port}") == "rest"
    assert proxy.seen == []


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_addresses_take_turns_and_one_that_is_not_there_is_passed_over(kind, monkeypatch):
    monkeypatch.setattr(channels, "CONNECT_MILLISECONDS", 400)
    with recommender("a") as one, recommender("b") as two, socket.create_server(("127.0.0.1", 0)) as silent:
        lost = f"no-such-host.invalid:1,127.0.0.1:9,127.0.0.1:{silent.getsockname()[1]}"

        async def several(address):
            client = kind(address)
            found = []
            for _ in range(8):
                answer = client.recommend(["x"])
                found.append((await answer if kind is AsyncClient else answer)[0].item_id)
            closing = client.close()
            if kind is AsyncClient:
                await closing
            return found

        assert asyncio.run(several(f"127.0.0.1:{one.port},127.0.0.1:{two.port}")) == ["a", "b"] * 4
        assert set(asyncio.run(several(f"{lost},127.0.0.1:{one.port},127.0.0.1:{two.port}"))) == {"a", "b"}
    error = refused("no-such-host.invalid:1,127.0.0.1:9", timeout=2)
    assert error.code is CODES.UNAVAILABLE


def test_over_rest_one_that_is_not_there_is_passed_over(monkeypatch):
    monkeypatch.setattr(rest_transport, "CONNECT_SECONDS", 0.4)
    with web_server(200, rest_answer(), JSON) as server, socket.create_server(("127.0.0.1", 0), backlog=0) as silent:
        address = f"http://127.0.0.1:{server.server_port}"
        with Client(f"http://no-such-host.invalid:1,http://127.0.0.1:9,{address}") as client:
            assert [client.recommend(["x"])[0].item_id for _ in range(4)] == ["a"] * 4
        port = silent.getsockname()[1]
        with contextlib.ExitStack() as stack:  # a full queue: connecting takes for ever
            for _ in range(3):
                full = stack.enter_context(socket.socket())
                full.setblocking(False)
                full.connect_ex(("127.0.0.1", port))
            assert ask(f"http://127.0.0.1:{port},{address}") == "a"
    assert "http://no-such-host.invalid:1/v1/models/default:predict cannot be asked" in str(
        refused("http://no-such-host.invalid:1", timeout=1)
    )
    assert "is no name of a host" in str(refused(f"http://{'a' * 70}.example:1"))


def test_a_name_that_moves_is_looked_up_again():
    where = {"model.example.test": "127.0.0.2"}
    with contextlib.ExitStack() as stack, name_server(where) as port:
        first = contextlib.ExitStack()
        server = first.enter_context(recommender("old", "127.0.0.2:0"))
        stack.enter_context(recommender("new", f"127.0.0.3:{server.port}"))
        address = f"dns://127.0.0.1:{port}/model.example.test:{server.port}"
        alone, several = Client(address), Client(f"{address},127.0.0.1:9")
        assert [c.recommend(["x"])[0].item_id for c in (alone, several)] == ["old", "old"]
        where["model.example.test"] = "127.0.0.3"
        first.close()
        for client in (alone, several):
            client.wait_until_ready(8)
            assert client.recommend(["x"])[0].item_id == "new"
            client.close()


def test_waiting_for_a_server_that_comes_later(stub):
    with recommender() as later:
        port = later.port
    for address in (f"127.0.0.1:{port}", f"127.0.0.1:{port},127.0.0.1:9", f"http://127.0.0.1:{port}"):
        with Client(address) as client:
            with pytest.raises(
                ServingError, match="DEADLINE_EXCEEDED: The model was not available in time. UNAVAILABLE"
            ):
                client.wait_until_ready(0.8)
            if "," in address:
                with recommender(address=f"127.0.0.1:{port}"):
                    client.wait_until_ready(10)

    async def wait():
        async with AsyncClient(f"127.0.0.1:{stub.port}") as client:
            await client.wait_until_ready()
        async with AsyncClient("127.0.0.1:9") as client:
            with pytest.raises(ServingError, match="The model was not available in time"):
                await client.wait_until_ready(0.2)

    asyncio.run(wait())


# event loops


def test_an_async_client_is_made_anywhere_and_used_in_any_loop(stub):
    client = AsyncClient(f"127.0.0.1:{stub.port}")  # no loop runs

    async def several(number):
        return [(await client.recommend(["x"]))[0].item_id for _ in range(number)]

    assert asyncio.run(several(2)) == asyncio.run(several(2)) == ["a", "a"]
    found = []
    threads = [threading.Thread(target=lambda: found.append(asyncio.run(several(20)))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == [["a"] * 20] * 3
    assert len(client._loops) <= 3  # those of loops that are closed are let go
    asyncio.run(client.close())

    async def together():
        async with AsyncClient(f"127.0.0.1:{stub.port}") as other:
            return await asyncio.gather(*(other.recommend([i]) for i in range(20)))

    assert len(asyncio.run(together())) == 20


def test_an_error_goes_from_a_worker_process_to_its_parent():
    """An exception that cannot be unpickled lets `multiprocessing.Pool` wait for ever."""
    error = pickle.loads(pickle.dumps(ServingError(CODES.NOT_FOUND, "No model.")))
    assert (error.code, str(error)) == (CODES.NOT_FOUND, "NOT_FOUND: No model.")


def test_a_cancelled_call_stays_cancelled(stub):
    async def cancel():
        async with AsyncClient("127.0.0.1:9,127.0.0.1:9") as client:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(client.wait_until_ready(), 0.2)

    asyncio.run(cancel())


# forks

FORK = """
import asyncio, multiprocessing, os, sys, time
from tfrec_serving import AsyncClient, Client, ServingError

address, used = sys.argv[1], sys.argv[2].split(",")
plain, both = Client(address), AsyncClient(address)

def ask():
    return plain.recommend([1])[0].item_id

def ask_async():
    return asyncio.run(both.recommend([1]))[0].item_id

def child():
    begin = time.monotonic()
    for call in (ask, ask_async) if "async" in used[1:] else (ask, ask):
        try:
            print(call(), flush=True)
        except ServingError as error:
            print(error, flush=True)
    plain.close()
    print("quick" if time.monotonic() - begin < 4 else "slow", flush=True)

if "plain" in used[0]:
    ask()
if "aio" in used[0]:
    ask_async()
process = multiprocessing.get_context("fork").Process(target=child)
process.start()
process.join(20)
print("exit", process.exitcode, flush=True)
print(ask(), flush=True)
os._exit(0 if process.exitcode is not None else process.kill() or 1)
"""


def forked(address, used, **environment):
    """What a child says, and then its parent."""
    import os

    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FORK), address, used],
        capture_output=True, text=True, timeout=60, env=os.environ | environment,
    )  # fmt: skip
    return done.stdout.splitlines()


@pytest.mark.parametrize("used", ["none,async", "plain,async"])
def test_a_client_works_in_a_forked_process_and_its_parent_goes_on(stub, used):
    assert forked(f"127.0.0.1:{stub.port}", used) == ["a", "a", "quick", "exit 0", "a"]


@pytest.mark.parametrize(("used", "environment"), [("aio", {}), ("plain", {"GRPC_ENABLE_FORK_SUPPORT": "0"})])
def test_where_grpc_survives_no_fork_the_client_says_so_at_once(stub, used, environment):
    *said, quick, left, _ = [*forked(f"127.0.0.1:{stub.port}", used, **environment), ""][:5]
    assert (quick, left) == ("quick", "exit 0")
    for line in said:
        assert line.startswith("FAILED_PRECONDITION: gRPC cannot be used in this process: it was forked from one")


def test_where_grpc_hangs_after_a_fork_the_client_says_so_soon(monkeypatch):
    """As older versions of gRPC do when a thread was in a call; here the first call of another process is recorded."""
    monkeypatch.setattr(channels, "_works", {1: True})
    monkeypatch.setattr(channels, "_has_poller", False)
    monkeypatch.setattr(channels, "PROBE_SECONDS", 0.1)
    over, original = threading.Event(), grpc.insecure_channel

    def hang(*arguments):
        over.wait(10)
        return original(*arguments)

    monkeypatch.setattr(channels.grpc, "insecure_channel", hang)
    with Client("127.0.0.1:9") as client:
        for _ in range(2):
            with pytest.raises(ServingError, match="it was forked from one that had used gRPC already"):
                client.recommend(["x"])
    over.set()


def test_over_rest_a_fork_changes_nothing():
    with web_server(200, rest_answer(), JSON) as server:
        assert forked(f"http://127.0.0.1:{server.server_port}", "plain-aio,async") == ["a", "a", "quick", "exit 0", "a"]


def test_a_load_test_is_done_over_grpc_and_says_why_nothing_answers(monkeypatch):
    with pytest.raises(ValueError, match="A load test is done over gRPC. Received: 'http://localhost:1'"):
        load_test("http://localhost:1", [b""])
    monkeypatch.setattr("tfrec_serving.load.CONNECT_SECONDS", 0.3)
    with pytest.raises(ServingError, match="Nothing answers at 127.0.0.1:9. UNAVAILABLE: .*Connection refused"):
        load_test("127.0.0.1:9", [b""], clients=1)


def test_text_and_lists_are_inputs_of_any_signature(stub):
    with Client(f"127.0.0.1:{stub.port}") as client:
        for history in ([["x", "y"]], np.array([["x"]]), np.array([[b"x"]]), np.array([[1, "x"]], object)):
            assert client.predict("recommend", history=history)["item_ids"].tolist() == [[b"a"]]
