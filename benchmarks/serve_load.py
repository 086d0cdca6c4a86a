"""Load a running ``vlsm serve`` with hundreds of clients, check every answer, watch its memory.

::

    python benchmarks/serve_load.py                                      # starts a server of its own on tiny, two adapters
    python benchmarks/serve_load.py --clients 300 --seconds 180 --images /path/to/pictures

Every client repeats: take a picture, upload it where it has not yet, ask one to three prompts of one to three adapters (the
base among them). When all have ended, each mask is compared with the right one, which the Python library computed before. An
answer may differ from it only where the probability lies within ``--tolerance`` of the threshold: sums of other prompts in
the same pass are taken in another order. A client that is told to wait (503) waits so long and asks again: times are those of the
request that was answered, and in a row of their own those from the first time it was asked. The server is on the loopback
interface.

Times are those that a client sees. All clients are tasks of one loop; how late that loop is (``generator's own delay``) says
how much of the times is the generator's, and the server's own clock is printed beside them.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

PROMPTS = ("polyp", "skin lesion", "a dark round lump", "instrument", "tumor", "background")
ADAPTERS = ("first", "second")


@dataclass
class Truth:
    """One picture and the right answers about it.

    Attributes:
        content: the file.
        probabilities: (adapter or None, prompt) to float32 (H, W).
    """

    content: bytes
    probabilities: dict[tuple[str | None, str], np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Mask:
    """A mask as it was answered, and the question: picture number, adapter, prompt."""

    question: tuple[int, str | None, str]
    answered: tuple[str | None, str]  # adapter and prompt, as the answer says
    threshold: float
    area: int
    png: str


@dataclass
class Tally:
    """What came of the requests."""

    seconds: dict[str, list[float]] = field(
        default_factory=lambda: {"upload": [], "first": [], "again": [], "patience": []}
    )
    outcomes: Counter[str] = field(default_factory=Counter)
    masks: Counter[Mask] = field(default_factory=Counter)  # equal ones are kept once
    late: list[float] = field(default_factory=list)  # seconds
    memory: list[tuple[float, float]] = field(default_factory=list)  # seconds, MiB
    metrics: str = ""  # the server's, at the end


def make_adapters(folder: Path) -> None:
    """Two adapters on tiny with random weights: they must differ, not be good."""
    import torch

    from vlsm_adapter import AdapterInfo, DenseAdapterConfig, attach, load_model, save_adapter

    for seed, name in enumerate(ADAPTERS):
        model = load_model("tiny")
        torch.manual_seed(seed)
        attach(model, DenseAdapterConfig())
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.02 * torch.randn_like(parameter))
        save_adapter(model, folder / name, info=AdapterInfo(threshold=0.4 + 0.1 * seed))


def truths(folder: Path, files: list[Path]) -> list[Truth]:
    """The right answers, one question at a time, by the library."""
    from vlsm_adapter import Predictor

    found = [Truth(file.read_bytes()) for file in files]
    predictors = {name: Predictor.load(folder / name) for name in ADAPTERS}
    for name, predictor in {None: Predictor.zero_shot("tiny"), **predictors}.items():
        for file, truth in zip(files, found, strict=True):
            predictor.set_image(file)
            for prompt in PROMPTS:
                truth.probabilities[name, prompt] = predictor.probabilities([prompt])[0]
    return found


def pictures(folder: Path, count: int) -> list[Path]:
    """Phantoms of several sizes."""
    from vlsm_adapter.data.phantoms import write_phantoms

    write_phantoms(folder, cases_per_modality=count, seed=7, modalities=("endoscopy", "dermoscopy"))
    return sorted((folder).rglob("images/*"))[:count]


class Server:
    """A ``vlsm serve`` process on a free port."""

    def __init__(self, adapters: Path, options: list[str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vlsm_adapter", "serve", str(adapters), "--port", "0", *options],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        self.url = ""
        for line in self.process.stderr:
            print(line, end="", file=sys.stderr)
            if match := re.search(r"serving on (http://\S+)", line):
                self.url = match[1]
                break
        if not self.url:
            sys.exit("the server did not start")
        # Its log is read on, or the pipe would fill and stop it.
        import threading

        self.lines: Counter[str] = Counter()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines["log lines"] += 1
            if "Traceback" in line or "failed" in line:
                print(line, end="", file=sys.stderr)

    def stop(self) -> int:
        """End it; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=120)


async def client(number: int, url: str, images: list[Truth], tally: Tally, until: float, seed: int) -> None:
    """One client with a connection of its own, until the time is over."""
    choose = random.Random(seed * 100_003 + number)
    ids: dict[int, str] = {}
    # One httpx client for all would look through all connections at every request, and make them wait for each other.
    async with connection(url) as http:
        await asyncio.sleep(choose.random())
        while time.monotonic() < until:
            index = choose.randrange(len(images))
            if index not in ids:
                file = ("x.png", images[index].content)
                answer = await post(http, tally, "upload", "/v1/images", files={"file": file})
                if answer is None:
                    continue
                ids[index] = answer["image_id"]
            adapters = choose.sample([None, *ADAPTERS], choose.randint(1, 3))
            prompts = choose.sample(PROMPTS, choose.randint(1, 3))
            queries = [{"prompt": prompt, "adapter": adapter} for adapter in adapters for prompt in prompts]
            body = {"image_id": ids[index], "queries": queries, "return": "mask"}
            answer = await post(http, tally, "segment", "/v1/segment", json=body)
            if answer is None:
                ids.pop(index, None)  # perhaps it is no longer held
                continue
            for query, result in zip(queries, answer["results"], strict=True):
                question, answered = (index, query["adapter"], query["prompt"]), (result["adapter"], result["prompt"])
                tally.masks[Mask(question, answered, result["threshold"], result["area_px"], result["png"])] += 1


def connection(url: str) -> httpx.AsyncClient:
    """A client without proxies; ``verify``: no certificates are read for plain HTTP."""
    return httpx.AsyncClient(base_url=url, timeout=120, trust_env=False, verify=False)


def differs(images: list[Truth], mask: Mask, tolerance: float) -> str | None:
    """What is wrong with a mask, if anything."""
    index, *asked = mask.question
    if mask.answered != tuple(asked):
        return f"{asked}: answered for {mask.answered}"
    right = images[index].probabilities[mask.answered]
    with Image.open(io.BytesIO(base64.b64decode(mask.png))) as picture:
        found = np.asarray(picture) > 127
    if found.shape != right.shape:
        return f"{asked}: size {found.shape} for {right.shape}"
    if mask.area != int(found.sum()):
        return f"{asked}: area {mask.area} of a mask of {int(found.sum())}"
    off = (found != (right > mask.threshold)) & (np.abs(right - mask.threshold) > tolerance)
    return f"{asked}: {int(off.sum())} pixels" if off.any() else None


async def post(http: httpx.AsyncClient, tally: Tally, kind: str, path: str, **content: object) -> dict | None:
    """The answer; None where there is none. Told to wait (503), it waits so long and asks again."""
    first = time.perf_counter()
    while True:
        started = time.perf_counter()
        try:
            response = await http.post(path, **content)  # type: ignore[arg-type]
        except httpx.HTTPError as error:
            tally.outcomes[f"{kind}: {type(error).__name__}"] += 1
            return None
        ended = time.perf_counter()
        tally.outcomes[f"{kind}: {response.status_code}"] += 1
        if response.status_code != 503:
            break
        await asyncio.sleep(int(response.headers["retry-after"]))
    if response.status_code != 200:
        return None
    answer = response.json()
    tally.seconds["upload" if kind == "upload" else "again" if answer["cached"] else "first"].append(ended - started)
    if kind == "segment":
        tally.seconds["patience"].append(ended - first)
    return answer


async def watch(url: str, tally: Tally, started: float, until: float) -> None:
    """The server's memory, every two seconds, as it tells Prometheus."""
    async with connection(url) as http:
        while time.monotonic() < until:
            text = (await http.get("/metrics")).text
            found = re.search(r"^process_resident_memory_bytes (\S+)$", text, re.M)
            if found:
                tally.memory.append((time.monotonic() - started, float(found[1]) / 2**20))
            await asyncio.sleep(2)


async def watch_self(tally: Tally, until: float) -> None:
    """How late this process comes to what is due, fifty times a second."""
    while time.monotonic() < until:
        started = time.perf_counter()
        await asyncio.sleep(0.02)
        tally.late.append(time.perf_counter() - started - 0.02)


async def load(url: str, images: list[Truth], options: argparse.Namespace) -> Tally:
    """All clients at once."""
    tally = Tally()
    started = time.monotonic()
    until = started + options.seconds
    clients = [client(number, url, images, tally, until, options.seed) for number in range(options.clients)]
    await asyncio.gather(watch(url, tally, started, until), watch_self(tally, until), *clients)
    async with connection(url) as http:
        tally.metrics = (await http.get("/metrics")).text
    return tally


async def alone(url: str, image: Truth) -> list[float]:
    """Seconds of the first and of the second prompt on an image, nobody else asking."""
    async with connection(url) as http:
        held = (await http.post("/v1/images", files={"file": ("x.png", image.content)})).json()
        await http.delete(f"/v1/images/{held['image_id']}")
        held = (await http.post("/v1/images", files={"file": ("x.png", image.content)})).json()
        seconds = []
        for prompt in PROMPTS[:2]:
            body = {"image_id": held["image_id"], "queries": [{"prompt": prompt, "adapter": ADAPTERS[0]}]}
            started = time.perf_counter()
            (await http.post("/v1/segment", json=body)).raise_for_status()
            seconds.append(time.perf_counter() - started)
        return seconds


def report(tally: Tally, images: list[Truth], options: argparse.Namespace, single: list[float]) -> bool:
    """Check every mask and print it all; whether every answer was right."""
    wrong: Counter[str] = Counter()
    for mask, count in tally.masks.items():
        if problem := differs(images, mask, options.tolerance):
            wrong[problem] += count
    print(f"alone: first prompt on an image {single[0] * 1000:.0f} ms, second {single[1] * 1000:.0f} ms")
    print(f"outcomes: {dict(sorted(tally.outcomes.items()))}")
    answered = len(tally.seconds["first"]) + len(tally.seconds["again"])
    masks = tally.masks.total()
    print(f"{answered / options.seconds:.1f} answers/s, {masks} masks checked, {wrong.total()} wrong")
    print("| request | n | p50 ms | p95 ms | p99 ms | max ms |\n|---|---|---|---|---|---|")
    named = {
        "upload": "upload",
        "first": "segment, some encoding new",
        "again": "segment, all encodings kept",
        "patience": "segment, from the first time it was asked",
    }
    for kind, name in named.items():
        if times := tally.seconds[kind]:
            print(f"| {name} | {len(times)} | {' | '.join(percentiles(times))} |")
    print(
        f"generator's own delay ms: p50 {', p95 '.join(percentiles(tally.late)[:2])}, max {percentiles(tally.late)[3]}"
    )
    for route in ("/v1/images", "/v1/segment"):
        labels = rf'{{method="POST",route="{route}",status="200"}} (\S+)$'
        count, total = (
            re.search(rf"^vlsm_request_seconds_{part}{labels}", tally.metrics, re.M) for part in ("count", "sum")
        )
        if count and total:
            print(f"by the server's clock: {route} {float(total[1]) / float(count[1]) * 1000:.0f} ms in the mean")
    if tally.memory:
        marks = [tally.memory[len(tally.memory) * part // 4] for part in range(4)] + [tally.memory[-1]]
        print("memory MiB: " + ", ".join(f"{value:.0f} at {at:.0f} s" for at, value in marks))
    for problem in list(wrong)[:10]:
        print("WRONG", problem)
    return not wrong


def percentiles(seconds: list[float]) -> list[str]:
    """The 50th, 95th and 99th percentile and the maximum, in whole milliseconds."""
    return [f"{value * 1000:.0f}" for value in [*np.percentile(seconds, (50, 95, 99)), max(seconds)]]


def main() -> int:
    """Run; exit code 1 where an answer was wrong or a request failed unexpectedly."""
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parse.add_argument("--clients", type=int, default=200)
    parse.add_argument("--seconds", type=float, default=30)
    parse.add_argument("--images", type=Path, help="folder of pictures; by default phantoms")
    parse.add_argument("--pictures", type=int, default=24, help="how many different ones")
    parse.add_argument("--tolerance", type=float, default=1e-4)
    parse.add_argument("--seed", type=int, default=0)
    parse.add_argument("server_options", nargs="*", help="for vlsm serve, after --")
    options = parse.parse_args()
    with tempfile.TemporaryDirectory() as place:
        adapters = Path(place) / "adapters"
        make_adapters(adapters)
        if options.images:
            files = sorted(path for path in options.images.iterdir() if path.is_file())[: options.pictures]
        else:
            files = pictures(Path(place) / "pictures", options.pictures)
        images = truths(adapters, files)
        server = Server(adapters, ["--keep", "5", *options.server_options])
        try:
            single = asyncio.run(alone(server.url, images[0]))
            tally = asyncio.run(load(server.url, images, options))
        finally:
            code = server.stop()
    print(f"{options.clients} clients, {options.seconds:g} s, {len(images)} pictures, {os.cpu_count()} cores")
    right = report(tally, images, options, single)
    print(f"server ended with {code}")
    unexpected = [name for name in tally.outcomes if not re.search(r": (200|503)$", name)]
    return 0 if right and not unexpected and code == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
