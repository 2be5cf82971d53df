"""What is shown rewrites no terminal, and what lets somebody in is neither shown nor kept."""

import re

import pytest

from transforms.store.texts import is_redacted, printable, public_url, redacted, shown

SECRET = "s3cr3t-V4lue"
SIGNED = [
    f"https://b.s3.amazonaws.com/a.png?X-Amz-Algorithm=AWS4&X-Amz-Credential={SECRET}&X-Amz-Signature={SECRET}",
    f"https://b.s3.amazonaws.com/a.png?AWSAccessKeyId={SECRET}&Expires=1&Signature={SECRET}%3D",
    f"https://storage.googleapis.com/b/a.png?x-goog-signature={SECRET}#t=1",
    f"https://a.blob.core.windows.net/b/a.png?sv=2024&se=2026&sig={SECRET}%2Bab",
    f"https://h/a.png?TOKEN={SECRET}",
    f"https://h/a.png?x=1&amp;token={SECRET}",
    f"https://h/a.png?X%2DAmz%2DSignature={SECRET}",
    f"https://h/#access_token={SECRET}&b=1",
    f"https://user:{SECRET}@h/a.png",
    f"HTTPS://user:{SECRET}@x@h/a.png",
    f"s3://{SECRET}@b/a.parquet",
]


@pytest.mark.parametrize("url", SIGNED)
def test_secrets_of_urls(url):
    kept = redacted(url)
    assert SECRET not in kept and "user" not in kept and is_redacted(kept)
    assert redacted(kept) == kept == public_url(url)
    # Whatever stands around it, and in the middle of an error.
    assert SECRET not in redacted(f'Max retries exceeded with url: {url} (Caused by "{url}")')
    assert kept.startswith((url.split("?")[0].split("#")[0], url.split("//")[0] + "//redacted@"))


def test_urls_that_a_token_tells_apart_stay_apart():
    one, other = (redacted(f"https://h/image?token={token}&size=2") for token in ("abc", "abd"))
    assert one != other and one.startswith("https://h/image?token=redacted-") and one.endswith("&size=2")


@pytest.mark.parametrize(
    "text",
    [
        "https://example.org/a.png?x=1&y='2'&tokens=3&design=4#top",
        "https://medium.com/@somebody/a.png?a=b@c",
        "a logo of nike, somebody@example.org, a = b & token = c",
        "mail: somebody@example.org",
        "",
    ],
)
def test_what_is_no_secret_stays(text):
    assert redacted(text) == text and not is_redacted(text)


def test_bare_tokens():
    kept = redacted("401 for hf_abcdefghijKLMNOPqrstuv, Authorization: Bearer abcdefgh.ijk")
    assert re.sub("[0-9a-f]{12}", "…", kept) == "401 for redacted-…, Authorization: Bearer redacted-…"


def test_a_path_in_a_folder_is_no_url():
    assert public_url("a?token=1/b.png") == "a?token=1/b.png"
    assert public_url(None) is None


def test_printable():
    text = "red \x1b[31m c1 \x9b turned \u202e\u2066 bell \x07 two\nlines\u2028 wide\u3000 lone \ud800 zero\u200b é 字 🎉"
    assert printable(text) == (
        r"red \x1b[31m c1 \x9b turned \u202e\u2066 bell \x07 two\nlines\u2028 wide  lone \ud800 zero\u200b é 字 🎉"
    )
    assert printable("a\nb\x1b", keep="\n") == "a\nb\\x1b"
    assert shown(f"\x1b https://u:{SECRET}@h/") == r"\x1b https://redacted@h/"
