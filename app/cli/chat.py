"""`slimserve chat`: one prompt, or a conversation, streamed to the terminal."""

import sys
from typing import Annotated, Any

import typer

from app.cli.client import Client
from app.cli.completion import Completion, Timing
from app.cli.options import client_of
from app.cli.terminal import CommandFailed, console, in_ms, note

Messages = list[dict[str, str]]


def register(app: typer.Typer) -> None:
    """Add this file's command."""
    app.command()(chat)


def chat(
    ctx: typer.Context,
    prompt: Annotated[
        str | None, typer.Argument(help="Ask this and return; `-` reads it from the input.", show_default="converse")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Variant or base to talk to.", show_default="the first that is ready")
    ] = None,
    system: Annotated[str | None, typer.Option(help="Instruction that stands before the conversation.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 200,
    temperature: Annotated[
        float, typer.Option(min=0, max=2, help="0 takes the likeliest token; higher is more varied.")
    ] = 0.7,
    top_p: Annotated[
        float, typer.Option(min=0, max=1, help="Only the likeliest tokens that make up this share; 1 takes all.")
    ] = 0.9,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same answer.")] = None,
    stats: Annotated[bool, typer.Option("--stats", help="Print the timings of each answer.")] = False,
) -> None:
    """Chat with a variant. In a conversation, /reset forgets what was said and Ctrl-D leaves."""
    client = client_of(ctx)
    options = {
        "model": model or first_ready(client),
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
    }
    start: Messages = [{"role": "system", "content": system}] if system else []
    if prompt is not None or not sys.stdin.isatty():
        text = sys.stdin.read() if prompt in (None, "-") else prompt
        answer(client, options, [*start, {"role": "user", "content": str(text)}], stats=stats)
    else:
        _converse(client, options, start, stats=stats)


def first_ready(client: Client) -> str:
    """The variant that is meant when none is named. Raises CommandFailed if nothing is ready."""
    for variant in client.get("/v1/variants")["data"]:
        if variant["state"] == "ready":
            return str(variant["id"])
    raise CommandFailed("no variant is ready; see `slimserve list`, load one with `slimserve load MODEL`")


def answer(client: Client, options: dict[str, Any], messages: Messages, *, stats: bool) -> tuple[str, Timing]:
    """Stream one answer to the terminal; its text and its timings."""
    out = console()
    body = {**{name: value for name, value in options.items() if value is not None}, "messages": messages}
    completion = Completion(client, "/v1/chat/completions", body)
    pieces: list[str] = []
    for piece in completion:
        pieces.append(piece)
        out.print(piece, end="", markup=False, soft_wrap=True)
    out.print()
    timing = completion.timing
    if stats:
        note(
            f"[{timing.num_prompt_tokens} + {timing.num_completion_tokens} tokens, first after {in_ms(timing.ttft_s)}, "
            f"then {in_ms(timing.tpot_s)} per token, {timing.tokens_per_s:.1f} tokens/s]"
        )
    return "".join(pieces), timing


def _converse(client: Client, options: dict[str, Any], start: Messages, *, stats: bool) -> None:
    out = console()
    note(f"talking to {options['model']}; /reset forgets the conversation, Ctrl-D leaves")
    messages = list(start)
    while True:
        try:
            text = out.input("> ", markup=False).strip()
        except EOFError:
            out.print()
            return
        if text == "/reset":
            messages = list(start)
        elif text:
            turn: Messages = [*messages, {"role": "user", "content": text}]
            try:
                reply, _ = answer(client, options, turn, stats=stats)
            except CommandFailed as failure:
                note(f"Error: {failure.message}")
                continue
            messages = [*turn, {"role": "assistant", "content": reply}]
