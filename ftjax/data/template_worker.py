"""The process in which chat templates run (`python -I template_worker.py FOLDER...`).

A template is a program of a stranger. Jinja's sandbox keeps it from everything but its own
arguments, and what it can still do, loop or grow without end, ends this process and no other. Its
dialect of Jinja is that of transformers (transformers/utils/chat_template_utils.py), so that both
write the same.

Nothing of ftjax is imported here, and nothing imports this but template_process.py, for its limits.
One JSON object per line comes in: a template, the names it is given, and dialogues. Lines go out:
first the names that the template uses, then one per dialogue, up to the first that fails.
"""

import contextlib
import datetime
import functools
import json
import math
import resource
import sys
import time
from collections.abc import Iterator
from typing import Any

# Where the parent found jinja2; -I leaves out PYTHONPATH and a user's own packages.
sys.path += sys.argv[1:]

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.sandbox
import jinja2.utils

MOST_MEMORY = 1 << 30
MOST_SECONDS = 2
MOST_CHARACTERS = 10_000_000


class Refused(jinja2.TemplateError):
    """The template itself refuses its arguments."""


class TooLong(Exception):
    """The template writes without end."""


class GenerationTag(jinja2.ext.Extension):
    """`{% generation %}`: what stands inside is to be learned.

    Attributes:
        written: characters written so far, kept by `render`.
        marked: where a marked text begins, and the text.
    """

    tags = {"generation"}  # noqa: RUF012 (as Jinja has it)

    def __init__(self, environment: jinja2.Environment):
        super().__init__(environment)
        self.written = 0
        self.marked: list[tuple[int, str]] = []

    def parse(self, parser) -> jinja2.nodes.Node:
        """Its body, passed through `_mark`."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller) -> str:
        text = caller()
        self.marked.append((self.written, text))
        return text


class Namespace(jinja2.utils.Namespace):
    """Jinja's, without names that begin with an underscore."""

    # Without a parameter "self", which a template may use as a name.
    def __init__(*args, **kwargs):
        self, *values = args
        jinja2.utils.Namespace.__init__(self)
        for name, value in dict(*values, **kwargs).items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"the name {name!r} in a namespace")
        super().__setitem__(name, value)


class Dict:
    """What templates know as `dict`, without the class's other attributes."""

    def __call__(self, *args, **kwargs) -> dict:
        """A new dict."""
        return dict(*args, **kwargs)

    def fromkeys(self, *args) -> dict:
        """As the class has it."""
        return dict.fromkeys(*args)


def raise_exception(message: Any) -> None:
    """How templates refuse what they do not know."""
    raise Refused(str(message))


def strftime_now(pattern: str) -> str:
    """The time of rendering."""
    return datetime.datetime.now().strftime(pattern)


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    """JSON, without Jinja's escapes for HTML."""
    options = {"ensure_ascii": ensure_ascii, "indent": indent, "separators": separators}
    return json.dumps(value, sort_keys=sort_keys, **options)


def make_environment() -> jinja2.Environment:
    """Jinja as chat templates expect it."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[GenerationTag, jinja2.ext.loopcontrols],
    )
    environment.filters["tojson"] = tojson
    environment.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": strftime_now,
        "dict": Dict(),
        "namespace": Namespace,
    }
    return environment


@functools.lru_cache(maxsize=8)
def compiled(source: str) -> tuple[jinja2.Template, GenerationTag, list[str]]:
    """A template, its tag, and the names it uses without setting them."""
    environment = make_environment()
    names = jinja2.meta.find_undeclared_variables(environment.parse(source))
    tag = next(e for e in environment.extensions.values() if isinstance(e, GenerationTag))
    return environment.from_string(source), tag, sorted(names)


def render(source: str, names: dict[str, Any]) -> dict[str, Any]:
    """What the template writes, and where what it marks stands in that (None: it cannot tell)."""
    template, tag, _ = compiled(source)
    tag.written, tag.marked, pieces = 0, [], []
    for piece in template.generate(names):
        pieces.append(piece)
        tag.written += len(piece)
        if tag.written > MOST_CHARACTERS:
            raise TooLong
    text = "".join(pieces)
    spans = [[start, start + len(marked)] for start, marked in tag.marked]
    # In a macro or a {% set %} a text is written later than it is made.
    known = all(text[start:].startswith(marked) for start, marked in tag.marked)
    return {"text": text, "spans": spans if known else None}


def answers(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The lines that go out."""
    source = request["template"]
    allow_seconds(MOST_SECONDS)
    try:
        yield {"names": compiled(source)[2]}
    except Exception as error:
        yield {"error": description(error), "spent": True}
        return
    for dialogue in request["dialogues"]:
        allow_seconds(MOST_SECONDS)
        try:
            yield render(source, request["names"] | dialogue)
        except Exception as error:
            # After a growth without end the limit of time is near, too, for the next question.
            yield {"error": description(error), "spent": isinstance(error, MemoryError | TooLong)}
            return


def description(error: Exception) -> str:
    """What went wrong, as the rest of a sentence that begins with the template."""
    message = error.message if isinstance(error, jinja2.TemplateSyntaxError) else str(error)
    said = " ".join((message or "").split())[:300]
    if isinstance(error, Refused):
        return f"refuses it: {said}"
    if isinstance(error, TooLong):
        return f"writes more than {MOST_CHARACTERS:,} characters"
    if isinstance(error, MemoryError):
        return f"needs more than {MOST_MEMORY >> 30} GiB of memory"
    if isinstance(error, RecursionError | SyntaxError):
        # A SyntaxError is of the Python that Jinja makes of a template: too many blocks.
        return "nests or calls itself too deeply"
    if isinstance(error, jinja2.TemplateSyntaxError):
        return f"is no valid Jinja, in line {error.lineno}: {said}"
    if isinstance(error, jinja2.exceptions.SecurityError):
        return f"does what no template may: {said}"
    return f"fails on it: {said} ({type(error).__name__})"


def limit_resources() -> None:
    """No more memory than any template needs, no files, no traces of a crash."""
    limits = {
        resource.RLIMIT_AS: MOST_MEMORY,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
    }
    for kind, most in limits.items():
        # Not every system knows each of them (macOS has no RLIMIT_AS that works).
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (most, most))


def allow_seconds(seconds: int) -> None:
    """From now on so much processor time, then the system ends this process."""
    used = math.ceil(time.process_time())
    with contextlib.suppress(ValueError, OSError):
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (used + seconds, hard))


def main() -> None:
    """Answers until there are no more requests."""
    limit_resources()
    print(json.dumps({"ready": True}), flush=True)
    while True:
        # To read a line of many dialogues.
        allow_seconds(10 * MOST_SECONDS)
        line = sys.stdin.buffer.readline()
        if not line:
            return
        for answer in answers(json.loads(line)):
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
