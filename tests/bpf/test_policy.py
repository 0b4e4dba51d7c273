"""An operator's object on the running kernel: as declared or not at all, and gone without a trace."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from qosd.ebpf.libbpf import Library
from qosd.model import CgroupId, CgroupSample, Feed, HostSample, Snapshot, Tier, Workload
from qosd.policies import Policies

EXAMPLES = Path(__file__).parents[2] / "docs/examples"
LS = frozenset({"ls"})
SPIN = "while True: pass"


@pytest.fixture(scope="session")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example of docs/policies.md, compiled as it says."""
    if not shutil.which("clang"):
        pytest.skip("clang is not installed")
    directory = tmp_path_factory.mktemp("policy")
    compile_to(directory / "preempted.bpf.o", (EXAMPLES / "preempted.bpf.c").read_text())
    shutil.copy(EXAMPLES / "preempted.toml", directory)
    (directory / "preempted.toml").chmod(0o644)
    return directory


def compile_to(target: Path, text: str) -> None:
    source = target.with_suffix(".c")
    source.write_text(text)
    include = f"/usr/include/{os.uname().machine}-linux-gnu"
    command = ["clang", "-O2", "-g", "-target", "bpf", "-mcpu=v3", "-idirafter", include, "-c"]
    subprocess.run([*command, str(source), "-o", str(target)], check=True)
    target.chmod(0o644)


@pytest.fixture
def policies() -> Iterator[Policies]:
    policies = Policies()
    yield policies
    policies.close()


def ask(policies: Policies, action: str, what: object = None, uid: int = 0) -> dict[str, Any]:
    return policies.answer({"action": action, "what": str(what)}, uid, LS)


def altered(
    example: Path, tmp_path: Path, *, toml: dict[str, str] | None = None, c: dict[str, str] | None = None
) -> Path:
    """The example with some text replaced."""
    declaration = (example / "preempted.toml").read_text()
    for old, new in (toml or {}).items():
        assert old in declaration
        declaration = declaration.replace(old, new)
    source = (EXAMPLES / "preempted.bpf.c").read_text()
    for old, new in (c or {}).items():
        assert old in source
        source = source.replace(old, new)
    compile_to(tmp_path / "preempted.bpf.o", source)
    file = tmp_path / "preempted.toml"
    file.write_text(declaration)
    file.chmod(0o644)
    return file


def snapshot(usec: int, cgroup: CgroupId) -> Snapshot:
    workload = Workload("ls", Tier.LS, 0, CgroupSample(cgroup, "ls.slice"), {})
    return Snapshot(usec // 1_000_000, usec, usec, HostSample(os.cpu_count() or 1), workloads=(workload,))


def sampled(policies: Policies, cgroup: CgroupId) -> Feed:
    (feed,) = policies.sample(snapshot(time.monotonic_ns() // 1000, cgroup))
    return feed


def test_preemptions_of_the_workload_become_a_signal_of_it_and_of_nobody_else(
    policies: Policies, example: Path, cgroup: Callable[[str], Any]
) -> None:
    ls, be = cgroup("ls"), cgroup("be")
    assert "ok" in ask(policies, "load", example / "preempted.toml")
    first = sampled(policies, ls.id)
    assert (first.name, first.workload, first.unit, first.slo) == ("preempted.rate", "ls", "1/s", 500.0)
    assert first.value is None, "a rate needs two readings"

    processes = [each.run(SPIN, cpu=0) for each in (ls, ls, be)]
    seen = 0.0
    deadline = time.monotonic() + 30
    while not seen and time.monotonic() < deadline:
        time.sleep(0.3)
        seen = sampled(policies, ls.id).value or 0.0
    for process in processes:
        process.kill()
        process.wait()

    assert seen > 0
    counted = policies._loaded["preempted"].probe.read()["rate"]
    assert set(counted) == {ls.id}
    (status,) = policies.status()
    assert status.loaded
    assert status.cpu_pct is not None


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        (
            {'maps = ["workloads", "preempted"]': 'maps = ["workloads", "preempted", "more"]'},
            "lacks the map more",
        ),
        (
            {'maps = ["workloads", "preempted"]': 'maps = ["preempted"]', 'workloads_map = "workloads"': ""},
            "not declared: workloads",
        ),
        ({"tp_btf/sched_switch": "tp_btf/sched_wakeup"}, "not declared: tp_btf/sched_switch"),
        ({"tp_btf/sched_switch": "kprobe/do_exit"}, "which only look"),
        ({'["ls"]': '["be"]'}, "no [[workload]] of tier ls"),
        ({"overhead_pct = 1.0": "overhead_pct = 50"}, "overhead_pct"),
        ({'map = "preempted"': 'map = "other"'}, "used and not declared"),
        ({'map = "preempted"': 'map = "workloads"'}, "u64 values"),
        ({"unit": "unti"}, "unti"),
    ],
)
def test_what_is_not_as_declared_is_refused(
    policies: Policies, example: Path, tmp_path: Path, toml: dict[str, str], said: str
) -> None:
    file = altered(example, tmp_path, toml=toml)

    assert said in ask(policies, "load", file)["error"]
    assert policies.status() == ()


def test_the_verifiers_own_words_are_the_refusal(policies: Policies, example: Path, tmp_path: Path) -> None:
    file = altered(example, tmp_path, c={"*times += 1;": "*(times + 100) += 1;"})

    said = ask(policies, "load", file)["error"]
    assert "the kernel refused program on_switch: R" in said


@pytest.mark.parametrize(
    ("c", "said"),
    [
        ({"*times += 1;": "*times += 1, bpf_send_signal(9);"}, "it calls bpf_send_signal"),
        (
            {
                "static void count": "extern void bpf_rcu_read_lock(void) __ksym;\nstatic void count",
                "*times += 1;": "*times += 1, bpf_rcu_read_lock();",
            },
            "it uses kernel functions",
        ),
    ],
)
def test_an_object_that_could_do_more_than_look_is_refused(
    policies: Policies, example: Path, tmp_path: Path, c: dict[str, str], said: str
) -> None:
    assert said in ask(policies, "load", altered(example, tmp_path, c=c))["error"]


def test_maps_that_could_take_too_much_are_refused(policies: Policies, example: Path, tmp_path: Path) -> None:
    entries = "__uint(max_entries, {});\n\t__type(key, __u64);\n\t__type(value, __u64)"
    file = altered(example, tmp_path, c={entries.format(1024): entries.format(4_000_000)})

    assert "more than 16 MiB" in ask(policies, "load", file)["error"]


def test_files_that_others_could_write_are_refused(policies: Policies, example: Path, tmp_path: Path) -> None:
    file = altered(example, tmp_path)
    (tmp_path / "preempted.bpf.o").chmod(0o666)

    answer = ask(policies, "load", file)
    assert "writable by root alone" in answer["error"]
    assert answer["kind"] == "config"
    assert "absolute" in ask(policies, "load", "preempted.toml")["error"]


def test_only_root_loads_and_unloads_and_anybody_may_look(policies: Policies, example: Path) -> None:
    assert ask(policies, "load", example / "preempted.toml", uid=1000)["kind"] == "not-permitted"
    ask(policies, "load", example / "preempted.toml")
    assert ask(policies, "unload", "preempted", uid=1000)["kind"] == "not-permitted"
    assert [each["name"] for each in ask(policies, "list", uid=1000)["ok"]] == ["preempted"]


def test_one_that_takes_too_much_is_unloaded_and_says_so(
    policies: Policies, example: Path, cgroup: Callable[[str], Any]
) -> None:
    ls = cgroup("ls")
    ask(policies, "load", example / "preempted.toml")
    loaded = policies._loaded["preempted"]
    loaded.policy = msgspec.structs.replace(loaded.policy, overhead_pct=1e-9)
    deadline = time.monotonic() + 30
    while policies.status()[0].loaded and time.monotonic() < deadline:
        policies.sample(snapshot(time.monotonic_ns() // 1000, ls.id))
        time.sleep(0.05)

    (status,) = policies.status()
    assert not status.loaded
    assert "more than its overhead_pct" in (status.error or "")
    assert policies.sample(snapshot(time.monotonic_ns() // 1000, ls.id)) == ()


def programs(library: Library) -> int:
    """How many of our programs are in the kernel, by what this process holds."""
    del library
    held = 0
    for info in Path("/proc/self/fdinfo").iterdir():
        try:
            held += "prog_type:" in info.read_text()
        except FileNotFoundError:
            continue
    return held


def test_unloading_and_closing_leave_nothing(policies: Policies, example: Path, library: Library) -> None:
    before = programs(library)
    for _ in range(3):
        assert "ok" in ask(policies, "load", example / "preempted.toml")
    assert programs(library) == before + 1, "a policy of the same name is replaced"

    assert ask(policies, "unload", "preempted") == {"ok": ()}
    assert "there are: none" in ask(policies, "unload", "preempted")["error"]
    assert programs(library) == before
