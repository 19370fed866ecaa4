"""Chat templates: setting their options, finding out what they can show, bounding what they take.

A template is a program that a model brings. It cannot reach files or the network, since it is
rendered in a sandbox, but it can loop for ever or fill the memory: each is first tried in a process
of its own.
"""

import json
import logging
import os
import resource
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from personality_vector.errors import DataError, foreign, some
from personality_vector.subject.spec import Option, Template, parsed

log = logging.getLogger(__name__)

TODAY = date(2024, 7, 26)
"""The day that a template is told when it asks for today's date, whenever it is rendered."""
DATE_OPTION, NOW = "date_string", "strftime_now"
"""The option that sets the date, and the function by which templates ask for it."""
_DIRECTIVES = "aAbBcdefFgGhHIjmMnpSTuUVwWxXyYzZDR%"
_OURS = ("messages", "add_generation_prompt")

_SECONDS, _BYTES = 5, 1 << 28
"""What rendering one chat may take, beyond what this process takes already."""
_DONE, _FAILED, _FULL = 0, 1, 2
_WAIT = 0.002
_known: dict[str, "Manner"] = {}
"""Templates that have been rendered within bounds, and what they can show."""
_said = set[str]()


def set_template(tokenizer: Any, template: Template, where: str) -> dict[str, Any]:
    """Give a tokenizer another chat template, or fix variables that its own reads.

    The options become the first line of the template, so that every library that renders it shows
    the same. A template that asks for today's date is given a fixed one, or ``date_string``.

    Args:
        tokenizer: Changed in place.
        template: What a recipe says.
        where: The model, for messages.

    Returns:
        The options that the template reads from now on, with the date; none if nothing was set.

    Raises:
        DataError: The template does not read an option, or cannot be read.
    """
    if template.text is not None:
        tokenizer.chat_template = template.text
    own, options = tokenizer.chat_template, dict(template.options)
    if own is None and options:
        raise DataError(
            f"{where}: the tokenizer has no chat template that could read template_options; "
            "give chat_template as well"
        )
    if own is None or (not options and NOW not in str(own)):
        return {}
    with foreign(DataError, f"{where}: the chat template cannot be used"):
        text = str(tokenizer.get_chat_template())
        _require_read(text, options, where)
    lines = [f"{{% set {name} = {_literal(value)} %}}" for name, value in options.items()]
    if NOW in text:
        lines.append(_date_macro(options.get(DATE_OPTION)))
        options[DATE_OPTION] = fixed_date(text, options)
    # Jinja leaves out the line break after a statement, so the template itself is unchanged.
    tokenizer.chat_template = "".join(lines) + "\n" + text
    return {"template_options": options}


def fixed_date(text: str, options: Mapping[str, Option]) -> str:
    """Return the date that a template is told, or "" if it asks for none."""
    return str(options.get(DATE_OPTION, TODAY)) if NOW in text else ""


def _require_read(text: str, options: Mapping[str, Option], where: str) -> None:
    """Refuse an option that a template never reads.

    Raises:
        DataError: It is named, with those that the template reads.
    """
    ours = [name for name in options if name in _OURS]
    if ours:
        raise DataError(f"template_options: {ours[0]} is set for each chat; leave it out")
    read = _variables(text) | ({DATE_OPTION} if NOW in text else set())
    unread = sorted(options.keys() - read)
    if unread:
        known = sorted(read - {*_OURS, NOW, "raise_exception", "namespace", "range", "dict"})
        raise DataError(
            f"{where}: the chat template never reads the option {some(unread)}; "
            + (f"it reads {', '.join(known[:20])}" if known else "it has no options")
        )


def _variables(text: str) -> set[str]:
    """Return the variables that a template reads before it sets them itself.

    From its syntax alone: the function of Jinja for this would compute constants, without bounds.
    """
    from jinja2 import nodes

    tree = parsed(text)
    bound = {name.name for name in tree.find_all(nodes.Name) if name.ctx == "param"}
    for loop in tree.find_all(nodes.For):
        bound |= _names(loop.target, "store")
    read: set[str] = set()
    for statement in tree.body:
        read |= _names(statement, "load") - bound
        if isinstance(statement, nodes.Assign):
            bound |= _names(statement.target, "store") - read
    return read


def _names(node: Any, ctx: str) -> set[str]:
    from jinja2 import nodes

    found = [node, *node.find_all(nodes.Name)]
    return {one.name for one in found if isinstance(one, nodes.Name) and one.ctx == ctx}


def _literal(value: Option) -> str:
    """Return a value as Jinja writes it, whose texts have the escapes of JSON."""
    return json.dumps(value, ensure_ascii=False)


def _date_macro(given: Option | None) -> str:
    """Return a macro in place of the function that returns today's date."""
    if given is not None:
        found = _literal(str(given))
    else:
        _say(
            f"the chat template asks for today's date and is always given {TODAY}, so that a "
            f"recipe gives the same result tomorrow; template_options: {{{DATE_OPTION}: ...}} sets "
            "another"
        )
        words = {f"%{one}": TODAY.strftime(f"%{one}") for one in _DIRECTIVES}
        words |= {f"%-{one}": words[f"%{one}"].lstrip("0") or "0" for one in "dmHIMSjy"}
        filters = "".join(
            f" | replace({_literal(mark)}, {_literal(word)})" for mark, word in words.items()
        )
        found = f"format{filters}"
    return f"{{% macro {NOW}(format) %}}{{{{ {found} }}}}{{% endmacro %}}"


class Manner(NamedTuple):
    """What a template can show, as found by rendering chats that differ in one place.

    Attributes:
        parts: It reads contents as lists of parts: ``[{"type": "text", "text": ...}]``.
        system: It shows what a system message says, before a reply and after one.
    """

    parts: bool = False
    system: bool = True


Messages = Sequence[Mapping[str, Any]]


def adapted(chat: Messages, manner: Manner) -> list[Mapping[str, Any]]:
    """Return a chat as a template of this manner can show it.

    A system message that would be refused or left out is put at the start of the user's turn.
    """
    found = [*chat]
    if found and found[0]["role"] == "system" and not manner.system:
        system, *rest = found
        _say(
            "the chat template has no system role: the system text is put at the start of the "
            "user's first message"
        )
        if rest and rest[0]["role"] == "user":
            user, *rest = rest
            text = f"{system['content']}\n\n{user['content']}"
        else:
            text = system["content"]
        found = [{"role": "user", "content": text}, *rest]
    if manner.parts:
        found = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in found]
    return found


def manner_of(tokenizer: Any, chat: Messages, *, reply_follows: bool) -> Manner:
    """Return what a tokenizer's template can show; the first time, it is tried within bounds.

    Args:
        tokenizer: With a chat template.
        chat: One that is going to be rendered, tried first of all.
        reply_follows: Whether the assistant speaks next.

    Raises:
        DataError: Rendering takes more than 5 seconds or 256 MB, or shows no question.
    """
    key = str(tokenizer.chat_template)
    if key not in _known:

        def tried() -> Manner:
            _shown(tokenizer, chat, reply_follows=reply_follows)
            return _probed(tokenizer)

        require_bounded(tried)
        _known[key] = _probed(tokenizer)
    return _known[key]


def _probed(tokenizer: Any) -> Manner:
    asked = [[{"role": "user", "content": word}] for word in ("Cedar", "Maple")]
    parts = False
    if not _differ(tokenizer, asked, reply_follows=True):
        parts = _differ(
            tokenizer, [adapted(one, Manner(parts=True)) for one in asked], reply_follows=True
        )
        if not parts and _shown(tokenizer, asked[0], reply_follows=True) is not None:
            raise DataError(
                "the chat template renders the same text for different questions; it has to show "
                "the content of each message"
            )
    told = [
        adapted([{"role": "system", "content": word}, *asked[0]], Manner(parts))
        for word in ("Birch", "Aspen")
    ]
    reply = adapted([{"role": "assistant", "content": "Elm"}], Manner(parts))
    return Manner(
        parts,
        _differ(tokenizer, told, reply_follows=True)
        and _differ(tokenizer, [[*one, *reply] for one in told], reply_follows=False),
    )


def _differ(tokenizer: Any, chats: Sequence[Messages], *, reply_follows: bool) -> bool:
    """Return whether two chats are both rendered, and differently."""
    one, other = (_shown(tokenizer, chat, reply_follows=reply_follows) for chat in chats)
    return one is not None and other is not None and one != other


def _shown(tokenizer: Any, chat: Messages, *, reply_follows: bool) -> str | None:
    """Return a chat as a template shows it, or ``None`` if it refuses."""
    try:
        return str(
            tokenizer.apply_chat_template(
                list(chat), tokenize=False, add_generation_prompt=reply_follows
            )
        )
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001  (a template may fail in any way)
        return None


def _say(sentence: str) -> None:
    """Print a sentence once in the life of this process."""
    if sentence not in _said:
        _said.add(sentence)
        log.warning("%s", sentence)


def require_bounded(render: Callable[[], object]) -> None:
    """Render in a forked process, within bounds; whatever else is wrong is seen later.

    Raises:
        DataError: It takes more than 5 seconds or 256 MB.
    """
    with warnings.catch_warnings():
        # The other threads of this process are not needed to render.
        warnings.simplefilter("ignore")
        child = os.fork()
    if child == 0:
        _render_and_exit(render)
    timer = threading.Timer(2 * _SECONDS, os.kill, (child, signal.SIGKILL))
    timer.start()
    try:
        status = _ended(child)
    finally:
        timer.cancel()
    if status < 0 or status == _FULL:
        what = "memory" if status == _FULL else "time"
        raise DataError(
            f"the chat template takes too much {what} (more than {_SECONDS} s or "
            f"{_BYTES >> 20} MB for one chat); choose another template"
        )


def _ended(child: int) -> int:
    """Wait for a process and return its exit code, or minus the signal that ended it."""
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(_WAIT)


def _forgive_no_memory() -> None:
    """Let this process end where Jinja runs out of memory over a constant, and would go on."""
    from jinja2 import nodes

    class Impossible(nodes.Impossible):
        def __init__(self) -> None:
            if isinstance(sys.exception(), MemoryError):
                os._exit(_FULL)

    nodes.Impossible = Impossible  # type: ignore[misc, assignment]


def _render_and_exit(render: Callable[[], object]) -> None:
    code = _FAILED
    with suppress(BaseException):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
        with suppress(OSError, ValueError):  # on another system than Linux, time alone is bounded
            pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
            most = pages * resource.getpagesize() + _BYTES
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
        _forgive_no_memory()
        try:
            render()
            code = _DONE
        except MemoryError:
            code = _FULL
    os._exit(code)
