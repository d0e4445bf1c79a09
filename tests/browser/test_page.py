"""The page as its users see it: each view used with mouse or keyboard, and what the server then holds."""

import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from cli_server import CliServer, running_server
from playwright.sync_api import Browser, Page, expect
from watched import PATIENCE_MS, watched_page

BF16 = "slimstory/bf16"
INT3 = "slimstory/rtn-int3-g32"

# Seconds alone, minutes where other work shares two cores.
pytestmark = pytest.mark.timeout(1800)
expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture(scope="session")
def made(server: CliServer) -> CliServer:
    """The server with a small measured variant beside the base's own, both loaded."""
    with server.client() as client:
        finish(client, "/v1/quantize", {"model": "slimstory", "method": "rtn-int3-g32"})
        for variant in (BF16, INT3):
            client.post("/v1/load", json={"model": variant, "wait": True}).raise_for_status()
            finish(client, "/v1/measure", {"model": variant, "max_tokens": 600, "streams": [1, 2], "new_tokens": 8})
    return server


def finish(client: httpx.Client, path: str, body: dict[str, Any]) -> None:
    job = client.post(path, json=body).raise_for_status().json()
    with client.stream("GET", f"/v1/jobs/{job['id']}/events") as events:
        events.read()
    job = client.get(f"/v1/jobs/{job['id']}").json()
    assert job["state"] == "succeeded", job["error"]


def row(page: Page, variant: str) -> Any:
    return page.locator(f'#variants tr[data-key="{variant}"]')


def show(page: Page, view: str) -> None:
    page.get_by_role("link", name=view).click()


def test_variants_are_listed_and_can_be_unloaded_and_loaded(page: Page, server: CliServer) -> None:
    expect(row(page, BF16)).to_contain_text("ready")

    row(page, BF16).get_by_role("button", name="Unload").click()
    expect(row(page, BF16)).to_contain_text("registered")
    assert server.variant(BF16)["state"] == "registered"

    row(page, BF16).get_by_role("button", name="Load").click()
    expect(row(page, BF16)).to_contain_text("ready")
    assert server.variant(BF16)["state"] == "ready"


def test_compressing_shows_live_progress_and_then_the_variant(page: Page, server: CliServer) -> None:
    page.get_by_role("button", name="Compress…").click()
    # it looks at a text, and so takes long enough for its progress to be seen
    page.get_by_label("Method", exact=True).select_option("gptq")
    for name, value in (("group_size", 32), ("num_samples", 8), ("sequence_length", 256)):
        page.get_by_label(name).fill(str(value))
    page.get_by_role("button", name="Compress", exact=True).click()

    expect(page.locator("#variants progress")).to_be_visible()
    expect(page.locator("#variants .progress")).to_contain_text(re.compile(r"\d %"))
    expect(row(page, "slimstory/gptq-int4-g32")).to_contain_text("registered")
    assert server.variant("slimstory/gptq-int4-g32")["method"] == "gptq"


def test_refused_option_is_told_in_the_form_at_its_field(page: Page) -> None:
    page.get_by_role("button", name="Compress…").click()
    page.get_by_label("Method", exact=True).select_option("gptq")
    page.get_by_label("group_size").fill("7")
    page.get_by_role("button", name="Compress", exact=True).click()

    expect(page.get_by_role("dialog").get_by_role("alert")).to_contain_text("'options.group_size': 7")
    expect(page.get_by_label("group_size")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_what_the_server_says_is_never_read_as_html(page: Page) -> None:
    page.get_by_role("button", name="Add a model…").click()
    page.get_by_label("Model", exact=True).fill("<img src=x onerror=document.title='stolen'>")
    page.get_by_role("button", name="Add", exact=True).click()

    expect(page.get_by_role("dialog").get_by_role("alert")).to_contain_text("<img src=x")
    expect(page.get_by_role("dialog").locator("img")).to_have_count(0)


def test_comparison_shows_points_front_and_table_that_sorts(page: Page, made: CliServer) -> None:
    show(page, "Compare")

    points = page.locator("#compare figure").first.locator(".point")
    expect(points.filter(has_text="bf16")).to_have_count(1)
    expect(points.filter(has_text="rtn-int3-g32")).to_have_count(1)
    names = page.locator("#compare tbody th")
    page.get_by_role("button", name="KL").click()
    expect(names.first).to_contain_text("bf16")
    page.get_by_role("button", name="KL").click()
    expect(page.locator('#compare th[aria-sort="descending"]')).to_contain_text("KL")
    expect(page.locator("#compare tbody tr", has_text="rtn-int3-g32")).to_contain_text("ms")


def test_recommendation_names_what_qualifies_and_what_does_not(page: Page, made: CliServer) -> None:
    show(page, "Compare")
    page.get_by_label("KL at most").fill("0.02")
    page.get_by_role("button", name="Recommend").click()

    card = page.locator("#compare article")
    expect(card.locator("ol li").first).to_contain_text("slimstory/")
    expect(card.locator("ul li", has_text="rtn-int3-g32").first).to_contain_text("kl_mean")


def test_playground_streams_side_by_side_and_marks_where_answers_part(page: Page, made: CliServer) -> None:
    with made.client() as client:
        body = {"prompt": "The fox saw", "max_tokens": 32, "temperature": 0}
        texts = {
            variant: client.post("/v1/completions", json={"model": variant, **body}).json()["choices"][0]["text"]
            for variant in (BF16, INT3)
        }
    assert texts[BF16] != texts[INT3]

    page.keyboard.press("3")
    for box in page.locator("#playground input[type=checkbox]").all():
        box.set_checked(box.get_attribute("value") in texts)
    page.get_by_label("As", exact=True).select_option("text")
    page.get_by_label("Tokens at most").fill("32")
    page.get_by_label("Prompt").fill("The fox saw")
    page.keyboard.press("Control+Enter")

    answers = page.locator("#playground .answers article")
    for index in range(len(texts)):
        expect(answers.nth(index)).to_contain_text("32 tokens")
    expect(answers.nth(1)).to_contain_text("parts at token")
    shown = {one.locator("h3").inner_text(): one.locator(".answer").text_content() for one in answers.all()}
    assert shown == texts
    same = answers.nth(1).locator(".answer span").text_content() or ""
    marked = answers.nth(1).locator("mark").text_content() or ""
    assert texts[BF16].startswith(same)
    assert marked
    assert not texts[BF16][len(same) :].startswith(marked[0])


def test_uncompressed_variant_judges_the_answers(page: Page, made: CliServer) -> None:
    show(page, "Playground")
    page.get_by_label("Tokens at most").fill("8")
    page.get_by_role("button", name="Send").click()
    page.get_by_role("button", name="Ask the original").click()

    expect(page.locator("#playground .answers article").first).to_contain_text("mean log-probability of -")


def test_escape_stops_answers_and_the_server_stops_working(browser: Browser, tmp_path: Path) -> None:
    # 20 s for 400 tokens, so that there is something to stop on a machine of any speed
    slow = running_server(tmp_path, SLIMSERVE_FAULTS="worker.step:hang=0.05")
    with slow as server, watched_page(browser, server.url) as page:
        show(page, "Playground")
        page.get_by_label("As", exact=True).select_option("text")
        page.get_by_label("Tokens at most").fill("400")
        page.get_by_label("Prompt").press("Control+Enter")
        expect(page.locator("#playground .answer span").first).not_to_be_empty()
        page.keyboard.press("Escape")

        expect(page.locator("#playground .answers")).to_contain_text("stopped")
        with server.client() as client:
            while "cancelled" not in ended(client.get("/metrics").text):
                page.wait_for_timeout(50)
            assert "length" not in ended(client.get("/metrics").text)


def ended(metrics: str) -> set[str]:
    """How requests have ended so far."""
    return set(re.findall(r'^slimserve_requests_total\{finish_reason="(\w+)".* [1-9]', metrics, re.MULTILINE))


def test_live_charts_follow_the_traffic(page: Page, made: CliServer) -> None:
    show(page, "Live")
    expect(page.locator("#live .line").first).to_be_attached()
    with made.client() as client:
        client.post("/v1/completions", json={"model": BF16, "prompt": "One day", "max_tokens": 32}).raise_for_status()

    for title in ("TTFT", "TPOT", "Throughput", "Memory"):
        chart = page.locator("#live figure", has_text=title)
        expect(chart.locator(".line, .dot").first).to_be_attached()


@pytest.mark.parametrize("width", [400, 800, 1400])
def test_charts_are_seen_whole_at_any_width(browser: Browser, made: CliServer, width: int) -> None:
    with watched_page(browser, made.url, viewport={"width": width, "height": 800}) as page:
        for view in ("compare", "live"):
            page.goto(f"{made.url}/#{view}")
            figures = page.locator(f"#{view} figure:has(svg)")
            expect(figures.first).to_be_visible()
            for figure in figures.all():
                card, drawing = figure.bounding_box(), figure.locator("svg").bounding_box()
                assert card is not None
                assert drawing is not None
                assert card["x"] <= drawing["x"]
                assert drawing["x"] + drawing["width"] <= card["x"] + card["width"]


def test_comparison_says_what_was_measured_in_company_or_otherwise(page: Page, made: CliServer) -> None:
    row = {
        "variant": INT3,
        **{"method": "rtn", "format": "int3", "bits": 3, "state": "ready", "is_pareto": True, "weight_bytes": 1},
        **{"bits_per_weight": 3.5, "bytes_on_disk": 1, "peak_bytes": 1, "load_s": 1, "perplexity": None},
        **{"perplexity_interval": None, "kl_mean": 0.5, "kl_mean_interval": None, "kl_source": "verified"},
        "levels": [{"streams": 1, "tokens_per_s": 200, "ttft_ms": 1, "tpot_ms": 1, "tokens_per_joule": None}],
        **{"top1_agreement": 0.5, "x_of_floor": 2, "neighbours": [BF16], "measured": 1},
        **{"missing": ["quality"], "measured_otherwise": ["quality"]},
    }
    answer = {"base": "slimstory", "device": "cpu", "streams": 1, "objectives": [], "pareto": [], "data": [row]}
    page.route("**/v1/compare?**", lambda route: route.fulfill(json=answer))
    show(page, "Compare")

    shown = page.locator("#compare tbody tr")
    expect(shown).to_contain_text("200 (not alone)")
    expect(shown.locator(f'[title*="{BF16} worked meanwhile"]')).to_be_visible()
    expect(shown).to_contain_text("quality (measured otherwise)")


def test_server_without_models_says_so_and_offers_only_what_works(page: Page, server: CliServer) -> None:
    nothing = {"object": "list", "data": []}
    page.route(re.compile("/v1/(bases|variants|jobs)"), lambda route: route.fulfill(json=nothing))
    page.reload()

    expect(page.locator("#variants")).to_contain_text("No models yet")
    show(page, "Compare")
    expect(page.locator("#compare")).to_contain_text("No models yet")
    expect(page.locator("#compare").get_by_role("button")).to_have_count(0)


def test_buttons_stay_in_sight_beside_long_names_and_labels_lie_on_none(page: Page, made: CliServer) -> None:
    with made.client() as client:
        variants = client.get("/v1/variants").json()
        rows = client.get("/v1/compare?base=slimstory").json()
    names = [f"slimstory/{number:02}-{'x' * 61}" for number in range(30)]
    first, row_of_first = variants["data"][0], rows["data"][0]
    variants["data"] += [{**first, "id": name} for name in names]
    rows["data"] += [
        {**row_of_first, "variant": name, "kl_mean": 0.1, "weight_bytes": 10**6 + 10**4 * index, "is_pareto": False}
        for index, name in enumerate(names)
    ]
    page.route("**/v1/variants", lambda route: route.fulfill(json=variants))
    page.route("**/v1/compare?**", lambda route: route.fulfill(json=rows))
    page.reload()

    delete = row(page, names[-1]).get_by_role("button", name="Delete")
    expect(delete).to_be_attached()
    table = page.locator("#variants .table").bounding_box()
    button = delete.bounding_box()
    assert table is not None
    assert button is not None
    assert button["x"] + button["width"] <= table["x"] + table["width"]

    show(page, "Compare")
    figure = page.locator("#compare figure").nth(1)
    expect(figure.locator(".point")).to_have_count(len(rows["data"]))
    boxes = [box for label in figure.locator(".point text").all() if (box := label.bounding_box()) is not None]
    assert 0 < len(boxes) < len(rows["data"]), "some have no room"
    for index, one in enumerate(boxes):
        for other in boxes[index + 1 :]:
            is_apart = abs(one["y"] - other["y"]) > 10 or (
                one["x"] + one["width"] <= other["x"] + 1 or other["x"] + other["width"] <= one["x"] + 1
            )
            assert is_apart, (one, other)


@pytest.mark.parametrize("button", ["Recommend", "Let auto follow this"])
def test_refused_limit_is_told_in_the_form_and_covers_nothing(browser: Browser, made: CliServer, button: str) -> None:
    with watched_page(browser, f"{made.url}", viewport={"width": 400, "height": 800}) as page:
        page.keyboard.press("2")
        streams = page.get_by_label("at streams")
        streams.fill("0")
        page.get_by_role("button", name=button).click()

        expect(page.locator("#compare article").get_by_role("alert")).to_contain_text("'streams'")
        expect(streams).to_be_focused()
        expect(page.locator("#notices")).to_be_empty()
        streams.fill("1")
        page.get_by_role("button", name="Recommend").click(timeout=10_000)
        expect(page.locator("#compare article")).to_contain_text("Limits")


def test_recommendation_goes_with_its_base(page: Page, made: CliServer) -> None:
    with made.client() as client:
        bases = client.get("/v1/bases").json()
    bases["data"].append({**bases["data"][0], "id": "other"})
    page.route("**/v1/bases", lambda route: route.fulfill(json=bases))
    page.reload()
    show(page, "Compare")
    page.get_by_role("button", name="Recommend").click()
    expect(page.locator("#compare article")).to_contain_text("Limits")

    page.get_by_label("Base", exact=True).select_option("other")

    expect(page.locator("#compare article")).not_to_contain_text("Limits")


def test_jobs_tell_their_outcome(page: Page, made: CliServer) -> None:
    show(page, "Jobs")

    expect(page.locator("#jobs tr", has_text="quantize rtn")).to_contain_text("KL")
    expect(page.locator("#jobs tr", has_text="measure").first).to_contain_text("tokens/s at 1")


def test_cancelled_job_leaves_nothing(page: Page, server: CliServer) -> None:
    page.get_by_role("button", name="Compress…").click()
    page.get_by_label("Method", exact=True).select_option("awq")
    page.get_by_label("group_size").fill("32")
    page.get_by_role("button", name="Compress", exact=True).click()
    show(page, "Jobs")
    job = page.locator("#jobs tr", has_text="awq")
    job.get_by_role("button", name="Cancel").click()

    expect(job).to_contain_text("cancelled")
    with server.client() as client:
        assert "awq" not in client.get("/v1/variants").text


def test_page_can_be_used_by_keyboard_alone(page: Page) -> None:
    expect(row(page, BF16)).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#compare")).to_be_visible()
    page.keyboard.press("1")
    expect(page.locator("#variants")).to_be_visible()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keyboard")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)


def background(page: Page) -> str:
    return str(page.evaluate("getComputedStyle(document.documentElement).backgroundColor"))


def test_dark_mode_follows_the_system_and_the_button(browser: Browser, server: CliServer) -> None:
    with watched_page(browser, server.url, color_scheme="dark") as page:
        dark = background(page)
        page.get_by_role("button", name="Auto: colours as the system has them").click()
        light = background(page)
        page.reload()

        assert dark != light
        assert background(page) == light


def test_keys_are_asked_for_and_open_what_they_may(browser: Browser, tmp_path: Path) -> None:
    keys = {"SLIMSERVE_API_KEYS": "sk-admin-0123456789", "SLIMSERVE_INFERENCE_KEYS": "sk-infer-0123456789"}
    with running_server(tmp_path, **keys) as server, watched_page(browser, server.url) as page:
        dialog = page.get_by_role("dialog", name="API key")
        dialog.get_by_label("Key", exact=True).fill("wrong")
        dialog.get_by_role("button", name="Use it").click()
        expect(dialog.get_by_role("alert")).to_contain_text("Incorrect API key")

        dialog.get_by_label("Key", exact=True).fill("sk-infer-0123456789")
        dialog.get_by_role("button", name="Use it").click()
        expect(page.locator("#connection")).to_contain_text("This key is for inference")
        show(page, "Playground")
        page.get_by_label("Tokens at most").fill("4")
        page.get_by_role("button", name="Send").click()
        expect(page.locator("#playground .answers")).to_contain_text("4 tokens")

        page.get_by_role("button", name="API key").click()
        page.get_by_role("dialog").get_by_label("Key", exact=True).fill("sk-admin-0123456789")
        page.get_by_role("dialog").get_by_role("button", name="Use it").click()
        show(page, "Variants")
        expect(row(page, BF16)).to_contain_text("ready")


def test_page_says_when_the_server_is_gone_and_comes_back(page: Page) -> None:
    page.context.set_offline(True)
    expect(page.locator("#connection")).to_contain_text("does not answer")
    page.context.set_offline(False)
    expect(page.locator("#connection")).to_be_empty()
