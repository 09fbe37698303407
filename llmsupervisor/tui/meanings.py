"""What each figure is read from, and what it does not mean: by page, and there by the name under which it is shown.
Pure data; `tests/tui/test_meanings.py` walks the pages and fails where a figure has no entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Meaning(NamedTuple):
    source: str
    caution: str = ""
    engines: Mapping[str, str] = {}
    """By runtime, where what is asked differs."""


_METRICS = {"llama-server": "GET /metrics", "vllm": "GET /metrics", "ollama": "GET /metrics of the llama-server that Ollama started"}  # fmt: skip


def _engine(figure: str, caution: str = "", **names: str) -> Meaning:
    """`names`: what each engine calls it, `_` for `-`."""
    told = {name.replace("_", "-"): words for name, words in names.items()}
    found = {name: f"{_METRICS[name]}: {words}" for name, words in told.items()}
    return Meaning(f"the engine's own figures; status: targets[].{figure}", caution, found)


HEADER: Mapping[str, Meaning] = {
    "READY": Meaning(
        "the daemon: services that are READY, of those that are to be up; status: services[].state and goal",
        "ready is no promise of speed, and a service that was stopped by hand counts nowhere",
    ),
    "GENERATION": Meaning(
        "the daemon: counts the specs that it applied; status: daemon.spec.generation",
        "not the file on the disk, which may be another one by now: page 6",
    ),
    "UP": Meaning("the daemon's own clock since it began; status: daemon.uptime_s", "services outlive it"),
    "LINK": Meaning(
        "this program: when the last status came over the socket",
        "LIVE says that the daemon answers, not that what it read of an engine is fresh: each figure has its own age",
    ),
    "RATE": Meaning("this program: seconds between two pictures, + and - change it", "engines are read no more often for it"),
}  # fmt: skip

_KV = Meaning(
    "the engine; status: targets[].kv_cache_usage, of the fullest target",
    "no memory: the cache is allocated whole at the start. What waits in it for a later prompt is not in use",
    {
        "llama-server": "GET /slots while requests run: tokens held by slots that work, over n_ctx of all slots",
        "vllm": "GET /metrics: vllm:kv_cache_usage_perc, which is 0 to 1 in spite of its name",
        "ollama": "GET /slots of the llama-server that Ollama started; – where that process is not seen",
    },
)
_RUN = Meaning(
    "running: the gateway's open requests, without a gateway the engine's; waiting: the engine's own queue; Q: what the gateway holds back; status: targets[].requests_running, _waiting, _queued",
    "what waits in the engine was handed on, so the gateway counts it as running too",
)
_PREFILL_SPEED = _engine(
    "prefill_tokens_per_s",
    "– where no prompt was worked on in the last minute: that is not 0, it is not measured",
    llama_server="prompt_tokens_total over prompt_seconds_total, of the last minute",
    vllm="request_prefill_kv_computed_tokens over request_prefill_time_seconds, of the last minute",
    ollama="prompt_tokens_total over prompt_seconds_total, of the last minute",
)
_SPEED = Meaning(
    "the engine's own figures; status: targets[].tokens_per_s",
    "of all answers together, not of one; – while nothing is written: that is not 0",
    {
        "llama-server": "GET /slots: what the slots have decoded, from one look to the next",
        "vllm": "GET /metrics: generation_tokens_total, from one look to the next",
        "ollama": "GET /slots of the llama-server that Ollama started: what they have decoded, from one look to the next",
    },
)
_HIT = _engine(
    "prefix_hit_ratio",
    "the share of tokens, not of requests, in the last minute; – where no prompt came",
    llama_server="prompt_tokens_cached_total against prompt_tokens_total",
    vllm="prefix_cache_hits over prefix_cache_queries",
    ollama="prompt_tokens_cached_total against prompt_tokens_total",
)
_VRAM = Meaning(
    "NVML: nvmlDeviceGetComputeRunningProcesses, summed over the processes of the service; status: vram_bytes and vram_source",
    "not only weights and KV: also buffers and the driver's context of each process. With `delta` NVML lists no process (a container): it is by how much the card's use rose while it loaded",
)
_RSS = Meaning(
    "/proc/PID/status: RssAnon, RssShmem and VmSwap over all processes of the service; status: rss_bytes, swap_bytes",
    "pages of files are not in it: weights that are mapped cost no memory of their own here",
)
_STATE = Meaning(
    "the daemon: its own state machine (docs/lifecycle.md); status: services[].state",
    "READY is no promise of speed: the engine has said that it is up and has answered one tiny request since its start",
)
_FOR = Meaning("the daemon: since the last change of state; status: since", "not the age of the process")
_RESTARTS = Meaning(
    "the daemon: every start after the first; status: restarts",
    "no count of crashes: also those that somebody ordered. The events say why each was",
)
_PID = Meaning("the daemon: the runtime's main process; status: pid", "workers have their own: page 7")
_REASON = Meaning(
    "the daemon: why the state is as it is, and what a load is at and how far; status: reason, phase, targets[].progress",
    "the rate is that of the last 10 s; the time left is what the rest takes at that rate",
)
_CONDITION = Meaning(
    "the daemon: what is wrong while it goes on; status: services[].conditions", "none of them stops or restarts anything"
)  # fmt: skip
_ASKED = Meaning(
    "asked: the spec; got: what the engine says of itself after its start; status: asked, got",
    "– where the engine does not say; that is not the same",
    {"llama-server": "asked: the spec; got: GET /props, GET /slots and the log of the load", "vllm": "asked: the spec; got: GET /v1/models, GET /metrics and the log of the load"},
)  # fmt: skip
_CURVES = Meaning(
    "the daemon's memory of its own figures, a point each second; call: series",
    "each sign is the greatest of its stretch, so a peak is never lost and a mean cannot be read off",
)
_LOG = Meaning(
    "what the process wrote to its output, control characters shown as escapes; call: logs",
    "the time of a line is the process's own, where it writes one",
)
_MEMORY = Meaning(
    "NVML: nvmlDeviceGetMemoryInfo and the running processes; status: gpus[].memory_used_bytes, processes",
    "free memory may be in pieces: a load can fail below it",
)
_BANDWIDTH = Meaning(
    "NVML GPM (DRAM_BW_UTIL) where the card measures it; with ~: the weights and the KV that the tokens of the last seconds must have read, over what the memory can do; status: gpus[].memory_bandwidth",
    "an estimate is no measurement: prefill and what is not ours are not in it. – where neither is known",
)
_BUSY = Meaning(
    "NVML: nvmlDeviceGetUtilizationRates.gpu; status: gpus[].busy",
    "the share of time in which any kernel ran, not load: one request being decoded shows 99 %. That is why bandwidth and tokens/s stand beside it",
)
_CARD_TOKENS = Meaning(
    "the engines that hold memory of this card, by their own counters; status: targets[].tokens_per_s",
    "a service on several cards counts on each of them",
)
_POWER = Meaning(
    "NVML: nvmlDeviceGetPowerUsage of nvmlDeviceGetEnforcedPowerLimit, in steps of 5 W; status: gpus[].power_w",
    "a card at its limit is not broken, but slower than its name",
)
_TEMP = Meaning(
    "NVML: nvmlDeviceGetTemperature, and the threshold where it slows down; status: gpus[].temperature_c",
    "of the chip; memory may be hotter",
)
_LIVE = Meaning(
    "the gateway, each second while somebody looks; an engine's progress where it tells it; call: live",
    "a part between two looks that nobody timed is shown as ?",
)
_EVENTS = Meaning(
    "the daemon: what it decided or saw, each with its own time; call: events",
    "what happened while no daemon ran is known only as far as it was found afterwards",
)

_TTFT = Meaning(
    "the gateway: request read until the first token left for the client; record: ttft_ms",
    "loading and queueing are in it; – where the answer was no stream",
)
_PREFILL = Meaning(
    "the engine's figure where it tells one, else the gateway's: sent until first token; record: prefill_ms and sources",
    "the gateway's contains the engine's queue; ! = both are known and over 20 % apart",
    {"llama-server": "the answer: timings.prompt_ms", "vllm": "the answer: metrics.time_to_first_token_ms", "ollama": "the answer: prompt_eval_duration"},
)  # fmt: skip
_DECODE = Meaning(
    "the engine's figure where it tells one, else first to last token at the gateway; record: decode_ms and sources",
    "tokens/s of one request: an engine that decodes several gives more in sum",
    {"llama-server": "the answer: timings.predicted_ms", "vllm": "the answer: metrics.generation_time_ms", "ollama": "the answer: eval_duration"},
)  # fmt: skip
_QUEUE = Meaning(
    "the gateway's clock until it was handed on, plus the engine's own queue where one is told or follows; record: queue_ms, engine_queue_ms",
    "requests of the same client may be held back for others: it need not be the engine that was full",
)
_LOAD = Meaning("the gateway: while its service or model was started for it; record: load_ms", "of others that waited too: each counts it")  # fmt: skip
_CACHED = Meaning(
    "the engine's answer: tokens of the prompt that it did not compute again; record: cached_tokens",
    "– where the engine does not tell; that is not none",
    {"llama-server": "the answer: timings.cache_n", "vllm": "the answer: usage.prompt_tokens_details.cached_tokens"},
)
_PROMPT = Meaning("the engine's usage, with the template's tokens; record: prompt_tokens", "not what the client typed")
_OUT = Meaning("the engine's usage; record: completion_tokens", "reasoning that the client may not see is in it")
_END = Meaning(
    "the engine's finish_reason, or why the gateway ended it; record: finish_reason", "length: its limit, not the context's"
)  # fmt: skip
_CODE = Meaning("the gateway: the status that the client got; record: status", "499: the client left")
_BAR = Meaning(
    "the parts of its own record in their order, to one scale for all rows", "parts that overlap are shown one after another"
)  # fmt: skip
_WINDOW = Meaning(
    "the gateway's own records of requests that ended in the last five minutes, exactly, not from buckets",
    "what runs is not in it, and a 95th percentile of fewer than 20 requests is not told",
)
_REST = Meaning(
    "what is left of the total; record: other_ms",
    "reading the request, connecting and the last bytes: a slow client stands here too",
)
_TOTAL = Meaning(
    "the gateway: request read until the last byte; record: total_ms", "the way to the client is not in it"
)

_CLOCK = Meaning(
    "NVML: nvmlDeviceGetClockInfo of MaxClockInfo, and nvmlDeviceGetCurrentClocksEventReasons; status: gpus[].clocks, clock_limits",
    "what held the clocks down for a moment between two looks is not seen",
)
_ECC = Meaning(
    "NVML: nvmlDeviceGetTotalEccErrors since the driver was loaded; status: gpus[].ecc",
    "– where the card or the driver tells none; that is not none",
)
_ROWS = Meaning(
    "NVML: nvmlDeviceGetRemappedRows; status: gpus[].remapped_rows", "over the card's life, not since a boot"
)
_XID = Meaning(
    "NVML: nvmlEventTypeXidCriticalError, heard since the daemon began; status: gpus[].xids",
    "what came before is only in the kernel's log; – where events cannot be heard",
)
_HOLDERS = Meaning(
    "NVML: the running processes of the card, joined to services by /proc; status: gpus[].processes",
    "no list in a container: NVML numbers processes from outside",
)
_HOST_CPU = Meaning("/proc/stat from one look to the next; status: host.cpu_busy", "of all processors together")
_HOST_RAM = Meaning("/proc/meminfo: MemAvailable of MemTotal; status: host", "a cgroup may allow less")
_DISK = Meaning("statvfs of the folders with models; status: host.disks", "a quota may allow less")
_FILES = Meaning(
    "stat, and what the kernel says of its page cache; status: host.weights",
    "cached pages go when others need the room",
)

_CONTEXT = Meaning(
    "prompt + output of the last 1000 requests through the gateway, exactly; limit: as the engine got it; status: targets[].context",
    "– below 20 requests; one request's own use is on its page",
)
_PARTS = Meaning(
    "what the engine said while it loaded, else the plan's own sum; status: memory and its source",
    "overhead is what its processes hold beside that; a sum of a plan is no measurement",
)
_ORIGINS = Meaning(
    "the plan that this start was rendered from; origin = line of the spec, definition or default; call: plan",
    "an engine may change its own environment afterwards",
)
_EFFECTS = Meaning(
    "the daemon's own plan of the file, with the facts of now; call: spec", "the box may change until it is applied"
)
_DIFF = Meaning("the file on the disk against the text that was applied last; call: spec", "a file that changed but means the same restarts nothing")  # fmt: skip
_ADVICE = Meaning(
    "the rules of `llmsupervisor check` on what runs, and what a week of records implies; call: advice",
    "a rule knows this spec and this box, not your intentions",
)
_CRASH = Meaning(
    "the daemon's crash record: written at an end that nobody asked for; call: crashes",
    "the newest 50 are kept; an end by `stop` or `restart` makes none",
)

BY_PAGE: Mapping[str, Mapping[str, Meaning]] = {
    "overview": {
        "NAME": Meaning("the spec: [services.NAME]"),
        "RUNTIME": Meaning("the spec: runtime, a definition of docs/settings.md", "no version: page 7 has the command"),
        "STATE": _STATE, "FOR": _FOR, "RESTARTS": _RESTARTS, "PID": _PID, "KV": _KV, "RUN/WAIT/Q": _RUN,
        "PRE/S": _PREFILL_SPEED, "TOK/S": _SPEED, "HIT": _HIT, "REASON": _REASON, "CONDITION": _CONDITION, "VRAM": _VRAM,
        "ASKED": _ASKED, "LAST 15 MINUTES": _CURVES, "RUN": _CURVES, "QUEUE": _CURVES,
        "MEM": _MEMORY, "BW": _BANDWIDTH, "CARD TOK/S": _CARD_TOKENS, "BUSY": _BUSY, "POWER": _POWER, "TEMP": _TEMP,
        "LOG": _LOG, "LIVE": _LIVE, "EVENTS": _EVENTS,
    },
    "requests": {
        "5m": _WINDOW, "REQUESTS": _WINDOW, "RUN/WAIT/Q": _RUN, "LIVE": _LIVE,
        "TIME": Meaning("the gateway's clock when the request was read; record: time"),
        "MODEL": Meaning("the name that the client asked for; record: model", "several names may be one model"),
        "CLIENT": Meaning("the name of its key, or of the connection; record: client", "– where it showed no key"),
        "CODE": _CODE, "PROMPT": _PROMPT, "CACHED": _CACHED, "OUT": _OUT, "QUEUE": _QUEUE, "LOAD": _LOAD, "PREFILL": _PREFILL,
        "DECODE": _DECODE, "TTFT": _TTFT, "TOK/S": _DECODE, "END": _END, "BAR": _BAR,
    },
    "request": {
        "REQUEST": _END, "QUEUE": _QUEUE, "WAITING": _QUEUE, "LOAD": _LOAD, "PREFILL": _PREFILL, "DECODE": _DECODE, "REST": _REST,
        "TOTAL": _TOTAL, "TTFT": _TTFT, "CACHE": _CACHED, "BAR": _BAR,
        "COUNT": _LIVE, "SEND": _LIVE, "UNKNOWN": _LIVE, "AGE": _LIVE,
        "CONTEXT": Meaning("the engine's usage against context_length as it got it; record: prompt_tokens, completion_tokens", "the engine's limit of now, not of then"),
        "DIFFER": Meaning("both the gateway's clock and the engine's figure; record: sources", "neither is wrong by that alone: they begin at different moments"),
        "RANK": Meaning("this program: the share of the newest records of the same service and model, 200 at most, with a smaller figure", "longer prompts and answers take longer: not each slow one is a fault"),
        "SESSION": Meaning("the client's own word; record: session_id"),
    },
    "gpus": {
        "GPU": Meaning("NVML: nvmlDeviceGetName, nvmlDeviceGetUUID, the driver's version; status: gpus[]"),
        "MEM": _MEMORY, "PID": _HOLDERS, "BW": _BANDWIDTH, "TOK/S": _CARD_TOKENS, "BUSY": _BUSY, "POWER": _POWER, "CLOCK": _CLOCK,
        "TEMP": _TEMP, "ECC": _ECC, "ROWS": _ROWS, "XID": _XID, "WATT": _CURVES, "CPU": _HOST_CPU, "RAM": _HOST_RAM,
        "DISK": _DISK, "FILES": _FILES, "15 min": _CURVES, "BOX": _HOST_CPU,
    },
    "logs": {"LOG": _LOG, "HITS": Meaning("this program: lines of what was read that match; the daemon, call log_search: those in the whole log and what was rotated away", "a search that takes over 30 s of a core ends with what it has")},
    "events": {
        "EVENTS": _EVENTS,
        "TIME LINE": Meaning(
            "the daemon's events: each cell is what lasted longest in it; x: an end that nobody asked for",
            "before the first event that is known a state is unknown and the cell empty",
        ),
    },
    "spec": {
        "SPEC": Meaning("the daemon: the file, and how many specs it applied; status: daemon.spec"),
        "CHANGED": _DIFF, "IN SYNC": _DIFF, "INVALID": Meaning("the daemon's reading of the file; call: spec", "what runs is not touched by it"),
        "WHAT APPLYING IT DOES": _EFFECTS, "APPLIED": _DIFF, "DRIFT": Meaning("the plan of now against that of the start; status: drift", "nothing is restarted for it"),
    },
    "service": {
        "STATE": _STATE, "RESTARTS": _RESTARTS, "CONDITION": _CONDITION, "VRAM": _VRAM, "FIGURES": _KV, "KV": _KV, "RUN": _RUN, "QUEUE": _CURVES,
        "TOK/S": _SPEED, "CACHE HIT": _HIT, "CONTEXT": _CONTEXT,
        "DRAFT": _engine("draft_acceptance", "of tokens, not of requests", llama_server="spec_decode_num_accepted_tokens over num_draft_tokens", vllm="spec_decode_num_accepted_tokens over num_draft_tokens"),
        "PREEMPTED": _engine("preemptions", "since the start of the process, not of late", vllm="num_preemptions"),
        "MEMORY": _PARTS, "HELD": _RSS, "GPU": _PARTS, "HOST": _PARTS,
        "GROWTH": Meaning("a line through memory over requests since it was warm; status: growth", "a cache that fills grows too, and stops"),
        "SLO": Meaning("the gateway's records of its window, exactly; status: slo", "– with too few requests"),
        "LAST 15 MINUTES": _CURVES, "PROCESSES": Meaning("/proc: the tree below the main process; call: processes", "RSS counts shared pages in each process"),
        "PROBE": Meaning("the daemon: its last look at the engine's readiness path, each 2 to 5 s; status: probe", "an answer is no proof that tokens move: that is looked at apart"),
        "STARTS": Meaning("the daemon's events: from STARTING to its end; phases as the readiness path and the log told them, each second", "a load that a reload cut short counts as its end"),
        "MEMORY IT WILL TAKE": Meaning("the plan's own sum from the model's file; call: plan", "an estimate where the rows say so: HELD is what it holds"),
        "ASKED AGAINST GOT": _ASKED, "ARGV": _ORIGINS, "ENVIRONMENT": _ORIGINS,
    },
    "advice": {"ADVICE": _ADVICE, "CONDITION": _CONDITION},
    "finding": {
        "SERVICE": _ADVICE, "WHERE": Meaning("the line of the spec that says it"), "DO": _ADVICE,
        "EFFECT": Meaning("the rule: what turning it does", "from the plan, not tried"), "TURN": _EFFECTS,
        "RESTS ON": Meaning("recorded requests that the rule looked at", "the plan alone: no request was looked at"),
        "EVIDENCE": Meaning("the figures that the rule compared", "as they were when the advice was asked for"),
        "SOURCE": Meaning("where the rule is from: docs/rules.md"), "IGNORED": Meaning("the spec: the reason that it gives"),
        "WHAT APPLYING IT DOES": _EFFECTS, "APPLIED": _DIFF,
    },
    "crashes": {"CRASH RECORDS": _CRASH},
    "crash": {
        "CRASH": _CRASH, "ARGV": Meaning("the crash record: what was started", "secrets are left out"),
        "ENVIRONMENT": Meaning("the crash record: what was started", "secrets are left out"),
        "LAST WORDS": Meaning("the last 200 lines of its log", "what it had not written yet died with it"),
    },
}  # fmt: skip
UNKNOWN = Meaning("–", "nobody has said what this figure is")


def of(page: str, name: str) -> Meaning:
    return BY_PAGE.get(page, {}).get(name) or HEADER.get(name) or UNKNOWN
