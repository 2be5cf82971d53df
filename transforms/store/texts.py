"""Texts of strangers (captions, urls, paths, answers of servers): what of them may be shown, and what is never kept.

The one place for both: a terminal, a log or a table gets such a text through here.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
import urllib.parse

HIDDEN = "redacted"
"""Begins what stands in place of a secret."""

SECRETS = frozenset((
    "x-amz-signature", "x-amz-security-token", "x-amz-credential", "awsaccesskeyid", "x-goog-signature", "x-goog-credential",
    "googleaccessid", "x-oss-signature", "ossaccesskeyid", "signature", "sig", "hmac", "__gda__", "hdnea", "hdnts", "jwt",
    "token", "access_token", "id_token", "refresh_token", "auth_token", "authtoken", "auth", "authorization", "bearer",
    "api_key", "apikey", "api-key", "x-api-key", "access_key", "accesskey", "subscription-key", "secret", "client_secret",
    "secret_key", "password", "passwd", "pwd", "session", "sessionid", "session_id",
))  # fmt: skip
"""Parameters of a url whose value lets in whoever has it, in small letters: signatures of S3, GCS, Azure and CDNs, tokens."""

# Semicolons separate too (&amp;token=…), and a token may stand behind the #.
_PARAMETER = re.compile(r"(?<=[?&;#])([A-Za-z0-9_.%\[\]-]{1,80})=([^&;#\s'\"<>]+)")
_USER = re.compile(r"(?<=://)[^/?#\s'\"<>]*@")
_HINT = re.compile(r"[=@]|hf_|Bearer|AIza")
_BARE = re.compile(r"\bhf_[A-Za-z0-9]{20,}|(?<=\bBearer )[\w.~+/-]{8,}=*|\bAIza[\w-]{30,}")


def redacted(text: str) -> str:
    """``text`` without what lets somebody in: the values of ``SECRETS``, user and password before a host, bare tokens.

    In place of a value stands a digest of it, so that urls that tell pictures apart by a token still do. What is redacted stays
    as it is when it's redacted again.
    """
    if _HINT.search(text) is None:
        return text
    text = _PARAMETER.sub(_without_value, text)
    text = _USER.sub(f"{HIDDEN}@", text)
    return _BARE.sub(lambda found: _mark(found[0]), text)


def _without_value(parameter: re.Match[str]) -> str:
    name, value = parameter[1], parameter[2]
    return f"{name}={_mark(value)}" if urllib.parse.unquote(name).lower() in SECRETS else parameter[0]


def _mark(secret: str) -> str:
    if re.fullmatch(HIDDEN + r"-[0-9a-f]{12}", secret):
        return secret
    return f"{HIDDEN}-{hashlib.sha256(secret.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"


def is_redacted(url: str) -> bool:
    """Whether a url has lost a secret, without which it can't be asked for."""
    return f"://{HIDDEN}@" in url or re.search(rf"={HIDDEN}-[0-9a-f]{{12}}(?![0-9a-f])", url) is not None


def public_url(url: str | None) -> str | None:
    """A url as tables keep it: ``redacted`` if it has a scheme, and else a path in a folder, which stays as it is."""
    return url if url is None or "://" not in url else redacted(url)


def printable(text: str, keep: str = "") -> str:
    """``text`` with escapes for what would rewrite a terminal: control characters, line breaks, marks that turn the direction.

    Blanks of all kinds become spaces; the letters of ``keep`` stay as they are.
    """
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() or letter in keep else _escaped(letter) for letter in text)


def written_name(name: str) -> str:
    r"""The name of a file as text that a table can hold: \xe9 for a byte that is no UTF-8, ? for other lone surrogates.

    ``files.name_here`` finds the file again.
    """
    if name.isascii():
        return name
    name = _BYTE_OF_A_NAME.sub(lambda found: f"\\x{ord(found[0]) - _SURROGATES:02x}", name)
    return name.encode("utf-8", "replace").decode("utf-8")


def raw_name(name: str) -> str:
    r"""The name that ``written_name`` wrote, as Python has names that aren't UTF-8: with a surrogate for \xe9."""
    return _ESCAPED_BYTE.sub(lambda found: chr(_SURROGATES + int(found[1], 16)), name)


_SURROGATES = 0xDC00
"""Python's ``surrogateescape``: this and the byte make the surrogate that stands for it."""

_BYTE_OF_A_NAME = re.compile("[\udc80-\udcff]")
_ESCAPED_BYTE = re.compile(r"\\x([89a-f][0-9a-f])")


def _escaped(letter: str) -> str:
    if unicodedata.category(letter) == "Zs":
        return " "
    return letter.encode("unicode_escape", "surrogatepass").decode("ascii")


def shown(text: str, keep: str = "") -> str:
    """``text`` as it may stand on a terminal or in a log: ``redacted`` and ``printable``."""
    return printable(redacted(text), keep)
