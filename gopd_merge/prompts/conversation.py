"""The prompt in a row's column: a text, or a conversation of which the first user turn is asked."""

from typing import Any

ROLES = {"human": "user", "gpt": "assistant"}  # as ShareGPT has them
SYSTEM, NO_USER, NO_TEXT, EMPTY = "begins with a system message", "has no user turn at its beginning", "holds more than text", "is empty"


class LeftOut(ValueError):
    """A row of which no prompt can be made: why, as the end of a sentence that begins with the row."""


def asked(value: Any) -> tuple[str, str | None]:
    """The prompt, and the answer that follows it if there is one.

    Of a conversation, a list of messages with `role` and `content` (or `from` and `value`), it is the first user turn, whatever comes
    later. Raises LeftOut for one that begins with a system message: the roles would not see that, and answer another question.
    Raises TypeError for what is neither text nor conversation.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    if isinstance(value, str):
        return _filled(value), None
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise TypeError(f"{type(value).__name__}")
    if not value:
        raise LeftOut(EMPTY)
    turns = [_turn(message) for message in value]
    if turns[0][0] == "system" and not _text(turns[0][1]).strip():
        turns = turns[1:]
    if turns and turns[0][0] in ("system", "developer"):
        raise LeftOut(SYSTEM)
    if not turns or turns[0][0] != "user":
        raise LeftOut(NO_USER)
    answered = len(turns) > 1 and turns[1][0] == "assistant"
    return _filled(_text(turns[0][1])), _text(turns[1][1]) if answered else None


def _turn(message: dict[str, Any]) -> tuple[str, Any]:
    role = message.get("role", message.get("from"))
    return ROLES.get(str(role), str(role)), message.get("content", message.get("value"))


def _text(content: Any) -> str:
    """A message's text; it may be in parts."""
    if content is None:
        return ""
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        return "".join(str(part.get("text", "")) for part in content)
    if not isinstance(content, str):
        raise LeftOut(NO_TEXT)
    return content


def _filled(text: str) -> str:
    if not text.strip():
        raise LeftOut(EMPTY)
    return text
