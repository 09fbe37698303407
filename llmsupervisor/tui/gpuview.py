"""GPUs: whose memory it is, and what the card does. Pure. What NVML does not tell is `–`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from llmsupervisor.base.text import cut, pad, printable, width
from llmsupervisor.base.units import format_size
from llmsupervisor.cli.views import UNKNOWN, Line, Span, clip, percent

if TYPE_CHECKING:
    from llmsupervisor.link.gpus import Gpu
    from llmsupervisor.link.services import Service

SIGNS = "#=*+%@&$"
"""One for each service, in the order of the spec; more than these share the last."""
OTHER, UNSEEN, FREE = ".", "?", "-"
_GIB = 1024**3
_SLACK = 64 * 1024**2
"""Bytes by which sums of NVML do not agree with each other."""


class Part(NamedTuple):
    sign: str
    name: str
    bytes: int


def sign_of(service: str, services: Sequence[Service]) -> str:
    names = [each["name"] for each in services]
    return SIGNS[min(names.index(service), len(SIGNS) - 1)] if service in names else OTHER


def parts(gpu: Gpu, services: Sequence[Service]) -> list[Part]:
    """Whose the used memory is: services in their order, foreign processes, and what no process accounts for."""
    held: dict[str, int] = {}
    foreign = 0
    for process in gpu["processes"] or []:
        size = process.get("memory_used_bytes") or 0
        if process.get("service"):
            held[str(process["service"])] = held.get(str(process["service"]), 0) + size
        else:
            foreign += size
    order = [each["name"] for each in services]
    found = [
        Part(sign_of(name, services), name, size)
        for name, size in sorted(held.items(), key=lambda i: order.index(i[0]) if i[0] in order else len(order))
    ]
    if foreign:
        found.append(Part(OTHER, "not ours", foreign))
    rest = (gpu["memory_used_bytes"] or 0) - sum(part.bytes for part in found)
    if rest > _SLACK:
        found.append(Part(UNSEEN, "of no process", rest))
    return found


def bar(gpu: Gpu, services: Sequence[Service], cells: int) -> Line:
    whole = gpu["memory_total_bytes"]
    if not whole or gpu["memory_used_bytes"] is None:
        return [Span(UNSEEN * cells, "dim")]
    line: Line = []
    at, used = 0, 0
    for part in parts(gpu, services):
        at += part.bytes
        end = min(round(at / whole * cells), cells)
        if end > used:
            line.append(Span(part.sign * (end - used), "dim" if part.sign in (OTHER, UNSEEN) else "busy"))
            used = end
    return [*line, Span(FREE * (cells - used), "dim")]


def gib(size: int | None) -> str:
    return UNKNOWN if size is None else f"{size / _GIB:.1f}"


def strip(gpus: Sequence[Gpu] | None, services: Sequence[Service], room: int, most: int) -> list[Line]:
    """One line for each card, for the overview; the busy time never stands without the bandwidth and tokens beside it."""
    if gpus is None:
        return [[Span("GPU  the cards could not be read (NVML failed): unknown, not none", "warn")]]
    lines: list[Line] = []
    for gpu in gpus[:most]:
        name = pad(short_name(gpu), 10) if room >= 60 else ""
        memory = f"{gib(gpu['memory_used_bytes'])}/{gib(gpu['memory_total_bytes'])} GiB"
        tail = "  ".join([memory, *figures(gpu, services, room)])
        head = f"GPU{gpu['index']} {name} ".replace("  ", " ")
        cells = room - width(head) - width(tail) - 1
        line: Line = [Span(head, "bold")]
        if cells >= 6:
            line += [*bar(gpu, services, min(cells, 60)), Span(" ")]
        lines.append([*line, Span(tail)])
    if len(gpus) > most:
        lines[most - 1 :] = [_together(gpus[most - 1 :])]
    return lines


def _together(gpus: Sequence[Gpu]) -> Line:
    used, whole = [g["memory_used_bytes"] for g in gpus], [g["memory_total_bytes"] for g in gpus]
    sums = [None if None in sizes else sum(size or 0 for size in sizes) for sizes in (used, whole)]
    return [Span(f"{len(gpus)} GPUs ", "bold"), Span(f"{gib(sums[0])}/{gib(sums[1])} GiB"), Span("  each: 3", "dim")]


def figures(gpu: Gpu, services: Sequence[Service], room: int) -> list[str]:
    """As many as there is room for. Busy time does not come without bandwidth and tokens."""
    wide: Mapping[str, Any] = gpu
    found = []
    if room >= 72:
        found += [f"BW {bandwidth(wide)}", f"{tokens(gpu, services)} tok/s", f"BUSY {percent(wide.get('busy'))}"]
    if room >= 100:
        found.append(watts(wide))
    if room >= 110:
        found.append(degrees(wide.get("temperature_c")))
    return found


def short_name(gpu: Gpu) -> str:
    name = printable(gpu["name"] or UNKNOWN)
    for word in ("NVIDIA ", "GeForce ", "Tesla "):
        name = name.removeprefix(word)
    return cut(name, 10)


def bandwidth(gpu: Mapping[str, Any]) -> str:
    """`~` before what was not measured by the card."""
    said = gpu.get("memory_bandwidth") or {}
    usage = said.get("usage")
    return UNKNOWN if usage is None else f"{'' if said.get('source') == 'gpm' else '~'}{percent(usage)}"


def tokens(gpu: Gpu, services: Sequence[Service]) -> str:
    """Of the services that hold memory of this card; unknown where one of them is busy and does not tell."""
    names = {process.get("service") for process in gpu["processes"] or []}
    known: list[float] = []
    for target in (t for service in services if service["name"] in names for t in service["targets"]):
        rate = target.get("tokens_per_s")
        if rate is not None:
            known.append(rate)
        elif target["requests_running"] != 0:
            return UNKNOWN
    return f"{sum(known):.0f}" if known else UNKNOWN


def watts(gpu: Mapping[str, Any]) -> str:
    """In steps of 5: it trembles, and each change is bytes on a thin link."""
    now, most = gpu.get("power_w"), gpu.get("power_limit_w")
    used = UNKNOWN if now is None else f"{round(now / 5) * 5}"
    return f"{used}/{UNKNOWN if most is None else f'{most:.0f}'} W"


def degrees(celsius: float | None) -> str:
    return f"{UNKNOWN if celsius is None else f'{celsius:.0f}'} C"


# --- the page of one card -------------------------------------------------------------------------------------------

_TITLE = 6


def _row(title: str, words: str, role: str = "", room: int = 1000) -> Line:
    return [Span(f"{title:<{_TITLE}} ", "dim"), Span(cut(printable(words), max(room - _TITLE - 1, 1)), role)]


def card(gpu: Gpu, services: Sequence[Service], driver: str | None, room: int) -> list[Line]:
    wide: Mapping[str, Any] = gpu
    who = f"{gpu['name'] or UNKNOWN}  {gpu['uuid']}  driver {driver or UNKNOWN}"
    lines: list[Line] = [[Span(f"GPU{gpu['index']}  ", "bold"), Span(cut(printable(who), max(room - 6, 1)), "bold")]]
    lines += _alarms(wide)
    used, whole = gpu["memory_used_bytes"], gpu["memory_total_bytes"]
    free = None if used is None or whole is None else whole - used
    words = f" {gib(used)} of {gib(whole)} GiB, free {gib(free)}"
    cells = room - _TITLE - 1 - width(words)
    lines.append(
        [Span(f"{'MEM':<{_TITLE}} ", "dim"), *(bar(gpu, services, min(cells, 60)) if cells >= 8 else []), Span(words)]
    )
    lines += _holders(gpu, services, room)
    said = wide.get("memory_bandwidth") or {}
    measured = "measured by the card" if said.get("source") == "gpm" else "~ estimated from the tokens that were made"
    speed = (
        f", {said['bytes_per_s'] / 1e9:.0f} of {said['peak_bytes_per_s'] / 1e9:.0f} GB/s"
        if said.get("bytes_per_s") is not None and said.get("peak_bytes_per_s")
        else ""
    )
    lines.append(
        _row(
            "BW",
            f"{bandwidth(wide)}{speed}   {measured}" if said else f"{UNKNOWN}   nobody tells what the memory moves",
            room=room,
        )
    )
    lines.append(_row("TOK/S", f"{tokens(gpu, services)}   decoded by the services on this card", room=room))
    lines.append(_row("BUSY", f"{percent(wide.get('busy'))}   time in which any kernel ran; no load", room=room))
    lines.append(_row("POWER", watts(wide), room=room))
    lines.append(_row("CLOCK", _clocks(wide), _limited(wide), room=room))
    slow = wide.get("temperature_slowdown_c")
    lines.append(_row("TEMP", f"{degrees(wide.get('temperature_c'))}   slows down at {degrees(slow)}", room=room))
    lines += _errors(wide, room)
    return lines


def _alarms(gpu: Mapping[str, Any]) -> list[Line]:
    found: list[Line] = []
    if gpu.get("error"):
        found.append([Span(printable(f"! {gpu['error']}"), "bad")])
    if gpu.get("quarantine"):
        found.append(
            [Span(printable(f"! in quarantine, nothing is started here: {gpu['quarantine'].get('reason')}"), "bad")]
        )
    if gpu.get("lent"):
        found.append([Span(printable(f"lent by {gpu['lent'].get('by')}: nothing of ours is started here"), "warn")])
    found += [[Span(printable(f"! {c['id']}: {c['text']}"), "warn")] for c in gpu.get("conditions") or []]
    return found


def _holders(gpu: Gpu, services: Sequence[Service], room: int) -> list[Line]:
    """Every process, then what none of them accounts for. How much it is comes first where there is little room."""
    if gpu["processes"] is None:
        return [_row("", f"{UNKNOWN}   the driver does not tell whose memory it is (a container?)", "warn", room)]

    def row(sign: str, pid: str, service: str, size: str, what: str, role: str) -> Line:
        if room < _NARROW:
            text = f"  {sign} {size:>5} {pad(service, 13)} {what}"
        else:
            text = f" {'':<{_TITLE - 1}}{sign} {pid:>8}  {pad(service, 14)} {size:>6}  {what}"
        return [Span(cut(text, room).rstrip(), role)]

    found = [row(" ", "PID", "SERVICE", "GiB", "PROCESS", "dim")]
    for process in gpu["processes"]:
        wide: Mapping[str, Any] = process
        service = process.get("service")
        sign = sign_of(service, services) if service else OTHER
        user = f" of {wide['user']}" if wide.get("user") and not service else ""
        what = f"{process.get('name') or UNKNOWN}{user}{' (graphics)' if wide.get('kind') == 'graphics' else ''}"
        size = gib(process.get("memory_used_bytes"))
        role = "" if service else "warn"
        found.append(row(sign, str(process["pid"]), printable(service or "not ours"), size, printable(what), role))
    for part in parts(gpu, services):
        if part.sign == UNSEEN:
            found.append(row(UNSEEN, "", part.name, gib(part.bytes), "that NVML lists", "warn"))
    wide_gpu: Mapping[str, Any] = gpu
    reserved = wide_gpu.get("memory_reserved_bytes")
    if isinstance(reserved, int):
        found.append(_row("", f"{gib(reserved)} GiB more are the driver's own", "dim", room))
    return found


_NARROW = 56


def _clocks(gpu: Mapping[str, Any]) -> str:
    clocks = gpu.get("clocks") or {}
    pairs = [("SM", "sm_mhz", "sm_max_mhz"), ("MEM", "memory_mhz", "memory_max_mhz")]
    words = "   ".join(f"{name} {_or(clocks.get(now))}/{_or(clocks.get(most))} MHz" for name, now, most in pairs)
    limits = gpu.get("clock_limits")
    held = UNKNOWN if limits is None else ", ".join(limit.replace("_", " ") for limit in limits) or "nothing"
    return f"{words}   held down by: {held}"


def _limited(gpu: Mapping[str, Any]) -> str:
    return "warn" if set(gpu.get("clock_limits") or ()) - {"idle", "clocks_setting"} else ""


def _or(value: object) -> str:
    return UNKNOWN if value is None else str(value)


def _errors(gpu: Mapping[str, Any], room: int) -> list[Line]:
    ecc, rows, xids = gpu.get("ecc"), gpu.get("remapped_rows"), gpu.get("xids")
    bad = bool(ecc and ecc.get("uncorrected"))
    words = (
        f"corrected {_or(ecc.get('corrected'))}, uncorrected {_or(ecc.get('uncorrected'))}"
        if ecc
        else f"{UNKNOWN}   none on this card, or switched off"
    )
    lines = [_row("ECC", words, "bad" if bad else "", room)]
    if rows:
        waits = ", waits for a reset" if rows.get("pending") else ", FAILED" if rows.get("failed") else ""
        lines.append(
            _row(
                "ROWS",
                f"remapped: corrected {rows['corrected']}, uncorrected {rows['uncorrected']}{waits}",
                "warn" if waits else "",
                room,
            )
        )
    if xids is None:
        lines.append(_row("XID", f"{UNKNOWN}   cannot be heard here", room=room))
    elif not xids:
        lines.append(_row("XID", "none since the daemon began", room=room))
    else:
        lines += [
            _row("XID", f"{xid['code']} {xid['text']}  {xid['count']} times, {xid['kind']}", "bad", room)
            for xid in xids
        ]
    return lines


# --- the box around them --------------------------------------------------------------------------------------------


def host(status: Mapping[str, Any], room: int) -> list[Line]:
    """Memory, processors and the disks of the models; nothing where the daemon does not tell."""
    said = status.get("host")
    if not said:
        return []
    total, free = said.get("memory_total_bytes"), said.get("memory_available_bytes")
    swap = f"   swap {format_size(said.get('swap_used_bytes'))} of {format_size(said.get('swap_total_bytes'))}"
    lines: list[Line] = [
        [Span("BOX", "bold")],
        _row("CPU", f"{percent(said.get('cpu_busy'))} of {_or(said.get('cpu_count'))}", room=room),
        _row("RAM", f"{format_size(free)} available of {format_size(total)}{swap}", room=room),
    ]
    for disk in said.get("disks") or []:
        words = f"{format_size(disk.get('free_bytes'))} free of {format_size(disk.get('total_bytes'))}  {disk['path']}"
        lines.append(_row("DISK", words, room=room))
    for each in said.get("weights") or []:
        cached = format_size(each.get("cached_bytes"))
        lines.append(
            _row(
                "FILES",
                f"{each['service']}: {format_size(each.get('bytes'))}, {cached} of them in the page cache",
                room=room,
            )
        )
    return lines


def page(
    status: Mapping[str, Any],
    services: Sequence[Service],
    room: int,
    curves: Callable[[str], Sequence[Line]] = lambda uuid: (),
    selected: str | None = None,
) -> list[Line]:
    """`curves`: what was, by UUID; `selected`: the UUID of the card that orders are about."""
    gpus, nvml = status["gpus"], status.get("nvml") or {}
    lines: list[Line] = []
    if gpus is None:
        why = f": {nvml['error']}" if nvml.get("error") else ""
        lines.append([Span(printable(f"the GPUs could not be read{why}: unknown, not none"), "warn")])
    elif not gpus:
        lines.append([Span("no GPU on this box: services run on the CPU", "dim")])
    for gpu in gpus or []:
        title, *below = card(gpu, services, nvml.get("driver"), room)
        marked = [Span(">", "bold"), *title] if gpu["uuid"] == selected else title
        lines += [*([[]] if lines else []), clip(marked, room), *below, *curves(gpu["uuid"])]
    around = host(status, room)
    return [*lines, *([[]] if around else []), *around]
