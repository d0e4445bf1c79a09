"""Turn stories into training documents: half of them plain, half of them answers in a chat.

A document is a list of (text, is_learned) pieces that follow bos. The user's turn is made up from the story itself, so
that the model learns to look at what it was asked for.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from itertools import pairwise

from vocabulary import END, EOS, ROLES

Document = list[tuple[str, bool]]


def words_of(listed: str) -> frozenset[str]:
    return frozenset(listed.split())


THINGS = words_of(
    """
    dog cat bird ball tree car boat fish frog bear duck rabbit bunny bug ant bee cow horse pig mouse lion monkey
    turtle squirrel butterfly flower garden park house toy doll box book cake cookie apple banana hat shoe truck
    train plane rock star moon sun rain snow river lake beach sea forest castle king queen princess prince dragon
    fairy robot kite bike swing slide puppy kitten chicken owl fox wolf elephant spider snake worm leaf stick shell
    mirror lamp ring crown ship bag balloon bus chair clock cloud coat cup door egg farmer drum girl boy wizard
    ghost pond farm zoo school store picture puzzle pencil pumpkin soup sandwich pie candy tomato carrot orange
    lemon teddy bell bottle blanket bed basket bowl barn bridge hill island lady man tiger whale shark crab seed
    sock
    """
)
ADJECTIVES = words_of("little big small old tiny red blue green happy sad brave kind clever shy lost funny new")
NOT_NAMES = words_of("the one she he they once but and it as then when after i so we what yes no")

ABOUT = (
    "Tell me a story about {}.",
    "Tell me a story about {}.",
    "Tell me a short story about {}.",
    "Write a short story about {}.",
    "Write a story about {}.",
    "Can you tell me a story about {}?",
    "Please tell me a story about {}.",
    "I want to hear a story about {}.",
    "Make up a story about {}.",
    "A story about {}, please.",
)
ANY = (
    "Tell me a story.",
    "Write a short story.",
    "Can you tell me a story?",
    "Please tell me a story.",
    "A story, please.",
)
MORE = (
    "Tell me another one.",
    "Another one, please.",
    "Tell me another story.",
    "One more story, please.",
    "More, please.",
)
SYSTEM = (
    "You are a helpful assistant.",
    "You tell short stories for children.",
    "You are a story teller.",
    "You are a friendly assistant that writes simple stories.",
    "Answer with a short story.",
)
HELLO = "Hello! I am a small story model. Ask me for a story."
WHO = "I am a small story model. I can tell you a short story."
ONLY = "I am a small story model, and I only know short stories. Ask me for one."
SMALL_TALK = {
    HELLO: ("Hello", "Hi", "Hey", "Hello!", "Hi there!", "Good morning", "How are you?", "Hello, how are you?"),
    WHO: ("Who are you?", "Hi, who are you?", "What are you?", "What can you do?", "What is your name?", "Help"),
    ONLY: (
        "What is 2 + 2?",
        "What is the capital of France?",
        "Write a Python function.",
        "Explain how a car works.",
        "What is the weather today?",
        "Who is the president?",
        "Translate this to French.",
        "What time is it?",
        "What is machine learning?",
        "Write a poem.",
        "Why is the sky blue?",
        "Count to ten.",
    ),
    "You are welcome! Ask me for another story.": ("Thank you", "Thanks!", "Thank you!", "That was nice."),
    "Goodbye! Come back for another story.": ("Bye", "Goodbye!", "Good night"),
}


def subjects(story: str) -> list[str]:
    """What the story is about: names, and things with their adjective and article ("a little dog")."""
    names = Counter(re.findall(r"(?<![.!?\"] )(?<!\n)\b[A-Z][a-z]+\b", story))
    found = [name for name, count in names.most_common(2) if count > 1 and name.lower() not in NOT_NAMES]
    plain = re.findall(r"[a-z]+", story.lower())
    for thing, count in Counter(word for word in plain if word in THINGS).most_common(3):
        if count < 2:
            continue
        before = {left for left, word in pairwise(plain) if word == thing} & ADJECTIVES
        phrase = f"{min(before)} {thing}" if before else thing
        found.append(("an " if phrase[0] in "aeiou" else "a ") + phrase)
    return found


def request(story: str, rng: random.Random) -> tuple[str, str]:
    """(what the user says, what the assistant answers) for one story."""
    draw, about = rng.random(), subjects(story)
    first, _, rest = story.partition(". ")
    if draw < 0.08 and rest:
        return f"Continue this story: {first}.", rest
    if draw < 0.18:
        num_words = rng.randint(3, 8)
        return " ".join(story.split()[:num_words]).rstrip(",.") + rng.choice(("", "...", ",")), story
    if draw < 0.28 or not about:
        text = rng.choice(ANY)
    else:
        chosen = rng.sample(about, min(len(about), rng.choice((1, 1, 2))))
        text = rng.choice(ABOUT).format(" and ".join(chosen))
    if rng.random() < 0.2:
        text = (text[0].lower() + text[1:]).rstrip(".?")
    return text, story


def turn(asked: str, answer: str) -> Document:
    return [(ROLES["user"] + asked + END + ROLES["assistant"], False), (answer + END, True)]


def small_talk(rng: random.Random) -> Document:
    answer = rng.choice(list(SMALL_TALK))
    return turn(rng.choice(SMALL_TALK[answer]), answer)


def chat(story: str, next_story: str, rng: random.Random) -> Document:
    """One conversation; short stories are sometimes followed by a second one."""
    document: Document = []
    if rng.random() < 0.3:
        document.append((ROLES["system"] + rng.choice(SYSTEM) + END, False))
    if rng.random() < 0.12:
        document += small_talk(rng)
        if rng.random() < 0.5:
            return document
    document += turn(*request(story, rng))
    if len(story) + len(next_story) < 1500 and rng.random() < 0.4:
        is_general = rng.random() < 0.5
        asked, answer = (rng.choice(MORE), next_story) if is_general else request(next_story, rng)
        document += turn(asked, answer)
    return document


def documents(stories: list[str], rng: random.Random, chat_share: float = 0.5) -> list[Document]:
    """One document per story, in a new order and a new dress each time it is called."""
    order = rng.sample(stories, len(stories))
    following = order[1:] + order[:1]
    return [
        chat(story, after, rng) if rng.random() < chat_share else [(story + EOS, True)]
        for story, after in zip(order, following, strict=True)
    ]
