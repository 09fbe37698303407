"""What engines tell of their work and their memory, in captures of real ones."""

from __future__ import annotations

from unit.test_adapters import adapter, data, text

from llmsupervisor.runtime.engine import Allocated, Parts, Work


def test_figures_of_a_vllm_that_worked() -> None:
    found = adapter("vllm").figures(text("vllm", "metrics_after_load.txt"))
    assert (found.prefix_hits_total, found.prefix_queries_total, found.preemptions_total) == (512, 6042, 0)
    assert found.prefill == Work(5530, 0.3018063709994294) and found.decode == Work(4923, 7.62349716800054)
    assert (found.kv_tokens_capacity, found.kv_tokens_used, found.written) == (5120, 0, {"all": 4946})
    two = "\n".join(
        f'vllm:cache_config_info{{engine="{i}",kv_cache_size_tokens="{n}"}} 1' for i, n in ((0, 100), (1, 28))
    )
    found = adapter("vllm").figures(two + '\nvllm:kv_cache_usage_perc{engine="0"} 0.5')
    assert (found.kv_tokens_capacity, found.kv_tokens_used) == (128, None)


def test_more_figures_of_llama_server() -> None:
    found = adapter("llama-server").figures(
        text("llama-server", "metrics_busy.txt"), data("llama-server", "slots_busy.json")
    )
    assert found.prefill == Work(1605, 8.02993) and found.decode == Work(1255, 92.9277)
    assert (found.prefix_hits_total, found.prefix_queries_total) == (113, 1718)
    assert (found.draft_tokens_total, found.draft_accepted_total, found.preemptions_total) == (0, 0, None)
    assert found.kv_tokens_capacity == 2048 and len(found.written) == 2
    old = adapter("llama-server").figures("llamacpp:prompt_tokens_total 5\n")
    assert (old.prefix_hits_total, old.prefix_queries_total, old.prefill) == (None, None, Work())


# --- memory --------------------------------------------------------------------------------------------------------


def mib(count: float) -> int:
    return round(count * 1024**2)


def test_what_a_load_allocated() -> None:
    log = text("llama-server", "log_start_one_request_lv4.txt")
    host = Parts(weights=mib(92.10), kv=mib(23.91), compute=mib(15.67 + 0.38))
    assert adapter("llama-server").allocated(log) == Allocated(host=host)
    assert adapter("llama-server").allocated("nothing") is adapter("command").allocated(log) is None


def test_what_ollamas_runner_allocated() -> None:
    found = adapter("ollama").allocated(text("ollama", "serve_stderr.log"))
    assert found is not None and found.host == Parts(weights=mib(281.81)) and found.gpu is not None
    assert found.gpu == Parts(weights=mib(4403.49), kv=mib(1088), compute=mib(258.5))
    start = 'msg="starting llama-server" cmd="llama-server --model /m/{} -c 1"\nload_tensors: CUDA0 model buffer size = 1.00 MiB\n'
    again = adapter("ollama").allocated(start.format("a") * 2)
    assert again is not None and again.gpu == Parts(weights=mib(1))
    assert adapter("ollama").allocated(start.format("a") + start.format("b")) is None


def test_what_vllms_ranks_allocated() -> None:
    log = (
        "(Worker_TP0 pid=1) INFO Model loading took 2.50 GiB memory and 3.1 seconds\n"
        "(Worker_TP1 pid=2) INFO Model loading took 2.50 GiB memory and 3.1 seconds\n"
        "(Worker_TP0 pid=1) INFO Available KV cache memory: 4.25 GiB\n"
        "(Worker_TP0 pid=1) INFO Graph capturing finished in 9 secs, took 0.50 GiB\n"
    )
    assert adapter("vllm").allocated(log) == Allocated(
        gpu=Parts(weights=5 * 1024**3, kv=17 * 1024**3 // 4, compute=1024**3 // 2)
    )
    assert adapter("vllm").allocated(text("vllm", "startup_log_default_cpu.txt")) is None
