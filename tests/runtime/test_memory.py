"""Tests of the memory limit: the control groups in which containers and batch systems run a process."""

from pathlib import Path

import pytest

from repsim.runtime.memory import limits_of_groups


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize(
    ("groups", "files", "limits"),
    [
        ("0::/\n", {"memory.max": "2000000000\n"}, [2_000_000_000]),  # a container
        ("0::/\n", {"memory.max": "max\n"}, []),
        (
            "0::/slurm/job_7/step_0\n",  # the step has no limit of its own
            {
                "slurm/job_7/step_0/memory.max": "max\n",
                "slurm/job_7/memory.max": "4096\n",
                "slurm/memory.max": "8192\n",
            },
            [4096, 8192],
        ),
        (
            "12:cpu,cpuacct:/slurm/job_7\n5:memory:/slurm/job_7\n",
            {
                "memory/slurm/job_7/memory.limit_in_bytes": "4096\n",
                "memory/memory.limit_in_bytes": "9223372036854771712\n",
                "cpu/slurm/job_7/memory.limit_in_bytes": "1\n",
            },
            [4096, 9223372036854771712],
        ),
        ("5:memory:/docker/af31\n0::/docker/af31\n", {"memory/memory.limit_in_bytes": "4096\n"}, [4096]),  # not visible
        ("5:memory:/a:b\n", {"memory/a:b/memory.limit_in_bytes": "4096\n"}, [4096]),
        ("", {}, []),
    ],
)
def test_limits_of_control_groups(tmp_path: Path, groups: str, files: dict[str, str], limits: list[int]) -> None:
    write(tmp_path, {"proc/self/cgroup": groups} | {f"sys/fs/cgroup/{name}": text for name, text in files.items()})
    assert limits_of_groups(tmp_path) == limits


def test_a_system_without_control_groups(tmp_path: Path) -> None:
    assert limits_of_groups(tmp_path) == []
