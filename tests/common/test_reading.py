"""Files that anybody may have written: bounded, checked, and wrong in one line that names them."""

import json
import os

import pytest

from olivine.common import OlivineError, Whole, demand, inside, parse_csv, read_bytes, read_csv, read_json, write_json
from olivine.common.settings import read_yaml, read_yaml_file


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "cannot be read as JSON"),
        (b"", "cannot be read as JSON"),
        (b'"\xff"', "cannot be read as JSON"),
        (b"[" * 100_000, "nested more than 64 deep"),
        (b"[" * 65 + b"]" * 65, "nested more than 64 deep"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "nested more than 64 deep"),
        (b"1" * 5000, "cannot be read as JSON"),
    ],
)
def test_what_is_no_json_is_one_line_with_the_file_and_the_remedy(tmp_path, data, message):
    path = tmp_path / "x.json"
    path.write_bytes(data)
    with pytest.raises(OlivineError, match=rf"x\.json: .*{message}.*\. Bake it again$") as error:
        read_json(path, "bake it again")
    assert "\n" not in str(error.value)


def test_json_of_64_levels_is_read(tmp_path):
    (tmp_path / "x.json").write_bytes(b"[" * 64 + b"]" * 64)
    value = read_json(tmp_path / "x.json")
    for _ in range(63):
        (value,) = value
    assert value == []


def test_a_file_is_read_no_further_than_its_limit(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"12345678")
    assert read_bytes(path, "", most=8) == b"12345678"
    with pytest.raises(OlivineError, match="is larger than 7 bytes"):
        read_bytes(path, "", most=7)
    with pytest.raises(OlivineError, match="is larger than 1000 bytes"):  # it never ends
        read_bytes("/dev/zero", "", most=1000)


def test_a_folder_a_missing_file_and_a_path_that_is_none_are_named(tmp_path):
    for path in (tmp_path, tmp_path / "nothing", f"{tmp_path}/a\0b"):
        with pytest.raises(OlivineError, match=r"Mend it$"):
            read_json(path, "mend it")


def test_a_path_that_is_not_utf8_survives_json(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    write_json(tmp_path / "x.json", {"root": name, "plain": "café"})
    assert read_json(tmp_path / "x.json")["root"] == name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column 'a'"),
        ("b\n1\n", "no column 'a'"),
        ("a,a\n1,2\n", "two columns of one name"),
        ("a,b\n1\n", "row 2 has 1 fields, the header 2"),
        ('a,b\n"1', "cannot be read as CSV"),
        ("a\n" + "x" * 200_000 + "\n", "cannot be read as CSV"),
    ],
)
def test_a_damaged_csv_is_one_line(text, message):
    with pytest.raises(OlivineError, match=rf"^t\.csv: .*{message}"):
        parse_csv(text, "t.csv", ["a"])


def test_a_csv_is_read_by_column(tmp_path):
    (tmp_path / "t.csv").write_text('a,b\n1,"x, y"\n')
    assert read_csv(tmp_path / "t.csv", ["b"]) == [{"a": "1", "b": "x, y"}]
    (tmp_path / "t.csv").write_bytes(b"a\n\xff\n")
    with pytest.raises(OlivineError, match=r"is not UTF-8 text \(byte 2\)"):
        read_csv(tmp_path / "t.csv")


KIND = {
    "name": str,
    "size": Whole(1, 9),
    "scale?": float,
    "boxes": [(float, float)],
    "file": {str, None},
    "by": {str: int},
}
GOOD = {"name": "x", "size": 3, "boxes": [[1, 2.5]], "file": None, "by": {"a": 1}, "more": [[]]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 3}, "name is 3, expected text"),
        ({"size": 0}, "size is 0, expected a whole number from 1 to 9"),
        ({"size": True}, "size is True, expected a whole number"),
        ({"size": 2**64}, "size is 18446744073709551616, expected a whole number from 1 to 9"),
        ({"scale": "1"}, "scale is '1', expected a number"),
        ({"boxes": {}}, "boxes is {}, expected a list"),
        ({"boxes": [[1, 2], [1]]}, r"boxes\[1\] is \[1\], expected a list of 2"),
        ({"boxes": [[1, None]]}, r"boxes\[0\]\[1\] is None, expected a number"),
        ({"file": 1.5}, "file is 1.5, expected nothing or text"),
        ({"by": {"a": "1"}}, r"by\.a is '1', expected a whole number"),
        ({"name": None}, "name is None, expected text"),
    ],
)
def test_a_wrong_value_is_named_by_its_key(change, message):
    assert demand(GOOD, KIND, "f.json") is GOOD
    with pytest.raises(OlivineError, match=rf"^f\.json: {message}"):
        demand({**GOOD, **change}, KIND, "f.json")


def test_a_missing_key_is_named():
    for key in ("name", "size", "boxes", "file", "by"):
        with pytest.raises(OlivineError, match=f"has no '{key}'"):
            demand({k: v for k, v in GOOD.items() if k != key}, KIND, "f.json")
    with pytest.raises(OlivineError, match="is 3, expected a mapping"):
        demand(3, KIND, "f.json")


@pytest.mark.parametrize("name", ["../a", "/a", "a/../b", "a//b", "", ".", "a/.", "a\0b", "\ud800", None, 3, ["a"]])
def test_a_path_in_a_file_leads_nowhere_else(tmp_path, name):
    with pytest.raises(OlivineError, match=r"^index\.json: names the path"):
        inside(tmp_path, name, "index.json")


def test_a_link_out_of_the_folder_is_not_written_through(tmp_path):
    folder, other = tmp_path / "folder", tmp_path / "other"
    (folder / "real").mkdir(parents=True)
    other.mkdir()
    (folder / "link").symlink_to(other)
    assert inside(folder, "real/x", "i", write=True) == folder / "real" / "x"
    assert inside(folder, "link/x", "i") == folder / "link" / "x"  # to read, data may lie on another disk
    with pytest.raises(OlivineError, match="which a link leads out of"):
        inside(folder, "link/x", "i", write=True)


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi")
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, r"line 2 has an alias \(\*a\)"),
        ("a: &x 1\nb: *x\n", r"line 2 has an alias"),
        ("a: " + "[" * 1000, "line 1 is nested more than 64 deep"),
        ("a: 1\nb: 2\na: 3\n", "line 3 names 'a' a second time"),
        ("a: 2020-01-01", "'2020-01-01', which is no plain value"),
        ("a: 2020-13-41", "'2020-13-41', which is no plain value"),
        ("a: .nan", r"'\.nan', which is no plain value"),
        ("a: -.inf", r"'-\.inf', which is no plain value"),
        ("a: 18446744073709551616", "'18446744073709551616', which is no plain value"),
        ("a: " + "9" * 5000, "which is no plain value"),
        ("a: !!python/object/apply:os.system [ls]", "which is no plain value"),
        ("a: !!binary aGk=", "'aGk=', which is no plain value"),
        ("a: !!set {x}", "which is no plain value"),
        ("<<: {a: 1}", "'<<', which is no plain value"),
        ("? [1]\n: 2\n", "has a key that is no text"),
        ("a: 'b", "is not YAML"),
        ("a: b\n--- \nc: d", "is not YAML"),
        ("x" * (1 << 20) + "y", "is larger than"),
    ],
)
def test_yaml_that_is_no_table_of_plain_values_is_one_line(text, message):
    with pytest.raises(OlivineError, match=rf"^f\.yaml: .*{message}") as error:
        read_yaml(text, "f.yaml")
    assert "\n" not in str(error.value)


def test_plain_yaml_is_what_pyyaml_reads():
    import yaml

    for text in ("", "3", "- a\n- {b: 1.5, c: null}", "a: [1, x, yes, 0x1f]\n'2': ~\n3: 1e-4\n", json.dumps(GOOD)):
        assert read_yaml(text, "f") == yaml.safe_load(text)


def test_a_yaml_file_that_is_not_text_is_named(tmp_path):
    (tmp_path / "f.yaml").write_bytes(b"a: \xff")
    with pytest.raises(OlivineError, match=r"f\.yaml: is not UTF-8"):
        read_yaml_file(tmp_path / "f.yaml")
