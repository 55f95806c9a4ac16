"""HTTP server: outputs equal those of predict, for many clients at a time; errors name the expected input."""

import base64
import http.client
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import KINDS, save_checkpoint

pytest.importorskip("starlette", reason="the extra 'serve' is not installed: the server is not tested")
pytest.importorskip("uvicorn", reason="the extra 'serve' is not installed: the server is not tested")

from mtl_jax import page, predict
from mtl_jax.cli import serve as command
from mtl_jax.serve import app, inference, run, uploads
from mtl_jax.workdir import trained

LIMITS = uploads.Limits(upload_mb=1.0, megapixels=0.5, seconds=60.0, waiting=40)
TASKS = "seg,det,cls,depth"
IMAGE = {"Content-Type": "image/png"}
FORM = {"Content-Type": "multipart/form-data; boundary=xyz"}


def png(height: int, width: int, seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def bomb() -> bytes:
    """A small file of very many pixels."""
    buffer = io.BytesIO()
    Image.new("1", (20000, 20000)).save(buffer, "PNG")
    return buffer.getvalue()


def form(content: bytes, name: str = "photo.png") -> bytes:
    head = f'--xyz\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n'
    return head.encode() + content + b"\r\n--xyz--\r\n"


@pytest.fixture(scope="module")
def weights(tiny_backbone, tmp_path_factory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("run") / "checkpoints" / "0-all").parent.parent


class Client:
    """Sends requests to a server on this machine."""

    def __init__(self, port: int, service: inference.InferenceService) -> None:
        self.port, self.service = port, service

    def request(self, path: str, body: bytes | None = None, headers: dict | None = None, method: str = "") -> tuple:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        connection.request(method or ("GET" if body is None else "POST"), path, body, headers or {})
        response = connection.getresponse()
        content = response.read()
        connection.close()
        is_json = response.getheader("content-type", "").startswith("application/json")
        return response.status, json.loads(content) if is_json else content, dict(response.getheaders())


@pytest.fixture(scope="module")
def client(weights):
    service = inference.InferenceService(trained.load(weights, tasks=TASKS), batch_size=2)
    service.start()
    with run.listen("127.0.0.1", 0) as listener:
        settings = run.uvicorn.Config(app.make(service, LIMITS, hosts=run.LOCAL), log_level="warning")
        server = run.Server(settings)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield Client(listener.getsockname()[1], service)
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


def map_of(url: str) -> np.ndarray:
    assert url.startswith("data:image/png;base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))


def test_the_response_equals_the_prediction_of_the_file(client, weights, tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(png(40, 90))
    (expected,) = predict.predict(weights, [path], tasks=TASKS, threshold=0.05)
    status, response, _ = client.request("/predict?threshold=0.05&shades=true&overlay=true", path.read_bytes(), IMAGE)
    assert status == 200
    assert (response["width"], response["height"]) == (90, 40)
    assert list(response["tasks"]) == TASKS.split(",")
    assert response["tasks"]["det"]["label"] == expected.outputs["det"]["label"]
    assert np.allclose(response["tasks"]["det"]["boxes_xyxy"], expected.outputs["det"]["boxes_xyxy"], atol=0.05)
    assert response["tasks"]["cls"]["label"] == expected.outputs["cls"]["label"]
    assert (map_of(response["tasks"]["seg"]["mask"]) == expected.outputs["seg"]["mask"]).mean() > 0.999
    assert (
        map_of(response["tasks"]["depth"]["depth_mm"]).shape
        == map_of(response["tasks"]["depth"]["shade"]).shape
        == (40, 90)
    )
    assert map_of(response["overlay"]).shape[1] > 600
    assert set(response["ms"]) == {"decode", "encode", *TASKS.split(",")}


def test_a_form_and_some_tasks_will_do(client):
    expected = client.request("/predict?tasks=cls", png(30, 30), IMAGE)[1]
    for name in ("photo.png", "../../etc/passwd", "C:\\\\con", "a\u00e9\u0000b"):
        status, response, _ = client.request("/predict?tasks=cls", form(png(30, 30), name), FORM)
        assert status == 200
        assert response["tasks"] == expected["tasks"]
    assert list(expected["tasks"]) == ["cls"]


REFUSED = {
    "nothing": ("/predict", b"", IMAGE, 422, "empty body"),
    "text": ("/predict", b"hello", {"Content-Type": "text/plain"}, 415, "found 'text/plain'"),
    "no image": ("/predict", b"GIF89a, or so", IMAGE, 422, "expected a"),
    "half an image": ("/predict", png(60, 60)[:2000], IMAGE, 422, "the upload"),
    "a program": ("/predict", b"\x7fELF" + bytes(400), {"Content-Type": "application/octet-stream"}, 422, "expected"),
    "a drawing": ("/predict", b'<svg xmlns="http://www.w3.org/2000/svg"/>', {"Content-Type": "image/svg+xml"}, 422, ""),
    "a bomb": ("/predict", bomb(), IMAGE, 413, "at most 500000 pixels"),
    "too many bytes": ("/predict", bytes(1_500_000), IMAGE, 413, "at most 1 MB"),
    "a form without a file": ("/predict", b"--xyz\r\n\r\nx\r\n--xyz--", FORM, 422, "one file in the form, found 0"),
    "two files": ("/predict", form(png(9, 9))[:-9] + b"\r\n" + form(png(9, 9)), FORM, 422, "found 2"),
    "no boundary": ("/predict", form(png(9, 9)), {"Content-Type": "multipart/form-data"}, 422, "boundary"),
    "an unknown task": (
        "/predict?tasks=seg,sge",
        png(9, 9),
        IMAGE,
        422,
        "tasks: expected some of seg, det, cls, depth, found 'sge'",
    ),
    "no score": ("/predict?threshold=nan", png(9, 9), IMAGE, 422, "expected a score from 0 to 1"),
    "no switch": ("/predict?overlay=maybe", png(9, 9), IMAGE, 422, "expected true or false"),
    "an unknown setting": ("/predict?treshold=0.4", png(9, 9), IMAGE, 422, "tasks, threshold, overlay, shades, found"),
    "a setting in the form": (
        "/predict",
        b'--xyz\r\nContent-Disposition: form-data; name="threshold"\r\n\r\n0.4\r\n' + form(png(9, 9)),
        FORM,
        422,
        "threshold: expected in the address (/predict?threshold=",
    ),
    "no such page": ("/../../etc/passwd", None, {}, 404, "Not Found"),
    "another method": ("/predict", None, {}, 405, "Method Not Allowed"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_error_names_the_expected_input(client, case, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    path, body, headers, status, words = REFUSED[case]
    response = client.request(path, body, headers)
    assert response[0] == status
    assert words in response[1]["error"]
    assert list(tmp_path.iterdir()) == []
    assert client.request("/predict?tasks=cls", png(9, 9), IMAGE)[0] == 200  # and the next one is served


def test_concurrent_requests_share_a_batch_and_get_their_own_outputs(client):
    bodies = [png(20 + number, 30, number) for number in range(12)]
    single = [client.request("/predict?tasks=cls", body, IMAGE)[1] for body in bodies]
    client.service.batches.clear()
    with ThreadPoolExecutor(12) as pool:
        responses = list(pool.map(lambda body: client.request("/predict?tasks=cls", body, IMAGE), bodies * 2))
    assert [status for status, *_ in responses] == [200] * 24
    assert client.service.batches[2] > 0
    assert sum(count * frequency for count, frequency in client.service.batches.items()) == 24
    for (_, body, _), expected in zip(responses, single * 2, strict=True):
        assert body["height"] == expected["height"]
        values = (output["tasks"]["cls"]["probability"]["indoors"] for output in (body, expected))
        assert next(values) == pytest.approx(next(values), abs=1e-4)


def test_the_page_comes_whole_and_asks_no_other_host(client):
    for path, kind in (("/", "text/html"), ("/page.js", "text/javascript"), ("/page.css", "text/css")):
        status, _, headers = client.request(path)
        assert (status, headers["content-type"].partition(";")[0]) == (200, kind)
        assert "default-src 'self'" in headers["content-security-policy"]
    for file in page.FOLDER.iterdir():
        assert not re.search(rb"(?:https?:)?//[\w-]+\.\w", file.read_bytes()), file


def test_the_api_describes_itself(client):
    spec = client.request("/openapi.json")[1]
    assert spec["openapi"].startswith("3.1")
    assert tuple(entry["name"] for entry in spec["paths"]["/predict"]["post"]["parameters"]) == uploads.SETTINGS
    assert {"200", "413", "415", "422"} <= set(spec["paths"]["/predict"]["post"]["responses"])
    assert b"POST /predict" in client.request("/docs")[1]
    model = client.request("/model")[1]
    assert model["tasks"]["det"]["classes"] == list(KINDS["det"]["classes"])
    assert model["tasks"]["det"]["removed"] == []
    assert model["tasks"]["seg"]["ms"] > 0


def test_requests_under_another_host_name_are_rejected(client):
    assert client.request("/model", headers={"Host": "attacker.example"})[0] == 400


def test_a_port_in_use_and_invalid_limits_are_reported_before_the_weights_are_loaded(client, capsys):
    missing = ["--weights", "missing"]
    assert command.main([*missing, "--port", str(client.port)]) == 2
    assert f"127.0.0.1:{client.port} cannot be listened on" in capsys.readouterr().err
    assert command.main([*missing, "--timeout", "nan"]) == 2
    assert "numbers above 0" in capsys.readouterr().err


def rss_mb(process: int) -> float:
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.slow
def test_two_hundred_requests_of_twenty_clients_lose_none_and_the_end_is_clean(tmp_path):
    """A network that is trained for two steps a stage, the program itself, photographs of phones' size."""
    flags = ["--config", "configs/quickstart.py", "--config.smoke=True", "--workdir", str(tmp_path / "run")]
    subprocess.run([sys.executable, "scripts/train.py", *flags], check=True, capture_output=True)
    command = [sys.executable, "-m", "mtl_jax", "serve", "--weights", str(tmp_path / "run"), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        port = next(int(re.search(r":(\d+)/", line)[1]) for line in server.stdout if line.startswith("serving at"))
        client, bodies = Client(port, None), [jpeg(2000, 3000, seed) for seed in range(4)]
        for body in bodies:
            assert client.request("/predict", body, {"Content-Type": "image/jpeg"})[0] == 200
        before, start = rss_mb(server.pid), time.monotonic()
        with ThreadPoolExecutor(20) as pool:
            uploads_sent = [bodies[number % 4] for number in range(200)]
            headers = {"Content-Type": "image/jpeg"}
            statuses = list(pool.map(lambda body: client.request("/predict", body, headers)[0], uploads_sent))
        print(f"200 requests in {time.monotonic() - start:.1f} s, {before:.0f} -> {rss_mb(server.pid):.0f} MB")
        assert statuses == [200] * 200
        assert rss_mb(server.pid) < before + 1000
        with ThreadPoolExecutor(4) as pool:  # open requests are finished
            open_requests = [
                pool.submit(client.request, "/predict", bodies[0], {"Content-Type": "image/jpeg"}) for _ in range(4)
            ]
            time.sleep(0.3)
            server.send_signal(signal.SIGTERM)
            assert [future.result()[0] for future in open_requests] == [200] * 4
        output, errors = server.communicate(timeout=60)
    assert server.returncode == 0
    assert output.endswith("ended\n")
    assert errors == ""


def jpeg(height: int, width: int, seed: int) -> bytes:
    buffer = io.BytesIO()
    small = np.random.default_rng(seed).integers(0, 255, (20, 30, 3), np.uint8)
    Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()
