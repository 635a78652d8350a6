"""The report page in a real browser: what it shows, that its filters work, and that it fits a phone."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.vmfleet.ops.plugins.plugin_utils._fleet_verdict import Host, Rules, Verdict, judge, read_host
from ansible_collections.vmfleet.ops.plugins.plugin_utils._verdict_report import write_reports
from lab import ROOT
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

# What a host that wants to do harm, or a program that prints nonsense, may give for the name of a check.
HOSTILE = """</script><script>document.title = "x"</script><img src=x onerror='document.title="x"'>" ' `{{ 7 * 7 }}"""
LONG = "a-name-without-any-blank-" * 12
SCREENS = ROOT / "tests" / "output" / "screens"
DESKTOP, PHONE = (1280, 900), (390, 844)


def check(name: str, state: str = "ok", role: str = "base", **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "role": role,
        "type": "http",
        "service": role,
        "tags": ["tagged"],
        "state": state,
        "message": f"{name} is {state}",
        "attempts": 1,
        "seconds": 0.012,
        **more,
    }


def measured(name: str, tries: list[float]) -> dict[str, Any]:
    ordered = sorted(tries)
    figures = {"p50": ordered[len(tries) // 2], "p95": ordered[-2], "p99": ordered[-1], "max": ordered[-1]}
    latency: dict[str, Any] = {"latency_ms": {**figures, "samples": len(tries)}, "latencies_ms": tries}
    return check(name, role="nginx", phases_ms={"connect": 0.4, "first_byte": 1.5}, **latency)


def fleet(run: int) -> list[Host]:
    """Ten hosts with about 150 checks, of which one is frozen."""
    bad = check("postgresql streams from the primary", "crit" if run else "ok", "postgresql")
    hosts = [
        read_host(
            f"web{number}",
            {
                "seconds": 0.4,
                "results": [
                    measured("the API answers in time", [2.5 + number + run + step * step / 10 for step in range(20)]),
                    *(check(f"part {part} works", role=("tls", "firewall", "nginx")[part % 3]) for part in range(14)),
                ],
            },
        )
        for number in range(1, 9)
    ]
    odd = [check(HOSTILE, "warn"), check(LONG, "unknown", message=LONG), bad, check("\ud800\0 half a character")]
    return [
        *hosts,
        read_host("db1", {"seconds": 0.2, "results": odd}),
        read_host("frozen", {"unreachable": True, "msg": "timed out"}),
    ]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    for run in range(3):
        write_reports(folder, verdict(run))
    return folder


def verdict(run: int) -> Verdict:
    return judge(fleet(run), Rules(primaries=["db1"]))


@pytest.fixture(scope="module")
def browser(report: Path) -> Iterator[webdriver.Chrome]:
    made = subprocess.run([ROOT / "scripts" / "bootstrap", "--browser"], capture_output=True, text=True, timeout=900)
    assert made.returncode == 0, made.stdout + made.stderr
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService("/usr/bin/chromedriver"))
    try:
        driver.get((report / "report.html").as_uri())
        yield driver
    finally:
        driver.quit()


def resize(browser: webdriver.Chrome, size: tuple[int, int], scheme: str = "light") -> None:
    """The window of a screen; a real one cannot be made as narrow as a phone's."""
    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size == PHONE}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.refresh()


def screenshot(browser: webdriver.Chrome, name: str, size: tuple[int, int], scheme: str = "light") -> None:
    """The whole page, for people to look at."""
    resize(browser, size, scheme)
    SCREENS.mkdir(parents=True, exist_ok=True)
    shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
    (SCREENS / f"{name}.png").write_bytes(base64.b64decode(shot["data"]))


def shown(browser: webdriver.Chrome, selector: str) -> list[WebElement]:
    return [element for element in browser.find_elements(By.CSS_SELECTOR, selector) if element.is_displayed()]


def complaints(browser: webdriver.Chrome) -> list[str]:
    """What Chromium has written to the page's console since the last call."""
    entries = browser.get_log("browser")  # type: ignore[no-untyped-call]
    return [str(entry["message"]) for entry in entries]


def names(browser: webdriver.Chrome) -> set[str]:
    return {element.text for element in shown(browser, "details.check .name")}


def test_it_shows_every_check_and_why_it_failed(browser: webdriver.Chrome, report: Path) -> None:
    resize(browser, DESKTOP)
    data = json.loads((report / "verdict.json").read_text())
    total = sum(len(host["checks"]) for host in data["hosts"].values())
    assert total == 124
    assert len(shown(browser, "a.tile")) == total
    # What is well is folded away.
    assert {entry.get_attribute("data-host") for entry in shown(browser, "details.check")} == {"db1"}
    browser.execute_script("document.querySelectorAll('details.host').forEach(host => host.open = true)")
    assert len(shown(browser, "details.check")) == total
    problems = [element.text for element in shown(browser, ".problems li")]
    assert len(problems) == len(data["problems"])
    (why,) = [words for words in problems if "postgresql streams from the primary" in words]
    assert "db1" in why and "is crit" in why and "in the last 2 runs" in why
    assert any("frozen" in words and "timed out" in words for words in problems)
    assert [row.text for row in shown(browser, ".silent")] == ["unreachable: timed out"]
    assert len(browser.find_elements(By.CSS_SELECTOR, ".latency")) == 8
    marks = browser.find_elements(By.CSS_SELECTOR, ".latency:first-of-type .mark")
    assert marks and [float(mark.get_attribute("x1") or 0) for mark in marks[:4]] == sorted(
        float(mark.get_attribute("x1") or 0) for mark in marks[:4]
    )
    assert len(browser.find_elements(By.CSS_SELECTOR, ".latency .trend polyline")) == 8
    rows = browser.find_elements(By.CSS_SELECTOR, ".history tbody tr")
    assert len(rows) == 11
    screenshot(browser, "desktop", DESKTOP)
    rows = browser.find_elements(By.CSS_SELECTOR, ".history tbody tr")
    assert [cell.get_attribute("class") for cell in rows[9].find_elements(By.TAG_NAME, "td")] == [
        "unknown", "crit", "crit",
    ]  # fmt: skip


def test_what_hosts_say_is_text(browser: webdriver.Chrome) -> None:
    resize(browser, DESKTOP)
    assert browser.title == "crit: verdict on the fleet"
    assert any(HOSTILE in name for name in names(browser))
    assert not browser.find_elements(By.TAG_NAME, "img")
    assert len(browser.find_elements(By.TAG_NAME, "script")) == 1
    # Chromium tells here of everything that the page's policy refused, and of errors.
    assert complaints(browser) == []
    refused = browser.execute_script(
        "const s = document.createElement('script'); s.textContent = 'document.title = `taken`';"
        "document.body.append(s); const title = document.title; s.remove(); return title"
    )
    assert refused == "crit: verdict on the fleet", "the policy lets foreign scripts run"
    assert any("Content Security Policy" in words for words in complaints(browser))


def test_filters(browser: webdriver.Chrome) -> None:
    resize(browser, DESKTOP)
    output = browser.find_element(By.ID, "shown")
    boxes = {box.get_attribute("value"): box for box in browser.find_elements(By.NAME, "state")}
    assert output.text == "124 of 124 checks"

    boxes["ok"].click()
    assert output.text == "3 of 124 checks"
    # The frozen host is crit, though it has no checks.
    assert [row.get_attribute("data-host") for row in shown(browser, ".matrix tbody tr")] == ["db1", "frozen"]
    boxes["warn"].click()
    boxes["unknown"].click()
    assert names(browser) == {"postgresql: postgresql streams from the primary"}
    boxes["crit"].click()
    assert output.text == "0 of 124 checks" and shown(browser, "#nothing")
    for box in boxes.values():
        box.click()
    assert output.text == "124 of 124 checks" and not shown(browser, "#nothing")

    host = browser.find_element(By.ID, "host")
    host.send_keys("web2")
    assert output.text == "15 of 124 checks"
    assert {entry.get_attribute("data-host") for entry in shown(browser, "details.check")} == {"web2"}
    text = browser.find_element(By.ID, "text")
    text.send_keys("FIREWALL part")
    assert output.text == "5 of 124 checks"
    assert len(shown(browser, ".matrix tbody tr")) == 1
    assert len(shown(browser, ".tile.off")) == 10
    text.clear()
    text.send_keys("</script>")
    assert output.text == "0 of 124 checks"
    host.send_keys("all")
    assert output.text == "1 of 124 checks"


def test_a_tile_leads_to_its_check(browser: webdriver.Chrome) -> None:
    resize(browser, DESKTOP)
    tile = browser.find_element(By.CSS_SELECTOR, "a.tile.crit")
    tile.click()
    details = browser.find_element(By.CSS_SELECTOR, "details:target")
    assert details.get_attribute("open") and "postgresql streams from the primary" in details.text
    top = browser.execute_script("return arguments[0].getBoundingClientRect().top", details)
    assert 0 <= top < DESKTOP[1]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(browser: webdriver.Chrome, scheme: str) -> None:
    browser.get(browser.current_url.partition("#")[0])
    resize(browser, PHONE, scheme)
    for details in browser.find_elements(By.TAG_NAME, "details"):
        browser.execute_script("arguments[0].open = true", details)
    assert browser.execute_script("return innerWidth") == PHONE[0]
    assert browser.execute_script("return document.documentElement.scrollWidth") == PHONE[0]
    wide = browser.execute_script(
        "return [...document.body.querySelectorAll('*')].filter(e => e.checkVisibility() && !e.closest('.hidden')"
        " && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 120))"
    )
    assert wide == []
    assert browser.find_element(By.TAG_NAME, "h1").rect["width"] > 200
    ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    light = sum(int(part) for part in ground.strip("rgb()").split(",")) > 3 * 128
    assert light == (scheme == "light")
    for tile in shown(browser, "a.tile")[:3]:
        assert min(tile.size.values()) >= 32
    screenshot(browser, f"phone-{scheme}", PHONE, scheme)
