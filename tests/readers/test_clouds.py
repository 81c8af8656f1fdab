"""Point files in every form, written here by the formats' descriptions, and damaged ones in a line."""

import io
import struct

import numpy as np
import pytest

from olivine.common import OlivineError
from olivine.readers.clouds import CloudLayout, read_cloud

POINTS = np.random.default_rng(0).normal(0, 20, (500, 5)).astype(np.float32)
NAMES = ("x", "y", "z", "intensity", "ring")
ROWS = np.rec.fromarrays(
    [*POINTS[:, :4].T, np.arange(500, dtype=np.uint16)], dtype=[(n, "<f4") for n in NAMES[:4]] + [("ring", "<u2")]
)


def lzf(data):
    """A plain LZF compressor after liblzf's format: literals, and references of up to 264 bytes within 8 KiB."""
    out, literal, last, at = bytearray(), bytearray(), {}, 0

    def flush():
        for k in range(0, len(literal), 32):
            part = literal[k : k + 32]
            out.append(len(part) - 1)
            out.extend(part)
        literal.clear()

    while at < len(data):
        found = last.get(bytes(data[at : at + 3]), -1)
        last[bytes(data[at : at + 3])] = at
        offset = at - found - 1
        if found < 0 or offset >= 8192 or at + 3 > len(data):
            literal.append(data[at])
            at += 1
            continue
        length = 3
        while length < 264 and at + length < len(data) and data[found + length] == data[at + length]:
            length += 1
        flush()
        if length - 2 < 7:
            out.append(((length - 2) << 5) | (offset >> 8))
        else:
            out.extend([(7 << 5) | (offset >> 8), length - 2 - 7])
        out.append(offset & 255)
        at += length
    flush()
    return bytes(out)


def pcd(kind, body):
    header = (
        "# .PCD v0.7 - Point Cloud Data file format\nVERSION 0.7\nFIELDS x y z intensity ring\nSIZE 4 4 4 4 2\n"
        f"TYPE F F F F U\nCOUNT 1 1 1 1 1\nWIDTH 500\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS 500\nDATA {kind}\n"
    )
    return header.encode() + body


def text_rows():
    return "\n".join(" ".join(f"{float(v):.9g}" for v in row) for row in ROWS).encode() + b"\n"


def compressed():
    plain = b"".join(np.ascontiguousarray(ROWS[name]).tobytes() for name in NAMES)
    packed = lzf(plain)
    return struct.pack("<II", len(packed), len(plain)) + packed


def ply(form, body):
    fields = "".join(f"property float {n}\n" for n in NAMES[:4]) + "property ushort ring\n"
    return (
        f"ply\nformat {form} 1.0\ncomment made by a test\nelement vertex 500\n{fields}"
        "element face 0\nproperty list uchar int vertex_indices\nend_header\n"
    ).encode() + body


def archive(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def array(values):
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


FORMS = {
    "float32.bin": POINTS.tobytes(),
    "ascii.pcd": pcd("ascii", text_rows()),
    "binary.pcd": pcd("binary", ROWS.tobytes()),
    "compressed.pcd": pcd("binary_compressed", compressed()),
    "ascii.ply": ply("ascii", text_rows()),
    "little.ply": ply("binary_little_endian", ROWS.tobytes()),
    "big.ply": ply("binary_big_endian", ROWS.astype([(n, ">f4") for n in NAMES[:4]] + [("ring", ">u2")]).tobytes()),
    "plain.npy": array(POINTS.astype(np.float64)),
    "named.npy": array(np.asarray(ROWS)),
    "named.npz": archive(**{name: np.asarray(ROWS[name]) for name in NAMES}),
    "plain.npz": archive(points=POINTS),
}


@pytest.mark.parametrize("name", FORMS)
def test_the_same_points_come_from_every_form(tmp_path, name):
    (tmp_path / name).write_bytes(FORMS[name])
    layout = CloudLayout(columns=NAMES)
    points = read_cloud(tmp_path / name, layout)
    assert points.dtype == np.float32 and np.array_equal(points, POINTS[:, :4])
    without = read_cloud(tmp_path / name, CloudLayout(columns=NAMES, intensity=""))
    assert np.array_equal(without[:, :3], POINTS[:, :3]) and not without[:, 3].any()
    ring = "ring" if name not in ("float32.bin", "plain.npy", "plain.npz") else "intensity"
    assert np.array_equal(read_cloud(tmp_path / name, CloudLayout(NAMES, intensity=ring))[:, 3], np.float32(
        ROWS["ring"] if ring == "ring" else POINTS[:, 3]
    ))  # fmt: skip


def test_the_compressor_of_this_test_makes_references():
    assert len(lzf(b"abcabcabcabc" * 100)) < 100


def test_points_without_a_position_are_left_out(tmp_path):
    points = POINTS.copy()
    points[3, 0], points[7, 2] = np.nan, np.inf
    (tmp_path / "a.bin").write_bytes(points.tobytes())
    assert np.array_equal(read_cloud(tmp_path / "a.bin", CloudLayout(NAMES)), np.delete(POINTS, [3, 7], 0)[:, :4])


def test_a_field_of_several_values_and_padding_are_passed_over(tmp_path):
    kind = np.dtype([("x", "<f8"), ("_", "u1", (4,)), ("y", "<f8"), ("z", "<f8"), ("_b", "u1", (2,)), ("i", "u1")])
    rows = np.zeros(10, kind)
    rows["x"], rows["y"], rows["z"], rows["i"] = POINTS[:10, 0], POINTS[:10, 1], POINTS[:10, 2], range(10)
    header = "VERSION .7\nFIELDS x _ y z _ i\nSIZE 8 1 8 8 1 1\nTYPE F U F F U U\nCOUNT 1 4 1 1 2 1\nWIDTH 10\nHEIGHT 1\nDATA binary\n"
    (tmp_path / "a.pcd").write_bytes(header.encode() + rows.tobytes())
    points = read_cloud(tmp_path / "a.pcd", CloudLayout(intensity="i"))
    assert np.array_equal(points[:, :3], POINTS[:10, :3]) and points[:, 3].tolist() == list(range(10))


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.bin", POINTS.tobytes()[:-3], "is not a whole number of points of 20 bytes"),
        ("a.las", b"LASF", "point files of the kind .las are not read"),
        ("a.pcd", b"hello\n", "is no PCD file"),
        ("a.pcd", pcd("binary", ROWS.tobytes()[:-1]), "is truncated: 500 points"),
        ("a.pcd", pcd("binary_compressed", compressed()[:-1]), "is truncated"),
        ("a.pcd", pcd("binary_compressed", compressed()[:8] + bytes([255]) * 9000), "compressed points are damaged|truncated"),
        ("a.pcd", pcd("binary_draco", b""), "encoding 'binary_draco' is not read"),
        ("a.pcd", pcd("ascii", b"1 2 3 4 5\n"), "is truncated: 500 points"),
        ("a.pcd", pcd("ascii", text_rows().replace(b".", b"x", 1)), "something else than numbers"),
        ("a.pcd", pcd("ascii", b"").replace(b"TYPE F F F F U", b"TYPE F F"), "PCD header is not understood"),
        ("a.pcd", pcd("binary", ROWS.tobytes()).replace(b"FIELDS x", b"FIELDS q"), "no column 'x' for x, y, z; it has q, y, z"),
        ("a.ply", b"ply\nformat ascii 1.0\n", "is no PLY file"),
        ("a.ply", ply("binary_little_endian", b""), "is truncated"),
        ("a.ply", ply("zipped", b""), "PLY header is not understood"),
        ("a.npy", b"\x93NUMPY", "is no array that NumPy reads"),
        ("a.npy", array(np.array([{}], object)), "is no array that NumPy reads"),
        ("a.npy", array(POINTS[:, :3]), r"an array of shape \[500, 3\], and the YAML names 5 columns"),
        ("a.npz", b"PK\x03\x04 no archive", "is no archive that NumPy reads"),
        ("a.npz", archive(x=POINTS[:, 0], y=POINTS[:, 1], z=POINTS[:9, 2], intensity=POINTS[:, 3]), "not as many numbers"),
        ("a.npz", archive(x=POINTS[:, 0], y=POINTS[:, 1]), "no column 'z' for x, y, z; it has x, y"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_point_file_is_one_line(tmp_path, name, data, says):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(OlivineError, match=says) as error:
        read_cloud(tmp_path / name, CloudLayout(NAMES))
    assert str(error.value).startswith(str(tmp_path / name)) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", FORMS)
def test_damaged_bytes_are_read_or_refused_in_a_line(tmp_path, name):
    rng = np.random.default_rng(0)
    for _ in range(150):
        data = bytearray(FORMS[name])
        for _ in range(int(rng.integers(1, 4))):
            # Most damage is in the header, where it can do most.
            at = int(rng.integers(0, min(len(data), 400) if rng.random() < 0.7 else len(data)))
            what = rng.integers(0, 4)
            if what == 0:
                data[at] = rng.integers(0, 256)
            elif what == 1:
                del data[at : at + int(rng.integers(1, 30))]
            elif what == 2:
                data[at:at] = rng.bytes(int(rng.integers(1, 9)))
            else:
                data[at : at + 1] = rng.choice([b"9", b"-", b"99999999999", b"nan"])
        (tmp_path / name).write_bytes(data)
        try:
            points = read_cloud(tmp_path / name, CloudLayout(NAMES))
        except OlivineError as error:
            assert "\n" not in str(error)
        else:
            assert points.shape[1:] == (4,) and np.isfinite(points[:, :3]).all()
