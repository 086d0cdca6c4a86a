"""Load a running ``vlsm serve`` with hundreds of clients, check every answer, watch its memory.

::

    python benchmarks/serve_load.py                                      # starts a server of its own on tiny, two adapters
    python benchmarks/serve_load.py --clients 300 --seconds 180 --images /path/to/pictures

Every client repeats: take a picture, upload it where the service does not hold it, ask one to three prompts of one to three
adapters (the base among them), and compare each mask with the right one, which the Python library computed before. An
answer may differ from it only where the probability lies within ``--tolerance`` of the threshold: sums of other prompts in
the same pass are taken in another order. A client that is told to wait (503) waits; that is counted apart. The server is on
the loopback interface.
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


@dataclass
class Tally:
    """What came of the requests."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {"first": [], "again": [], "upload": []})
    outcomes: Counter[str] = field(default_factory=Counter)
    masks: int = 0
    wrong: list[str] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)  # seconds, MiB


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


async def client(
    number: int, http: httpx.AsyncClient, images: list[Truth], tally: Tally, until: float, tolerance: float, seed: int
) -> None:
    """One client, until the time is over."""
    choose = random.Random(seed * 100_003 + number)
    ids: dict[int, str] = {}
    await asyncio.sleep(choose.random())
    while time.monotonic() < until:
        index = choose.randrange(len(images))
        truth = images[index]
        if index not in ids:
            answer = await post(http, tally, "upload", "/v1/images", files={"file": ("x.png", truth.content)})
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
            tally.masks += 1
            if problem := differs(truth, query, result, tolerance):
                tally.wrong.append(problem)


def differs(truth: Truth, query: dict, result: dict, tolerance: float) -> str | None:
    """What is wrong with a result, if anything."""
    asked = (query["adapter"], query["prompt"])
    if (result["adapter"], result["prompt"]) != asked:
        return f"{asked}: answered for {result['adapter']}, {result['prompt']}"
    right = truth.probabilities[asked]
    with Image.open(io.BytesIO(base64.b64decode(result["png"]))) as picture:
        mask = np.asarray(picture) > 127
    if mask.shape != right.shape:
        return f"{asked}: size {mask.shape} for {right.shape}"
    if result["area_px"] != int(mask.sum()):
        return f"{asked}: area {result['area_px']} of a mask of {int(mask.sum())}"
    threshold = result["threshold"]
    off = (mask != (right > threshold)) & (np.abs(right - threshold) > tolerance)
    return f"{asked}: {int(off.sum())} pixels" if off.any() else None


async def post(http: httpx.AsyncClient, tally: Tally, kind: str, path: str, **content: object) -> dict | None:
    """One request; None where it got no answer, after waiting as told."""
    started = time.perf_counter()
    try:
        response = await http.post(path, **content)  # type: ignore[arg-type]
    except httpx.HTTPError as error:
        tally.outcomes[f"{kind}: {type(error).__name__}"] += 1
        return None
    seconds = time.perf_counter() - started
    tally.outcomes[f"{kind}: {response.status_code}"] += 1
    if response.status_code == 503:
        await asyncio.sleep(int(response.headers["retry-after"]))
    if response.status_code != 200:
        return None
    answer = response.json()
    tally.seconds["upload" if kind == "upload" else "again" if answer["cached"] else "first"].append(seconds)
    return answer


async def watch(url: str, tally: Tally, started: float, until: float) -> None:
    """The server's memory, every two seconds, as it tells Prometheus."""
    async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as http:
        while time.monotonic() < until:
            text = (await http.get("/metrics")).text
            found = re.search(r"^process_resident_memory_bytes (\S+)$", text, re.M)
            if found:
                tally.memory.append((time.monotonic() - started, float(found[1]) / 2**20))
            await asyncio.sleep(2)


async def load(url: str, images: list[Truth], options: argparse.Namespace) -> Tally:
    """All clients at once."""
    tally = Tally()
    started = time.monotonic()
    until = started + options.seconds
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits, trust_env=False) as http:
        clients = [
            client(number, http, images, tally, until, options.tolerance, options.seed)
            for number in range(options.clients)
        ]
        await asyncio.gather(watch(url, tally, started, until), *clients)
    return tally


async def alone(url: str, image: Truth) -> list[float]:
    """Seconds of the first and of the second prompt on an image, nobody else asking."""
    async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False) as http:
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


def report(tally: Tally, seconds: float, single: list[float]) -> bool:
    """Print it all; whether every answer was right."""
    print(f"alone: first prompt on an image {single[0] * 1000:.0f} ms, second {single[1] * 1000:.0f} ms")
    print(f"outcomes: {dict(sorted(tally.outcomes.items()))}")
    answered = len(tally.seconds["first"]) + len(tally.seconds["again"])
    print(f"{answered / seconds:.1f} answers/s, {tally.masks} masks checked, {len(tally.wrong)} wrong")
    print("| request | n | p50 ms | p95 ms | p99 ms | max ms |\n|---|---|---|---|---|---|")
    named = {"upload": "upload", "first": "segment, some encoding new", "again": "segment, all encodings kept"}
    for kind, name in named.items():
        if times := tally.seconds[kind]:
            values = [*np.percentile(times, (50, 95, 99)), max(times)]
            print(f"| {name} | {len(times)} | {' | '.join(f'{value * 1000:.0f}' for value in values)} |")
    if tally.memory:
        marks = [tally.memory[len(tally.memory) * part // 4] for part in range(4)] + [tally.memory[-1]]
        print("memory MiB: " + ", ".join(f"{value:.0f} at {at:.0f} s" for at, value in marks))
    for problem in tally.wrong[:10]:
        print("WRONG", problem)
    return not tally.wrong


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
    right = report(tally, options.seconds, single)
    print(f"server ended with {code}")
    unexpected = [name for name in tally.outcomes if not re.search(r": (200|503)$", name)]
    return 0 if right and not unexpected and code == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
