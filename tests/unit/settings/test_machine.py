"""What a process may use, read from control groups laid out in a folder of our own."""

import os
from pathlib import Path

from modelmesh.settings.machine import cores, memory_limit_bytes


def _lay_out(root: Path, membership: str, files: dict[str, str]) -> tuple[Path, Path]:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(membership)
    for name, text in files.items():
        (root / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "cgroup" / name).write_text(text)
    return root / "proc", root / "cgroup"


def test_version_2_takes_the_least_limit_on_the_way_up(tmp_path: Path) -> None:
    proc, cgroups = _lay_out(
        tmp_path,
        "0::/pods/ours\n",
        {
            "pods/ours/memory.max": "max\n",
            "pods/memory.max": f"{300 << 20}\n",
            "pods/ours/cpu.max": "150000 100000\n",
        },
    )
    assert memory_limit_bytes(proc, cgroups) == 300 << 20
    assert cores(proc, cgroups) == min(2, os.cpu_count() or 1)


def test_version_1_ignores_its_way_to_say_no_limit(tmp_path: Path) -> None:
    proc, cgroups = _lay_out(
        tmp_path,
        "4:memory:/job\n2:cpu,cpuacct:/job\n",
        {
            "memory/job/memory.limit_in_bytes": f"{200 << 20}\n",
            "memory/memory.limit_in_bytes": "9223372036854771712\n",
            "cpu/job/cpu.cfs_quota_us": "50000\n",
            "cpu/job/cpu.cfs_period_us": "100000\n",
        },
    )
    assert memory_limit_bytes(proc, cgroups) == 200 << 20
    assert cores(proc, cgroups) == 1


def test_in_a_container_the_mount_is_the_group(tmp_path: Path) -> None:
    proc, cgroups = _lay_out(tmp_path, "0::/not/visible/here\n", {"memory.max": f"{100 << 20}\n"})
    assert memory_limit_bytes(proc, cgroups) == 100 << 20


def test_without_control_groups_it_is_the_machine(tmp_path: Path) -> None:
    machine_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert memory_limit_bytes(tmp_path, tmp_path) == machine_bytes
    assert 1 <= cores(tmp_path, tmp_path) <= (os.cpu_count() or 1)
