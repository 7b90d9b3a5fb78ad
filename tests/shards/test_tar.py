"""Tar scanning against the standard library, torn files, fixed bytes, and the stock webdataset reader."""

from __future__ import annotations

import contextlib
import gc
import io
import subprocess
import tarfile
from pathlib import Path

import pytest
import webdataset
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from shards.errors import TornTar
from shards.tar import Member, TarWriter, _header, class_images, groups, samples, scan, split_key

NAMES = st.text(
    st.characters(codec="utf-8", exclude_characters="\0\n/", exclude_categories=["Cs"]), min_size=1, max_size=150
)


def archive(members: list[tuple[str, bytes]], form: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@given(
    st.lists(st.tuples(NAMES, st.binary(max_size=1500)), max_size=6),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
)
@settings(max_examples=60, deadline=None)
def test_scan_agrees_with_tarfile(members: list[tuple[str, bytes]], form: int) -> None:
    data = archive(members, form)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        expected = [(m.name, m.offset_data, m.size) for m in tar if m.isfile()]
    found = [tuple(member) for member in scan(io.BytesIO(data))]
    # tarfile strips trailing slashes and dots of names, scan keeps what is stored
    assert [(size, offset) for _, offset, size in found] == [(size, offset) for _, offset, size in expected]
    assert [name for name, _, _ in found] == [name for name, _ in members]


@given(st.lists(st.tuples(NAMES, st.binary(max_size=1500)), min_size=1, max_size=5), st.data())
@settings(max_examples=60, deadline=None)
def test_every_cut_yields_whole_members_only(members: list[tuple[str, bytes]], data: st.DataObject) -> None:
    file = io.BytesIO()
    writer = TarWriter(file)
    ends = []
    for name, content in members:
        offset = writer.add(name, content)
        ends.append(offset + len(content))
    writer.close()
    whole = file.getvalue()
    cut = data.draw(st.integers(0, ends[-1] - 1))
    found: list[Member] = []
    with contextlib.suppress(TornTar):
        found.extend(scan(io.BytesIO(whole[:cut])))
    assert all(whole[m.offset : m.offset + m.size] == members[i][1] for i, m in enumerate(found))
    assert len(found) <= sum(end <= cut for end in ends)


def test_torn_tar_says_how_much_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    data = archive([("a.jpg", b"x" * 600), ("b.jpg", b"y" * 600)], tarfile.USTAR_FORMAT)
    path.write_bytes(data[:2200])
    with pytest.raises(TornTar, match=r"a\.tar is torn: .* 1 whole members"), path.open("rb") as file:
        list(scan(file))


def test_something_else_is_no_tar(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(b"<html>" * 200)
    with pytest.raises(TornTar, match="torn or no tar"), path.open("rb") as file:
        list(scan(file))


def test_gnu_tar_reads_what_we_write_and_the_bytes_are_fixed(tmp_path: Path) -> None:
    for name in ("one.tar", "two.tar"):
        with (tmp_path / name).open("wb") as file:
            writer = TarWriter(file)
            writer.add("k" * 120 + ".jpg", b"abc")
            writer.add("ä.txt", "grün".encode())
            writer.close()
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    listed = subprocess.run(["tar", "tf", tmp_path / "one.tar"], capture_output=True, check=True).stdout
    assert listed.startswith(b"k" * 120)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves files open
def test_stock_webdataset_reads_what_we_write(tmp_path: Path) -> None:
    with (tmp_path / "train-000000.tar").open("wb") as file:
        writer = TarWriter(file)
        for key in ("000", "001"):
            writer.add(f"{key}.jpg", b"image " + key.encode())
            writer.add(f"{key}.txt", b"text")
            writer.add(f"{key}.json", b'{"a": 1}')
        writer.close()
    read = list(webdataset.WebDataset(str(tmp_path / "train-000000.tar"), shardshuffle=False))
    gc.collect()
    ours = list(samples(tmp_path / "train-000000.tar"))
    assert [r["__key__"] for r in read] == [s.key for s in ours] == ["000", "001"]
    assert [r["jpg"] for r in read] == [s.parts["jpg"] for s in ours] == [b"image 000", b"image 001"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.jpg", ("a", "jpg")),
        ("x.y/a.b.c", ("x.y/a", "b.c")),
        ("plain", ("plain", "")),
        ("d/.hidden", ("d/", "hidden")),
    ],
)
def test_split_key_is_webdatasets(name: str, expected: tuple[str, str]) -> None:
    assert split_key(name) == expected


@pytest.mark.parametrize("name", ["a.jpg", "x" * 100, "x" * 101, "é.jpg", "dir/a.b.c", "/abs"])
@pytest.mark.parametrize("size", [0, 511, 12345, (1 << 33) - 1, 1 << 33])
def test_headers_are_tarfiles(name: str, size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o644, 0
    assert _header(name, size) == info.tobuf(tarfile.PAX_FORMAT)


@given(
    st.lists(st.tuples(NAMES, st.binary(max_size=1500)), max_size=6),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT]),
    st.data(),
)
@settings(max_examples=200, deadline=None)
def test_mapped_bytes_are_scanned_as_the_file_is(
    members: list[tuple[str, bytes]], form: int, data: st.DataObject
) -> None:
    """Whole, cut, and with a byte changed: the same members and the same error."""
    try:
        content = bytearray(archive(members, form))
    except ValueError:
        assume(False)  # ustar has no room for the name
    if members and data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    if content and data.draw(st.booleans()):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))

    assert_scanned_alike(bytes(content))


def test_a_checksum_that_is_followed_by_something_is_none() -> None:
    content = bytearray(archive([("0", b"")], tarfile.PAX_FORMAT))
    content[154] ^= 1
    assert_scanned_alike(bytes(content))


def assert_scanned_alike(content: bytes) -> None:
    def outcome(view: memoryview | None) -> tuple[list[Member], str]:
        found: list[Member] = []
        try:
            found.extend(scan(io.BytesIO(content), view))
        except TornTar as error:
            return found, str(error)
        return found, ""

    assert outcome(memoryview(content)) == outcome(None)


def test_hard_links_hidden_members_and_folders_of_a_size() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in (("a/0.jpg", b"zero"), ("a/._0.txt", b"mac"), ("a/0.txt", b"text")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for name, target in (("a/1.jpg", "a/0.jpg"), ("a/2.jpg", "nowhere"), (f"b/{'x' * 150}.jpg", "a/0.txt")):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.LNKTYPE, target
            tar.addfile(link)
    data = buffer.getvalue()
    plain = [member.name for member in scan(io.BytesIO(data))]
    assert plain == ["a/0.jpg", "a/._0.txt", "a/0.txt"]
    linked = {member.name: data[member.offset :][: member.size] for member in scan(io.BytesIO(data), links=True)}
    assert linked.pop("a/1.jpg") == b"zero"
    assert linked.pop(f"b/{'x' * 150}.jpg") == b"text"
    assert list(linked) == plain
    assert [(key, sorted(parts)) for key, parts in groups(io.BytesIO(data))] == [("a/0", ["jpg", "txt"])]
    folder = tarfile.TarInfo("d")
    folder.type, folder.size = tarfile.DIRTYPE, 5000
    with_folder = folder.tobuf() + data
    with tarfile.open(fileobj=io.BytesIO(with_folder)) as tar:
        assert [member.name for member in tar if member.isfile()] == plain
    assert [member.name for member in scan(io.BytesIO(with_folder))] == plain


def test_names_of_two_fields_are_read_from_both() -> None:
    """Ustar splits a long name at a slash; the old GNU format keeps times where its first part would be."""
    long = f"{'folder/' * 20}{'x' * 90}.jpg"
    content = archive([("a.jpg", b"a"), (long, b"long"), ("b.jpg", b"b")], tarfile.USTAR_FORMAT)
    assert [member.name for member in scan(io.BytesIO(content))] == ["a.jpg", long, "b.jpg"]
    assert_scanned_alike(content)
    times = bytearray(archive([("c.jpg", b"c")], tarfile.GNU_FORMAT))
    times[345:357] = b"%011o\0" % 1_700_000_000
    content = summed(times)
    assert [member.name for member in scan(io.BytesIO(content))] == ["c.jpg"]
    assert_scanned_alike(content)


def test_a_size_in_binary_is_read() -> None:
    """As GNU tar writes it from 8 GiB on, and others always."""
    content = bytearray(archive([("a.jpg", b"x" * 600), ("b.jpg", b"y")], tarfile.GNU_FORMAT))
    content[124:136] = b"\x80" + (600).to_bytes(11, "big")
    binary = summed(content)
    assert [(member.offset, member.size) for member in scan(io.BytesIO(binary))] == [(512, 600), (2048, 1)]
    assert_scanned_alike(binary)


def summed(content: bytearray) -> bytes:
    """With the right checksum in the first header."""
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content[:512])
    return bytes(content)


@pytest.mark.parametrize("size", [0, 1, 7680, 8192, 8193, 8704, 9216, 10240])
def test_an_archive_is_closed_as_tarfile_closes_it(size: int) -> None:
    """Two zero blocks at least, then up to a whole record."""
    file = io.BytesIO()
    writer = TarWriter(file)
    writer.add("a.jpg", b"x" * size)
    writer.close()
    info = tarfile.TarInfo("a.jpg")
    info.size, info.mode, info.mtime = size, 0o644, 0
    expected = io.BytesIO()
    with tarfile.open(fileobj=expected, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info, io.BytesIO(b"x" * size))
    assert file.getvalue() == expected.getvalue()


def test_a_sample_has_no_part_of_the_one_before() -> None:
    content = archive([("a.jpg", b"a"), ("a.txt", b"of a"), ("b.jpg", b"b"), ("c.txt", b"c")], tarfile.GNU_FORMAT)
    found = list(groups(io.BytesIO(content)))
    assert [(key, list(parts)) for key, parts in found] == [("a", ["jpg", "txt"]), ("b", ["jpg"]), ("c", ["txt"])]


def test_a_folder_over_all_class_folders_is_taken_off_and_no_other() -> None:
    def names(*members: str) -> list[str]:
        return [name for name, _ in class_images(Member(name, 0, 1) for name in members)]

    assert names("train/cat/1.jpg", "train/dog/2.jpg", "train/readme.txt") == ["cat/1.jpg", "dog/2.jpg"]
    assert names("./cat/1.jpg", "./dog/2.jpg") == ["cat/1.jpg", "dog/2.jpg"]
    assert names("./train/cat/1.jpg", "./train/dog/2.jpg") == ["cat/1.jpg", "dog/2.jpg"]
    assert names("cat/1.jpg", "cat/2.jpg") == ["cat/1.jpg", "cat/2.jpg"]  # the only class
    assert names("cat/1.jpg", "cat/young/2.jpg") == ["cat/1.jpg", "cat/young/2.jpg"]
    assert names("cat/1.jpg", "2.jpg") == ["cat/1.jpg"]
