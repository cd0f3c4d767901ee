"""What the routes of a collection take and give: checked strictly, and described for OpenAPI."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from starlette.requests import Request

from ...search.heads import MAX_MARKED, MAX_NAME
from ...search.polygon import MAX_COORDINATE, MAX_VERTICES
from ..images import content_type, read_json
from ..problems import RequestError
from ..search import MAX_FOUND
from ..selection import Selection

MAX_TOP = 1_000
MAX_ROW = 2**53
MAX_QUERIES = 64
MAX_EXPORTED = 1_000_000  # rows that a client names


def _whole(value: object) -> object:
    """Return a float without a fraction as an integer: JSON has no integers, only numbers."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


# the limits come before the validator, else they are missing in the description
RowNumber = Annotated[int, Field(ge=0, le=MAX_ROW), BeforeValidator(_whole)]
Pixels = Annotated[int, Field(ge=0, le=1_000_000), BeforeValidator(_whole)]
Top = Annotated[int, Field(ge=1, le=MAX_TOP), BeforeValidator(_whole)]
Count = Annotated[int, Field(ge=0, le=MAX_TOP), BeforeValidator(_whole)]
Start = Annotated[int, Field(ge=0, le=MAX_FOUND), BeforeValidator(_whole)]
Coordinate = Annotated[float, Field(ge=-MAX_COORDINATE, le=MAX_COORDINATE)]
Marks = Annotated[list[RowNumber], Field(max_length=MAX_MARKED)]
# that at least one row is marked is checked where the head is fitted, whose error says so
YesMarks = Annotated[list[RowNumber], Field(max_length=MAX_MARKED, json_schema_extra={"minItems": 1})]


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class FilterBody(_Body):
    """Conditions that a row must match; the polygon has vertices on the map.

    unknown: whether the image shows none of the model's classes, as a run with a calibration says.
    """

    label: Annotated[list[Annotated[str, Field(max_length=1_000)]], Field(max_length=1_000)] | None = None
    unknown: bool | None = None
    min_width: Pixels | None = None
    max_width: Pixels | None = None
    min_height: Pixels | None = None
    max_height: Pixels | None = None
    polygon: (
        Annotated[
            list[Annotated[list[Coordinate], Field(min_length=2, max_length=2)]],
            Field(min_length=3, max_length=MAX_VERTICES),
        ]
        | None
    ) = None

    def selection(self) -> Selection:
        """Return the same conditions as the rest of the server uses them."""
        polygon = None if self.polygon is None else tuple((x, y) for x, y in self.polygon)
        values = self.model_dump(exclude={"polygon", "label"})
        return Selection(label=None if self.label is None else tuple(self.label), polygon=polygon, **values)


class _Filtered(_Body):
    filter: FilterBody | None = None

    def selection(self) -> Selection:
        """Return the conditions; without any, every row matches."""
        return Selection() if self.filter is None else self.filter.selection()


class SearchOptionsBody(_Filtered):
    """The options of a search by uploaded files."""

    top: Top = 20
    start: Start = 0
    min_score: Annotated[float, Field(ge=-1, le=1)] | None = None
    group_duplicates: bool = False


class QueryBody(_Body):
    """A query: a row of the collection, or an image as base64 or a data URI."""

    row: RowNumber | None = None
    data: str | None = None


class SearchBody(SearchOptionsBody):
    """A search by rows and images; results resemble the queries, and not the negative ones."""

    queries: Annotated[list[QueryBody], Field(min_length=1, max_length=MAX_QUERIES)]
    negative: Annotated[list[QueryBody], Field(max_length=MAX_QUERIES)] | None = None


class SelectBody(_Filtered):
    """A page of the rows that match."""

    start: RowNumber = 0
    count: Count = 100


class ExportBody(_Filtered):
    """Rows to export: those named, or those that match."""

    rows: Annotated[list[RowNumber], Field(max_length=MAX_EXPORTED)] | None = None
    format: Literal["csv", "list"] = "csv"


class TeachBody(_Filtered):
    """Marked rows; with a name, the head is also saved."""

    yes: YesMarks
    no: Marks | None = None
    top: Top = 50
    start: Start = 0
    name: Annotated[str, Field(max_length=MAX_NAME)] | None = None
    replace: bool = False


class SaveHeadBody(_Body):
    """A head to be fitted and saved."""

    name: Annotated[str, Field(min_length=1, max_length=MAX_NAME)]
    yes: YesMarks
    no: Marks | None = None
    replace: bool = False


# --- answers ----------------------------------------------------------------------------------------------------------


class RowBody(BaseModel):
    """A row of the collection. row: its position in the listing of the run.

    unknown, set_size: whether the image shows none of the classes, and the number of classes in its prediction set;
    only if the run was made with a calibration.
    """

    row: int
    key: str
    label: str | None
    probability: float | None
    width: int
    height: int
    unknown: bool | None = None
    set_size: int | None = None


class NeighborBody(RowBody):
    """A result of a search. duplicates: rows of near-duplicates with lower scores, if they are grouped."""

    score: float
    duplicates: list[int]


class FoundBody(BaseModel):
    """Results. matching: number of rows that match the filter. rows: number of rows of the collection."""

    neighbors: list[NeighborBody]
    matching: int
    rows: int
    model: str
    fingerprint: str
    timing_ms: dict[str, float]


class SelectedBody(BaseModel):
    """A page of rows."""

    matching: int
    start: int
    rows: list[RowBody]


class RankedBody(RowBody):
    """A row with the probability of the taught class as its score, and the mark that it has."""

    score: float
    marked: Literal["yes", "no"] | None


class TaughtBody(BaseModel):
    """The rows with the highest probabilities."""

    ranked: list[RankedBody]
    matching: int
    rows: int
    train_ms: float
    separable: bool
    saved: str | None


class HeadBody(BaseModel):
    """A saved head, with the numbers of images that it was taught with."""

    name: str
    model: str
    fingerprint: str
    yes: int
    no: int


class HeadListBody(BaseModel):
    """The saved heads of the collection."""

    heads: list[HeadBody]


class LabelBody(BaseModel):
    """A predicted class and the number of its rows."""

    label: str
    count: int


class MapBody(BaseModel):
    """How the map was made; explained: the fraction of the variance that each axis of a PCA has."""

    method: Literal["pca", "umap"]
    explained: list[float]


class IndexBody(BaseModel):
    """The collection. version: changes when the index is updated. listed: number of entries of the map.

    unknown: number of images that show none of the classes; null if the run was made without a calibration.
    """

    rows: int
    listed: int
    model: str
    fingerprint: str
    version: str
    has_map: bool
    map: MapBody | None
    threshold: float
    labels: list[LabelBody]
    unknown: int | None
    width_range: list[int] | None
    height_range: list[int] | None
    heads: list[str]


# --- reading and describing -------------------------------------------------------------------------------------------

AnyBody = TypeVar("AnyBody", bound=_Body)


async def read_object(request: Request, kind: type[AnyBody]) -> AnyBody:
    """Return the JSON body of a request. Raises RequestError `bad_request`, `unsupported_media_type`."""
    if content_type(request) != "application/json":
        raise RequestError("unsupported_media_type", "Send application/json.")
    return check_object(await read_json(request), kind)


def check_object(value: object, kind: type[AnyBody]) -> AnyBody:
    """Return JSON as an object of a kind. Raises RequestError `bad_request`, which names the key that is wrong."""
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        names = [part for part in error.errors(include_url=False, include_input=False)[0]["loc"] if part in _KEYS]
        where = f'"{".".join(map(str, names))}"' if names else "The JSON body"
        raise RequestError(
            "bad_request", f"{where} is missing, not known, or has a value that is not allowed."
        ) from None


_KEYS = {
    name
    for kind in (SearchBody, SelectBody, ExportBody, TeachBody, SaveHeadBody, FilterBody, QueryBody)
    for name in kind.model_fields
}


def body_of(kind: type[BaseModel], example: object) -> dict[str, Any]:
    """Return the description of a JSON body, for the argument `openapi_extra` of FastAPI."""
    content = {"application/json": {"schema": inlined(kind), "example": example}}
    return {"requestBody": {"required": True, "content": content}}


def inlined(kind: type[BaseModel]) -> dict[str, Any]:
    """Return the JSON schema of a model without references."""
    schema = kind.model_json_schema()
    definitions = schema.pop("$defs", {})

    def resolve(part: Any) -> Any:
        if isinstance(part, dict):
            if "$ref" in part:
                return resolve(definitions[part["$ref"].rpartition("/")[2]])
            return {key: resolve(value) for key, value in part.items()}
        return [resolve(entry) for entry in part] if isinstance(part, list) else part

    resolved: dict[str, Any] = resolve(schema)
    return resolved
