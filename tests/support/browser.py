"""Drives a headless Chromium over its DevTools protocol: pages, clicks, files and pictures."""

import base64
import contextlib
import io
import itertools
import json
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-extensions"),
    *("--disable-dev-shm-usage", "--disable-background-networking", "--remote-debugging-port=0"),
    *("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", "--force-color-profile=srgb"),
)
SIZES = {"desktop": (1280, 860), "phone": (390, 844)}
SECONDS = 120.0  # that anything may take on a busy machine


class Page:
    """One tab."""

    def __init__(self, socket: Any) -> None:
        self._socket, self._numbers = socket, itertools.count(1)
        self.errors: list[str] = []  # of scripts, and of what the page asked other hosts for
        for domain in ("Page", "Runtime", "DOM", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=SECONDS))
            if message.get("method") == "Runtime.exceptionThrown":
                self.errors.append(json.dumps(message["params"]["exceptionDetails"])[:500])
            if message.get("method") == "Log.entryAdded" and message["params"]["entry"]["level"] == "error":
                self.errors.append(message["params"]["entry"]["text"])
            if message.get("id") == number:
                assert "error" not in message, message["error"]
                return message["result"]

    def run(self, script: str) -> Any:
        """Returns what an expression is, waited for."""
        completed = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in completed, completed["exceptionDetails"]
        return completed["result"].get("value")

    def open(self, url: str, size: str = "desktop") -> None:
        width, height = SIZES[size]
        phone = size == "phone"
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1 + phone, mobile=phone
        )
        self.call("Page.navigate", url=url)
        self.until("document.body && document.body.dataset.ready === 'true'")

    def until(self, condition: str) -> None:
        """Waits for an expression to be true."""
        end = time.monotonic() + SECONDS
        while not self.run(f"Boolean({condition})"):
            assert time.monotonic() < end, (condition, self.run("document.body.innerText"), self.errors)
            time.sleep(0.1)

    def click(self, selector: str) -> None:
        """Clicks into the middle of what a person sees there."""
        box = self.run(
            f"(() => {{ const found = document.querySelector({selector!r}); found.scrollIntoView({{block: 'center'}});"
            "const {x, y, width, height} = found.getBoundingClientRect(); return [x + width / 2, y + height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def give(self, selector: str, *paths: Path) -> None:
        """Chooses files, as in a file dialogue."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path) for path in paths])

    def picture(self, path: Path | None = None) -> np.ndarray:
        """Returns what is seen, RGB, and keeps it as a file."""
        png = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        if path:
            path.write_bytes(png)
        return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))

    def canvas(self, selector: str) -> np.ndarray:
        """Returns the pixels of a canvas, RGB."""
        url = self.run(f"document.querySelector({selector!r}).toDataURL('image/png')")
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB"))


@contextlib.contextmanager
def chromium() -> Iterator[Page]:
    """Starts a browser with one tab, or skips the test where there is none."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium is installed: pages are not tested")
    from websockets.sync.client import connect

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        command = [program, *FLAGS, f"--user-data-dir={folder}", "about:blank"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            port = Path(folder, "DevToolsActivePort")
            end = time.monotonic() + SECONDS
            while not (port.is_file() and port.read_text()):
                assert time.monotonic() < end, "Chromium does not start"
                time.sleep(0.1)
            number = port.read_text().splitlines()[0]
            with urllib.request.urlopen(f"http://127.0.0.1:{number}/json/list") as listed:
                tab = next(entry for entry in json.load(listed) if entry["type"] == "page")
            with connect(tab["webSocketDebuggerUrl"], max_size=None) as socket:
                yield Page(socket)
        finally:
            process.terminate()
            process.wait(SECONDS)
