"""A cluster under test: started by deploy/local/up in a folder of its own, seen from outside through HTTP, metrics,
pid files and signals."""

import os
import re
import signal
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlparse

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "deploy" / "models" / "nano-r1"
BUILD_TYPE = os.environ.get("BATON_BUILD_TYPE", "Release")
BUILD = ROOT / {"Release": "build", "asan": "build-asan", "tsan": "build-tsan"}[BUILD_TYPE]
SLOW = 1 if BUILD_TYPE == "Release" else 6  # sanitizers: every deadline is that much later


def wait_for(what, seconds=10.0, why=""):
    """what() until it returns something true, which is returned; fails when it does not in time. why: a text, or what
    returns one."""
    deadline = time.monotonic() + seconds * SLOW
    while True:
        result = what()
        if result:
            return result
        assert time.monotonic() < deadline, f"not within {seconds * SLOW} s: {why() if callable(why) else why}"
        time.sleep(0.02)


def lives(pid):
    """Whether the process is there and no zombie (nobody may be there to reap it)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Metrics:
    """One scrape: value("name", label="...") adds up the series that have these labels; none is 0."""

    def __init__(self, text):
        self.text = text
        self.series = []
        for line in text.splitlines():
            match = re.fullmatch(r'([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)', line)
            if match:
                labels = dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', match[2] or ""))
                self.series.append((match[1], labels, float(match[3])))

    def has(self, name):
        return any(series[0] == name for series in self.series)

    def value(self, name, **labels):
        return sum(v for n, have, v in self.series if n == name and labels.items() <= have.items())


class Cluster:
    """Workers are named prefill-0, decode-0, ...; gateways gateway-0, ... The decode workers are the ranks of one group,
    unless decode_ep says how many are."""

    tls = None  # an ssl.SSLContext where the gateways speak HTTPS
    shares_port = False  # several gateways answer as gateway-0, each with metrics of its own

    def __init__(self, run, n_prefill=1, n_decode=2, n_gateways=1, prefill_ep=1, decode_ep=None, **args):
        self.run = Path(run)
        self.workers = [f"prefill-{i}" for i in range(n_prefill)] + [f"decode-{i}" for i in range(n_decode)]
        self.gateways = [f"gateway-{i}" for i in range(n_gateways)]
        self.names = self.gateways + self.workers + ["redis"]
        flags = ["--prefill", n_prefill, "--decode", n_decode, "--gateways", n_gateways, "--port", 0]
        flags += ["--prefill-ep", prefill_ep, "--decode-ep", decode_ep or n_decode]
        flags += ["--no-build", "--build-type", BUILD_TYPE]
        for role in ("prefill", "decode", "gateway"):
            memory = "--kv-cache-memory-bytes 256M " if role != "gateway" else ""
            flags += [f"--{role}-args", memory + args.get(role, "")]
        self.script("up", *flags)
        self.wait_all_linked()

    def script(self, name, *args, code=0):
        """Runs deploy/local/NAME; its output."""
        command = [ROOT / "deploy" / "local" / name, "--run", self.run, *args]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120 * SLOW)
        assert done.returncode == code, f"{name} exited {done.returncode}:\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def ctl(self, verb, *args, code=0):
        """Runs batonctl; what it prints."""
        socket = (self.run / "redis.socket").read_text().strip()
        command = [BUILD / "bin" / "batonctl", verb, "--redis", f"unix:{socket}", *args]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=60 * SLOW)
        assert done.returncode == code, f"{verb} exited {done.returncode}:\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def redis(self, *command):
        """Runs redis-cli; the lines that it prints."""
        socket = (self.run / "redis.socket").read_text().strip()
        return subprocess.run(["redis-cli", "-s", socket, *command], check=True, capture_output=True, text=True,
                              timeout=10 * SLOW).stdout.splitlines()

    def down(self):
        if (self.run / "redis.socket").exists():
            self.script("down")

    # ---- seen from outside

    def url(self, name="gateway-0"):
        return (self.run / f"{name}.url").read_text().strip()

    def connect(self, seconds=20, name="gateway-0"):
        """A connection to a gateway; with TLS, hands are shaken."""
        url = urlparse(self.url(name))
        plain = socket.create_connection((url.hostname, url.port), timeout=seconds * SLOW)
        return self.tls.wrap_socket(plain, server_hostname=url.hostname) if self.tls else plain

    def get(self, path, name="gateway-0"):
        """(status, body); (0, "") while nobody answers."""
        try:
            with urllib.request.urlopen(self.url(name) + path, timeout=5 * SLOW, context=self.tls) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def metrics(self, name="gateway-0"):
        return Metrics(self.get("/metrics", name)[1])

    def log(self, name):
        return (self.run / f"{name}.log").read_text(errors="replace")

    def linked(self, role, gateway="gateway-0"):
        return int(self.metrics(gateway).value("baton_workers", role=role))

    def wait_all_linked(self):
        for role in ("prefill", "decode"):
            want = sum(name.startswith(role) for name in self.workers)
            for gateway in self.gateways:
                wait_for(lambda: self.linked(role, gateway) == want, 15, f"{gateway} sees {want} {role} workers")

    def used(self, name):
        """What a worker still holds: requests, blocks, leases."""
        metrics = self.metrics(name)
        assert metrics.has("baton_kv_blocks"), f"{name} does not answer"
        return tuple(int(metrics.value(*what[:1], **what[1])) for what in (
            ("baton_running", {}), ("baton_waiting", {}), ("baton_kv_blocks", {"state": "used"}), ("baton_kv_leases", {})))

    def holders(self, names=None):
        """Who still has something, and what: (running, waiting, blocks, leases) of workers, requests of gateways."""
        have = {name: self.used(name) for name in names or self.workers}
        for name in self.gateways:
            if self.is_alive(name):
                have[name] = (int(self.metrics(name).value("baton_requests_running")),)
        return {name: held for name, held in have.items() if any(held)}

    def wait_idle(self, names=None):
        """Everything is given back, everywhere at once; sooner or later, for how soon depends on the machine."""
        wait_for(lambda: not self.holders(names), 30, lambda: f"all is given back: {self.holders(names)}")

    # ---- processes

    def pid(self, name):
        return int((self.run / f"{name}.pid").read_text())

    def is_alive(self, name):
        return lives(self.pid(name))

    def signal(self, name, number):
        os.kill(self.pid(name), number)

    def kill(self, name):
        """kill -9, and wait until it is gone."""
        self.signal(name, signal.SIGKILL)
        wait_for(lambda: not self.is_alive(name), 5, f"{name} is gone")

    def restart(self, name):
        self.script("restart", name)

    def heal(self):
        """Starts what died and continues what was stopped: a test leaves the cluster as it found it."""
        names = ["redis"] + self.workers + self.gateways
        for name in names:
            if self.is_alive(name):
                self.signal(name, signal.SIGCONT)
        for name in names:
            if not self.is_alive(name):
                self.restart(name)
        self.wait_all_linked()


def gateway_command(*flags):
    return [str(part) for part in (BUILD / "bin" / "baton-gateway", "--model", MODEL, *flags)]


class Beside(Cluster):
    """A running cluster seen through a gateway more, with flags of its own; or through two that share its port."""

    def __init__(self, cluster, run, *flags, n_gateways=1, certificate=None):
        self.run, self.workers, self.gateways, self.names = cluster.run, cluster.workers, ["gateway-0"], cluster.names
        self.logs = [Path(run) / f"gateway-{i}.log" for i in range(n_gateways)]
        self.shares_port = n_gateways > 1
        self.processes = []
        self.own_url = None
        if certificate:
            self.tls = ssl.create_default_context(cafile=certificate)
        scheme, port = "https" if certificate else "http", 0
        redis = (self.run / "redis.socket").read_text().strip()
        for log in self.logs:
            command = gateway_command("--redis", f"unix:{redis}", "--port", port, "--log-level", "debug", *flags,
                                      *(["--reuse-port"] if n_gateways > 1 else []))
            with open(log, "wb") as out:
                self.processes.append(subprocess.Popen(command, stderr=out, stdout=out))
            found = wait_for(lambda: re.search(r" listening .*port=(\d+)", log.read_text()), 20, log.read_text)
            port = int(found[1])
            self.own_url = f"{scheme}://127.0.0.1:{port}"
        wait_for(lambda: all(self.saw_all_workers(log) for log in self.logs), 20, "all workers are up")
        wait_for(lambda: all(self.get("/health")[0] == 200 for _ in range(8)), 20, "whoever answers would work")

    def saw_all_workers(self, log):
        return all(f"worker up worker={name} " in log.read_text() for name in self.workers)

    def url(self, name="gateway-0"):
        return self.own_url if name == "gateway-0" else super().url(name)

    def pid(self, name):
        return self.processes[0].pid if name == "gateway-0" else super().pid(name)

    def log(self, name):
        return "".join(log.read_text(errors="replace") for log in self.logs) if name == "gateway-0" else super().log(name)

    def address(self):
        url = urlparse(self.own_url)
        return url.hostname, url.port

    def terminate(self):
        for process in self.processes:
            process.terminate()

    def close(self):
        self.terminate()
        assert [process.wait(60 * SLOW) for process in self.processes] == [0] * len(self.processes)
