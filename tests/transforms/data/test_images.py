"""Whatever a picture is encoded as comes out as RGB, and a sample's picture is found by its id."""

import io
import pickle

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.planted import embedding_rows, picture, planted_pictures, write_images
from transforms.data.images import ImageStore
from transforms.store import files, pictures
from transforms.store.files import read_parquet
from transforms.store.lake import Lake, part_number
from transforms.store.pictures import decode, encode_png, to_array


def encoded(picture, form, **options):
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


# -- decoding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_a_picture_comes_back(form):
    pixels = picture(1)
    out = decode(encoded(Image.fromarray(pixels), form, quality=95))
    assert out.mode == "RGB" and out.size == (40, 32)
    off = np.abs(to_array(out).astype(int) - pixels).mean()
    assert off == 0 if form == "PNG" else off < 12


def test_gray_palette_and_cmyk_become_rgb():
    gray = np.full((4, 4), 77, np.uint8)
    assert (to_array(decode(encoded(Image.fromarray(gray), "PNG"))) == 77).all()
    red = Image.new("RGB", (4, 4), (200, 10, 20))
    assert to_array(decode(encoded(red.quantize(4), "PNG")))[0, 0].tolist() == [200, 10, 20]
    cmyk = to_array(decode(encoded(red.convert("CMYK"), "JPEG", quality=95)))
    assert np.abs(cmyk[0, 0].astype(int) - [200, 10, 20]).max() < 12


def test_what_is_transparent_is_white():
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert (to_array(decode(encoded(clear, "PNG"))) == 255).all()
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    assert abs(int(to_array(decode(encoded(half, "WEBP", lossless=True)))[0, 0, 0]) - 127) <= 1
    gray = Image.new("LA", (4, 4), (0, 0))
    assert (to_array(decode(encoded(gray, "PNG"))) == 255).all()
    palette = Image.new("RGB", (4, 4), (9, 9, 9)).quantize(2)
    assert (to_array(decode(encoded(palette, "PNG", transparency=palette.getpixel((0, 0))))) == 255).all()


def test_sixteen_bit_gray_is_scaled_and_not_clipped():
    deep = Image.fromarray(np.array([[0, 257 * 100, 65535]], np.uint16))
    assert to_array(decode(encoded(deep, "PNG")))[0, :, 0].tolist() == [0, 100, 255]


@pytest.mark.parametrize(
    "content", [b"", b"<html>not found</html>", encode_png(picture(0))[:60], b"\x89PNG\r\n\x1a\n" + b"\0" * 40]
)
def test_what_is_no_picture_is_a_value_error(content):
    with pytest.raises(ValueError, match=r"cannot decode the picture: .") as caught:
        decode(content)
    assert "0x" not in str(caught.value)  # an address in memory would make the rows differ from run to run


def test_too_many_pixels_are_refused_before_they_are_decoded(monkeypatch):
    monkeypatch.setattr(pictures, "MAX_PIXELS", 40 * 32 - 1)
    with pytest.raises(ValueError, match="40 x 32 pixels are more than 1,279"):
        decode(encode_png(picture(0)))


def test_png_loses_nothing_and_refuses_what_it_would_bend():
    pixels = picture(3)
    assert (to_array(decode(encode_png(pixels))) == pixels).all()
    assert encode_png(Image.fromarray(pixels)) == encode_png(pixels)
    with pytest.raises(ValueError, match="expected uint8"):
        encode_png(pixels.astype(np.float32))


# -- the store --------------------------------------------------------------------------------------------------------


@pytest.fixture
def planted(tmp_path):
    """Three parts of images (one of them with controls, one empty) in row groups of two, and their embeddings' ids."""
    lake = Lake(str(tmp_path / "lake"))
    parts = [planted_pictures(5), [], planted_pictures(4, "control", first=5)]
    ingest = write_images(lake, parts)
    for path in lake.parts("images", ingest.snapshot_id):
        pq.write_table(read_parquet(path), path, row_group_size=2)
    for number, part in enumerate(parts):
        ids = [sample for sample, _, _ in part]
        lake.write("embeddings", "e", number, embedding_rows(ids, np.ones((len(part), 1))))
    contents = {sample: content for part in parts for sample, _, content in part}
    return lake, ingest.snapshot_id, contents


@pytest.mark.parametrize("cache_bytes", [0, 20_000, 1 << 20])
def test_every_sample_is_found_whatever_is_cached(planted, cache_bytes):
    lake, ingest, contents = planted
    store = ImageStore(lake, ingest, "e", cache_bytes=cache_bytes)
    for sample in [*contents, *reversed(contents)]:
        assert (store.get(sample) == to_array(decode(contents[sample]))).all()
        caches = store._by_code._pictures, store._by_code._row_groups
        assert all(cache.used <= cache_bytes / 2 for cache in caches)
    assert store.get(sample).dtype == np.uint8 and store.get(sample).shape == (32, 40, 3)


def test_what_is_cached_is_not_read_again(planted, monkeypatch):
    lake, ingest, contents = planted
    reads = []
    monkeypatch.setattr("transforms.data.images.open_parquet", lambda path: reads.append(path) or files.open_parquet(path))
    store = ImageStore(lake, ingest, "e")
    for sample in contents:
        store.get(sample)
    first = len(reads)
    for sample in contents:
        store.get(sample)
    assert len(reads) == first


def test_what_is_not_there_is_said(planted):
    lake, ingest, contents = planted
    store = ImageStore(lake, ingest, "e")
    assert next(iter(contents)) in store and "nobody" not in store
    with pytest.raises(KeyError, match="nobody"):
        store.get("nobody")


def test_an_image_that_moved_is_not_taken_for_another(planted):
    lake, ingest, contents = planted
    path = lake.part("images", ingest, 0)
    table = read_parquet(path)
    pq.write_table(table.take([1, 0, 2, 3, 4]), path)
    with pytest.raises(ValueError, match="holds another sample in row 0"):
        ImageStore(lake, ingest, "e").get(next(iter(contents)))


def test_a_store_travels_light(planted):
    lake, ingest, contents = planted
    store = ImageStore(lake, ingest, "e")
    for sample in contents:
        store.get(sample)
    travelled = pickle.dumps(store)
    assert len(travelled) < 500
    assert (pickle.loads(travelled).get(sample) == store.get(sample)).all()


def test_a_cached_picture_cannot_be_changed(planted):
    lake, ingest, contents = planted
    with pytest.raises(ValueError, match="read-only"):
        ImageStore(lake, ingest, "e").get(next(iter(contents)))[0] = 0


def test_part_numbers():
    assert part_number("gs://lake/images/snapshot_id=a-b/part-00012.parquet") == 12
