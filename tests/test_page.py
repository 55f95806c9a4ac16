"""The page in a real browser, as large as a desktop's and a phone's: by clicks and by pixels."""

import functools
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import browser
import numpy as np
import pytest
from PIL import Image
from test_extend import untrained

from mtl_jax import config as config_lib
from mtl_jax.workdir import checkpoints

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
ORT = os.environ.get("MTL_JAX_ORT_WEB", "")  # tarball or folder of onnxruntime-web; else npm fetches it

STATUS = "document.getElementById('status').textContent"
# What the card of the masks says: class -> its colour and its percents.
SHARES = """Object.fromEntries([...document.querySelectorAll('#found-seg li')].map((line) => [
    line.children[1].textContent,
    [getComputedStyle(line.firstChild).backgroundColor, parseFloat(line.lastChild.textContent)]]))"""
# What all cards say: task and name -> number.
FOUND = """[...document.querySelectorAll('.found li:not(.no)')].map((line) => [
    `${line.parentNode.id} ${line.children[1].textContent}`, parseFloat(line.lastChild.textContent)])"""
# Hands a picture to the page as a clipboard or a mouse does.
GIVEN = """(async () => {{
    const canvas = new OffscreenCanvas(50, 40), data = new DataTransfer();
    canvas.getContext('2d').fillRect(5, 5, 20, 20);
    data.items.add(new File([await canvas.convertToBlob()], 'x.png', {{type: 'image/png'}}));
    document.dispatchEvent(new {kind}('{event}', {{{field}: data, bubbles: true}}));
}})()"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """The quickstart's network as it was drawn, whose masks have many classes; larger kernels spread the scores."""
    workdir = tmp_path_factory.mktemp("run") / "quick"
    rendered = untrained(workdir, config_lib.load_page(ROOT / "configs" / "quickstart.py").get_config())
    for name, factor in {"det": 8, "cls": 3}.items():
        rendered.variables["params"]["head"][name]["kernel"] *= factor
    checkpoints.save(rendered.path, {"variables": rendered.variables}, checkpoints.read_metadata(rendered.path))
    return workdir


@pytest.fixture(scope="module")
def server(weights):
    pytest.importorskip("uvicorn", reason="the extra 'serve' is not installed: the page is not tested")
    command = [sys.executable, "-m", "mtl_jax", "serve", "--weights", str(weights), "--port", "0", "--max_mb", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield next(re.search(r"http\S+", line)[0] for line in process.stdout if line.startswith("serving at"))
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == 0


@pytest.fixture(scope="module")
def folder(weights, tmp_path_factory):
    """The exported folder, given out by a server that knows files alone."""
    pytest.importorskip("onnxruntime", reason="the extra 'export' is not installed: the web folder is not tested")
    out = tmp_path_factory.mktemp("web")
    command = [sys.executable, "-m", "mtl_jax", "export", "--weights", str(weights), "--web", str(out)]
    subprocess.run(command + (["--ort_web", ORT] if ORT else []), check=True)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(out))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as inputs:
        threading.Thread(target=inputs.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{inputs.server_port}/index.html"
        inputs.shutdown()


@pytest.fixture(scope="module")
def tab():
    pytest.importorskip("websockets", reason="the extra 'dev' is not installed: pages are not tested")
    with browser.chromium() as page:
        yield page
        assert page.errors == []


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> list[Path]:
    """Two pictures: one half red and one half green, and noise."""
    place, halves = tmp_path_factory.mktemp("photos"), np.zeros((80, 120, 3), np.uint8)
    halves[:, :60, 0], halves[:, 60:, 1] = 200, 200
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    for name, pixels in (("halves.png", halves), ("noise.png", noise)):
        Image.fromarray(pixels).save(place / name)
    return [place / "halves.png", place / "noise.png"]


def answered(tab, count: int) -> None:
    tab.until(f"document.querySelectorAll('#strip button').length === {count}")
    tab.until("document.getElementById('status').textContent.includes('in all')")


def slide(tab, selector: str, value: float) -> None:
    tab.run(
        f"(() => {{ const slider = document.querySelector({selector!r}); slider.value = {value};"
        "slider.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )


def boxes(tab) -> int:
    return tab.run("document.querySelectorAll('#found-det li:not(.no)').length")


@pytest.mark.parametrize("size", browser.SIZES)
@pytest.mark.parametrize("place", ["server", "folder"])
def test_photographs_are_answered_and_thresholds_tasks_and_opacity_change_what_is_seen(
    request, tab, photos, place, size
):
    tab.open(request.getfixturevalue(place), size)
    assert tab.run("document.documentElement.scrollWidth <= innerWidth")  # nothing to be pushed aside
    tab.give("#files", *photos)
    answered(tab, 2)
    assert tab.run(STATUS).split()[0] == "120"  # px, of the first, which is shown
    observed = tab.picture()
    assert np.ptp(observed, axis=(0, 1)).min() > 100  # the photograph, not a blank page
    slide(tab, "#level-det", 0.02)
    most, rendered = boxes(tab), tab.canvas("#picture")
    slide(tab, "#level-det", 0.98)
    assert boxes(tab) < most
    assert (tab.canvas("#picture") != rendered).any()
    for name in ("seg", "det", "cls"):
        tab.click(f"#ask-{name}")
    bare = tab.canvas("#picture")  # of 640 px: the photograph, enlarged
    height, width = bare.shape[:2]
    assert bare[height // 2, width // 4] == pytest.approx([200, 0, 0], abs=2)
    assert bare[height // 2, 3 * width // 4] == pytest.approx([0, 200, 0], abs=2)
    tab.click("#ask-seg")
    slide(tab, "#opacity", 1)
    covered = tab.canvas("#picture")
    shares = tab.run(SHARES)
    for name, (colour, percent) in shares.items():
        if name != "background" and percent > 1:
            rgb = [int(section) for section in re.findall(r"\d+", colour)[:3]]
            matches = (np.abs(covered.astype(int) - rgb) <= 1).all(axis=-1).mean()
            assert 100 * matches == pytest.approx(percent, abs=2)
    tab.click("#strip button:nth-child(2)")
    assert tab.run(STATUS).split()[0] == "64"
    assert tab.canvas("#picture").shape[0] == tab.canvas("#picture").shape[1]


def test_the_folder_says_in_the_browser_what_the_server_says(tab, server, folder, photos):
    output = []
    for url in (server, folder):
        tab.open(url)
        tab.give("#files", photos[1])
        answered(tab, 1)
        output.append(dict(tab.run(FOUND)))
    first, second = output
    assert len(first) > 3
    for name in first | second:  # percents, and scores of boxes
        assert first.get(name, 0) == pytest.approx(second.get(name, 0), abs=2), name


def test_pasted_and_dropped_pictures_and_the_camera_are_taken(tab, server):
    tab.open(server)
    tab.run(GIVEN.format(kind="ClipboardEvent", event="paste", field="clipboardData"))
    answered(tab, 1)
    tab.run(GIVEN.format(kind="DragEvent", event="drop", field="dataTransfer"))
    answered(tab, 2)
    tab.click("#camera")
    tab.until("document.getElementById('video').videoWidth > 0 && !document.getElementById('video').hidden")
    tab.click("#camera")
    answered(tab, 3)
    assert tab.run("document.getElementById('video').hidden")


def test_downloads_hold_what_is_shown(tab, server, photos, tmp_path):
    tab.open(server)
    tab.give("#files", photos[0])
    answered(tab, 1)
    tab.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    for button, name in (("#save-json", "halves.json"), ("#save-picture", "halves.overlay.png")):
        tab.click(button)
        for _ in range(100):
            if (tmp_path / name).is_file():
                break
            tab.run("new Promise((done) => setTimeout(done, 100))")
    retained = json.loads((tmp_path / "halves.json").read_text())
    assert (retained["image"], retained["width"], retained["height"], set(retained["tasks"])) == (
        "halves.png",
        120,
        80,
        {"seg", "det", "cls"},
    )
    with Image.open(tmp_path / "halves.overlay.png") as picture:
        assert picture.size == (640, 427)


def test_what_cannot_be_shown_is_told(tab, server, tmp_path):
    tab.open(server)
    (tmp_path / "notes.txt").write_text("no image")
    tab.give("#files", tmp_path / "notes.txt")
    tab.until("document.getElementById('status').textContent.includes('reads no image')")
    noise = np.random.default_rng(0).integers(0, 255, (900, 900, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    tab.give("#files", tmp_path / "large.png")
    tab.until("document.getElementById('status').textContent.includes('at most 1 MB')")
    assert tab.run("document.getElementById('status').classList.contains('bad')")
    tab.errors.clear()  # the browser logs a status of 413
