"""What somebody else wrote is read within bounds, and through no link that leads elsewhere."""

import os

import pytest

from personality_vector.errors import DataError
from personality_vector.files import content_of
from personality_vector.files.ahead import look_ahead
from personality_vector.files.reading import is_stray, parse_json, read_bytes, read_text


@pytest.fixture
def pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "model.safetensors")
    return tmp_path / "pipe"


def test_a_pipe_a_device_and_a_folder_are_refused_without_waiting(pipe):
    for path in (pipe, pipe.parent):
        with pytest.raises(OSError, match=r"pipe|directory"):
            read_bytes(path)
    with pytest.raises(OSError, match="device"):
        read_bytes(type(pipe)("/dev/zero"))
    with pytest.raises(DataError, match="pipe: cannot be read: it is a pipe"):
        content_of(pipe)
    look_ahead([str(pipe.parent)])


def test_a_file_that_is_too_large_is_refused_before_it_is_read(tmp_path):
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 40)  # a hole: it takes no room
    with pytest.raises(OSError, match="at most"):
        read_bytes(tmp_path / "large")
    (tmp_path / "text").write_bytes(b"\xef\xbb\xbfa\r\nb")
    assert read_text(tmp_path / "text", most=8) == "a\nb"
    with pytest.raises(OSError, match="at most 6"):
        read_text(tmp_path / "text", most=6)


@pytest.mark.parametrize(
    "text",
    ["[" * 10**5, '{"a":' * 10**5, "[" + "[]," * 2 * 10**6, "[" + "1," * 5 * 10**6, "1" * 9999],
)
@pytest.mark.parametrize("kind", [str, bytes])
def test_json_that_is_too_deep_or_too_much_is_a_value_error(text, kind):
    with pytest.raises(ValueError, match=r"too deeply|too many parts|digits"):
        parse_json(text if kind is str else text.encode())


def test_a_link_leads_within_its_folder_or_to_the_blobs_of_its_repository(tmp_path):
    repository = tmp_path / "models--me--x"
    (repository / "blobs").mkdir(parents=True)
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    other = tmp_path / "models--you--y" / "blobs"
    other.mkdir(parents=True)
    for blob in (repository / "blobs" / "1", other / "2", tmp_path / "secret", snapshot / "own"):
        blob.write_text("{}")
    targets = {
        "../../blobs/1": False,
        "own": False,
        "../../../models--you--y/blobs/2": True,
        "../../../secret": True,
        "/etc/hostname": True,
    }
    for number, (target, expected) in enumerate(targets.items()):
        link = snapshot / f"{number}.json"
        link.symlink_to(target)
        assert is_stray(link) == expected, target
