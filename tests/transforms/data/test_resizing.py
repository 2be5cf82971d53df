"""What is stored is what img2dataset stores; its process ends, and answers, whatever it is given."""

import io
import os
import signal
import threading
import time

import numpy as np
import pytest
from PIL import Image

from tests.planted import picture
from tests.web import picture as small_png
from transforms.data import resizing
from transforms.data.download import Fetched
from transforms.data.resizing import ConfinedResizer, Storage, on_white, pixels_of
from transforms.store.confined import Confined, Exceeded
from transforms.store.pictures import decode

PLENTY = 50_000_000


def encoded(image, kind, **options):
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


@pytest.fixture
def see_through():
    made = Image.fromarray(picture(1, 60, 40)).convert("RGBA")
    made.putalpha(Image.fromarray(np.tile(np.arange(60, dtype=np.uint8) * 4, (40, 1))))
    return made


# -- beside img2dataset -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["no", "keep_ratio", "center_crop", "border", "keep_ratio_largest"])
@pytest.mark.parametrize("form", ["jpg", "png", "webp"])
def test_what_is_stored_is_what_img2dataset_stores(mode, form, see_through, monkeypatch):
    monkeypatch.setenv("NO_ALBUMENTATIONS_UPDATE", "1")
    from img2dataset.resizer import Resizer

    quality = 6 if form == "png" else 95
    ours = ConfinedResizer(Storage(32, mode, True, form, quality), PLENTY, 16)
    theirs = Resizer(32, mode, False, encode_quality=quality, encode_format=form)
    plain = Image.fromarray(picture(2, 70, 50))
    for content in (
        encoded(plain, "JPEG"), encoded(plain, "PNG"), encoded(plain.convert("L"), "JPEG"), encoded(plain.quantize(16), "PNG"),
        encoded(see_through, "PNG"), encoded(see_through, "WEBP"),
    ):  # fmt: skip
        assert ours(Fetched(content, 10)) == theirs(io.BytesIO(content))


def test_over_white_to_the_last_bit():
    alpha, colour = np.meshgrid(np.arange(256), np.arange(256), indexing="ij")
    pixels = np.stack([colour, colour[::-1], colour, alpha], axis=2).astype(np.uint8)
    theirs = pixels[..., 3:] / 255 * pixels[..., :3] + 255 - pixels[..., 3:]
    assert np.array_equal(on_white(pixels), np.rint(theirs.clip(min=0, max=255)).astype(np.uint8))


@pytest.mark.parametrize(
    ("kind", "mode"),
    [(kind, mode) for kind in ("PNG", "WEBP", "GIF", "TIFF", "AVIF") for mode in ("1", "L", "LA", "P", "RGB", "RGBA")]
    + [("JPEG2000", mode) for mode in ("L", "LA", "RGB", "RGBA")],
)
def test_by_opencv_or_not_a_picture_is_what_decode_says(kind, mode, see_through):
    content = encoded(see_through.convert(mode), kind)
    pixels = pixels_of(content, PLENTY, 16)
    shown = pixels[..., ::-1] if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
    assert np.abs(shown.astype(int) - np.asarray(decode(content), int)).max() <= 1


# -- limits -----------------------------------------------------------------------------------------------------------


def said(content, max_pixels=PLENTY, ratio=16.0, seconds=10.0):
    *nothing, reason = ConfinedResizer(Storage(32, "no", False, "png", 1), max_pixels, ratio)(Fetched(content, seconds))
    assert nothing == [None] * 5
    return reason


def test_as_many_pixels_as_allowed_pass():
    resizer = ConfinedResizer(Storage(32, "no", False, "png", 1), 24 * 16, 16)
    assert resizer(Fetched(small_png(0, 24, 16), 10))[1:] == (24, 16, 24, 16, None)
    assert "24 x 16 pixels are more than 383" in said(small_png(0, 24, 16), max_pixels=24 * 16 - 1)


def test_what_only_opencv_forgives_is_counted_too():
    whole = small_png(0, 24, 16)
    flawed = whole[:33] + b"\0\0\0\0iCCP" + b"\x80\xd9\xd6\x50"[:4] + whole[33:]
    with pytest.raises(ValueError, match="cannot decode"):
        decode(flawed)
    assert np.array_equal(pixels_of(flawed, 24 * 16, 16)[..., ::-1], np.asarray(decode(whole)))
    assert "24 x 16 pixels are more than 383" in said(flawed, max_pixels=383)


def test_a_side_is_so_many_times_as_long_as_the_other_and_no_more():
    assert "33 x 2 pixels are 16.5 : 1, more than 16 : 1" in said(small_png(0, 33, 2))
    assert "2 x 33 pixels are 16.5 : 1, more than 16 : 1" in said(small_png(0, 2, 33))
    resizer = ConfinedResizer(Storage(32, "no", False, "png", 1), PLENTY, 16)
    assert resizer(Fetched(small_png(0, 32, 2), 10))[5] is None
    assert "more than 1.5 : 1" in said(small_png(0, 24, 15), ratio=1.5)


def test_no_time_is_left():
    assert said(small_png(), seconds=0.0) == "took longer than allowed"


# -- the process ------------------------------------------------------------------------------------------------------


def echo():
    """A function for ``Confined`` that does as it is told."""

    def work(content, does="echo", amount=0):
        if does == "sleep":
            time.sleep(amount)
        if does == "allocate":
            content = bytes(amount)
        if does == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if does == "raise":
            raise ZeroDivisionError("nobody thought of it")
        if does == "print":
            os.write(1, b"noise")
        if does == "write":
            with open(content, "wb") as file:
                file.write(b"x")
        return content[:64], {"pid": os.getpid()}

    return work


@pytest.fixture
def confined():
    made = Confined("tests.transforms.data.test_resizing:echo", memory=64 << 20)
    yield made
    made.end()


def test_a_process_is_kept_for_the_next_call(confined):
    first, second = confined(b"abc", 5), confined(b"def", 5)
    assert (first[0], second[0]) == (b"abc", b"def") and first[1] == second[1] and first[1]["pid"] != os.getpid()
    assert confined(b"x" * (1 << 22), 5, does="print")[0] == b"x" * 64


def test_one_that_takes_too_long_is_ended_and_the_next_is_served(confined):
    before = confined(b"", 5)[1]["pid"]
    begun = time.monotonic()
    with pytest.raises(Exceeded, match="took longer than allowed"):
        confined(b"", 0.3, does="sleep", amount=60)
    assert time.monotonic() - begun < 2
    with pytest.raises(ProcessLookupError):
        os.kill(before, 0)
    assert confined(b"abc", 5)[0] == b"abc"


def test_one_that_wants_too_much_memory(confined):
    assert confined(b"", 5, does="allocate", amount=40 << 20)[0] == bytes(64)
    with pytest.raises(Exceeded, match="needs more than 64 MiB of memory"):
        confined(b"", 5, does="allocate", amount=100 << 20)
    assert confined(b"abc", 5)[0] == b"abc"


def test_one_that_can_not_take_what_it_is_sent(confined):
    """It is a fault of that file, of a process that is new and of one that has served others; the next is served."""
    for _ in range(2):
        with pytest.raises(Exceeded):
            confined(bytes(200 << 20), 60)
        assert confined(b"ab", 5)[0]


def test_one_that_crashes_or_raises(confined, tmp_path):
    with pytest.raises(Exceeded, match=r"its decoder crashed \(SIGSEGV\)"):
        confined(b"", 5, does="crash")
    with pytest.raises(ValueError, match="unexpected ZeroDivisionError: nobody thought of it"):
        confined(b"", 5, does="raise")
    with pytest.raises(ValueError, match="unexpected OSError"):
        confined(str(tmp_path / "left").encode(), 5, does="write")
    assert (tmp_path / "left").stat().st_size == 0
    assert confined(b"abc", 5)[0] == b"abc"


def test_one_whose_process_was_killed_between_calls(confined):
    os.kill(confined(b"", 5)[1]["pid"], signal.SIGKILL)
    time.sleep(0.1)
    assert confined(b"abc", 5)[0] == b"abc"


def test_it_ends_by_itself_where_nobody_watches(confined, monkeypatch):
    process = confined(b"", 5)[1]["pid"]
    # As a parent that is gone: nobody ends it, and its own clock does.
    monkeypatch.setattr(confined, "_receive", lambda deadline: (b"", {}))
    confined(b"", 0.2, does="sleep", amount=60)
    assert os.waitpid(process, 0)[1] == signal.SIGALRM


def test_threads_take_turns(confined):
    answers = {}
    threads = [threading.Thread(target=lambda n=n: answers.update({n: confined(b"%d" % n, 20)[0]})) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {n: b"%d" % n for n in range(20)}


def test_a_process_serves_all_buckets():
    assert resizing._process(1 << 30) is resizing._process(1 << 30)
