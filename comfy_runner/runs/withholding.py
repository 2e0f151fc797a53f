"""Keeps out of a text what may be secret: tokens, and what addresses carry besides their place."""

import re
from collections.abc import Collection
from urllib.parse import quote, urlsplit

from comfy_runner.fetch.urls import redacted

HIDDEN = "***"
"""What stands for a secret that was taken out."""

UNREADABLE_ADDRESS = "an unreadable address"

NEW_WORD = re.compile("(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
"""Where a word begins in a name such as `openAIKey`."""

SECRET_WORDS = re.compile(
    r"(?<![a-z])(?:tokens?|(?:access|secret|private|api)[\W_]*keys?|pass[\W_]*(?:words?|phrases?)"
    r"|passwd|pwd|bearer|secrets?|o?auth|authorization|credentials?)(?![a-z])"
)
"""Words in the name of an input whose texts are nobody's business."""

TOKEN_COUNTS = re.compile(
    r"(?<![a-z])(?:max|min|num|number|total|n)[\W_]+(?:[a-z]+[\W_]+){0,2}tokens?(?![a-z])"
    r"|(?<![a-z])tokens?[\W_]+(?:counts?|limit|length|ratio|normali[sz]ation|merging)(?![a-z])"
)
"""Words about the tokens that a text is cut into."""

ADDRESS = re.compile(r'[A-Za-z][A-Za-z0-9+.-]{0,20}://[^\s"]+|data:[^\s",]{0,200},[^\s"]*')


def is_secret(name: str) -> bool:
    """Whether an input of this name takes what is nobody's business, such as `hfToken`."""
    forms = (NEW_WORD.sub("_", name).lower(), name.lower())
    return any(SECRET_WORDS.search(TOKEN_COUNTS.sub("", form)) for form in forms)


def without(text: str, secrets: Collection[str]) -> str:
    """The text without `secrets`, also where they are quoted as in a URL."""
    for secret in filter(None, secrets):
        for form in (secret, quote(secret, safe=""), quote(secret)):
            text = text.replace(form, HIDDEN)
    return text


def cleaned(text: str, secrets: Collection[str]) -> str:
    """The text without `secrets`, users, passwords, queries and payloads of the addresses in it."""
    return ADDRESS.sub(lambda found: _shown(found[0]), without(text, secrets))


def _shown(address: str) -> str:
    """The address itself, unless there is something in it that may be secret."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return UNREADABLE_ADDRESS
    # A password with an unquoted slash ends up in the path, and half of it as the port.
    if ":" in parts.netloc.rpartition("@")[2] and "@" in address.partition(parts.netloc)[2]:
        return UNREADABLE_ADDRESS
    hidden = "@" in parts.netloc or parts.query or parts.fragment or parts.scheme == "data"
    return redacted(address) if hidden else address
