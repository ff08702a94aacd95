"""Bytes of a file to text, whatever wrote it."""

import codecs
import re

from ftjax.data.sources.records import BadDataError

# The longer mark first: that of UTF-32 begins like that of UTF-16.
MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
LOOKED_AT = 4096

# In European languages few letters lie beyond ASCII; in a file of another script, most do.
LARGEST_SHARE_OF_CP1252 = 0.4


def decode(content: bytes, name: str) -> tuple[str, str | None]:
    """The text, without its mark, and a sentence if it was not UTF-8.

    UTF-8, UTF-16 and UTF-32 by their marks, UTF-16 without one by its zeros, and Windows-1252
    (which contains Latin-1) where the file is neither UTF-8 nor UTF-8 with some bytes damaged.

    Raises:
        BadDataError: says which line is the first that cannot be read.
    """
    if content.startswith(b"version https://git-lfs"):
        raise BadDataError(
            f"{name} is a pointer of Git LFS and not the file itself; get that with git lfs pull."
        )
    for mark, encoding in MARKS:
        if content.startswith(mark):
            found = encoding
            content = content[len(mark) :]
            break
    else:
        found = _without_mark(content)
    try:
        text = content.decode(found)
    except UnicodeDecodeError as error:
        if found == "utf-8":
            return _not_utf8(content, name, error), f"{name} was read as Windows-1252, not UTF-8."
        raise BadDataError(f"{name} is not valid {found.upper()} ({error.reason}).") from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise BadDataError(f"{name}, line {line}: a zero byte, which no text has. Is it a table?")
    return text, None if found == "utf-8" else f"{name} was read as {found.upper()}."


def _without_mark(content: bytes) -> str:
    """UTF-16 shows: of what is mostly ASCII, every second byte is zero."""
    start = content[:LOOKED_AT]
    for encoding, zeros in (("utf-16-le", start[1::2]), ("utf-16-be", start[::2])):
        if len(zeros) > 1 and zeros.count(0) > 0.7 * len(zeros):
            return encoding
    return "utf-8"


def _not_utf8(content: bytes, name: str, error: UnicodeDecodeError) -> str:
    line = content.count(b"\n", 0, error.start) + 1
    where = f"{name}, line {line}, byte {error.start}: not valid UTF-8 ({error.reason})"
    # Two bytes that fit together by chance are rare, so one pair means UTF-8 with damage.
    pieces = content.decode("utf-8", errors="ignore")
    if not pieces.isascii():
        raise BadDataError(f"{where}, although the rest is. Remove or correct it.") from error
    try:
        text = content.decode("cp1252")
    except UnicodeDecodeError:
        text = ""
    letters = len(re.findall(rb"[A-Za-z\x80-\xff]", content))
    beyond = len(re.findall(rb"[\x80-\xff]", content))
    if not text or beyond > LARGEST_SHARE_OF_CP1252 * letters:
        raise BadDataError(
            f"{where}, nor a Western European Windows-1252. Convert the file, for example with "
            "iconv -f gb18030 -t utf-8 if that is its encoding."
        ) from error
    return text
