"""Reads results and studies of earlier formats, which carry no digest, in a process that cannot do harm.

Their texts lie in HDF5's heaps, where a few bytes can make HDF5 read on for ever or ask for any amount of memory. So
another process opens the file, with limits of time and memory, and hands back what `repsim.results.netcdf` reads.
"""

import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import xarray as xr

from repsim.errors import InvalidInputError, RepsimError, StoreError, reason
from repsim.results import netcdf
from repsim.stores.reader import check_self_contained

_SECONDS = 3
"""CPU time that the smallest file may take; reading one takes hundredths."""
_PATIENCE = 120
"""Seconds after which a process that waits for something is given up, where the system limits no CPU time."""
_REFUSED = 3
"""Exit code of a process that says why."""


def read_earlier(path: Path, data: bytes | bytearray) -> xr.Dataset:
    """Read any netCDF file, of which ``data`` are the bytes; `StoreError` where it is damaged, or HDF5 finds no end."""
    if not (_sound_global_heaps(data) and _sound_local_heaps(data)):
        raise StoreError(f"{path} is damaged: a heap of texts in it has no end")
    folder = str(Path(__file__).parents[2])  # where the package is, for a process that may run elsewhere
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")]).rstrip(":")}
    command = [sys.executable, "-P", "-W", "ignore", "-m", "repsim.results.earlier", str(path.absolute())]
    try:
        child = subprocess.run(command, env=environment, capture_output=True, check=False, timeout=_PATIENCE)  # noqa: S603
    except subprocess.TimeoutExpired:
        raise StoreError(f"{path} is damaged: HDF5 comes to no end reading it") from None
    if child.returncode == _REFUSED:
        raise StoreError(child.stderr.decode(errors="replace").strip().splitlines()[-1])
    if child.returncode < 0:
        raise StoreError(f"{path} is damaged: HDF5 comes to no end reading it, or crashes")
    if child.returncode:
        raise StoreError(f"{path} is damaged: HDF5 cannot read it within the memory that a file of its size may take")
    return netcdf.from_bytes(bytearray(child.stdout), path)


def _sound_global_heaps(data: bytes | bytearray) -> bool:
    """Walk the heaps of texts as HDF5 does: a step from one object to the next has to lead on, and not beyond."""
    for start in _places(data, b"GCOL\x01\0\0\0"):
        (size,) = struct.unpack_from("<Q", data, start + 8)
        if size < 4096 or start + size > len(data):  # no heap, but the same bytes in other data
            continue
        at, end = start + 16, start + size
        while end - at >= 16:
            index, _, _, length = struct.unpack_from("<HHIQ", data, at)
            step = (length if index == 0 else 16 + (length + 7) // 8 * 8) % 2**64
            if not 0 < step <= end - at:
                return False
            at += step
    return True


def _sound_local_heaps(data: bytes | bytearray) -> bool:
    """Walk the free places of the heaps of names: a list of them ends, and never comes back."""
    for start in _places(data, b"HEAP\0\0\0\0"):
        size, free, segment = struct.unpack_from("<QQQ", data, start + 8)
        if segment + size > len(data):
            continue
        seen: set[int] = set()
        while free not in {1, 2**64 - 1}:
            if free in seen or free + 16 > size:
                return False
            seen.add(free)
            (free,) = struct.unpack_from("<Q", data, segment + free)
    return True


def _places(data: bytes | bytearray, mark: bytes) -> Iterator[int]:
    """Where a heap may begin."""
    start = data.find(mark)
    while 0 <= start <= len(data) - 32:
        yield start
        start = data.find(mark, start + 1)


def _limit(size: int) -> None:
    """Limit what this process may take, from now on, for a file of this many bytes."""
    try:
        import resource  # noqa: PLC0415 - there is none on Windows
    except ImportError:
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + _SECONDS + size // 20_000_000
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    statm = Path("/proc/self/statm")
    if statm.exists():
        now = int(statm.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + 2**28 + 20 * size,) * 2)


def _main(path: Path) -> None:
    """Write the file at ``path`` in today's form to the standard output."""
    import h5netcdf  # noqa: F401, PLC0415 - loaded before memory is limited

    _limit(path.stat().st_size)
    try:
        check_self_contained(path)
        with xr.open_dataset(path, engine="h5netcdf", decode_times=False, decode_timedelta=False) as file:
            data = netcdf.to_bytes(_plain(file.load()))
    except RepsimError as error:
        why = f"{path} is damaged: {error}" if isinstance(error, InvalidInputError) else error.problem
    except MemoryError:
        why = f"{path} is damaged: it asks for far more memory than it has bytes"
    except Exception as error:  # noqa: BLE001 - what HDF5 makes of damaged structures is anything
        why = f"{path} is damaged: {reason(error)}"
    else:
        sys.stdout.buffer.write(data)
        return
    sys.stderr.buffer.write(f"{' '.join(why.split())}\n".encode(errors="replace"))
    raise SystemExit(_REFUSED)


def _plain(data: xr.Dataset) -> xr.Dataset:
    """The data without the numpy scalars that h5netcdf makes of attributes."""
    for attrs in (data.attrs, *(variable.attrs for variable in data.variables.values())):
        for key, value in attrs.items():
            if hasattr(value, "tolist"):
                attrs[key] = value.tolist()
    return data


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
