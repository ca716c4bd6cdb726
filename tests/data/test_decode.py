import contextlib
import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from limbeck.core.errors import DataError
from limbeck.data.decode import MAX_PIXELS, decode_image, pixels_of, read_header

RAMP = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20


def stored(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    stream.seek(0)
    return stream


def solid(mode, colour):
    return Image.new(mode, (2, 2), colour)


def one_colour(stream, **options):
    """The single colour of a picture, as a list of its channels."""
    pixels = decode_image(stream, **options).pixels
    (colour,) = np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)
    return colour.tolist()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_come_back_exactly(generator, kind):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    picture = decode_image(stored(Image.fromarray(pixels), kind))
    assert np.array_equal(picture.pixels, pixels)
    assert not picture.has_more_frames


def test_lossless_webp_comes_back_exactly():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    stream = stored(Image.fromarray(pixels), "WEBP", lossless=True)
    assert np.array_equal(decode_image(stream).pixels, pixels)


def test_jpeg_comes_back_closely():
    assert one_colour(stored(solid("RGB", (200, 100, 50)), "JPEG", quality=95)) == pytest.approx(
        [200, 100, 50], abs=3
    )


# -- modes -------------------------------------------------------------------------------------


def test_grey_stays_one_channel_unless_colour_is_wanted():
    stream = stored(Image.fromarray(RAMP))
    assert decode_image(stream).pixels.shape == (3, 4, 1)
    stream.seek(0)
    colour = decode_image(stream, in_chans=3).pixels
    assert np.array_equal(colour, np.repeat(RAMP[:, :, None], 3, axis=2))


def test_colour_becomes_luma_where_grey_is_wanted():
    stream = stored(solid("RGB", (255, 0, 0)))
    assert one_colour(stream, in_chans=1) == [76]  # 0.299 * 255


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_and_not_clipped(kind):
    deep = np.array([[0, 257, 128 * 257, 65535], [128, 129, 300, 40000]], dtype=np.uint16)
    pixels = decode_image(stored(Image.fromarray(deep), kind)).pixels[:, :, 0]
    # Nearest of 256 levels; 128 lies below the middle between 0 and 257, 129 above.
    assert pixels.tolist() == [[0, 1, 128, 255], [0, 1, 1, 156]]


def test_sixteen_bits_as_older_pillow_opens_them():
    deep = Image.fromarray(np.array([[0, 65535]], dtype=np.int32))
    assert deep.mode == "I"
    deep.format = "PNG"
    assert pixels_of(deep)[:, :, 0].tolist() == [[0, 255]]


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_values_of_unknown_range_are_refused(dtype):
    stream = stored(Image.fromarray(np.zeros((2, 2), dtype=dtype)), "TIFF")
    with pytest.raises(DataError, match="save it with 8 or 16 bits"):
        decode_image(stream)


def test_one_bit_is_black_and_white():
    image = Image.fromarray(np.array([[True, False]]))
    assert image.mode == "1"
    assert decode_image(stored(image)).pixels[:, :, 0].tolist() == [[255, 0]]


@pytest.mark.parametrize(
    ("ink", "expected"),
    [
        ((0, 0, 0, 0), [255, 255, 255]),
        ((255, 0, 0, 0), [0, 255, 255]),
        ((0, 0, 0, 255), [0, 0, 0]),
    ],
)
@pytest.mark.parametrize("kind", ["TIFF", "JPEG"])
def test_inks_become_light(ink, expected, kind):
    assert one_colour(stored(solid("CMYK", ink), kind)) == pytest.approx(expected, abs=2)
    assert len(one_colour(stored(solid("CMYK", ink), kind), in_chans=1)) == 1


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGBA", (255, 0, 0, 255), [255, 0, 0]),
        ("RGBA", (255, 0, 0, 0), [255, 255, 255]),
        ("RGBA", (0, 0, 0, 51), [204, 204, 204]),
        ("LA", (100, 255), [100]),
        ("LA", (0, 0), [255]),
        ("LA", (0, 51), [204]),
    ],
)
def test_transparency_shows_white(mode, colour, expected):
    assert one_colour(stored(solid(mode, colour))) == expected


def test_a_transparent_colour_of_a_palette_shows_white():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    assert decode_image(stored(image)).pixels.tolist() == [[[10, 20, 30], [40, 50, 60]]]
    clear = decode_image(stored(image, transparency=0)).pixels
    assert clear.tolist() == [[[255, 255, 255], [40, 50, 60]]]


def test_a_transparent_grey_or_colour_shows_white():
    grey = Image.fromarray(np.array([[7, 9]], dtype=np.uint8))
    assert decode_image(stored(grey, transparency=7)).pixels.tolist() == [[[255], [9]]]
    colour = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], dtype=np.uint8))
    assert decode_image(stored(colour, transparency=(1, 2, 3))).pixels.tolist() == [
        [[255, 255, 255], [4, 5, 6]]
    ]


# -- orientation, frames, sizes ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        (1, RAMP),
        (2, RAMP[:, ::-1]),
        (3, RAMP[::-1, ::-1]),
        (4, RAMP[::-1]),
        (5, RAMP.T),
        (6, np.rot90(RAMP, -1)),
        (7, RAMP[::-1, ::-1].T),
        (8, np.rot90(RAMP)),
    ],
)
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_pictures_are_turned_upright(tag, expected, kind):
    exif = Image.Exif()
    exif[0x0112] = tag
    found = decode_image(stored(Image.fromarray(RAMP), kind, exif=exif)).pixels
    assert np.array_equal(found[:, :, 0], expected)


def test_sixteen_bits_are_turned_upright_too():
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = RAMP.astype(np.uint16) * 257
    found = decode_image(stored(Image.fromarray(deep), exif=exif)).pixels
    assert np.array_equal(found[:, :, 0], np.rot90(RAMP, -1))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG"])
def test_of_several_frames_the_first_is_taken_and_said(kind):
    frames = [solid("RGB", colour) for colour in ((255, 0, 0), (0, 0, 255))]
    options = {"lossless": True} if kind == "WEBP" else {}
    stream = stored(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    picture = decode_image(stream)
    assert picture.has_more_frames
    assert picture.pixels[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("size", [(40, 20), (20, 40), (20, 20), (41, 20), (8, 10), (100, 99)])
def test_resizing_gives_the_middle_square(size):
    """A ramp along the longer side: its middle stays in the middle."""
    width, height = size
    along = np.linspace(0, 255, max(size))
    ramp = np.broadcast_to(along if width >= height else along[:, None], (height, width))
    image = Image.fromarray(ramp.astype(np.uint8))
    found = decode_image(stored(image), image_size=10).pixels[:, :, 0].astype(float)
    assert found.shape == (10, 10)
    assert found.mean() == pytest.approx(127.5, abs=255 / 10 / 2 + 1)
    # Nine steps across the square, each of so many of the ramp's own.
    longer = 10 * max(size) // min(size)
    spread = 9 * (max(size) / longer) * 255 / (max(size) - 1)
    line = found[0] if width >= height else found[:, 0]
    assert line[-1] - line[0] == pytest.approx(spread, abs=0.05 * 255)


def test_shrinking_averages_and_does_not_skip():
    """Stripes one pixel wide become grey; picking every fourth pixel would leave one colour."""
    stripes = np.tile(np.array([0, 255], dtype=np.uint8), (32, 16))
    found = decode_image(stored(Image.fromarray(stripes)), image_size=8).pixels
    assert np.abs(found.astype(int) - 127).max() < 40


def test_a_line_that_resizing_would_make_huge_is_refused():
    """A megabyte of pixels that would become gigabytes."""
    line = stored(Image.new("L", (100_000, 1)))
    with pytest.raises(DataError, match=r"100000 x 1 pixels become 22400000 x 224 .*; crop it"):
        decode_image(line, image_size=224)
    line.seek(0)
    assert decode_image(line, image_size=2).pixels.shape == (2, 2, 1)


def test_a_square_of_the_right_size_is_left_alone():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    assert np.array_equal(
        decode_image(stored(Image.fromarray(pixels)), image_size=6).pixels, pixels
    )


# -- headers and faults ------------------------------------------------------------------------


def test_header_tells_stored_size_and_kind():
    assert read_header(stored(Image.fromarray(RAMP))) == ((4, 3), True)
    assert read_header(stored(solid("RGB", 0))) == ((2, 2), False)
    assert read_header(stored(solid("P", 0))) == ((2, 2), False)


def empty_png(width, height):
    """A valid header and black lines: thousands of times smaller than what it unpacks to."""

    def chunk(name, data):
        checksum = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    lines = zlib.compress(bytes(min((3 * width + 1) * height, 1 << 20)))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", lines) + chunk(b"IEND", b"")
    )


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [8001, 10_000, 60_000])
@pytest.mark.parametrize("read", [decode_image, read_header])
def test_a_huge_picture_is_refused_from_its_header(read, side):
    assert side * side > MAX_PIXELS
    tracemalloc.start()
    with pytest.raises(DataError, match="pixels"):
        read(io.BytesIO(empty_png(side, side)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 << 20


@pytest.mark.parametrize(
    "data",
    [b"", b"not a picture", b"\x89PNG\r\n\x1a\n", stored(Image.fromarray(RAMP)).read()[:52]],
    ids=["empty", "text", "signature", "cut"],
)
def test_damaged_bytes_are_a_data_error(data):
    with pytest.raises(DataError, match=r"no picture|cannot be decoded"):
        decode_image(io.BytesIO(data))


def test_a_jpeg_cut_short_is_a_data_error():
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    data = stored(Image.fromarray(noise), "JPEG").read()
    with pytest.raises(DataError, match="truncated"):
        decode_image(io.BytesIO(data[: len(data) // 2]))


def test_formats_that_run_programs_are_not_tried():
    with pytest.raises(DataError, match="no picture in any known format"):
        decode_image(
            io.BytesIO(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
        )


@pytest.mark.parametrize("seed", range(40))
def test_flipped_bytes_give_a_picture_or_a_data_error(seed):
    rng = np.random.default_rng(seed)
    kind = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM")[seed % 7]
    data = bytearray(stored(Image.fromarray(RAMP), kind).read())
    for place in rng.integers(0, len(data), 3):
        data[place] = rng.integers(256)
    with contextlib.suppress(DataError):
        assert decode_image(io.BytesIO(bytes(data))).pixels.dtype == np.uint8
