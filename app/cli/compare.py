"""`slimserve compare` and `slimserve recommend`: the variants of a base side by side, and which of them to take."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any
from urllib.parse import urlencode

import typer
from rich.table import Table

from app.cli.client import Client
from app.cli.options import JsonOption, client_of
from app.cli.terminal import CommandFailed, in_bytes, in_digits, in_ms, note, say, say_table, write_json


class Form(StrEnum):
    """How a comparison is printed."""

    TABLE = "table"
    MARKDOWN = "markdown"
    CSV = "csv"
    JSON = "json"


StreamsOption = Annotated[int, typer.Option(min=1, help="Requests at once at which the speed counts.")]


def register(app: typer.Typer) -> None:
    """Add this file's commands."""
    app.command()(compare)
    app.command()(recommend)


def compare(
    ctx: typer.Context,
    base: Annotated[str, typer.Argument(help="A base, whose variants are compared.")],
    form: Annotated[Form, typer.Option("--format", help="How to print.")] = Form.TABLE,
    streams: StreamsOption = 1,
    device: Annotated[
        str | None, typer.Option(help="Whose speeds: cpu, cuda:0, ...", show_default="of the newest measurement")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="Let every loaded variant answer this, and compare the answers.")
    ] = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(help="With --prompt: only this one; repeatable.", show_default="all that are loaded"),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="With --prompt: longest answer, in tokens.")] = 64,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="With --prompt: 0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="With --prompt: the same for all.")] = 0,
) -> None:
    """Put the variants of a base side by side: size, quality, speed.

    A star marks the Pareto set: variants which no other beats in size, in distance to the base and in speed at once.
    What has not been measured is a dash; `slimserve measure VARIANT` fills it in.
    """
    client = client_of(ctx)
    if prompt is not None:
        if form in (Form.CSV, Form.MARKDOWN):
            raise CommandFailed(f"answers to --prompt are no {form.value}; leave --format out, or take json")
        body = {"prompt": prompt, "max_tokens": max_tokens, "temperature": temperature, "seed": seed}
        chosen = {"variants": variant} if variant else {"base": base}
        answers = client.post("/v1/compare/generate", {**body, **chosen})
        if form is Form.JSON:
            write_json(answers)
        else:
            say("\n".join(answer_lines(answers)))
        return
    query = {"base": base, "streams": str(streams), **({} if device is None else {"device": device})}
    if form in (Form.CSV, Form.MARKDOWN):
        say(b"".join(client.download("/v1/compare", **query, format=form.value)).decode().rstrip())
        return
    found = client.get(f"/v1/compare?{urlencode(query)}")
    if form is Form.JSON:
        write_json(found)
        return
    say_table(table(found))
    _say_what_is_missing(found)


def recommend(
    ctx: typer.Context,
    base: Annotated[str, typer.Argument(help="A base, one of whose variants is wanted.")],
    max_memory: Annotated[int | None, typer.Option(min=1, help="Bytes that its worker may take.")] = None,
    min_tokens_per_s: Annotated[
        float | None, typer.Option(min=0, help="Tokens per second, of all streams together.")
    ] = None,
    max_ttft_ms: Annotated[float | None, typer.Option(min=0, help="Median time to the first token.")] = None,
    max_kl: Annotated[
        float | None,
        typer.Option(min=0, help="Nats per token to the base.", show_default="0.02 if nothing else is limited"),
    ] = None,
    max_perplexity_increase: Annotated[
        float | None, typer.Option(help="Share of the base's perplexity; 0.01 is one percent.")
    ] = None,
    streams: StreamsOption = 1,
    auto: Annotated[
        bool, typer.Option("--auto", help="Also make these the constraints of the model BASE/auto.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Name the variants that satisfy some limits, best first, with reasons; and what to measure or make next.

    What you limit is kept; what you do not limit is made best. With a limit of quality the smallest variant comes
    first, without one the nearest to the base.
    """
    client = client_of(ctx)
    body = {
        "base": base,
        "max_memory_bytes": max_memory,
        "min_tokens_per_s": min_tokens_per_s,
        "max_ttft_ms": max_ttft_ms,
        "max_kl": max_kl,
        "max_perplexity_increase": max_perplexity_increase,
        "streams": streams,
    }
    found = client.post("/v1/recommend", body)
    if as_json:
        write_json(found)
    else:
        say("\n".join(recommendation_lines(found)))
    if auto:
        _choose(client, body)


def table(found: Mapping[str, Any]) -> Table:
    """A comparison for people."""
    levels = sorted({level["streams"] for row in found["data"] for level in row["levels"]})
    built = Table(box=None, pad_edge=False)
    built.add_column("")
    built.add_column("variant", no_wrap=True)
    headings = ["weights", "bits", "peak", "KL", "same 1st", "perplexity", *(f"tok/s x{one}" for one in levels), "TTFT"]
    for heading in (*headings, "TPOT", "load"):
        built.add_column(heading, justify="right", no_wrap=True)
    for row in found["data"]:
        speeds = {level["streams"]: level for level in row["levels"]}
        one = speeds.get(found["streams"], {})
        share = row["top1_agreement"]
        built.add_row(
            "*" if row["is_pareto"] else "",
            row["variant"],
            in_bytes(row["weight_bytes"]),
            in_digits(row["bits_per_weight"], 2),
            in_bytes(row["peak_bytes"]),
            in_digits(row["kl_mean"], 5),
            "-" if share is None else f"{100 * share:.1f} %",
            in_digits(row["perplexity"], 3),
            *(in_digits(speeds.get(streams, {}).get("tokens_per_s"), 1) for streams in levels),
            in_ms(_seconds(one.get("ttft_ms"))),
            in_ms(_seconds(one.get("tpot_ms"))),
            "-" if row["load_s"] is None else f"{row['load_s']:.1f} s",
        )
    return built


def answer_lines(found: Mapping[str, Any]) -> list[str]:
    """The answers of several variants to one prompt, each with what the uncompressed model thinks of it."""
    lines = []
    for one in found["data"]:
        said = [f"{len(one['token_ids'])} tokens"]
        if one["variant"] != found["reference"]:
            parted = one["first_divergence"]
            where = "all as" if parted is None else f"the first {parted} of them as"
            said.append(f"{where} {found['reference']}")
        if one["parent_logprob_mean"] is not None:
            said.append(f"mean log-probability {one['parent_logprob_mean']:.3f} by {found['parent']}")
        if one["timings"]["tpot_ms"] is not None:
            said.append(f"TTFT {one['timings']['ttft_ms']:.1f} ms, TPOT {one['timings']['tpot_ms']:.1f} ms")
        lines += [f"{one['variant']}: {'; '.join(said)}", f"  {one['text'].strip()}", ""]
    if found["parent"] is None:
        lines.append("the uncompressed model is not loaded, so nothing was scored")
    return lines


def recommendation_lines(found: Mapping[str, Any]) -> list[str]:
    """A recommendation for people."""
    limits = ", ".join(f"{name} {value:g}" for name, value in found["constraints"].items())
    lines = [f"limits: {limits}"]
    for one in found["ranked"]:
        star = " (Pareto)" if one["is_pareto"] else ""
        lines.append(f"{one['rank']}. {one['variant']}{star}, {one['state']}: {'; '.join(one['reasons'])}")
    if not found["ranked"]:
        lines.append("no variant is known to satisfy them")
    lines += [f"no: {one['variant']}: {'; '.join(one['reasons'])}" for one in found["rejected"]]
    streams = found["constraints"]["streams"]
    for one in found["unmeasured"]:
        # of the default levels or not, this measures the one that is asked for
        level = f" --streams {streams}" if any("streams" in name for name in one["missing"]) and streams > 1 else ""
        command = f"slimserve measure {one['variant']}{level}"
        lines.append(f"unknown: {one['variant']} has no {', '.join(one['missing'])}; run `{command}`")
    base = found["base"]
    lines += [
        f"worth making: `slimserve quantize {base} --method {one['method']}`: {one['reason']}"
        for one in found["suggestions"]
    ]
    return lines


def _choose(client: Client, body: Mapping[str, Any]) -> None:
    chosen = client.post("/v1/auto", body)
    if chosen["variant"] is None:
        raise CommandFailed(f"{chosen['model']} has these limits now and means no variant; loosen them")
    note(f"{chosen['model']} is {chosen['variant']} now")
    if chosen["best"] != chosen["variant"]:
        note(f"{chosen['best']} would be better; load it with `slimserve load {chosen['best']}`")


def _say_what_is_missing(found: Mapping[str, Any]) -> None:
    for row in found["data"]:
        otherwise = row["measured_otherwise"]
        if otherwise:
            note(
                f"{row['variant']}: {_and(otherwise)} left out, measured in other circumstances than most variants "
                "(text, windows, workload or machine); measure it as you measured the others"
            )
        elif row["missing"]:
            note(f"{row['variant']}: {_and(row['missing'])} not measured; run `slimserve measure {row['variant']}`")
        if row["neighbours"]:
            note(f"{row['variant']}: not alone when it was measured, {_and(row['neighbours'])} worked meanwhile")


def _and(words: Sequence[str]) -> str:
    return " and ".join(words)


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000
