# SPDX-License-Identifier: MIT
"""SOAP on the server side: what a call is (`identify`), its arguments as pyVmomi objects (`arguments`), replies, faults.

`identify` reads a request with expat and trusts nothing: document types and entities are refused, as is anything that is
not well-formed. It answers from the elements themselves which method of which object is called, so prefixes, comments
and attributes can not hide a call. Only calls that the gateway answers itself are decoded further, with pyVmomi's own
SoapAdapter (vcsim reference section 17.1). Replies of vcsim are never serialised anew.
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass, field
from typing import Any
from xml.parsers.expat import ExpatError, ParserCreate
from xml.sax.saxutils import escape

from pyVmomi import SoapAdapter, VmomiSupport

VERSION = "vim.version.v8_0_3_0"
VIM25 = "urn:vim25"
MAX_REQUEST = 16 << 20
MAX_DEPTH = 200
_VERSION_MARK = ' versionId="8.0.3.0"'  # pyVmomi's own; no service sends it in a reply
_SEPARATOR = " "
_ENVELOPE = (
    '<?xml version="1.0" encoding="UTF-8"?>\n'
    '<soapenv:Envelope xmlns:soapenc="http://schemas.xmlsoap.org/soap/encoding/"'
    ' xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/" xmlns:xsd="http://www.w3.org/2001/XMLSchema"'
    ' xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">\n<soapenv:Body>\n%s\n</soapenv:Body>\n</soapenv:Envelope>'
)


class MalformedRequest(ValueError):
    """The request is not a SOAP call."""


@dataclass
class Call:
    """One call: `method` (wsdl name) of namespace `namespace` on `this_type:this_id`.

    `leaf` holds the text of direct parameters, `leaf_type` their `type` attribute (of references), `option_keys` the
    keys of every `extraConfig` entry at any depth, `climbing` every text that is a datastore path with `..` in it.
    """

    namespace: str = ""
    method: str = ""
    this_type: str = ""
    this_id: str = ""
    leaf: dict[str, str] = field(default_factory=dict)
    leaf_type: dict[str, str] = field(default_factory=dict)
    option_keys: list[str] = field(default_factory=list)
    climbing: list[str] = field(default_factory=list)

    @property
    def this(self) -> str:
        """`Type:moid`."""
        return f"{self.this_type}:{self.this_id}"


def _local(tag: str) -> str:
    return tag.rpartition(_SEPARATOR)[2]


class _Identifier:
    def __init__(self) -> None:
        self.call = Call()
        self.path: list[str] = []
        self.text: list[str] = []
        self.bodies = 0

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        name = _local(tag)
        self.path.append(name)
        self.text = []
        depth = len(self.path)
        if depth > MAX_DEPTH:
            raise MalformedRequest("nested too deeply")
        if depth == 1 and name != "Envelope":
            raise MalformedRequest("not a SOAP envelope")
        if depth == 2 and name == "Body":
            self.bodies += 1
        if self.path[1:2] != ["Body"]:
            return
        if depth == 3:
            if self.call.method or self.bodies != 1:
                raise MalformedRequest("more than one call")
            self.call.namespace, self.call.method = tag.rpartition(_SEPARATOR)[0], name
        elif depth == 4:
            kind = next((v for k, v in attributes.items() if _local(k) == "type"), "").rpartition(":")[2]
            if name == "_this":
                self.call.this_type = kind
            elif kind:
                self.call.leaf_type[name] = kind

    def end(self, _tag: str) -> None:
        text = "".join(self.text)
        if self.path[1:2] == ["Body"]:
            if len(self.path) == 4:
                if self.path[3] == "_this":
                    self.call.this_id = text.strip()
                else:
                    self.call.leaf[self.path[3]] = text
            elif self.path[-2:] == ["extraConfig", "key"]:
                self.call.option_keys.append(text.strip())
            if text.lstrip().startswith("[") and ".." in re.split(r"[\s/\]]+", text):
                self.call.climbing.append(text.strip())
        self.text = []
        self.path.pop()

    def data(self, text: str) -> None:
        self.text.append(text)


def _refuse(*_: Any) -> None:
    raise MalformedRequest("document types and entities are not accepted")


def identify(raw: bytes) -> Call:
    """Which call a request is. Raises MalformedRequest."""
    parser = ParserCreate(namespace_separator=_SEPARATOR)
    parser.buffer_text = True
    seen = _Identifier()
    parser.StartElementHandler, parser.EndElementHandler = seen.start, seen.end
    parser.CharacterDataHandler = seen.data
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = _refuse
    try:
        parser.Parse(raw, True)
    except (ExpatError, UnicodeError, LookupError) as exc:
        raise MalformedRequest(f"XML: {exc}") from exc
    if not seen.call.method:
        raise MalformedRequest("no call in the body")
    return seen.call


class _Arguments(SoapAdapter.ExpatDeserializerNSHandlers):  # type: ignore[misc]
    """Feeds each child of the call to pyVmomi's deserialiser, with the type that the method's parameter has."""

    def __init__(self) -> None:
        super().__init__()
        self.depth = 0
        self.info: Any = None
        self.values: dict[str, Any] = {}
        self._open: tuple[str, Any, bool] | None = None
        self.parser = ParserCreate(namespace_separator=SoapAdapter.NS_SEP)
        self.parser.buffer_text = True
        SoapAdapter.SetHandlers(self.parser, SoapAdapter.GetHandlers(self))

    def flush(self) -> None:
        """Takes the value of the parameter that has ended."""
        if self._open is None:
            return
        name, reader, many = self._open
        self._open = None
        value = reader.GetResult()
        if many:
            self.values.setdefault(name, []).append(value)
        else:
            self.values[name] = value

    def StartElementHandler(self, tag: str, attr: dict[str, str]) -> None:
        self.flush()
        namespace, _, name = tag.rpartition(SoapAdapter.NS_SEP)
        if self.info is None:
            self.depth += 1
            if self.depth == 3:
                self.info = _method(namespace, name).info
            return
        if name == "_this":
            kind, many = VmomiSupport.ManagedObject, False
        else:
            parameter = next((p for p in self.info.params if p.name == name), None)
            if parameter is None:
                raise MalformedRequest(f"{self.info.wsdlName} has no parameter {name}")
            many = issubclass(parameter.type, list)
            kind = parameter.type.Item if many else parameter.type
        reader = SoapAdapter.SoapDeserializer(None, None)
        reader.Deserialize(self.parser, kind, nsMap=self.nsMap)
        self._open = (name, reader, many)
        reader.StartElementHandler(tag, attr)

    def EndElementHandler(self, tag: str) -> None:
        self.flush()

    def CharacterDataHandler(self, data: str) -> None:
        """Text outside parameters means nothing."""


def _method(namespace: str, name: str) -> Any:
    try:
        return VmomiSupport.GetWsdlMethod(namespace or VIM25, name)
    except KeyError:
        return VmomiSupport.GuessWsdlMethod(name)


def method_info(name: str) -> Any:
    """pyVmomi's description of a vim25 method: parameters, result, versions."""
    return VmomiSupport.GetWsdlMethod(VIM25, name).info


def has_property(kind: str, name: str) -> bool:
    """Whether objects of that wsdl type have the property in the API version that is served."""
    try:
        info = VmomiSupport.GetWsdlType(VIM25, kind)._GetPropertyInfo(name)
    except (KeyError, AttributeError):
        return False
    return bool(VmomiSupport.IsChildVersion(VERSION, info.version))


def arguments(raw: bytes) -> dict[str, Any]:
    """The parameters of a call (`identify`d before) as pyVmomi objects. Raises MalformedRequest."""
    reader = _Arguments()
    try:
        reader.parser.Parse(raw, True)
    except MalformedRequest:
        raise
    except Exception as exc:  # pyVmomi raises many kinds for wrong types and values
        raise MalformedRequest(f"{type(exc).__name__}: {exc}") from exc
    reader.flush()
    reader.values.pop("_this", None)
    return reader.values


def envelope(inner: str) -> bytes:
    """A SOAP message around `inner`."""
    return (_ENVELOPE % inner).encode()


def _namespaces() -> dict[str, str]:
    return {**SoapAdapter.SOAP_NSMAP, VIM25: ""}


def serialise(value: Any, name: str, kind: Any, flags: int = 0) -> str:
    """One value as the element `name`, vim25 being the default namespace."""
    described = VmomiSupport.Object(name=name, type=kind, version=VERSION, flags=flags | VmomiSupport.F_OPTIONAL)
    return str(SoapAdapter.SerializeToStr(value, described, VERSION, _namespaces())).replace(_VERSION_MARK, "")


def reply(method: str, result: Any = None, namespace: str = VIM25) -> bytes:
    """The reply of a vim25 method to that result (None: nothing is returned)."""
    info = method_info(method)
    inner = ""
    if result is not None:
        inner = serialise(result, "returnval", info.result, info.resultFlags)
    return response(method, inner, namespace)


def response(method: str, inner: str, namespace: str = VIM25) -> bytes:
    """The reply of a method whose content is XML already."""
    return envelope(f'<{method}Response xmlns="{escape(namespace)}">{inner}</{method}Response>')


def words(name: str) -> str:
    """What a fault without a text says: `Invalid power state.` of `InvalidPowerState`."""
    text = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)
    return text[:1] + re.sub(r"\b[A-Z](?=[a-z])", lambda match: match[0].lower(), text[1:]) + "."


def fault(value: Any, message: str = "") -> bytes:
    """A SOAP fault message with the typed fault `value` as its detail (to be sent with status 500)."""
    name = VmomiSupport.GetWsdlName(type(value)).rpartition(":")[2]
    bare = copy.copy(value)
    bare.msg = None
    described = VmomiSupport.Object(name=name + "Fault", type=object, version=VERSION, flags=0)
    detail = SoapAdapter.SerializeFaultDetail(bare, described, VERSION, _namespaces())
    detail = detail.replace(_VERSION_MARK, "")
    # pyVmomi leaves the default namespace out; strict clients need it
    detail = detail.replace(f"<{name}Fault", f'<{name}Fault xmlns="{VIM25}"', 1)
    text = escape(message or value.msg or words(name))
    return envelope(
        "<soapenv:Fault><faultcode>ServerFaultCode</faultcode>"
        f"<faultstring>{text}</faultstring><detail>{detail}</detail></soapenv:Fault>"
    )
