"""Images that anybody may have made: two formats, a size known before decoding, one line for every damage."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from olivine.common import OlivineError
from olivine.common.images import MAX_PIXELS, VALUES, image_size, open_image


def encoded(image: Image.Image, name: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (36, 64, 3), dtype=np.uint8))


def png_of_size(width: int, height: int) -> bytes:
    """A PNG that says it has this size, and next to no content."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_the_pixels_are_those_of_pillow(picture, tmp_path):
    for name in ("JPEG", "PNG"):
        (tmp_path / "x").write_bytes(encoded(picture, name))
        with open_image(tmp_path / "x", size=(64, 36)) as image, Image.open(tmp_path / "x") as expected:
            assert image.format == name
            assert np.array_equal(np.asarray(image.convert("RGB")), np.asarray(expected.convert("RGB")))
        assert image_size(tmp_path / "x") == (64, 36)


@pytest.mark.parametrize("name", ["EPS", "GIF", "BMP", "TIFF", "PPM", "WEBP", "ICO", "PDF"])
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_no_other_format_is_opened_whatever_the_file_is_called(picture, tmp_path, name, suffix, monkeypatch):
    from PIL import EpsImagePlugin

    def ghostscript(*_: object, **__: object) -> None:
        raise AssertionError("Ghostscript was started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", ghostscript)
    path = tmp_path / f"x{suffix}"
    path.write_bytes(encoded(picture, name))
    with pytest.raises(OlivineError, match=rf"x\{suffix}: is no JPEG or PNG image"), open_image(path) as image:
        image.load()


def test_a_format_that_is_not_asked_for_is_refused(picture):
    data = encoded(picture, "JPEG")
    with pytest.raises(OlivineError, match=r"^m: is no PNG image"), open_image(data, where="m", formats=("PNG",)):
        pass


def test_the_size_is_checked_before_anything_is_decoded():
    with (
        pytest.raises(OlivineError, match=r"^x: is 60000x60000, not 64x36"),
        open_image(png_of_size(60_000, 60_000), where="x", size=(64, 36)),
    ):
        raise AssertionError("the block was entered")
    with (
        pytest.raises(OlivineError, match=rf"^x: has 60000x60000 pixels; at most {MAX_PIXELS:,} are read"),
        open_image(png_of_size(60_000, 60_000), where="x"),
    ):
        raise AssertionError("the block was entered")


def test_an_image_as_large_as_the_limit_is_opened_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with open_image(png_of_size(20_000, 20_000), where="x") as image:
            assert image.size == (20_000, 20_000)


@pytest.mark.parametrize("name", ["JPEG", "PNG"])
def test_damaged_bytes_are_one_line_with_the_file(picture, tmp_path, name):
    data = encoded(picture, name)
    rng = np.random.default_rng(1)
    path = tmp_path / "x.img"
    damaged = [data[:cut] for cut in (0, 3, 8, 20, 60, len(data) // 2, len(data) - 40)]
    for _ in range(300):
        changed = bytearray(data)
        for place in rng.integers(0, len(data), 4):
            changed[place] = rng.integers(0, 256)
        damaged.append(bytes(changed))
    failed = 0
    for content in damaged:
        path.write_bytes(content)
        try:
            with open_image(path, size=(64, 36)) as image:
                image.convert("RGB")
        except OlivineError as error:
            failed += 1
            assert str(path) in str(error) and "\n" not in str(error)
    assert failed > 7


def test_a_missing_image_and_a_folder_are_named(tmp_path):
    for path, what in ((tmp_path / "x.jpg", "no such image"), (tmp_path, "cannot be read")):
        with pytest.raises(OlivineError, match=rf"{what}.*\. Fetch it$"), open_image(path, remedy="fetch it"):
            pass


def test_sixteen_bits_are_no_picture_and_colours_are_no_values(picture):
    deep = encoded(Image.fromarray(np.full((4, 4), 40_000, np.uint16)), "PNG")
    with (
        pytest.raises(OlivineError, match=r"^x: has 16 bits a channel\. Save it with 8 bits"),
        open_image(deep, where="x"),
    ):
        pass
    with open_image(deep, modes=VALUES) as image:
        assert np.asarray(image)[0, 0] == 40_000
    with (
        pytest.raises(OlivineError, match="RGB colours, not one value"),
        open_image(encoded(picture, "PNG"), where="x", modes=VALUES),
    ):
        pass


def test_an_animation_is_refused(picture):
    data = encoded(picture, "PNG", save_all=True, append_images=[picture.rotate(180)])
    with pytest.raises(OlivineError, match=r"^x: is an animation"), open_image(data, where="x"):
        pass


def test_errors_of_the_block_keep_their_own_line(picture):
    with pytest.raises(OlivineError, match=r"^the block's own$"), open_image(encoded(picture, "PNG")):
        raise OlivineError("the block's own")


@pytest.mark.parametrize("name", ["JPEG", "PNG"])
def test_an_image_that_viewers_show_otherwise_than_it_is_stored_is_refused(picture, name):
    def with_orientation(value: int) -> bytes:
        exif = Image.Exif()
        exif[0x0112] = value
        return encoded(picture, name, exif=exif)

    for value in range(2, 9):
        with (
            pytest.raises(OlivineError, match=rf"^x: has the EXIF orientation {value}.*Save the pixels upright"),
            open_image(with_orientation(value), where="x"),
        ):
            raise AssertionError("the block was entered")
    damaged = with_orientation(6).replace(b"MM\0*", b"MM\0?").replace(b"II*\0", b"II?\0")
    for data in (with_orientation(1), with_orientation(0), damaged):
        if name == "PNG" and data is damaged:
            continue  # its checksum says that it is
        with open_image(data) as image:
            assert image.size == (64, 36)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_png_of_16_bits_a_channel_is_refused_with_what_to_do(channels):
    """12 bits in 16, as scientific cameras write them: the upper 8 bits alone are nearly black."""
    kind = {1: 0, 3: 2, 4: 6}[channels]
    rows = np.full((36, 64 * channels), 16 * 255, ">u2")

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 36, 16, kind, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    with (
        pytest.raises(
            OlivineError, match=r"^x: has 16 bits a channel\. Save it with 8 bits a channel, its values scaled"
        ),
        open_image(data, where="x"),
    ):
        raise AssertionError("the block was entered")
    if channels == 1:  # a map of values is another thing
        with open_image(data, modes=VALUES) as image:
            assert np.asarray(image).max() == 16 * 255
