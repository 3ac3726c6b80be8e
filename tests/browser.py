"""A headless Chromium for tests, driven over the DevTools protocol."""

import base64
import itertools
import json
import re
import shutil
import subprocess
import time
import urllib.request

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH; install it to run this test")


class Page:
    """A page of a headless Chromium, over the DevTools protocol."""

    def __init__(self, address):
        websocket = pytest.importorskip("websocket", reason="the package websocket-client comes with JupyterLab")
        self.socket = websocket.create_connection(address, timeout=180, suppress_origin=True)
        self.numbers = itertools.count(1)

    def send(self, method, **parameters):
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self.socket.recv())
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def js(self, expression):
        result = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def until(self, expression, seconds=60):
        """Wait until an expression is true and return how long it took."""
        start = time.perf_counter()
        while not self.js(expression):
            if time.perf_counter() - start > seconds:
                pytest.fail(f"not within {seconds} s: {expression}; {self.js('document.body.innerText')[:2000]}")
            time.sleep(0.02)
        return time.perf_counter() - start

    def click(self, text):
        """Click the button with this text."""
        found = f'[...document.querySelectorAll("button")].find(b => b.innerText.includes({json.dumps(text)})).click()'
        self.send("Runtime.evaluate", expression=found, userGesture=True)

    def resize(self, width, height):
        """Give the window another size, in px."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        time.sleep(1)  # JupyterLab adapts its layout

    def screenshot(self, path):
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot")["data"]))


@pytest.fixture
def page(tmp_path):
    """A page in a headless Chromium of its own."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "--no-first-run"]
    command += [f"--user-data-dir={tmp_path / 'chromium'}", "--window-size=1280,1500", "--lang=en", "about:blank"]
    browser = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        line = next(line for line in browser.stderr if "DevTools listening on" in line)
        host = re.search(r"ws://([^/]+)/", line)[1]
        with urllib.request.urlopen(f"http://{host}/json", timeout=10) as answer:
            target = next(target for target in json.load(answer) if target["type"] == "page")
        yield Page(target["webSocketDebuggerUrl"])
    finally:
        browser.terminate()
        browser.wait(30)
