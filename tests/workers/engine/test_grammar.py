"""Masks and matchers: which tokens a grammar allows, and where."""

import json
import random
from pathlib import Path

import pytest
import torch

from tests.workers.engine.character_tokenizer import EOS_ID, save_character_tokenizer, text_of
from workers.engine import grammar
from workers.engine.grammar import Grammars, Matcher, allowed_tokens
from workers.protocol.errors import WorkerError, WorkerErrorCode
from workers.protocol.specs import Grammar

NUM_TOKENS = 97


@pytest.fixture(params=[True, False], ids=["byte-level", "sentence-piece"])
def tokenizer_path(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return save_character_tokenizer(tmp_path, is_byte_level=request.param)


def grammars_of(path: str | None, vocab_size: int = NUM_TOKENS, eos: frozenset[int] = frozenset({EOS_ID})) -> Grammars:
    return Grammars(path, vocab_size=vocab_size, eos_token_ids=eos)


def ids_of(text: str) -> list[int]:
    return [3 if character == " " else ord(character) - 29 for character in text]


def allowed(matcher: Matcher, vocab_size: int = NUM_TOKENS) -> set[int]:
    return set(allowed_tokens([matcher], vocab_size, torch.device("cpu"))[0].nonzero().flatten().tolist())


def follow(matcher: Matcher, text: str) -> Matcher:
    for token_id in ids_of(text):
        assert token_id in allowed(matcher)
        matcher.accept(token_id)
    return matcher


@pytest.mark.parametrize(
    ("kind", "text", "output", "following"),
    [
        pytest.param("regex", "[ab]{2}c", "", "ab", id="regex-begins"),
        pytest.param("regex", "[ab]{2}c", "ba", "c", id="regex-goes-on"),
        pytest.param("choice", '["yes", "yell", "n o"]', "ye", "sl", id="choice"),
        pytest.param("choice", '["yes", "yell", "n o"]', "n", " ", id="choice-blank"),
        pytest.param("json_object", "", "", "{", id="object"),
        pytest.param("json_object", "", "{", '" }', id="object-opened"),
        pytest.param("json_schema", '{"const": null}', "nu", "l", id="schema"),
        pytest.param("json_schema", "true", "nu", "l", id="any-value"),
        pytest.param("lark", 'start: "x" y\ny: "!" | y "!"', "x", "!", id="lark"),
    ],
)
def test_mask_is_what_may_follow(tokenizer_path: str, kind: str, text: str, output: str, following: str) -> None:
    matcher = follow(grammars_of(tokenizer_path).matcher(Grammar(kind=kind, text=text)), output)  # type: ignore[arg-type]

    assert allowed(matcher) == set(ids_of(following))
    assert not matcher.may_end
    assert not matcher.is_complete


def test_end_is_allowed_only_where_the_grammar_accepts(tokenizer_path: str) -> None:
    matcher = grammars_of(tokenizer_path).matcher(Grammar(kind="regex", text="a{2,4}"))

    may_end = []
    while not matcher.is_complete:
        may_end.append((matcher.may_end, EOS_ID in allowed(matcher)))
        follow(matcher, "a")

    assert may_end == [(False, False)] * 2 + [(True, True)] * 2
    assert matcher.may_end


def test_blanks_between_tokens_of_json_are_bounded(tokenizer_path: str) -> None:
    grammar = Grammar(kind="json_object")

    one_blank = follow(grammars_of(tokenizer_path).matcher(grammar), "{ ")

    assert allowed(one_blank) == set(ids_of('"}'))


def test_properties_come_in_the_order_of_the_schema(tokenizer_path: str) -> None:
    schema = {"type": "object", "properties": {"zoo": {"const": 1}, "ant": {"const": 2}}, "required": ["ant", "zoo"]}
    grammar = Grammar(kind="json_schema", text=json.dumps(schema))

    complete = follow(grammars_of(tokenizer_path).matcher(grammar), '{"zoo": 1, "ant": 2}')

    assert complete.is_complete
    assert ids_of("z")[0] in allowed(follow(grammars_of(tokenizer_path).matcher(grammar), '{"'))
    assert ids_of("a")[0] not in allowed(follow(grammars_of(tokenizer_path).matcher(grammar), '{"'))


@pytest.mark.parametrize("vocab_size", [96, 97, 98, 128, 1000])
def test_mask_has_the_width_of_the_logits(tokenizer_path: str, vocab_size: int) -> None:
    matcher = grammars_of(tokenizer_path, vocab_size).matcher(Grammar(kind="regex", text="[!-~ ]*"))

    mask = allowed_tokens([matcher], vocab_size, torch.device("cpu"))

    assert mask.shape == (1, vocab_size)
    assert set(mask[0].nonzero().flatten().tolist()) == {EOS_ID, *range(3, min(vocab_size, NUM_TOKENS))}


def test_every_end_token_of_the_model_may_end_and_no_other_special_one(tokenizer_path: str) -> None:
    matcher = grammars_of(tokenizer_path, eos=frozenset({1, 2, 5000})).matcher(Grammar(kind="regex", text="a*"))

    assert allowed(matcher) == {1, 2, *ids_of("a")}


def test_model_without_an_end_token_still_ends_a_complete_grammar(tokenizer_path: str) -> None:
    matcher = grammars_of(tokenizer_path, eos=frozenset()).matcher(Grammar(kind="regex", text="ab"))

    assert follow(matcher, "ab").is_complete


def test_matchers_of_one_grammar_are_independent(tokenizer_path: str) -> None:
    grammars = grammars_of(tokenizer_path)
    grammar = Grammar(kind="regex", text="ab|cd")

    first = follow(grammars.matcher(grammar), "a")
    second = grammars.matcher(grammar)

    assert text_of(sorted(allowed(first))) == "b"
    assert text_of(sorted(allowed(second))) == "ac"


def test_states_that_one_sequence_has_used_up_are_not_missing_to_another(tokenizer_path: str) -> None:
    """Its 2**17 states are more than the limit; each way through it meets new ones."""
    grammars = grammars_of(tokenizer_path)
    grammar = Grammar(kind="regex", text="(x|a)*a(x|a){16}")
    source = random.Random(0)
    greedy = grammars.matcher(grammar)

    def use_up() -> None:
        for _ in range(60_000):
            greedy.mask()
            greedy.accept(ids_of(source.choice("xa"))[0])

    with pytest.raises(WorkerError, match="too many states"):
        use_up()

    assert allowed(follow(grammars.matcher(grammar), "xaxxa")) == set(ids_of("xa"))


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        pytest.param("regex", "(", "does not compile", id="regex"),
        pytest.param("lark", "start: nowhere", "does not compile", id="lark"),
        pytest.param("json_schema", '{"not": {}}', "not", id="keyword"),
        pytest.param("json_schema", "[", "is not a json_schema", id="no-json"),
        pytest.param("choice", "nothing", "is not a choice", id="no-choice"),
    ],
)
def test_grammar_that_does_not_compile_is_refused(tokenizer_path: str, kind: str, text: str, said: str) -> None:
    with pytest.raises(WorkerError, match=said) as caught:
        grammars_of(tokenizer_path).matcher(Grammar(kind=kind, text=text))  # type: ignore[arg-type]

    assert caught.value.code is WorkerErrorCode.INVALID_REQUEST


def test_grammar_that_outgrows_its_limits_on_the_way_is_refused_from_there_on(tokenizer_path: str) -> None:
    matcher = grammars_of(tokenizer_path).matcher(Grammar(kind="regex", text="(a?){500}a{500}"))

    for call in (lambda: follow(matcher, "aaaa"), matcher.mask):
        with pytest.raises(WorkerError, match="any further"):
            call()
    assert not matcher.is_complete


def test_grammar_that_takes_the_time_of_all_streams_is_refused_from_there_on(
    tokenizer_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammar, "MAX_SPENT_S", 0.1)
    monkeypatch.setattr(grammar, "MAX_SPENT_PER_TOKEN_S", 0.0)
    # each letter has more ways to belong to those before it
    matcher = grammars_of(tokenizer_path).matcher(Grammar(kind="lark", text='start: e\ne: e e e | e e | "a"'))

    with pytest.raises(WorkerError, match="takes too long") as caught:
        follow(matcher, "a" * 400)

    assert caught.value.code is WorkerErrorCode.INVALID_REQUEST
    with pytest.raises(WorkerError, match="takes too long"):
        matcher.mask()


def test_words_of_the_vocabulary_that_look_special_are_text(tokenizer_path: str) -> None:
    content = json.loads(Path(tokenizer_path).read_text())
    word = {**content["added_tokens"][0], "id": 97, "content": "<tool_call>", "special": False}
    content["added_tokens"].append(word)
    Path(tokenizer_path).write_text(json.dumps(content))
    grammars = grammars_of(tokenizer_path, vocab_size=98)

    spelled = follow(grammars.matcher(Grammar(kind="regex", text="<tool_call>x")), "<tool_call>")
    in_one = grammars.matcher(Grammar(kind="regex", text="<tool_call>x"))
    in_one.accept(97)

    assert allowed(spelled, 98) == allowed(in_one, 98) == set(ids_of("x"))


@pytest.mark.parametrize("content", [None, "{}", '{"model": {"type": "WordLevel", "vocab": {}, "unk_token": "u"}}'])
def test_tokenizer_that_grammars_cannot_use_is_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)

    with pytest.raises(WorkerError, match="tokenizer") as caught:
        grammars_of(str(path)).matcher(Grammar(kind="json_object"))

    assert caught.value.code is WorkerErrorCode.INVALID_REQUEST
    assert str(tmp_path) not in caught.value.message
