"""``pvec verify`` tells an output as it was written from one that was changed."""

import os

import pytest

VERB = {
    "merge": lambda lab, out: [
        "merge",
        "--base",
        lab.base,
        "--term",
        f"{lab.deltas[0]}=0.5",
        "--out",
        out,
    ],
    "delta": lambda lab, out: ["diff", lab.base, lab.tuned, "--out", out],
}


@pytest.mark.parametrize("kind", VERB)
def test_a_flipped_bit_is_seen_whatever_the_clock_says(pvec, lab, tmp_path, kind):
    assert pvec(*VERB[kind](lab, tmp_path / "out")).code == 0
    found = pvec("verify", tmp_path / "out")
    assert (found.code, found.err) == (0, "")
    assert found.out.endswith("are as written\n")
    (file,) = (tmp_path / "out").glob("*.safetensors")
    status, content = file.stat(), bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    for words in (
        ["verify", tmp_path / "out"],
        ["merge", "--base", lab.base, "--term", f"{tmp_path / 'out'}=1", "--out", tmp_path / "no"],
    ):
        ended = pvec(*words)
        assert (ended.code, ended.out) == (5, "")
        assert ended.err.count("\n") == 1
    assert not (tmp_path / "no").exists()


def test_a_merge_is_computed_again(pvec, lab, tmp_path):
    assert pvec(*VERB["merge"](lab, tmp_path / "out")).code == 0
    words = ["verify", tmp_path / "out", "--base", lab.base, "--term"]
    assert "bit for bit" in pvec(*words, f"{lab.deltas[0]}=0.5").out
    other = pvec(*words, f"{lab.deltas[0]}=0.25")
    assert (other.code, "is not this merge" in other.err) == (5, True)
    strangers = pvec("verify", lab.base)
    assert (strangers.code, "is not an output of this tool" in strangers.err) == (1, True)
    assert pvec("verify", tmp_path / "out", "--method", "ties").code == 1
