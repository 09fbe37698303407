"""What the machine says of itself, read on this one."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType as Type
from support.gguf_files import Model, write

from llmsupervisor.host import machine
from llmsupervisor.host.active import active_bytes
from llmsupervisor.host.headers import Headers
from llmsupervisor.host.machine import MachineReader, memory_limit
from llmsupervisor.runtime.bandwidth import Decode, bytes_per_s, total


def test_a_look_at_this_machine(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"x" * 300_000)
    reader = MachineReader(lambda: {"chat": [str(model)], "twin": [str(model)], "hub": []})

    async def case() -> None:
        task = asyncio.create_task(reader.watch_machine())
        try:
            for _ in range(1000):
                if reader.latest and reader.latest["disks"] and reader.latest["cpu_busy"] is not None:
                    break
                await asyncio.sleep(0.02)
        finally:
            task.cancel()

    asyncio.run(case())
    seen = reader.latest
    assert seen and seen["cpu_count"] == os.cpu_count() and 0 <= seen["cpu_busy"] <= 1
    assert 0 < seen["memory_available_bytes"] <= seen["memory_total_bytes"]
    assert 0 <= seen["swap_used_bytes"] <= seen["swap_total_bytes"]
    (disk,) = seen["disks"]
    assert (disk["path"], disk["services"]) == (str(tmp_path), ["chat", "twin"])
    assert 0 < disk["free_bytes"] < disk["total_bytes"]
    chat, twin, hub = seen["weights"]
    assert chat["bytes"] == twin["bytes"] == 300_000 and hub["bytes"] is hub["cached_bytes"] is None
    known = kernel_counts_pages()
    print(f"\nin the page cache: {chat['cached_bytes']}; this kernel tells: {known}")
    if not known:
        assert chat["cached_bytes"] is twin["cached_bytes"] is None
    else:
        assert 0 <= chat["cached_bytes"] == twin["cached_bytes"] <= 300_000


def kernel_counts_pages() -> bool:
    """Asked of the kernel alone: a descriptor that is none is its first complaint where it has the call, since 6.5."""
    asked = ctypes.CDLL(None, use_errno=True)
    assert asked.syscall(machine.CACHESTAT, -1, None, None, 0) == -1
    return ctypes.get_errno() in (errno.EBADF, errno.EFAULT)


def test_the_page_cache_of_a_file(tmp_path: Path) -> None:
    """What was just written lies in it; what the kernel was told to drop does not, where its file system obeys."""
    model = tmp_path / "model.gguf"
    model.write_bytes(os.urandom(4 << 20))
    size, cached = machine.size_and_cached(str(model))
    assert size == 4 << 20
    if not kernel_counts_pages():
        assert cached is None
        return
    assert cached == 4 << 20
    with model.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    dropped = machine.size_and_cached(str(model))[1]
    assert dropped is not None and dropped <= cached
    print(f"\nin the page cache: {cached}, then {dropped}")


def test_what_is_not_there_is_unknown(tmp_path: Path) -> None:
    gone = str(tmp_path / "gone" / "a.gguf")
    assert machine.size_and_cached(gone) == (None, None)
    assert machine.disks({"chat": [gone]}) == [
        {"path": str(tmp_path / "gone"), "services": ["chat"], "total_bytes": None, "free_bytes": None}
    ]
    assert machine.weights({"chat": [gone]}) == [{"service": "chat", "bytes": None, "cached_bytes": None}]


@pytest.mark.timeout(20)
def test_what_is_no_file_is_never_opened(tmp_path: Path) -> None:
    """A FIFO would wait for its writer, and with it every later look."""
    for name in ("config.json", "model.gguf", "a.safetensors"):
        os.mkfifo(tmp_path / name)
    folder, model = str(tmp_path), str(tmp_path / "model.gguf")
    assert active_bytes([folder], Headers()) is None and active_bytes([model], Headers()) is None
    assert machine.size_and_cached(model) == (None, None)
    assert machine.weights({"chat": [folder]}) == [{"service": "chat", "bytes": None, "cached_bytes": None}]


def test_what_one_token_reads(tmp_path: Path) -> None:
    """Not the embedding, of which it takes a row; and a quarter of the experts, where two of eight are used."""
    keys = {"block_count": 1, "embedding_length": 64}
    dense = {"token_embd.weight": ((64, 1024), Type.F16), "output.weight": ((64, 1024), Type.F16)}
    dense["blk.0.ffn_up.weight"] = ((64, 256), Type.F16)
    experts = {"blk.0.ffn_up_exps.weight": ((64, 256, 8), Type.F16)}
    files = {
        "dense": Model("llama", keys, dense),
        "tied": Model("llama", keys, {name: shape for name, shape in dense.items() if name != "output.weight"}),
        "moe": Model("llama", keys | {"expert_count": 8, "expert_used_count": 2}, dense | experts),
        "odd": Model("llama", keys | {"expert_count": 8}, dense | experts),
    }
    found = {n: active_bytes([str(write(m, tmp_path / f"{n}.gguf"))], Headers()) for n, m in files.items()}
    matrix, layer = 64 * 1024 * 2, 64 * 256 * 2
    assert found == {"dense": matrix + layer, "tied": matrix + layer, "moe": matrix + 3 * layer, "odd": None}
    assert active_bytes([], Headers()) is active_bytes(["/a/b.bin"], Headers()) is None


@pytest.mark.parametrize(("config", "known"), [("{}", 700), ('{"num_experts": 8}', None), ("[", None)])
def test_what_one_token_reads_of_a_folder(tmp_path: Path, config: str, known: int | None) -> None:
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "model-1.safetensors").write_bytes(b"x" * 700)
    assert active_bytes([str(tmp_path)], Headers()) == known


def test_the_bandwidth_that_tokens_must_have_taken() -> None:
    """Two requests share each step: 100 tokens a second are 50 steps, and each GPU of two reads its half."""
    one = Decode(tokens_per_s=100, running=2, weights=8_000, kv_used=2_000, gpus=2)
    assert bytes_per_s(one) == 50 * 10_000 / 2
    assert total([one, Decode(10, 1, 1_000, None, 1)]) == 250_000 + 10_000
    assert total([]) is None


def test_the_least_limit_of_our_cgroups_counts() -> None:
    files = {
        "/proc/self/cgroup": "1:name=x:/y\n0::/system.slice/box.service/daemon\n",
        "/sys/fs/cgroup/system.slice/box.service/daemon/memory.max": "max\n",
        "/sys/fs/cgroup/system.slice/box.service/memory.max": "8589934592\n",
        "/sys/fs/cgroup/system.slice/memory.max": "17179869184\n",
    }

    def read(path: str) -> str:
        if path not in files:
            raise FileNotFoundError(path)
        return files[path]

    assert memory_limit(read) == 8 * 1024**3
    files["/sys/fs/cgroup/system.slice/box.service/memory.max"] = "max\n"
    assert memory_limit(read) == 16 * 1024**3
    del files["/sys/fs/cgroup/system.slice/memory.max"]
    assert memory_limit(read) is None
    files["/proc/self/cgroup"] = "0::/\n"
    assert memory_limit(read) is None and memory_limit(lambda _: "") is None
