"""The sums as part of the plan: by which formula, against which budget, beside whom, and what they hold back."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.gguf_files import Type, decoder, deepseek2, header, lora, mamba2
from support.planned import CARD, GIB, OTHER, A, B, at, box, llama, llama_8b, one, sums

from llmsupervisor.base.units import format_size
from llmsupervisor.link.memory import Memory, MemoryPlace
from llmsupervisor.plan import measure, measure_llama, show
from llmsupervisor.plan.answers import most
from llmsupervisor.plan.gguf import GgufError, GgufHeader
from llmsupervisor.plan.launch import Plan, ServicePlan
from llmsupervisor.plan.learned import HOST, Key, Learned
from llmsupervisor.plan.measure import CONTEXT, key, need
from llmsupervisor.plan.memory import Settings, estimate
from llmsupervisor.plan.tables import of_plan

MIB = 1024 * 1024
FILES = {"/m/8b.gguf": llama_8b(), "/m/odd.gguf": GgufError("broken", "x")}
DRAFT = header(decoder(layers=16, embd=2048, ff=8192, heads=32, heads_kv=8, vocabulary=128256, tied=True))
STRANGE = replace(llama_8b(), values={**llama_8b().values, "general.architecture": "unheard-of"})


def told(plan: ServicePlan) -> list[str]:
    return [refusal.text for refusal in plan.refusals]


# --- llama-server ---


def test_llama_8b_on_one_card() -> None:
    """KV to the byte; weights without the embedding, which stays on the host; what a process takes is assumed and says so."""
    chat = one(llama())
    gpu, host = at(chat, A), at(chat, None)
    assert gpu.kv_cache == 4 * 8192 * 68 * 1024
    assert gpu.weights is not None and gpu.weights // MIB == 7605
    assert host.weights is not None and host.weights // MIB == 532
    assert gpu.overhead == CONTEXT and host.overhead == 0
    assert (gpu.budget, gpu.free, gpu.label) == (24 * GIB, 20 * GIB, "GPU 0")
    assert gpu.total == gpu.known == sum(size for _, size in gpu.told if size is not None)
    assert sums(chat).fits and sums(chat).kv_tokens == 4 * 8192 and sums(chat).kv_bytes_per_token == 68 * 1024
    assert not chat.refusals and not chat.warnings
    assert [part.why for part in sums(chat).parts if part.kind == "overhead" and "assumed" in part.why]


def test_on_the_cpu_everything_lies_on_the_host() -> None:
    chat = one(llama(gpus=[]), gpus=())
    (host,) = sums(chat).places
    assert host.gpu is None and host.kv_cache == 4 * 8192 * 68 * 1024
    assert host.overhead is None and host.total is None and sums(chat).fits is None, "no start has shown it yet"
    assert not chat.refusals and not chat.warnings


def test_what_does_not_fit_waits_with_the_sum_and_what_would() -> None:
    chat = one(llama(context_length=131072, kv_cache_type="f16"))
    assert sums(chat).fits is False
    (text,) = told(chat)
    assert text.startswith(
        "services.chat: memory: needs 72.1 GiB = weights 7.4 GiB + KV cache 64.0 GiB + compute 236.0 MiB"
    )
    assert " on GPU 0, and may take 24.0 GiB (all that there is); context_length = 32512 would fit" in text
    assert chat.refusals[0].kind == "memory" and chat.refusals[0].retry == "vram"
    again = one(llama(context_length=32512, kv_cache_type="f16"))
    assert not again.refusals
    assert told(one(llama(context_length=32512 + 256, kv_cache_type="f16")))
    assert not one(llama(context_length=131072, kv_cache_type="f16", gate="off")).refusals


def test_a_budget_of_its_own() -> None:
    (text,) = told(one(llama(gpu_memory="6GiB")))
    assert "may take 6.0 GiB (gpu_memory); not even the shortest context would fit" in text
    assert at(one(llama(gpu_memory="20GiB")), A).budget == 20 * GIB


def test_weights_alone_do_not_keep_a_service_off_the_host() -> None:
    """They are read from the file as they are needed: slow, not impossible."""
    slow = one(llama(gpus=[]), gpus=(), memory=9 * GIB)
    assert sums(slow).fits is False and not slow.refusals
    (text,) = told(one(llama(gpus=[]), gpus=(), memory=2 * GIB))
    assert "on host, and may take 2.0 GiB (all that there is)" in text


def test_lora_is_counted_once_its_header_was_read() -> None:
    model = decoder(layers=32, embd=4096, ff=14336, heads=32, heads_kv=8, vocabulary=128256, weights=Type.Q8_0)
    known = {"/m/8b.gguf": llama_8b(), "/m/lora.gguf": header(lora(model, 64, "attn_", "ffn_"))}
    chat = one(llama(lora=["/m/lora.gguf"]), ggufs=known)
    (size,) = [part.bytes for part in sums(chat).parts if part.name == "LoRA weights"]
    assert size == 64 * 4 * 32 * (4 * 4096 + 2 * (4096 + 1024) + 3 * (4096 + 14336)), "as many as 8B have at rank 64"
    unread = one(llama(lora=["/m/lora.gguf"]))
    assert at(unread, A).weights is None and "lora: the header of /m/lora.gguf was not read" in sums(unread).unknown[0]


def test_the_driver_keeps_some() -> None:
    assert at(one(llama(), gpus=(replace(CARD, memory_reserved=GIB),)), A).budget == 23 * GIB
    nothing = one(llama(), gpus=(replace(CARD, memory_total=None, memory_free=None),))
    assert at(nothing, A).budget is None and sums(nothing).fits is None and most(nothing, box(llama())[1]) is None


def test_what_is_unknown_warns_and_strict_refuses() -> None:
    files = {"/m/8b.gguf": STRANGE}
    chat = one(llama(), ggufs=files)
    assert not chat.refusals and "no formula for architecture 'unheard-of'" in chat.warnings[0]
    assert at(chat, A).kv_cache is None and at(chat, A).weights is not None and need(chat, A) is None
    (text,) = told(one(llama(gate="strict"), ggufs=files))
    assert "no formula for architecture 'unheard-of'" in text and 'gate = "strict"' in text
    assert not one(llama(gate="strict"), ggufs=files).warnings
    assert need(one(llama(gpu_memory="9GiB"), ggufs=files), A) == 9 * GIB
    big = one(llama(), ggufs=files, gpus=(replace(CARD, memory_total=GIB),))
    assert "and an unknown amount of KV cache and compute" in told(big)[0], "what is known is too much already"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"ggufs": {"/m/8b.gguf": GgufError("truncated", "the file is cut off")}}, "the file is cut off"),
        ({"text": llama(gpus=[0, 1], split="row"), "gpus": (CARD, OTHER)}, 'no formula for split = "row"'),
        ({"text": llama(gpus=[0, 1], split="tensor"), "gpus": (CARD, OTHER)}, 'no formula where split = "tensor"'),
        (
            {"text": llama(extra_args=["--override-tensor", "exps=Vulkan0"])},
            "no formula for --override-tensor exps=Vulkan0",
        ),
        ({"text": llama(extra_args=["--rpc", "a:1"])}, "no formula for --rpc"),
        ({"text": llama(extra_args=["--control-vector", "/m/c.gguf"])}, "no formula for --control-vector"),
        (
            {"text": llama(gpus=[0, 1], split="none", extra_args=["-mg", "1"]), "gpus": (CARD, OTHER)},
            "no formula for -mg",
        ),
        (
            {"text": llama(draft="/m/d.gguf"), "ggufs": {"/m/8b.gguf": llama_8b(), "/m/d.gguf": STRANGE}},
            "draft: no form",
        ),
        (
            {
                "text": llama(draft="/m/d.gguf"),
                "ggufs": {"/m/8b.gguf": llama_8b(), "/m/d.gguf": GgufError("broken", "x")},
            },
            "draft: x",
        ),
        ({"text": llama(mmproj="/m/p.gguf"), "ggufs": {"/m/8b.gguf": llama_8b(), "/m/p.gguf": DRAFT}}, "pictures"),
    ],
)
def test_why_it_is_unknown(changes: dict[str, Any], says: str) -> None:
    chat = one(changes.pop("text", llama()), **changes)
    assert says in "; ".join(sums(chat).unknown) and says in "; ".join(chat.warnings)
    assert (sums(chat).fits is None and most(chat, box(llama())[1]) is None) or says == "pictures"


def test_what_the_engine_refuses_whatever_the_box() -> None:
    odd = header(decoder(heads=9, embd=576))
    chat = one(
        llama(parallel=1), ggufs={"/m/8b.gguf": replace(odd, values={**odd.values, "llama.attention.key_length": 48})}
    )
    assert told(chat) == [f"services.chat: {sums(chat).refused}"] and "multiple of 32" in sums(chat).refused
    assert sums(chat).fits is False


def test_a_draft_model_that_the_engine_refuses() -> None:
    odd = header(decoder(heads=9, embd=576))
    odd = replace(odd, values={**odd.values, "llama.attention.key_length": 48})
    plan, facts = box(llama(draft="/m/d.gguf"), ggufs={"/m/8b.gguf": llama_8b(), "/m/d.gguf": odd})
    chat = plan.services["chat"]
    words = {"--spec-draft-type-k": "q8_0", "--spec-draft-type-v": "q8_0"}
    argv = tuple(replace(a, words=(a.words[0], words[a.words[0]])) if a.words[0] in words else a for a in chat.argv)
    found = measure.sums(replace(chat, argv=argv), facts)
    assert found and found.fits is None and "draft: KV type q8_0 needs heads of a multiple of 32" in found.unknown[0]


def test_a_command_line_that_does_not_say_its_context() -> None:
    plan, facts = box(llama())
    silent = replace(plan.services["chat"], argv=plan.services["chat"].argv[:1])
    found = measure.sums(silent, facts)
    assert found and found.unknown == ("the command line does not say --ctx-size and --parallel",)
    assert not [part for part in found.parts if part.kind != "overhead"]


def test_sums_are_kept_for_the_same_header_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure_llama, "KEPT", 3)
    monkeypatch.setattr(measure_llama, "_known", {})
    model = llama_8b()
    for tokens in range(256, 256 * 11, 256):
        asked = Settings(tokens)
        found = measure_llama.memo(model, asked)
        assert found == estimate(model, asked) and len(measure_llama._known) <= 3
    assert measure_llama.memo(model, Settings(256)) is measure_llama.memo(model, Settings(256))


def test_two_unequal_cards_share_by_their_memory() -> None:
    chat = one(llama(gpus=[0, 1]), gpus=(CARD, OTHER))
    first, second = at(chat, A), at(chat, B)
    assert first.kv_cache and second.kv_cache and first.kv_cache + second.kv_cache == 4 * 8192 * 68 * 1024
    assert first.kv_cache * 10 == second.kv_cache * 22, "10 layers and the output on the second"
    said = one(llama(gpus=[0, 1], extra_args=["--tensor-split", "1,3"]), gpus=(CARD, OTHER))
    assert at(said, A).kv_cache == 9 / 32 * 4 * 8192 * 68 * 1024
    odd = one(llama(gpus=[0, 1], extra_args=["--tensor-split", "1,2,3"]), gpus=(CARD, OTHER))
    assert at(odd, A).kv_cache == first.kv_cache, "shares of three for two cards: as if nothing were said"
    alone = one(llama(gpus=[0, 1], split="none"), gpus=(CARD, OTHER))
    assert at(alone, B).kv_cache == 0 and at(alone, A).kv_cache == 4 * 8192 * 68 * 1024


def test_a_draft_model_and_flags_of_people() -> None:
    files = {"/m/8b.gguf": llama_8b(), "/m/d.gguf": DRAFT}
    chat = one(llama(draft="/m/d.gguf"), ggufs=files)
    names = {part.name: part.bytes for part in sums(chat).parts if part.gpu == A}
    assert names["draft KV cache"] == 4 * 8192 * 2 * 16 * 8 * 64 * 2 and names["draft weights"]
    assert [part.bytes for part in sums(chat).parts if part.name == "output buffer"] == [4 * 4 * 128256 * 4]
    moved = one(llama(extra_args=["--no-kv-offload", "--n-cpu-moe", "3"]))
    assert at(moved, A).kv_cache == 0 and at(moved, None).kv_cache == 4 * 8192 * 68 * 1024
    some = one(llama(gpu_layers=16))
    assert at(some, None).kv_cache == 17 * 4 * 8192 * 68 * 1024 // 32


def test_nobody_looked() -> None:
    chat = one(llama(), ggufs={})
    assert chat.memory is None and not chat.refusals and not chat.warnings and most(chat, box(llama())[1]) is None
    assert need(one(llama(gpu_memory="9GiB"), ggufs={}), A) == 9 * GIB
    assert "nobody has looked" in told(one(llama(gate="strict"), ggufs={}))[0]


# --- several services ---


def test_auto_goes_where_there_is_room() -> None:
    text = llama("a", gpus="auto") + llama("b", gpus="auto") + llama("c", gpus=[0])
    plan, _ = box(text, gpus=(CARD, replace(OTHER, memory_total=20 * GIB, memory_free=20 * GIB)))
    assert [plan.services[name].gpus for name in "abc"] == [(B,), (A,), (A,)]
    assert at(plan.services["b"], A).beside == (("c", need(plan.services["c"], A)),)
    taken, _ = box(llama("chat", gpus="auto"), gpus=(replace(CARD, memory_free=GIB), OTHER))
    assert taken.services["chat"].gpus == (B,), "somebody else holds most of the larger card"
    unsized, _ = box(llama("chat", gpus="auto") + llama("x", model="/m/none.gguf"), gpus=(CARD, OTHER))
    assert unsized.services["chat"].gpus == (B,), "who says no size may take all"
    unreadable, _ = box(llama(gpus="auto"), gpus=(replace(CARD, memory_total=None),))
    assert unreadable.services["chat"].gpus == (A,)


def test_more_than_the_card_has_is_told() -> None:
    plan, _ = box(llama("a") + llama("b", context_length=16384) + llama("c", start="demand", keep_alive="5m"))
    assert not plan.services["a"].warnings and not any(p.refusals for p in plan.services.values())
    (text,) = plan.services["b"].warnings or ("",)
    assert "services.b: GPU 0 has 24.0 GiB, and a 10.3 GiB + b 12.4 GiB" not in text
    plan, _ = box(llama("a") + llama("b", context_length=32768) + llama("c", start="demand", keep_alive="5m"))
    (text,) = plan.services["b"].warnings
    assert (
        text.startswith("services.b: GPU 0 has 24.0 GiB, and a 10.") and "it waits as long as the others stay" in text
    )
    assert "c 10." in plan.services["c"].warnings[0]


# --- what was learned ---


def lesson(chat: ServicePlan, facts: Any, held: int, **changes: Any) -> Learned:
    card = facts.gpus[0] if chat.gpus else None
    return Learned(**({"key": key(chat, facts, card), "held": held, "planned": held, "overhead": 0} | changes))


def learned_on(text: str, index: int) -> Learned:
    plan, facts = box(text, gpus=(CARD, OTHER))
    known = key(plan.services["chat"], facts, (facts.gpus or ())[index])
    return Learned(key=known, held=6 * GIB, planned=6 * GIB, overhead=0)


def test_a_start_with_the_same_settings_shows_all_of_it() -> None:
    plan, facts = box(llama())
    taught = lesson(plan.services["chat"], facts, 11 * GIB, starts=3)
    chat = one(llama(), learned=(taught,))
    assert at(chat, A).total == 11 * GIB and at(chat, A).kv_cache == 4 * 8192 * 68 * 1024
    assert sums(chat).learned == "learned from 3 starts of llama-server 1 with these settings"
    exact = one(llama(), learned=(replace(taught, compute=150 * MIB),))
    assert at(exact, A).compute == 150 * MIB and at(exact, A).total == 11 * GIB
    strange = one(llama(), ggufs={"/m/8b.gguf": STRANGE}, learned=(taught,))
    assert at(strange, A).total == 11 * GIB and not strange.warnings, "nothing is unknown any more"
    assert sums(strange).fits is True and sums(one(llama(), ggufs={"/m/8b.gguf": STRANGE})).fits is None
    large = replace(taught, held=25 * GIB)
    assert sums(one(llama(), ggufs={"/m/8b.gguf": STRANGE}, learned=(large,))).fits is False
    both = llama(gpus=[0, 1])
    half = one(both, gpus=(CARD, OTHER), ggufs={"/m/8b.gguf": STRANGE}, learned=(learned_on(both, 0),))
    whole = (learned_on(both, 0), learned_on(both, 1))
    assert sums(half).fits is None, "one of two GPUs"
    assert sums(one(both, gpus=(CARD, OTHER), ggufs={"/m/8b.gguf": STRANGE}, learned=whole)).fits is True
    unread = one(llama(), ggufs={"/m/8b.gguf": FILES["/m/odd.gguf"]}, learned=(taught,))
    assert at(unread, A).total == 11 * GIB and not unread.warnings
    for chat, header_of in ((strange, STRANGE), (unread, FILES["/m/odd.gguf"])):
        assert most(chat, box(llama(), ggufs={"/m/8b.gguf": header_of})[1]) is None, "but no other size can be told"


def test_other_settings_of_the_same_runtime_teach_the_overhead() -> None:
    plan, facts = box(llama())
    taught = lesson(plan.services["chat"], facts, 11 * GIB, overhead=300 * MIB)
    other = one(llama(context_length=4096), learned=(taught,))
    assert at(other, A).overhead == 300 * MIB and not sums(other).learned
    assert (
        at(
            one(llama(context_length=4096), learned=(replace(taught, key=replace(taught.key, version="2")),)), A
        ).overhead
        == CONTEXT
    )
    cpu, there = box(llama(gpus=[]), gpus=())
    assert key(cpu.services["chat"], there, None).place == HOST
    on_host = lesson(cpu.services["chat"], there, 13 * GIB)
    learned = one(llama(gpus=[]), gpus=(), learned=(on_host,))
    assert at(learned, None).total == 13 * GIB and sums(learned).fits is True


def test_a_key_without_a_version_is_that_of_the_binary() -> None:
    plan, facts = box(llama())
    chat = plan.services["chat"]
    nameless = replace(facts, binaries={n: replace(b, version=None) for n, b in facts.binaries.items()})
    assert key(chat, nameless, CARD).version == "1:1"
    assert key(chat, replace(facts, binaries={}), CARD) == Key(
        "llama-server", "", "RTX 4090", key(chat, facts, CARD).flags
    )


# --- told ---


def test_as_json_and_as_text() -> None:
    plan, facts = box(llama() + llama("two", start="demand", keep_alive="5m"))
    chat = plan.services["chat"]
    assert chat.memory
    assert chat.memory.to_json()["most"] is None, "nobody asked"
    asked = replace(chat, memory=replace(chat.memory, most=most(chat, facts), learned="learned"))
    found = json.loads(json.dumps(show.service_json(asked)))["memory"]
    assert set(found) == set(get_type_hints(Memory)) and set(found["places"][0]) == set(get_type_hints(MemoryPlace))
    gpu, host = found["places"]
    assert gpu["total"] == gpu["known"] == gpu["weights"] + gpu["kv_cache"] + gpu["compute"] + gpu["overhead"]
    assert gpu["beside"] == [{"service": "two", "total": need(plan.services["two"], A)}] and host["gpu"] is None
    assert found["fits"] is True and found["most"]["context_length"] > 8192 and found["most"]["parallel"] > 4
    text = show.text(replace(plan, services={"chat": asked}))
    assert "  memory: fits\n" in text and "GPU 0 beside it: two 10." in text
    assert "a token of context costs 68.0 KiB; the KV cache holds 32,768 tokens" in text
    assert f"at most: context_length = {found['most']['context_length']} at this parallel" in text
    unknown = one(llama(), ggufs={"/m/8b.gguf": STRANGE})
    assert "not known: no formula" in show.text(replace(plan, services={"chat": unknown}))
    refused = replace(asked, memory=replace(chat.memory, refused="no", kv_tokens=None))
    assert "refused by the engine: no" in show.text(replace(plan, services={"chat": refused}))


def test_f16_weights_are_twice_q8() -> None:
    heavy = one(llama(), ggufs={"/m/8b.gguf": llama_8b(Type.F16)})
    weights = at(heavy, A).weights
    assert weights is not None and weights // MIB == 14315


def test_the_alternatives_of_a_service() -> None:
    plan, facts = box(llama() + llama("none", model="/m/none.gguf") + llama("odd", model="/m/odd.gguf"), ggufs=FILES)
    told = of_plan(plan, facts)
    assert (
        told.startswith("## chat: context_length = 8192, parallel = 4\n\n| KV cache | per token |")
        and "## none" not in told
    )
    rows = {row.split(" | ")[0].strip("| *"): row.split(" | ") for row in told.partition("## odd")[0].splitlines()[2:]}
    assert rows["q8_0"][1] == "68.0 KiB" and rows["q8_0"][2] == format_size(need(plan.services["chat"], A))
    assert int(rows["q4_0"][5]) > int(rows["q8_0"][5]) > int(rows["f16"][5]) and rows["f16"][4] == "yes"
    assert rows["f16"][3] == "32,768" and rows["f16"][7:9] == ["–", "–"]
    assert "| – | – |" in told.partition("## odd")[2], "what is unknown is no number"
    assert of_plan(*box(llama(), ggufs={})) == "no service whose model was read: nothing to compare"


def test_what_a_start_taught_is_of_its_own_type_alone() -> None:
    plan, facts = box(llama())
    chat = plan.services["chat"]
    shown = at(chat, A).known
    lesson = Learned(key(chat, facts, CARD), held=shown + GIB, planned=shown, overhead=GIB)
    taught = replace(facts, learned=(lesson,))
    totals = [row.split(" | ")[2] for row in of_plan(plan, taught).splitlines()[4:]]
    assert len(totals) == len(set(totals)) == 6


ODD: list[Any] = [0, 1, -1, 3, 2**31, 2**63 - 1, 1.5, float("nan"), "x", True, (), (0,), (2**62,) * 4, (True, False)]
BASES = [header(decoder(layers=3)), header(deepseek2(layers=3)), header(mamba2(layers=2, embd=256))]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(BASES), st.data())
def test_no_header_breaks_the_plan(base: GgufHeader, data: st.DataObject) -> None:
    keys = st.sampled_from([key for key in base.values if key != "general.architecture"])
    values = {**base.values, **data.draw(st.dictionaries(keys, st.sampled_from(ODD), max_size=3))}
    tensors = base.tensors[: data.draw(st.integers(0, len(base.tensors)))]
    odd = replace(base, values=values, tensors=tensors)
    chat = one(llama(gpus=[0, 1]), ggufs={"/m/8b.gguf": odd}, gpus=(CARD, OTHER))
    assert show.text(Plan({"chat": chat})) and not [text for text in sums(chat).unknown if "failed" in text]


def test_sums_that_fail_are_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(measure.WHAT, "llama_server", lambda *_: 1 // 0)
    chat = one(llama())
    assert "the sums failed: ZeroDivisionError" in chat.warnings[0] and at(chat, A).total is None and not chat.refusals
