"""``vlsm doctor``: what it reads of machines of every kind, what it advises, and that it answers where parts are missing."""

from __future__ import annotations

import dataclasses
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from vlsm_adapter import cli
from vlsm_adapter.doctor import Choices, Examination, examine
from vlsm_adapter.doctor import speeds as measuring
from vlsm_adapter.doctor.advice import findings
from vlsm_adapter.doctor.machine import Memory, Processor, instruction_sets, memory, processor
from vlsm_adapter.doctor.software import Extra, Folder, extras, hub, unmet, unused_gpu, variables
from vlsm_adapter.doctor.speeds import Speeds
from vlsm_adapter.doctor.text import render

GIB = 1 << 30
X86 = "processor\t: 0\nmodel name\t: Zen 4\nflags\t\t: fpu avx2 avx512f avx512_vnni avx512_bf16\n\nprocessor\t: 1\n"


def tree(root: Path, **content: str) -> Path:
    """Files below ``root``; ``__`` in a name stands for a slash."""
    for name, text in content.items():
        path = root / name.replace("__", "/").replace("DOT", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def cores(root: Path, pairs: dict[int, tuple[int, int]]) -> None:
    for cpu, (socket, core) in pairs.items():
        folder = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "physical_package_id").write_text(f"{socket}\n")
        (folder / "core_id").write_text(f"{core}\n")


@pytest.fixture
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system of eight logical processors, all of which may be used."""
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr("os.getloadavg", lambda: (0.1, 0.1, 0.1))


@pytest.mark.usefixtures("eight")
def test_processor_counts_cores_behind_hyper_threads(tmp_path: Path) -> None:
    tree(tmp_path, proc__cpuinfo=X86)
    cores(tmp_path, {cpu: (0, cpu % 4) for cpu in range(8)})
    found = processor(tmp_path)
    assert (found.name, found.logical, found.physical, found.allowed, found.usable) == ("Zen 4", 8, 4, 8, 4)
    assert found.instructions["AVX-512 BF16"]
    assert not found.instructions["AMX BF16"]
    assert not found.busy


@pytest.mark.usefixtures("eight")
def test_processor_respects_affinity_and_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path, proc__cpuinfo=X86, sys__fs__cgroup__cpuDOTmax="max 100000\n")
    cores(tmp_path, {cpu: (0, cpu) for cpu in range(8)})
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    assert processor(tmp_path).usable == 3
    tree(tmp_path, proc__self__cgroup="0::/box/inner\n", sys__fs__cgroup__box__cpuDOTmax="150000 100000\n")
    (tmp_path / "sys/fs/cgroup/box/inner").mkdir()
    found = processor(tmp_path)
    assert (found.quota, found.usable) == (1.5, 2), "the limit of a group further out holds too"


@pytest.mark.usefixtures("eight")
def test_processor_reads_the_first_version_of_control_groups(tmp_path: Path) -> None:
    tree(
        tmp_path,
        proc__self__cgroup="4:cpu,cpuacct:/docker/abc\n9:memory:/docker/abc\n",
        sys__fs__cgroup__cpu__docker__abc__cpuDOTcfs_quota_us="50000\n",
        sys__fs__cgroup__cpu__docker__abc__cpuDOTcfs_period_us="100000\n",
        sys__fs__cgroup__memory__docker__abc__memoryDOTlimit_in_bytes=f"{2 * GIB}\n",
        sys__fs__cgroup__memory__docker__abc__memoryDOTusage_in_bytes=f"{GIB}\n",
        proc__meminfo="MemTotal: 67108864 kB\nMemAvailable: 33554432 kB\n",
    )
    assert processor(tmp_path).usable == 1, "half a core is one"
    found = memory(tmp_path)
    assert (found.total, found.free, found.limit) == (64 * GIB, GIB, 2 * GIB)


def test_memory_of_a_container_gives_back_files_that_were_read(tmp_path: Path) -> None:
    tree(
        tmp_path,
        proc__meminfo="MemTotal: 8388608 kB\nMemAvailable: 6291456 kB\nNonsense\n",
        sys__fs__cgroup__memoryDOTmax=f"{4 * GIB}\n",
        sys__fs__cgroup__memoryDOTcurrent=f"{3 * GIB}\n",
        sys__fs__cgroup__memoryDOTstat=f"anon 5\ninactive_file {GIB}\n",
    )
    found = memory(tmp_path)
    assert (found.total, found.free, found.limit, found.shared) == (8 * GIB, 2 * GIB, 4 * GIB, None)


@pytest.mark.usefixtures("eight")
def test_a_system_that_tells_nothing_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.getloadavg")
    monkeypatch.setattr("platform.system", lambda: "Plan 9")
    found = processor(tmp_path)
    assert (found.physical, found.quota, found.instructions, found.load, found.usable) == (None, None, {}, None, 8)
    assert memory(tmp_path).free is None
    tree(
        tmp_path, proc__cpuinfo="\x00:::\n", sys__fs__cgroup__cpuDOTmax="one two three", proc__meminfo="MemTotal: much"
    )
    assert processor(tmp_path).quota is None


@pytest.mark.parametrize(
    ("facts", "has", "lacks"),
    [
        ({"flags": "avx2 avx_vnni"}, {"AVX2", "VNNI"}, {"AVX-512", "AMX INT8"}),
        ({"flags": "avx2 avx512f amx_bf16 amx_tile amx_int8"}, {"AMX BF16", "AMX INT8", "AVX-512"}, {"VNNI"}),
        ({"Features": "fp asimd sve bf16 i8mm"}, {"NEON", "SVE", "BF16", "I8MM"}, {"SME"}),
        ({"hw.optional.AdvSIMD": "1", "hw.optional.arm.FEAT_BF16": "1"}, {"NEON", "BF16"}, {"SVE"}),
        ({"hw.optional.avx2_0": "1", "hw.optional.avx512f": "0"}, {"AVX2"}, {"AVX-512"}),
    ],
)
def test_instruction_sets(facts: dict[str, str], has: set[str], lacks: set[str]) -> None:
    found = instruction_sets(facts)
    assert has <= {name for name, there in found.items() if there}
    assert lacks <= {name for name, there in found.items() if not there}


def test_extras_say_what_is_missing() -> None:
    lines = [
        "torch>=2.6",
        'torch>=99; extra == "future"',
        "no-such-package>=1; extra == 'web'",
        'numpy>=1; extra == "web"',
        'numpy>=1; extra == "volumes"',
        'ruff; extra == "dev"',
    ]
    found = {extra.name: extra for extra in extras(lines)}
    assert set(found) == {"future", "web", "volumes"}, "what developers need is nobody else's"
    assert found["volumes"].installed
    assert found["volumes"].purpose
    assert found["web"].missing == ("no-such-package>=1",)
    assert f"{torch.__version__} is installed" in found["future"].missing[0]
    assert unmet([*lines, "peft<0.1"]) == unmet(["peft<0.1"])
    assert "is installed)" in unmet(["peft<0.1"])[0]
    assert unmet(["not a requirement @@@"]) == ["not a requirement @@@"]


def test_variables_are_those_that_matter() -> None:
    assert variables({"OMP_NUM_THREADS": "4", "HOME": "/x"}) == {"OMP_NUM_THREADS": "4"}


def test_a_gpu_beside_a_torch_for_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert not unused_gpu(tmp_path)
    tree(tmp_path, proc__driver__nvidia__version="NVRM")
    assert unused_gpu(tmp_path)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert not unused_gpu(tmp_path)


# -- findings ------------------------------------------------------------------------------------------------------------


def seen(**changes: Any) -> Examination:
    """A machine with which nothing is wrong; names of the parts' own attributes change those."""
    cpu = Processor("Zen 4", 8, 8, 8, None, 8, {"AVX2": True, "AVX-512": True, "AVX-512 BF16": True}, 0.1, None)
    parts: dict[str, Any] = {
        "processor": cpu,
        "memory": Memory(32 * GIB, 24 * GIB, None, 8 * GIB),
        "accelerators": [],
        "unused_gpu": False,
        "threads": 8,
        "capability": "AVX512",
        "onednn": True,
        "variables": {},
        "versions": {"python": "3.12", "torch": "2.13.0"},
        "unmet": [],
        "extras": [Extra("export", "ONNX", ("onnx>=1",)), Extra("web", "vlsm serve", ())],
        "folders": [Folder("temporary files", "/tmp", 50 * GIB, True)],
        "choices": Choices("cpu", "bf16-mixed", "fp32", "sdpa"),
        "speeds": Speeds(
            "cpu",
            8,
            "wall",
            {"float32": 1e12, "bfloat16": 2e12, "int8": 1.5e12},
            {"float32": {"sdpa": 1.0, "matmul": 2.0, "sdpa_training": 3.0, "matmul_training": 4.0}},
            {"float32": 8e11},
            {"float32": 0.8},
        ),
        "hub": None,
    }
    for name, value in changes.items():
        sections = () if name in parts else ("processor", "memory", "speeds", "choices")
        owner = next((part for part in sections if hasattr(parts[part], name)), None)
        if owner is None:
            parts[name] = value
        else:
            parts[owner] = dataclasses.replace(parts[owner], **{name: value})
    examined = Examination(**parts)
    examined.findings.extend(findings(examined))
    return examined


def test_a_machine_in_order_has_no_findings() -> None:
    assert seen().findings == []
    assert "nothing to mend" in render(seen())


@pytest.mark.parametrize(
    ("changes", "kind", "says"),
    [
        ({"usable": 2, "quota": 2.0}, "problem", "8 threads on 2 usable cores .* export OMP_NUM_THREADS=2"),
        ({"threads": 64, "variables": {"OMP_NUM_THREADS": "64"}}, "problem", "OMP_NUM_THREADS=64"),
        (
            {"threads": 1, "variables": {"OMP_NUM_THREADS": "1"}},
            "advice",
            "1 of 8 usable cores .* unset OMP_NUM_THREADS",
        ),
        ({"variables": {"OMP_NUM_THREADS": "8", "MKL_NUM_THREADS": "2"}}, "advice", "set both alike"),
        ({"load": 7.5}, "note", "load 7.5 on 8 cores"),
        ({"governor": "powersave"}, "advice", "performance"),
        ({"variables": {"ONEDNN_MAX_CPU_ISA": "AVX2"}}, "advice", "unset ONEDNN_MAX_CPU_ISA"),
        ({"capability": "AVX2"}, "note", "has AVX-512"),
        ({"instructions": {"AVX2": False, "AVX-512": False}}, "problem", "no AVX2"),
        ({"instructions": {"AVX2": True, "AVX-512": True, "VNNI": True}}, "note", "no bf16 instructions .* int8"),
        ({"onednn": False}, "problem", "oneDNN"),
        ({"free": GIB, "limit": 2 * GIB}, "advice", r"1.0 GiB of memory are free \(limited to 2.0 GiB\)"),
        ({"shared": 64 << 20}, "advice", "--shm-size"),
        ({"folders": [Folder("models", "/full", GIB, True)]}, "advice", "/full .* 1.0 GiB free"),
        ({"folders": [Folder("models", "/locked", None, False)]}, "problem", "/locked .* cannot be written"),
        ({"unused_gpu": True}, "problem", "NVIDIA GPU"),
        ({"accelerators": [{"device": "cuda:0", "name": "T4", "bf16": False}]}, "note", "16-mixed"),
        ({"training": "32-true"}, "advice", "bf16-mixed multiplies 2.0 times .* --set train.precision=bf16-mixed"),
        ({"efficiency": {"float32": 0.3}}, "advice", "reaches 30% of the measured"),
        ({"forward": {"float32": 1e12, "int8": 2e12}}, "advice", "2.0 times .* --precision int8"),
        ({"hub": {"endpoint": "https://hub", "error": "timed out"}}, "problem", "https://hub cannot be reached"),
        ({"variables": {"HF_HUB_OFFLINE": "1"}}, "note", "HF_HUB_OFFLINE"),
        ({"unmet": ["peft>=0.21 (0.1 is installed)"]}, "problem", "pip install"),
        ({"extras": [Extra("web", "", ("fastapi>=9 (1 is installed)",))]}, "advice", "extra web is not complete"),
    ],
)
def test_findings_are_one_line_with_the_fix(changes: dict[str, Any], kind: str, says: str) -> None:
    import re

    examined = seen(**changes)
    texts = [one.text for one in examined.findings if one.kind == kind]
    assert any(re.search(says, text) for text in texts), examined.findings
    assert all("\n" not in one.text for one in examined.findings)
    assert all(one.text in render(examined) for one in examined.findings)


def test_problems_come_first_and_make_the_exit_code() -> None:
    examined = seen(governor="powersave", onednn=False)
    assert [one.kind for one in examined.findings] == ["problem", "advice"]
    assert (examined.problems, seen().problems) == (1, 0)


# -- measurements ----------------------------------------------------------------------------------------------------------


def test_operations_are_counted_with_attention() -> None:
    linear = torch.nn.Linear(8, 16)
    x = torch.randn(4, 8)
    assert measuring.count_operations(lambda: linear(x)) == 2 * 4 * 8 * 16
    q = torch.randn(1, 2, 10, 4)
    attended = measuring.count_operations(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q))
    assert attended == 2 * 2 * (2 * 10 * 10 * 4)


def test_measurements_of_this_machine() -> None:
    found = measuring.measure("cpu", 0.05, busy=True)
    assert found.clock == "processor"
    assert found.threads == 1
    assert found.matmul["float32"] > 1e8
    assert all(0 < part <= 1.5 for part in found.efficiency.values())
    encoder = measuring.vision_blocks(1)
    pixels = torch.randn(1, 3, 32, 32)
    features = encoder.encode_image(pixels)
    assert torch.isfinite(features.activations[0]).all()
    # Per token: 12 width^2 of the block's products, and the patches' own; attention of 5 tokens.
    width, tokens = 768, 5
    expected = 2 * tokens * 12 * width**2 + 4 * tokens**2 * width + 2 * (tokens - 1) * 3 * 256 * width
    assert measuring.count_operations(lambda: encoder.encode_image(pixels)) == expected


def test_a_precision_torch_lacks_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch, "_int_mm")
    assert measuring.matmul_peak("int8", "cpu", 0.01) is None


# -- the whole -------------------------------------------------------------------------------------------------------------


def test_examination_without_measuring_is_plain_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub.constants", None)  # as if it were not installed
    found = examine(speed=False)
    again = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert again["speeds"] is None
    assert again["hub"] is None, "the network is not used unasked"
    assert again["threads"] == torch.get_num_threads()
    assert [folder["use"] for folder in again["folders"]] == ["decoded images, features", "temporary files"]
    assert render(found).count("\n") > 8


def test_the_verb(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("vlsm_adapter.doctor.examine", lambda **_: seen(onednn=False))
    monkeypatch.setattr(sys, "argv", ["vlsm", "doctor", "--json"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 3
    assert json.loads(capsys.readouterr().out)["findings"][0]["kind"] == "problem"
    monkeypatch.setattr("vlsm_adapter.doctor.examine", lambda **_: seen())
    monkeypatch.setattr(sys, "argv", ["vlsm", "doctor"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert "Zen 4: 8 cores" in capsys.readouterr().out


def test_a_broken_installation_is_told_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "vlsm_adapter.doctor", None)
    monkeypatch.setattr(sys, "argv", ["vlsm", "doctor"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("vlsm: error: the installation is broken (")
    assert said.count("\n") == 1


def test_hub_is_asked_for_its_front_page_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Answer(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            self.send_response(404 if len(asked) == 1 else 503)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    assert hub() == {"endpoint": address, "error": None}, "whatever it answers, it can be reached"
    assert hub()["error"] == "HTTP 503"
    server.shutdown()
    server.server_close()
    assert hub(timeout=1.0)["error"]
    assert len(asked) == 2
