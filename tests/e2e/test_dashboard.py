"""/dashboard in a real browser: it shows what the gateway counts, loads nothing from outside, and can be read on a phone,
in the dark and with the keyboard. BATON_SCREENSHOTS=FOLDER keeps pictures of it."""

import json
import os
import re
import urllib.request
from pathlib import Path

import pytest

from browser import CHROMIUM, Browser
from cluster import wait_for
from conftest import ask


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not CHROMIUM:
        pytest.skip("chromium is not installed")
    one = Browser(tmp_path_factory.mktemp("chromium"))
    yield one
    one.close()


def data_of(cluster, after=""):
    return json.loads(cluster.get(f"/dashboard/data{after}")[1])


def text_of(browser, selector):
    return browser.js(f"document.querySelector({json.dumps(selector)})?.textContent ?? ''")


def keep(browser, name):
    if os.environ.get("BATON_SCREENSHOTS"):
        browser.screenshot(Path(os.environ["BATON_SCREENSHOTS"]) / f"{name}.png")


def test_the_page_forbids_itself_everything_from_outside(cluster):
    with urllib.request.urlopen(cluster.url() + "/dashboard") as answer:
        page, policy = answer.read().decode(), answer.headers["content-security-policy"]
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert directives["default-src"] == "'none'" and directives["connect-src"] == "'self'"
    for name in ("script-src", "style-src"):
        assert re.fullmatch(r"'sha256-[\w+/]{43}='", directives[name]), policy
    assert re.findall(r"https?://[^\"\s]+", page) == ["http://www.w3.org/2000/svg"], "a name, not an address"


def test_the_data_are_the_gateways_figures_and_no_prompt(cluster, client):
    ask(client, "zanzibar zanzibar zanzibar", max_tokens=6, user="somebody")
    metrics = cluster.metrics()
    text = wait_for(lambda: (lambda body: body if '"ended"' in body else None)(cluster.get("/dashboard/data")[1]))
    data = json.loads(text)
    assert sorted(worker["name"] for worker in data["workers"]) == sorted(cluster.workers)
    assert sum(data["strategies"].values()) == metrics.value("baton_strategy_requests_total")
    assert "zanzibar" not in text and "somebody" not in text
    rows = data["history"]["points"]
    assert rows and all(len(row) == len(data["history"]["columns"]) for row in rows)
    assert len(data_of(cluster, f"/{data['history']['last']}")["history"]["points"]) < len(rows) or len(rows) < 3
    for odd in ("/x", "/-1", "/99999999999999999999999", "/%00", "/1/2"):
        assert cluster.get("/dashboard/data" + odd)[0] in (200, 404)


def test_a_browser_shows_it(cluster, client, browser):
    browser.show(1280)
    browser.open(cluster.url() + "/dashboard")
    for _ in range(3):
        ask(client, "Tell me about the sea.", max_tokens=30)
    wait_for(lambda: "p50 –" not in browser.js("document.querySelector('#chart-ttft svg')?.getAttribute('aria-label') ?? 'p50 –'"),
             10, "a first token is drawn")
    assert text_of(browser, "#status") == "ready"
    assert "nano-r1" in text_of(browser, "#about")
    for role in ("prefill", "decode"):
        names = browser.js(f"[...document.querySelectorAll('#table-{role} tbody th')].map((th) => th.textContent)")
        assert names == [name for name in cluster.workers if name.startswith(role)]
    assert re.search(r"\d", text_of(browser, "#tile-ttft b")) and re.search(r"\d", text_of(browser, "#table-strategies td"))
    assert browser.js("document.querySelectorAll('figure.card').length") == 8
    assert browser.js("[...document.querySelectorAll('svg')].every((svg) => svg.getAttribute('aria-label').length > 10)")
    browser.js("document.querySelector('#chart-ttft svg').focus()")
    browser.press("ArrowLeft")
    assert "seconds ago" in browser.js("document.activeElement.getAttribute('aria-label')")
    keep(browser, "desktop")
    browser.show(1280, dark=True)
    assert browser.js("getComputedStyle(document.body).backgroundColor") == "rgb(14, 17, 22)"
    keep(browser, "dark")
    browser.show(320, 700)
    assert browser.js("document.documentElement.scrollWidth") <= 320, "nothing is wider than a phone"
    assert browser.js("[...document.querySelectorAll('.scroll')].every((box) => box.scrollWidth <= box.clientWidth)")
    keep(browser, "phone")
    assert browser.complaints == []
    assert {url.split("/dashboard")[0] for url in browser.requests} <= {cluster.url(), "data:,"}


def test_it_says_when_nobody_answers(cluster, browser):
    browser.show(800)
    browser.open(cluster.url() + "/dashboard")
    wait_for(lambda: text_of(browser, "#status") == "ready")
    browser.call("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=-1, uploadThroughput=-1)
    wait_for(lambda: text_of(browser, "#status") == "no answer")
    browser.call("Network.emulateNetworkConditions", offline=False, latency=0, downloadThroughput=-1, uploadThroughput=-1)
    wait_for(lambda: text_of(browser, "#status") == "ready")
