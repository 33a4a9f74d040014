"""What guards the HTTP edge: keys, TLS, framing that two readers could read differently, slow clients, logs that know no
secrets. What holds on every way in, through TLS and through two gateways behind one port too, is in test_http.py and
test_contract.py."""

import json
import os
import resource
import select
import shutil
import signal
import socket
import ssl
import subprocess
from http.client import HTTPConnection

import pytest

from cluster import SLOW, gateway_command, wait_for
from conftest import make_certificate, refuse_complaints
from test_http import CHAT, call, error_of, post, raw

BODY = json.dumps(CHAT).encode()
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


def test_two_gateways_share_a_port_and_its_connections(two):
    for i in range(40):  # the kernel deals connections out by their ports
        assert post(two, CHAT, headers={"X-Request-Id": f"dealt-{i}"})[0] == 200
    assert all(" id=dealt-" in log.read_text() for log in two.logs)


# ---- keys

def test_keys_come_from_a_file_that_may_change(beside, cluster, tmp_path):
    path = tmp_path / "keys"
    path.write_text("# people\nsecret-one alice\nsecret-two bob\n")
    one = beside("--api-key-file", path, "--api-key", "of-the-flag")

    def status_with(key, **headers):
        return post(one, CHAT, headers=bearer(key) | headers)[0]

    for key, want in (("secret-one", 200), ("secret-two", 200), ("of-the-flag", 200), ("alice", 401), ("secret-", 401)):
        assert status_with(key) == want, key
    assert post(one, CHAT)[0] == 401 and one.get("/health")[0] == 200
    status, headers, data = post(one, CHAT, headers={"Origin": "http://x"})
    assert status == 401 and headers["access-control-allow-origin"] == "*" and error_of(data), "pages can read why"
    preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    status, headers, _ = call(one, "OPTIONS", "/v1/chat/completions", headers=preflight | {"Origin": "http://x"})
    assert status == 200 and "authorization" in headers["access-control-allow-headers"], "browsers send no key with it"
    assert status_with("secret-one", **{"X-Request-Id": "whose"}) == 200
    assert " id=whose user=alice " in one.log("gateway-0")

    path.write_text("secret-three carol\n")  # noticed by itself after two seconds, when told at once
    one.signal("gateway-0", signal.SIGHUP)
    wait_for(lambda: status_with("secret-three") == 200, 20, "the new key is taken")
    assert status_with("secret-one") == 401 and status_with("of-the-flag") == 200

    path.write_text("two words more\n")
    one.signal("gateway-0", signal.SIGHUP)
    wait_for(lambda: "cannot be read anew" in one.log("gateway-0"), 20, "a broken file is said")
    assert status_with("secret-three") == 200
    assert "secret" not in one.log("gateway-0") and "secret" not in one.get("/metrics")[1]


def test_files_that_are_wrong_are_said_at_the_start(cluster, tmp_path):
    certificate, key = make_certificate(tmp_path)
    (tmp_path / "keys").write_text("# nobody\n")
    (tmp_path / "text").write_text("no PEM\n")
    for flags, said in ((["--api-key-file", tmp_path / "keys"], "has no key"),
                        (["--api-key-file", tmp_path / "none"], "No such file"),
                        (["--ssl-certfile", tmp_path / "none", "--ssl-keyfile", key], "No such file"),
                        (["--ssl-certfile", certificate, "--ssl-keyfile", tmp_path / "text"], "text is no PEM key"),
                        (["--ssl-keyfile", key], "--ssl-certfile")):
        done = subprocess.run(gateway_command(*flags, "--port", 0), capture_output=True, text=True)
        assert done.returncode != 0 and said in done.stderr, done.stderr


# ---- TLS

def certificate_of(one, context=None):
    context = context or ssl._create_unverified_context()
    with context.wrap_socket(socket.create_connection(one.address(), timeout=20 * SLOW)) as connection:
        return connection.getpeercert(binary_form=True)


def test_a_certificate_is_replaced_and_no_connection_dropped(beside, cluster, tmp_path):
    certificate, key = make_certificate(tmp_path)
    one = beside("--ssl-certfile", certificate, "--ssl-keyfile", key, certificate=certificate)
    old = HTTPConnection(*one.address())
    old.sock = connection = one.connect()

    def assert_serves_on():
        old.request("GET", "/version")
        assert old.getresponse().read() and old.sock is connection

    assert_serves_on()
    before = certificate_of(one)
    key.write_text("not a key")
    one.signal("gateway-0", signal.SIGHUP)
    wait_for(lambda: "cannot be read anew" in one.log("gateway-0"), 20, "a broken key is said")
    assert certificate_of(one) == before

    (tmp_path / "next").mkdir()
    for new, name in zip(make_certificate(tmp_path / "next"), (certificate, key)):
        shutil.move(new, name)
    one.signal("gateway-0", signal.SIGHUP)
    wait_for(lambda: certificate_of(one) != before, 20, "the new certificate is shown")
    assert_serves_on()
    old.close()


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
def test_tls_is_new_enough_or_refused(tls):
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = ssl._create_unverified_context()
        context.minimum_version = context.maximum_version = version
        assert certificate_of(tls, context)
    context = ssl._create_unverified_context()
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(OSError):
        certificate_of(tls, context)
    with socket.create_connection(tls.address()) as plain:
        plain.settimeout(20 * SLOW)
        plain.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")  # a handshake it is not
        assert b"HTTP/1.1 200" not in plain.recv(65536)


def test_clients_that_dawdle_are_dropped_in_every_phase(beside, cluster, tmp_path):
    certificate, key = make_certificate(tmp_path)
    one = beside("--ssl-certfile", certificate, "--ssl-keyfile", key, "--http-read-ms", 1000, certificate=certificate)
    silent, cut = (socket.create_connection(one.address(), timeout=30 * SLOW) for _ in range(2))
    cut.sendall(b"\x16\x03\x01\x02\x00\x01")  # a ClientHello's beginning
    head, body = one.connect(30), one.connect(30)
    head.sendall(b"GET /hea")
    body.sendall(HEAD + b"Content-Length: 50\r\n\r\n{")
    assert silent.recv(1) == b"" and cut.recv(1) == b""
    assert head.recv(65536).startswith(b"HTTP/1.1 408 ")
    assert body.recv(65536) == b""
    for connection in (silent, cut, head, body):
        connection.close()


@pytest.mark.parametrize("is_on", [False, True], ids=["off", "on"])
def test_http2_is_spoken_when_it_is_switched_on(beside, tls, cluster, tmp_path, is_on):
    one = tls
    if is_on:
        certificate, key = make_certificate(tmp_path)
        one = beside("--ssl-certfile", certificate, "--ssl-keyfile", key, "--http2", certificate=certificate)
    done = subprocess.run(
        ["curl", "-sk", "--http2", "-w", "\n%{http_version} %{http_code}", one.url() + "/v1/chat/completions", "-H",
         "Content-Type: application/json", "-d", json.dumps(CHAT | {"stream": True})], capture_output=True, text=True)
    assert done.stdout.endswith("\n2 200" if is_on else "\n1.1 200") and "data: [DONE]" in done.stdout, done


def frame(kind, flags, stream, payload=b""):
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def test_a_client_that_takes_all_its_requests_back_is_cut(beside, cluster):
    one = beside("--http2")
    fields = {b":method": b"POST", b":scheme": b"http", b":path": b"/v1/completions", b":authority": b"x"}
    head = b"".join(b"\0" + bytes((len(k),)) + k + bytes((len(v),)) + v for k, v in fields.items())  # HPACK, literal
    body = json.dumps({"prompt": [100], "max_tokens": 4000, "ignore_eos": True}).encode()
    connection = one.connect(30)
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0))
    with pytest.raises(ConnectionError):
        for stream in range(1, 20000, 2):
            connection.sendall(frame(1, 4, stream, head) + frame(0, 1, stream, body) +
                               frame(3, 0, stream, (8).to_bytes(4, "big")))
            connection.settimeout(0.001)
            try:
                while connection.recv(65536):
                    pass
                raise ConnectionResetError  # closed
            except TimeoutError:
                connection.settimeout(30 * SLOW)
    assert 400 < stream < 4000  # some may be taken back
    connection.close()
    one.wait_idle()
    assert post(one, CHAT)[0] == 200


# ---- framing

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
DOUBTFUL = {
    "length and chunks": HEAD + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and length": HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
    "two lengths": HEAD + b"Content-Length: 0\r\nContent-Length: 36\r\n\r\n",
    "two equal lengths": HEAD + b"Content-Length: 0\r\nContent-Length: 0\r\n\r\n",
    "a list of lengths": HEAD + b"Content-Length: 0, 0\r\n\r\n",
    "two codings": HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "a blank before the colon": HEAD + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "a folded header": HEAD + b"X: a\r\n Content-Length: 0\r\n\r\n",
    "LF alone": HEAD + b"X: a\nContent-Length: 0\r\n\r\n",
    "LF alone at the end": HEAD + b"Content-Length: 0\r\n\n",
    "CR alone": HEAD + b"X: a\rContent-Length: 0\r\n\r\n",
    "NUL": HEAD + b"X: a\0\r\nContent-Length: 0\r\n\r\n",
    "two hosts": HEAD + b"Host: y\r\nContent-Length: 0\r\n\r\n",
    "chunks in 1.0": HEAD.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("is_later", [False, True], ids=["first", "later"])
@pytest.mark.parametrize("name", DOUBTFUL)
def test_a_request_with_two_readings_is_refused_and_ends_the_connection(cluster, name, is_later):
    connection = cluster.connect()
    first = b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n" if is_later else b""
    connection.sendall(first + DOUBTFUL[name] + SMUGGLED)
    out = b""
    try:
        while data := connection.recv(65536):
            out += data
    except ConnectionResetError:  # it closed with our bytes unread
        pass
    answers = out.split(b"HTTP/1.1 ")[1:]
    assert [answer[:3] for answer in answers] == [b"200"] * is_later + [b"400"], out
    assert is_later or error_of(answers[-1].partition(b"\r\n\r\n")[2])  # some later ones are h2o's own, in bare text
    connection.close()


def test_nothing_is_read_behind_a_chunked_body(cluster):
    chunks = b"Transfer-Encoding: chunked\r\n\r\n%x;x=y\nz\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
    out = raw(cluster, HEAD + chunks + SMUGGLED)
    assert out.count(b"HTTP/1.1 ") == 1 and b"connection: close" in out.lower()


# ---- origins

def test_only_allowed_origins_may_read(beside, cluster):
    one = beside("--allowed-origins", "https://a.example,https://b.example")
    ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    for origin, is_allowed in (("https://b.example", True), ("https://c.example", False)):
        status, headers, _ = call(one, "OPTIONS", "/v1/chat/completions", headers=ask | {"Origin": origin})
        assert status == (200 if is_allowed else 400)
        assert headers.get("access-control-allow-origin") == (origin if is_allowed else None)
        for body, want in ((CHAT, 200), (b"{", 400)):
            status, headers, _ = post(one, body, headers={"Origin": origin})
            assert status == want and headers["vary"] == "origin"
            assert headers.get("access-control-allow-origin") == (origin if is_allowed else None)
    answer = raw(one, HEAD + b"Origin: https://a.example\r\nContent-Length: 100000000\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ") and b"access-control-allow-origin: https://a.example" in answer


def test_what_http_itself_refuses_can_be_read_by_pages(cluster):
    for request, want in ((b"GARBAGE\r\n\r\n", b"400"), (b"GET / HTTP/1.1\r\nX: " + b"a" * 70000 + b"\r\n\r\n", b"431"),
                          (HEAD + b"Origin: x\r\nContent-Length: 100000000\r\n\r\n", b"413"),
                          (HEAD + b"Origin: x\r\nContent-Length: x\r\n\r\n", b"400")):
        answer = raw(cluster, request)
        assert answer.startswith(b"HTTP/1.1 " + want) and b"access-control-allow-origin: *" in answer, answer


# ---- what clients may not steer

def test_check_67_nobody_is_called_because_a_client_says_so(cluster):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        there = "127.0.0.1:%d" % listener.getsockname()[1]
        names = ("target-pod", "target-pod-ip", "prefill-target-pod-ip", "x-prefiller-host-port",
                 "x-gateway-destination-endpoint", "x-session-id")
        host, port = there.split(":")
        status, headers, _ = post(cluster, CHAT | {"kv_transfer_params": {
            "do_remote_prefill": True, "remote_host": host, "remote_port": int(port), "remote_engine_id": there}},
            headers=dict.fromkeys(names, there))
        assert status in (200, 400) and there not in headers.values()
        status, headers, _ = post(cluster, CHAT, headers=dict.fromkeys(names, there))
        assert status == 200 and there not in headers.values()
        listener.settimeout(0)
        with pytest.raises(BlockingIOError):
            listener.accept()


# ---- slow readers

def test_clients_that_hardly_read_cost_little_and_delay_nobody(beside, cluster):
    one = beside("--http-pending-limit", "256K")

    def memory_kb():
        status = open(f"/proc/{one.pid('gateway-0')}/status").read()
        return int(status.split("VmRSS:")[1].split()[0])

    body = {"prompt": [100, 101], "max_tokens": 3000, "ignore_eos": True, "stream": True, "logprobs": 5}
    payload = json.dumps(body).encode()
    before = memory_kb()
    slow = []
    for _ in range(8):
        slow.append(socket.socket())
        slow[-1].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow[-1].connect(one.address())
        slow[-1].sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(payload) + payload)
    for _ in range(20):  # a byte now and then; meanwhile others are served whole
        for connection in slow:
            connection.recv(1)
        assert post(one, CHAT)[0] == 200
    assert memory_kb() - before < 32 << 10 or SLOW > 1
    for connection in slow:
        connection.close()
    one.wait_idle()


def test_without_descriptors_connections_wait_and_nothing_spins(beside, cluster):
    one = beside()
    pid = one.pid("gateway-0")

    def cpu_s():
        fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(os.listdir(f"/proc/{pid}/fd")) + 3, limits[1]))
    idle = [socket.create_connection(one.address()) for _ in range(12)]
    wait_for(lambda: "connections wait" in one.log("gateway-0"), 10, "nothing is left")
    before = cpu_s()
    for _ in range(20):
        select.select([], [], [], 0.02)
    assert cpu_s() - before < 0.2  # a loop that spins takes all of it
    resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    assert post(one, CHAT)[0] == 200  # who waited is let in
    assert one.log("gateway-0").count("connections wait") == 1
    for connection in idle:
        connection.close()


# ---- logs

def test_prompts_and_keys_reach_no_log(beside, cluster):
    secret, key = "Xyzzy-plover-4711", "sk-hush-0815-quiet"
    one = beside("--api-key", key)  # at debug level, as the cluster's own processes are
    tools = [{"type": "function", "function": {"name": "f", "description": secret, "parameters": {"type": "object"}}}]
    chat = {"messages": [{"role": "user", "content": secret}], "max_tokens": 2}
    for body in (chat, chat | {"stream": True}, chat | {"tools": tools}, chat | {"temperature": secret},
                 chat | {"stop": [secret]}, chat | {"response_format": {"type": secret}}, chat | {"bad_words": [secret]},
                 chat | {"tool_choice": secret}, {"messages": [{"role": secret, "content": secret}]},
                 {"messages": secret}, {secret: secret}, [secret], f'{{"messages": "{secret}', chat | {"model": secret}):
        post(one, body, headers=bearer(key))
    post(one, {"prompt": secret * 20, "max_tokens": 2}, "/v1/completions", headers=bearer(key))
    post(one, {"prompt": secret, "max_tokens": 2, "echo": True, "logprobs": 1}, "/v1/completions", headers=bearer(key))
    post(one, chat, headers=bearer(key + "x"))
    post(one, chat, headers={"Authorization": f"Basic {key}"})
    call(one, "GET", f"/v1/models/{secret}?key={key}", headers=bearer(key))
    raw(one, f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Length: x\r\n\r\n{secret}".encode())
    raw(one, f"{secret} {key}\r\n\r\n".encode())
    one.wait_idle()
    for name in one.names:
        text = one.log(name)
        assert secret not in text and key not in text, name
    assert secret not in one.get("/metrics")[1] and key not in one.get("/metrics")[1]
    refuse_complaints([one])
