import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from evaluators.images import LONGEST, batches, read_image
from star.common.errors import UserError

RED, WHITE = (255, 0, 0), (255, 255, 255)


def plain(mode="RGB", color=RED, size=(4, 2)):
    return Image.new("RGB", size, color).convert(mode)


def palette(**transparency):
    image = Image.new("P", (4, 2))
    image.putpalette([*RED, *WHITE])
    return image, transparency


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_primaries(*points):
    info = PngImagePlugin.PngInfo()
    info.add(b"cHRM", struct.pack(">8I", *(round(point * 100_000) for point in points)))
    return plain(), {"pnginfo": info}


def with_gamma(gamma):
    info = PngImagePlugin.PngInfo()
    info.add(b"gAMA", struct.pack(">I", round(gamma * 100_000)))
    return plain(), {"pnginfo": info}


def profile(name):
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(name)).tobytes()


SIXTEEN = Image.fromarray(np.full((2, 4), 0x80FF, np.uint16))


@pytest.mark.parametrize(
    ("name", "image", "options", "shown"),
    [
        *((f"{mode}.png", plain(mode, WHITE), {}, WHITE) for mode in ("RGB", "RGBA", "L", "LA", "P", "1")),
        ("opaque.png", plain("RGBA"), {}, RED),
        ("unused transparent entry.png", *palette(transparency=1), RED),
        ("16 bits.png", SIXTEEN, {}, (128, 128, 128)),
        ("cmyk.jpg", plain("CMYK"), {"quality": 100}, (254, 0, 0)),
        ("gray.jpg", plain("L", WHITE), {}, WHITE),
        ("red.webp", plain(), {"lossless": True}, RED),
        ("red.bmp", plain(), {}, RED),
        ("sRGB by name.png", plain(), {"icc_profile": profile("sRGB")}, RED),
        ("its curve is sRGB's.png", *with_gamma(1 / 2.2), RED),
        ("its primaries are sRGB's.png", *with_primaries(0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06), RED),
        ("two views.jpg", plain("L", WHITE), {"format": "MPO", "save_all": True, "append_images": [plain("L")]}, WHITE),
    ],
)
def test_what_a_picture_shows_is_read(tmp_path, name, image, options, shown):
    image.save(tmp_path / name, **options)
    pixels = read_image(tmp_path / name)
    assert pixels.dtype == np.uint8 and pixels.shape == (2, 4, 3)
    assert np.abs(pixels.astype(int) - shown).max() <= 1


def test_images_are_turned_as_exif_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    plain().save(tmp_path / "x.jpg", exif=exif)
    assert read_image(tmp_path / "x.jpg").shape == (4, 2, 3)


def test_colours_of_another_space_become_those_of_srgb(tmp_path):
    """With straight curves 128 is half the light, which sRGB writes as 188."""
    plain(color=(128, 128, 128)).save(tmp_path / "x.png", icc_profile=straightened(profile("sRGB")))
    assert np.abs(read_image(tmp_path / "x.png").astype(int) - 188).max() <= 2


def test_a_profile_is_sRGB_by_what_it_does_not_by_its_name(tmp_path):
    srgb = profile("sRGB")
    liar = straightened(srgb).replace("flat".encode("utf-16-be"), "sRGB".encode("utf-16-be"))
    other = srgb.replace("sRGB".encode("utf-16-be"), "mine".encode("utf-16-be"))
    for name, own, shown in (("liar.png", liar, 188), ("other.png", other, 128)):
        plain(color=(128, 128, 128)).save(tmp_path / name, icc_profile=own)
        assert np.abs(read_image(tmp_path / name).astype(int) - shown).max() <= 2 * (name == "liar.png")


def test_so_do_those_of_16_bits(tmp_path):
    flat = straightened(profile("sRGB"))
    Image.fromarray(np.full((2, 4), 0x80FF, np.uint16)).save(tmp_path / "16.png", icc_profile=flat)
    plain("L", (128, 128, 128)).save(tmp_path / "8.png", icc_profile=flat)
    sixteen, eight = (read_image(tmp_path / name) for name in ("16.png", "8.png"))
    assert sixteen.shape == eight.shape == (2, 4, 3) and np.array_equal(sixteen, eight) and eight.max() > 180


def straightened(srgb):
    """The profile with straight curves and another name."""
    count = struct.unpack(">I", srgb[128:132])[0]
    tags = {srgb[at : at + 4]: struct.unpack(">II", srgb[at + 4 : at + 12]) for at in range(132, 132 + 12 * count, 12)}
    data = bytearray(srgb.replace("sRGB".encode("utf-16-be"), "flat".encode("utf-16-be")).replace(b"sRGB", b"flat"))
    for name in (b"rTRC", b"gTRC", b"bTRC"):
        at = tags[name][0]
        data[at : at + 12] = b"curv" + bytes(8)  # no entries: the identity
    return bytes(data)


def grey_profile():
    """A profile for grey pictures with a straight curve."""
    name = b"flat\0"
    parts = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", len(name)) + name + bytes(79),
        b"wtpt": b"XYZ " + bytes(4) + struct.pack(">3I", 0xF6D6, 0x10000, 0xD32D),
        b"kTRC": b"curv" + bytes(8),  # no entries: the identity
    }
    table, data = struct.pack(">I", len(parts)), b""
    for tag, part in parts.items():
        table += tag + struct.pack(">II", 132 + 12 * len(parts) + len(data), len(part))
        data += part + bytes(-len(part) % 4)
    size = struct.pack(">I", 128 + len(table) + len(data))
    head = size + bytes(4) + struct.pack(">I", 0x02400000) + b"mntrGRAYXYZ " + bytes(12) + b"acsp" + bytes(28)
    return head + struct.pack(">3I", 0xF6D6, 0x10000, 0xD32D) + bytes(48) + table + data


def test_a_profile_of_another_kind_of_picture_is_ignored(tmp_path):
    """A grey picture that was painted on keeps its profile in many programs."""
    plain("L", (128, 128, 128)).save(tmp_path / "grey.png", icc_profile=grey_profile())
    assert np.abs(read_image(tmp_path / "grey.png").astype(int) - 188).max() <= 2
    with Image.open(tmp_path / "grey.png") as grey:
        painted = grey.convert("RGB")
        painted.paste(RED, (0, 0, *painted.size))
        painted.save(tmp_path / "painted.png", icc_profile=grey.info["icc_profile"])
    assert (read_image(tmp_path / "painted.png") == RED).all()


@pytest.mark.parametrize(
    ("name", "image", "options", "message"),
    [
        ("hole.png", Image.new("RGBA", (4, 2), (*RED, 0)), {}, "transparent"),
        ("veil.webp", Image.new("RGBA", (4, 2), (*RED, 254)), {"lossless": True}, "transparent"),
        ("entry.png", *palette(transparency=0), "transparent"),
        ("colour key.png", plain(), {"transparency": RED}, "transparent"),
        ("film.png", plain(), {"save_all": True, "append_images": [plain(color=WHITE)]}, r"it moves \(2 pictures"),
        ("film.webp", plain(), {"save_all": True, "append_images": [plain(color=WHITE)]}, r"it moves \(2 pictures"),
        ("adobe.png", *with_primaries(0.3127, 0.329, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06), "primary colours of its own"),
        ("linear.png", *with_gamma(1.0), r"brightness curve of its own \(gamma 1\)"),
        ("strip.png", plain(size=(LONGEST + 1, 1)), {}, f"{LONGEST + 1} x 1 pixels"),
        ("tower.png", plain(size=(1, 60_000)), {}, "1 x 60000 pixels"),
        ("wide.png", Image.new("1", (9000, 9000)), {}, "9000 x 9000 pixels"),
        ("bomb.png", Image.new("1", (14_000, 14_000)), {}, "exceeds limit"),
        ("odd profile.png", plain(), {"icc_profile": b"no profile"}, "cannot open profile"),
        ("gif.png", plain("P"), {"format": "GIF"}, "cannot identify"),
    ],
)
def test_what_has_no_one_look_is_refused_in_a_line(tmp_path, name, image, options, message):
    image.save(tmp_path / name, **options)
    with pytest.raises(UserError, match=rf"^cannot (read|take) the image .*{name}: .*{message}") as error:
        read_image(tmp_path / name)
    assert "\n" not in str(error.value)


def png(bits, kind, row, *chunks):
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 2, bits, kind, 0, 0, 0))
    parts = [head, *chunks, chunk(b"IDAT", zlib.compress((b"\0" + row) * 2)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("place", [b"\x55", b"IEND"], ids=["pixel", "checksum"])
def test_a_picture_whose_checksum_is_wrong_is_refused(tmp_path, place):
    """Stored without compression, so that nothing else tells that a pixel has changed."""
    plain("L", (0x55,) * 3).save(tmp_path / "x.png", compress_level=0)
    data = bytearray((tmp_path / "x.png").read_bytes())
    assert read_image(tmp_path / "x.png").max() == 0x55
    data[data.index(place) - (8 if place == b"IEND" else 0)] ^= 1
    (tmp_path / "x.png").write_bytes(data)
    with pytest.raises(UserError, match="cannot read the image .*x.png: broken PNG file .*checksum in b'IDAT'"):
        read_image(tmp_path / "x.png")


@pytest.mark.parametrize(
    ("bits", "kind", "row", "key"),
    [
        (2, 0, b"\x55", [1]),
        (4, 0, b"\x55\x55", [5]),
        (16, 0, b"\x12\x34" * 4, [0x1234]),
        (16, 2, b"\x12\x34" * 12, [0x1234] * 3),
    ],
    ids=["grey of 2 bits", "grey of 4 bits", "grey of 16 bits", "RGB of 16 bits"],
)
def test_a_transparent_colour_that_pillow_misses_is_refused(tmp_path, bits, kind, row, key):
    (tmp_path / "x.png").write_bytes(png(bits, kind, row, chunk(b"tRNS", struct.pack(f">{len(key)}H", *key))))
    with pytest.raises(UserError, match="x.png: it marks a colour as transparent in 2, 4 or 16 bits, which is not read; save"):
        read_image(tmp_path / "x.png")
    (tmp_path / "x.png").write_bytes(png(bits, kind, row))
    assert read_image(tmp_path / "x.png").max() == {2: 85, 4: 85, 16: 0x12}[bits]


def test_grey_pictures_of_16_bits_with_alpha_keep_their_profile(tmp_path):
    flat = chunk(b"iCCP", b"flat\0\0" + zlib.compress(grey_profile()))
    (tmp_path / "x.png").write_bytes(png(16, 4, b"\x80\0\xff\xff" * 4, flat))
    assert np.abs(read_image(tmp_path / "x.png").astype(int) - 188).max() <= 2


@pytest.mark.timeout(20)
def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("pipe.png", "missing.png", "x" * 5000, "nul\0.png"):
        with pytest.raises(UserError, match="cannot read the image"):
            read_image(tmp_path / name)


@pytest.mark.timeout(20)
def test_large_pictures_come_in_small_batches(tmp_path):
    """By their sizes in the files' heads, since a picture of a few kB may fill hundreds of MB."""
    os.mkfifo(tmp_path / "pipe.png")
    for name, side in (("large", 8192), ("half", 5000), ("small", 64)):
        Image.new("1", (side, side)).save(tmp_path / f"{name}.png")
    names = ["small", "small", "small", "half", "half", "small", "large", "large", "none", "pipe", "small"]
    places = batches([tmp_path / f"{name}.png" for name in names], 2)
    assert [names[place] for place in places] == [
        *(["small", "small"], ["small", "half"], ["half", "small"]),
        *(["large"], ["large", "none"], ["pipe", "small"]),
    ]
