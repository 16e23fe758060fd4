"""Read results and studies of earlier formats, which have no digest, in a process with limited time and memory.

Their texts are in heaps of HDF5, where a few manipulated bytes can keep HDF5 in an endless loop or make it allocate any
amount of memory. The separate process opens the file and returns it in the form that `repsim.results.netcdf` reads.
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

_SECONDS = 10
"""CPU time limit for the smallest file, in seconds: reading takes hundredths of a second, and imports up to two."""
_TIMEOUT = 120
"""Limit of elapsed time in seconds, for systems that cannot limit CPU time."""
_REFUSED = 3
"""Exit code of a process that has written the reason to its standard error."""


def read_earlier(path: Path, data: bytes | bytearray) -> xr.Dataset:
    """Read a netCDF file in a separate process.

    Parameters
    ----------
    path : Path
        The file.
    data : bytes or bytearray
        The bytes of the file.

    Raises
    ------
    StoreError
        The file is damaged, or HDF5 does not finish reading it.
    """
    if not (_has_valid_global_heaps(data) and _has_valid_local_heaps(data)):
        raise StoreError(f"{path} is damaged: a heap of texts in it has no end")
    folder = str(Path(__file__).parents[2])  # the process has to import this package
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")]).rstrip(":")}
    command = [sys.executable, "-P", "-W", "ignore", "-m", "repsim.results.earlier", str(path.absolute())]
    try:
        child = subprocess.run(command, env=environment, capture_output=True, check=False, timeout=_TIMEOUT)  # noqa: S603
    except subprocess.TimeoutExpired:
        raise StoreError(f"{path} is damaged: HDF5 does not finish reading it") from None
    if child.returncode == _REFUSED:
        raise StoreError(child.stderr.decode(errors="replace").strip().splitlines()[-1])
    if child.returncode < 0:
        raise StoreError(f"{path} is damaged: HDF5 does not finish reading it, or crashes")
    if child.returncode:
        raise StoreError(f"{path} is damaged: reading it takes more memory than a file of its size should need")
    return netcdf.from_bytes(bytearray(child.stdout), path)


def _has_valid_global_heaps(data: bytes | bytearray) -> bool:
    """Return whether every step from one object of a heap of texts to the next moves forward and stays in the heap."""
    for start in _possible_heaps(data, b"GCOL\x01\0\0\0"):
        (size,) = struct.unpack_from("<Q", data, start + 8)
        if size < 4096 or start + size > len(data):  # not a heap, but other data with the same bytes
            continue
        at, end = start + 16, start + size
        while end - at >= 16:
            index, _, _, length = struct.unpack_from("<HHIQ", data, at)
            step = (length if index == 0 else 16 + (length + 7) // 8 * 8) % 2**64
            if not 0 < step <= end - at:
                return False
            at += step
    return True


def _has_valid_local_heaps(data: bytes | bytearray) -> bool:
    """Return whether the list of free blocks in every heap of names ends and contains no block twice."""
    for start in _possible_heaps(data, b"HEAP\0\0\0\0"):
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


def _possible_heaps(data: bytes | bytearray, mark: bytes) -> Iterator[int]:
    """Yield the offsets at which a heap may begin: those of its mark."""
    start = data.find(mark)
    while 0 <= start <= len(data) - 32:
        yield start
        start = data.find(mark, start + 1)


def _limit(size: int) -> None:
    """Limit the CPU time and the memory of this process, for a file of ``size`` bytes."""
    try:
        import resource  # noqa: PLC0415 - Windows does not have it
    except ImportError:
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + _SECONDS + size // 20_000_000
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    statm = Path("/proc/self/statm")
    if statm.exists():
        used_memory = int(statm.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used_memory + 2**28 + 20 * size,) * 2)


def _main(path: Path) -> None:
    """Read the file at ``path``, and write it in the current form to the standard output."""
    import h5netcdf  # noqa: F401, PLC0415 - loaded before memory is limited

    _limit(path.stat().st_size)
    try:
        check_self_contained(path)
        with xr.open_dataset(path, engine="h5netcdf", decode_times=False, decode_timedelta=False) as file:
            data = netcdf.to_bytes(_plain(file.load()))
    except RepsimError as error:
        why = f"{path} is damaged: {error}" if isinstance(error, InvalidInputError) else error.problem
    except MemoryError:
        why = f"{path} is damaged: reading it takes far more memory than its size"
    except Exception as error:  # noqa: BLE001 - damaged structures can make HDF5 raise anything
        why = f"{path} is damaged: {reason(error)}"
    else:
        sys.stdout.buffer.write(data)
        return
    sys.stderr.buffer.write(f"{' '.join(why.split())}\n".encode(errors="replace"))
    raise SystemExit(_REFUSED)


def _plain(data: xr.Dataset) -> xr.Dataset:
    """Replace numpy scalars in the attributes, which h5netcdf returns, by Python values."""
    for attrs in (data.attrs, *(variable.attrs for variable in data.variables.values())):
        for key, value in attrs.items():
            if hasattr(value, "tolist"):
                attrs[key] = value.tolist()
    return data


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
