"""Which parts of a protobuf schema have no comment, by protoc's own account."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)
from grpc_tools import protoc

Location = tuple[int, ...]
"""Field numbers and indices from the file's descriptor to the element; see `SourceCodeInfo` in descriptor.proto."""

_MESSAGE = FileDescriptorProto.MESSAGE_TYPE_FIELD_NUMBER
_ENUM = FileDescriptorProto.ENUM_TYPE_FIELD_NUMBER
_SERVICE = FileDescriptorProto.SERVICE_FIELD_NUMBER

WELL_KNOWN = Path(protoc.__file__).parent / "_proto"
"""Where the types lie that protobuf brings along, such as google.protobuf.Struct."""


def describe(protos: Sequence[Path], include: Path, output: Path) -> FileDescriptorSet:
    """Compiles `protos` (below `include`) into descriptors that keep their comments; `output` is written on the way."""
    arguments = ["protoc", f"-I{include}", f"-I{WELL_KNOWN}", "--include_source_info", f"--descriptor_set_out={output}"]
    if protoc.main([*arguments, *map(str, protos)]):
        raise ValueError(f"protoc refuses one of {', '.join(map(str, protos))}")
    return FileDescriptorSet.FromString(output.read_bytes())


def uncommented(file: FileDescriptorProto) -> list[str]:
    """Names of all messages, fields, oneofs, enums, enum values, services and rpcs with no comment."""
    commented = {
        tuple(location.path)
        for location in file.source_code_info.location
        if location.leading_comments.strip() or location.trailing_comments.strip()
    }
    return [name for name, location in elements(file) if location not in commented]


def elements(file: FileDescriptorProto) -> Iterator[tuple[str, Location]]:
    """Every element that wants a comment, with its location."""
    for index, message in enumerate(file.message_type):
        yield from _in_message(message, file.package, (_MESSAGE, index))
    for index, enum in enumerate(file.enum_type):
        yield from _in_enum(enum, file.package, (_ENUM, index))
    for index, service in enumerate(file.service):
        yield from _in_service(service, file.package, (_SERVICE, index))


def _in_message(message: DescriptorProto, scope: str, location: Location) -> Iterator[tuple[str, Location]]:
    if message.options.map_entry:
        return
    name = f"{scope}.{message.name}"
    yield name, location
    synthetic = {field.oneof_index for field in message.field if field.proto3_optional}
    for index, field in enumerate(message.field):
        yield f"{name}.{field.name}", (*location, DescriptorProto.FIELD_FIELD_NUMBER, index)
    for index, oneof in enumerate(message.oneof_decl):
        if index not in synthetic:
            yield f"{name}.{oneof.name}", (*location, DescriptorProto.ONEOF_DECL_FIELD_NUMBER, index)
    for index, nested in enumerate(message.nested_type):
        yield from _in_message(nested, name, (*location, DescriptorProto.NESTED_TYPE_FIELD_NUMBER, index))
    for index, enum in enumerate(message.enum_type):
        yield from _in_enum(enum, name, (*location, DescriptorProto.ENUM_TYPE_FIELD_NUMBER, index))


def _in_enum(enum: EnumDescriptorProto, scope: str, location: Location) -> Iterator[tuple[str, Location]]:
    name = f"{scope}.{enum.name}"
    yield name, location
    for index, value in enumerate(enum.value):
        yield f"{name}.{value.name}", (*location, EnumDescriptorProto.VALUE_FIELD_NUMBER, index)


def _in_service(service: ServiceDescriptorProto, scope: str, location: Location) -> Iterator[tuple[str, Location]]:
    name = f"{scope}.{service.name}"
    yield name, location
    for index, method in enumerate(service.method):
        yield f"{name}.{method.name}", (*location, ServiceDescriptorProto.METHOD_FIELD_NUMBER, index)
