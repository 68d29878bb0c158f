"""The schema explains itself: every element has a comment."""

from __future__ import annotations

from pathlib import Path

import pytest

from .comments import describe, elements, uncommented

PROTOS = Path(__file__).resolve().parents[2] / "protos"

SAMPLE = """
syntax = "proto3";
package sample;
// Said.
message Said {
  // Said.
  optional int32 said = 1;
  int32 trailing = 2;  // Said.
  int32 unsaid = 3;
  oneof choice {
    // Said.
    int32 chosen = 4;
  }
  message Inner { int32 deep = 1; }
  // Said.
  map<int32, float> pairs = 6;
}
enum Unsaid {
  // Said.
  UNSAID_UNSPECIFIED = 0;
  UNSAID_ONE = 1;
}
service Service {
  rpc Call(Said) returns (Said);
}
"""

UNCOMMENTED = {
    "sample.Said.unsaid",
    "sample.Said.choice",
    "sample.Said.Inner",
    "sample.Said.Inner.deep",
    "sample.Unsaid",
    "sample.Unsaid.UNSAID_ONE",
    "sample.Service",
    "sample.Service.Call",
}


def test_every_element_of_the_schema_has_a_comment(tmp_path: Path) -> None:
    described = describe(sorted(PROTOS.rglob("*.proto")), PROTOS, tmp_path / "all.pb")
    names = [name for file in described.file for name, _ in elements(file)]
    assert {"outrider.v1.Drafted.first_id", "outrider.v1.VerifyService.Verify"} <= set(names)
    assert [name for file in described.file for name in uncommented(file)] == []


def test_every_enum_begins_with_unspecified(tmp_path: Path) -> None:
    described = describe(sorted(PROTOS.rglob("*.proto")), PROTOS, tmp_path / "all.pb")
    firsts = [enum.value[0] for file in described.file for enum in file.enum_type]
    assert firsts
    assert [value.name for value in firsts if value.number or not value.name.endswith("_UNSPECIFIED")] == []


def test_a_missing_comment_is_found(tmp_path: Path) -> None:
    sample = tmp_path / "sample.proto"
    sample.write_text(SAMPLE)
    (file,) = describe([sample], tmp_path, tmp_path / "sample.pb").file
    found = uncommented(file)
    assert len(found) == len(set(found))
    assert set(found) == UNCOMMENTED


def test_a_schema_that_does_not_compile_is_an_error(tmp_path: Path) -> None:
    broken = tmp_path / "broken.proto"
    broken.write_text("message {")
    with pytest.raises(ValueError, match="protoc refuses"):
        describe([broken], tmp_path, tmp_path / "broken.pb")
